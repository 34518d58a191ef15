"""What is measured of one image, ours or a real one: features, findings and NIQE.

Images go through the networks in fixed batches and, without a GPU, on one thread, so that no figure depends on the
machine's cores or on the batch size of anything else.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from adamatch_ray.data.images import BadImage, Pixels
from adamatch_ray.data.predictions import Encoded, load_canvas
from adamatch_ray.engines.loader import load_classifier
from adamatch_ray.metrics import extractors
from adamatch_ray.metrics.niqe import BLOCK, NiqeParameters, niqe
from adamatch_ray.shards import Progress
from adamatch_ray.storage import Root

BATCH = 32
Array = NDArray[np.floating]
Extractor = Literal["encoder", "densenet", "inception"]


class Measured(NamedTuple):
    """Rows of B images: features [B, D], probabilities [B, 14], NIQE [B] (NaN: not defined), readable [B].

    `across_BL` as in `engines.classifying.Judgement`.
    """

    feature_BD: Array
    probability_BL: Array
    across_BL: Array
    niqe_B: Array
    readable_B: NDArray[np.bool_]


class ImageMeter:
    """Measures images. `name` and `dimensions` are those of the features, `judge` is the classifier's name."""

    def __init__(
        self, root: Root, judge: str, canvas: int, device: str, extractor: Extractor, weights: str,
        niqe: NiqeParameters | None,
    ) -> None:  # fmt: skip
        """`judge`: the root whose classifier judges, where that is another one. No `niqe`: that column is all NaN."""
        self.canvas, self.parameters = canvas, niqe
        self.classifier = load_classifier(Root(judge) if judge else root, device)
        self.judge = f"{'another' if judge else 'this'} run's {self.classifier.name}"
        self.name, self.dimensions = self.judge, self.classifier.dimensions
        self.extractor: extractors.NamedExtractor | None = None
        if extractor != "encoder":
            if not weights:
                raise ValueError(f"FID with {extractor} needs its weights: --evaluate.extractor_weights FILE")
            made = {"densenet": extractors.xray_densenet, "inception": extractors.inception}[extractor]
            self.extractor = made(weights, device)
            self.name, self.dimensions = self.extractor.name, self.extractor.dimensions

    def __call__(self, images: Sequence[Encoded]) -> Measured:
        """Measure images, in order. An unreadable one is measured as a black canvas and marked."""
        starts, parts = range(0, len(images), BATCH), []
        progress = Progress("metrics: images,", len(starts), "batches")
        for start in starts:
            parts.append(self._measure(images[start : start + BATCH]))
            progress.add()
        return Measured(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def _measure(self, images: Sequence[Encoded]) -> Measured:
        canvases = [self._load(image) for image in images]
        readable_B = np.array([canvas is not None for canvas in canvases])
        canvas_BHW = np.stack([self._black() if canvas is None else canvas for canvas in canvases])
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            judged = self.classifier(canvas_BHW)
            features = self.extractor(torch.from_numpy(canvas_BHW)).cpu().numpy() if self.extractor else None
        finally:
            torch.set_num_threads(threads)
        feature_BD = judged.feature_BD if features is None else features
        niqe_B = np.array([self._niqe(canvas) for canvas in canvas_BHW])
        return Measured(feature_BD, judged.probability_BL, judged.across_BL, niqe_B, readable_B)

    def _load(self, image: Encoded) -> Pixels | None:
        try:
            return load_canvas(image, self.canvas)
        except BadImage:
            return None

    def _black(self) -> Pixels:
        return np.zeros((self.canvas, self.canvas), dtype=np.uint8)

    def _niqe(self, canvas: Pixels) -> float:
        if self.parameters is None or np.ptp(canvas) == 0:
            return float("nan")
        try:
            return float(niqe(canvas[None], self.parameters)[0])
        except ValueError:  # every whole block of it is flat
            return float("nan")


def niqe_fits(canvas: int) -> bool:
    """Whether a canvas is large enough for one block of NIQE."""
    return canvas >= BLOCK
