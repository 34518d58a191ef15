"""Does the region that was matched to a word or phrase lie where the finding is?

A phrase has a similarity with every box of an image. Two ways of pointing are scored, the centre of the best box and
the maximum of the similarity map, next to overlap, contrast and two kinds of chance. Numpy alone; boxes are xyxy in
pixels of the original image.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from adamatch_ray.geometry import box_iou

Array = NDArray[np.float64]

GRID = 64
"""Cells a side of a similarity map, whatever the image's size."""

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)
"""Cosine similarities above which a map says "here" (the practice on MS-CXR)."""


class Localization(NamedTuple):
    """How well one phrase was placed.

    box_hit: the centre of the most similar box lies in the truth; iou: of that box with the truth box it fits best.
    map_hit: the maximum of the similarity map lies in the truth; mean_iou: of map and truth, over THRESHOLDS.
    cnr: contrast-to-noise ratio of the map, NaN where the truth is the whole image.
    chance: share of the image that the truth covers; shuffled: box_hit expected of another word of the same report,
    NaN where there is none.
    """

    box_hit: bool
    map_hit: bool
    iou: float
    mean_iou: float
    cnr: float
    chance: float
    shuffled: float


class LocalizedPhrase(NamedTuple):
    """One phrase of one study, the finding that it names, and how well it was placed."""

    study_id: str
    finding: str
    phrase: str
    score: Localization


class Averages(NamedTuple):
    """Means of the fields of `Localization` over so many phrases, those undefined (NaN) left out."""

    phrases: int
    box_hit: float
    map_hit: float
    iou: float
    mean_iou: float
    cnr: float
    chance: float
    shuffled: float


class Summary(NamedTuple):
    """Averages of each finding; `macro`: mean of the findings' averages; `micro`: over all phrases."""

    findings: dict[str, Averages]
    macro: Averages
    micro: Averages


def locate(
    similarity_P: ArrayLike,
    boxes_P4: ArrayLike,
    truth_T4: ArrayLike,
    height: int,
    width: int,
    others_NP: ArrayLike | None = None,
) -> Localization:
    """Score one phrase against its truth boxes, of which there is at least one.

    `others_NP` are similarities of the report's other words with the same boxes.
    """
    similarity, boxes, truth = (np.asarray(a, dtype=np.float64) for a in (similarity_P, boxes_P4, truth_T4))
    assert len(truth) and similarity.shape == boxes.shape[:1], (similarity.shape, boxes.shape, truth.shape)
    best = int(similarity.argmax())
    heat = similarity_map(similarity, boxes, height, width)
    inside = truth_map(truth, height, width)
    others = np.empty((0, len(boxes))) if others_NP is None else np.asarray(others_NP)
    return Localization(
        box_hit=bool(_hits(boxes[[best]], truth)[0]),
        map_hit=bool(contains(truth, *map_maximum(heat, height, width))),
        iou=float(box_iou(boxes[[best]], truth).max()),
        mean_iou=_mean_iou(heat, inside),
        cnr=_contrast_to_noise(heat, inside),
        chance=float(inside.mean()),
        shuffled=float(_hits(boxes[others.argmax(1)], truth).mean()) if len(others) else float("nan"),
    )


def summarize(rows: Sequence[LocalizedPhrase]) -> Summary:
    """Averages by finding, in alphabetical order, and overall. Raises ValueError where there is nothing to average."""
    if not rows:
        raise ValueError("no phrase with a known place: these studies have no boxes for what their reports say")
    groups: dict[str, list[Localization]] = {}
    for row in sorted(rows, key=lambda row: row.finding):
        groups.setdefault(row.finding, []).append(row.score)
    findings = {name: _averages(np.array(scores, dtype=np.float64)) for name, scores in groups.items()}
    by_finding = np.array([average[1:] for average in findings.values()])
    micro = _averages(np.array([row.score for row in rows], dtype=np.float64))
    return Summary(findings, _averages(by_finding)._replace(phrases=len(rows)), micro)


def roc_auc(shown: Sequence[float], lacks: Sequence[float]) -> float:
    """How often a value of `shown` is above one of `lacks`, ties counting half; NaN where either is empty."""
    if not len(shown) or not len(lacks):
        return float("nan")
    low = np.sort(np.asarray(lacks, dtype=np.float64))
    below = (np.searchsorted(low, shown, "left") + np.searchsorted(low, shown, "right")) / 2
    return float(below.mean() / len(low))


def similarity_map(similarity_P: Array, boxes_P4: Array, height: int, width: int) -> Array:
    """Mean similarity [GRID, GRID] of the boxes over each cell of the image, weighted by the share they cover.

    A cell that no box covers has the least similarity of all.
    """
    across_PG, down_PG = _cover(boxes_P4[:, 0::2], width), _cover(boxes_P4[:, 1::2], height)
    weight = down_PG.T @ across_PG
    total = (down_PG * similarity_P[:, None]).T @ across_PG
    bare = np.full_like(total, similarity_P.min())
    return np.divide(total, weight, out=bare, where=weight > 1e-9)


def truth_map(truth_T4: Array, height: int, width: int) -> Array:
    """Share [GRID, GRID] of each cell that a truth box covers, the largest one's where several do."""
    across, down = _cover(truth_T4[:, 0::2], width), _cover(truth_T4[:, 1::2], height)
    return np.asarray((down[:, :, None] * across[:, None, :]).max(0))


def map_maximum(heat_GG: Array, height: int, width: int) -> tuple[float, float]:
    """Where a map is highest, (x, y) in original pixels: the middle of all cells that share the maximum."""
    rows, columns = np.nonzero(heat_GG >= heat_GG.max() - 1e-9)
    return float((columns.mean() + 0.5) / GRID * width), float((rows.mean() + 0.5) / GRID * height)


def contains(boxes_T4: Array, x: float, y: float) -> bool:
    """Whether a point lies in any box, edges included."""
    x0, y0, x1, y1 = boxes_T4.T
    return bool(((x0 <= x) & (x <= x1) & (y0 <= y) & (y <= y1)).any())


def _cover(edges_P2: Array, length: float) -> Array:
    """Share [P, GRID] of each of GRID equal cells of [0, length] that lies between two edges."""
    cell = np.arange(GRID)
    low, high = edges_P2[:, :1] * GRID / length, edges_P2[:, 1:] * GRID / length
    return np.clip(np.minimum(high, cell + 1) - np.maximum(low, cell), 0.0, 1.0)


def _hits(boxes_N4: Array, truth_T4: Array) -> NDArray[np.bool_]:
    x, y = (boxes_N4[:, 0] + boxes_N4[:, 2]) / 2, (boxes_N4[:, 1] + boxes_N4[:, 3]) / 2
    return np.array([contains(truth_T4, *point) for point in zip(x, y, strict=True)], dtype=bool)


def _mean_iou(heat_GG: Array, inside_GG: Array) -> float:
    said = heat_GG >= np.array(THRESHOLDS)[:, None, None]
    both = (said * inside_GG).sum((1, 2))
    return float((both / (inside_GG.sum() + (said * (1 - inside_GG)).sum((1, 2)))).mean())


def _contrast_to_noise(heat_GG: Array, inside_GG: Array) -> float:
    """|mean inside - mean outside| / sqrt(variance inside + variance outside), cells weighted by their share."""
    outside_GG = 1.0 - inside_GG
    if outside_GG.sum() < 1e-9:
        return float("nan")
    means = [float(np.average(heat_GG, weights=part)) for part in (inside_GG, outside_GG)]
    spread = [
        float(np.average((heat_GG - mean) ** 2, weights=part))
        for mean, part in zip(means, (inside_GG, outside_GG), strict=True)
    ]
    return abs(means[0] - means[1]) / max(float(np.sqrt(sum(spread))), 1e-9)


def _averages(values_RF: Array) -> Averages:
    known = ~np.isnan(values_RF)
    count = known.sum(0)
    total = np.where(known, values_RF, 0.0).sum(0)
    means = np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
    return Averages(len(values_RF), *means.tolist())
