"""Cycle consistency, which the paper argues for and does not measure (docs/method.md 4).

report → X-ray → report: does the second report still say what the first said, and does AdaMatch find the first report
from the X-ray between them? X-ray → report → X-ray: does it find the study's own report from the second X-ray, and
does that show what the study says? Beside each step stands the same with the real X-ray in place of the drawn one. A
step that failed counts as an empty report, or as an X-ray that finds nothing.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adamatch_ray.data.images import BadImage
from adamatch_ray.data.predictions import Encoded, load_canvas
from adamatch_ray.engines.embedding import Embedder, SplitEmbeddings
from adamatch_ray.evaluation.split import Placed, Split
from adamatch_ray.metrics import retrieval

BATCH = 32


def score(
    split: Split, placed: Placed[Encoded], embedder: Embedder, embedded: SplitEmbeddings, canvas: int
) -> dict[str, Any]:
    """R@K in percent of each image's own report among all reports of the split; identical reports are hits.

    `embedded` is the whole split, the studies that are scored first. An image that is missing or unreadable scores all
    reports alike, which finds none.
    """
    heads, there = _embed([placed.values.get(id) for id in split.ids], embedder, canvas)
    scores = retrieval.score_pairs(heads, embedded.word_IND, embedded.mask_IN, embedder.device).image_to_text
    scores[~there] = 0.0
    found = retrieval.recall_rows("image_to_text", scores, embedded.reports)
    return {"studies": len(split.studies), **placed.to_json(), "unreadable": len(placed.values) - int(there.sum()),
            "recall": found}  # fmt: skip


def _embed(images: Sequence[Encoded | None], embedder: Embedder, canvas: int) -> tuple[list[Tensor], np.ndarray]:
    """Heads [I, P, D] of all images, black where there is none, and which of them are there [I]."""
    parts, there = [], []
    for start in range(0, len(images), BATCH):
        canvases = np.zeros((len(images[start : start + BATCH]), canvas, canvas), dtype=np.uint8)
        for row, image in enumerate(images[start : start + BATCH]):
            try:
                canvases[row] = load_canvas(image if image is not None else b"", canvas)
                there.append(True)
            except BadImage:
                there.append(False)
        parts.append([head.cpu() for head in embedder.images(canvases).heads])
    return [torch.cat(head) for head in zip(*parts, strict=True)], np.array(there)
