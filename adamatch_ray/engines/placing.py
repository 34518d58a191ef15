"""Where the words and phrases of a report are seen in its image: by a place head's map, or by the patches alone."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adamatch_ray.engines.embedding import Embedder, Look, ReportWord
from adamatch_ray.engines.phrases import PhraseFinder, finding_words
from adamatch_ray.engines.regions import MapReader, Region, shifts, soft_point
from adamatch_ray.geometry import CanvasImage
from adamatch_ray.models import place_head
from adamatch_ray.models.place_head import PlaceHead


class Phrase(NamedTuple):
    """One mention of a finding, by the lexicon's term for it: the numbers of its words, and where it is seen.

    start: where it begins in the report. denied: the report says that it is absent; it has no region. groundable: the
    image shows it, as far as a place head tells; without one, whatever is not denied. confidence: in [0, 1], that the
    image shows it; without a place head the best patch's cosine.
    """

    finding: str
    text: str
    start: int
    words: tuple[int, ...]
    denied: bool
    groundable: bool
    confidence: float
    region: Region | None


class Sight(NamedTuple):
    """What tells the place in one image: its patches in all views, unit boxes of the canvas; the place head's features.

    Patches on the padding beside the image are left out.
    """

    patch_VD: Tensor
    boxes_V4: NDArray[np.float32]
    feature_DGG: Tensor | None


class Placed(NamedTuple):
    """The phrases of a report, and for each of its words a region: that of its phrase, None where that is denied."""

    phrases: tuple[Phrase, ...] = ()
    regions: tuple[Region | None, ...] = ()


class Placer:
    """Places words. `shifted`: look at 16 shifted views of each image as well, for 17 times the work."""

    def __init__(self, embedder: Embedder, head: PlaceHead | None, shifted: bool = False) -> None:
        self._embedder, self._head, self._shifted = embedder, head, shifted
        self._finder = PhraseFinder()
        sizes = embedder.model.sizes
        self._grid = sizes.image.grid(sizes.adamatch.stage)

    @property
    def stages(self) -> int:
        """Stages of the image encoder that must be looked at."""
        return place_head.STAGES if self._head else 0

    @torch.inference_mode()
    def sights(self, images: Sequence[CanvasImage], look: Look) -> list[Sight]:
        """What tells the place in each of some images, which are on canvases of one size; `look` is theirs."""
        views = [(self._embedder.places(look.patches), look.patches.boxes_BP4)]
        canvas_BHW = np.stack([image.pixels for image in images])
        for x, y in shifts(self._grid).tolist() if self._shifted else ():
            crop_B4 = torch.tensor([[x, y, 1 + x, 1 + y]], device=self._embedder.device).expand(len(images), -1)
            patches = self._embedder.images(canvas_BHW, crop_B4)
            back_4 = torch.tensor([x, y, x, y], device=self._embedder.device)
            views.append((self._embedder.places(patches), patches.boxes_BP4 + back_4))
        patch_BVD, boxes_BV4 = (torch.cat(parts, 1) for parts in zip(*views, strict=True))
        features = None if self._head is None else self._head(look.input_BCHW, look.stages)
        sights = []
        for b, image in enumerate(images):
            boxes_V4 = boxes_BV4[b].cpu().numpy()
            shown_V = image.shows(boxes_V4)
            patch_VD = patch_BVD[b, torch.from_numpy(shown_V).to(patch_BVD.device)]
            sights.append(Sight(patch_VD, boxes_V4[shown_V], None if features is None else features[b]))
        return sights

    @torch.inference_mode()
    def place(
        self, image: CanvasImage, sight: Sight, report: str, words: Sequence[ReportWord], word_ND: Tensor
    ) -> Placed:
        """Where the report's phrases and words (features [N, D]) are seen in the image."""
        if not len(sight.boxes_V4):
            return Placed((), (None,) * len(words))
        mentions = self._finder.find(report, words)
        found = finding_words(mentions, word_ND)
        places = self._by_map(image, sight, found) if self._head else self._by_patches(image, sight, found)
        regions: list[Region | None] = [self._soft(image, sight, feature)[0] for feature in word_ND]
        phrases = []
        for mention in mentions:
            phrase = Phrase(*mention, *((False, 0.0, None) if mention.denied else places[mention.finding]))
            phrases.append(phrase)
            for n in mention.words:
                regions[n] = phrase.region
        return Placed(tuple(phrases), tuple(regions))

    def _by_map(
        self, image: CanvasImage, sight: Sight, found: dict[str, Tensor]
    ) -> dict[str, tuple[bool, float, Region]]:
        """Whether each finding is shown, how surely, and where."""
        if not found:
            return {}
        assert self._head is not None and sight.feature_DGG is not None
        logit_JGG = self._head.logits(sight.feature_DGG, torch.stack(list(found.values()))).float()
        evidence_J = place_head.evidence(logit_JGG)
        shown_J = (evidence_J >= self._head.shown_from).tolist()
        reader = MapReader(image, logit_JGG.shape[-1])
        regions = [reader.region(map_GG) for map_GG in logit_JGG.sigmoid().double().cpu().numpy()]
        return dict(zip(found, zip(shown_J, evidence_J.sigmoid().tolist(), regions, strict=True), strict=True))

    def _by_patches(
        self, image: CanvasImage, sight: Sight, found: dict[str, Tensor]
    ) -> dict[str, tuple[bool, float, Region]]:
        places = {finding: self._soft(image, sight, feature_D) for finding, feature_D in found.items()}
        return {finding: (True, min(1.0, max(0.0, best)), region) for finding, (region, best) in places.items()}

    def _soft(self, image: CanvasImage, sight: Sight, feature_D: Tensor) -> tuple[Region, float]:
        similarity_V = (sight.patch_VD @ feature_D).double().cpu().numpy()
        return soft_point(similarity_V, sight.boxes_V4.astype(np.float64), 1 / self._grid, image), float(
            similarity_V.max()
        )
