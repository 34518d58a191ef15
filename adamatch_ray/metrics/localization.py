"""Does the region that was matched to a word or phrase lie where the finding is?

A phrase has one region (a point and a box), a map of how much each place resembles it, and a patch that does so most.
All are scored, next to contrast and two kinds of chance. Numpy alone; boxes are xyxy in pixels of the original image.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from adamatch_ray.geometry import box_iou

Array = NDArray[np.float64]

GRID = 64
"""Cells a side of a similarity map, whatever the image's size."""

THIN = frozenset({"atelectasis", "fracture", "lead", "tube", "wires"})
SMALL = frozenset({"fracture", "granuloma", "nodule", "pacemaker"})
GROUPS: dict[str, Callable[[str], bool]] = {
    "thin": lambda finding: finding in THIN,
    "blob": lambda finding: finding not in THIN,
    "small": lambda finding: finding in SMALL,
}
"""Findings of phantoms that ask for something else: lines, all others, and those smaller than a patch's stride."""

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)
"""Cosine similarities above which a map says "here" (the practice on MS-CXR)."""


class Localization(NamedTuple):
    """How well one phrase was placed.

    point_hit: the region's point lies in the truth; box_iou: of the region's box with the truth box it fits best;
    box_half: whether that is at least one half.
    patch_hit, patch_iou: the same of the single most similar patch, its centre and its box.
    map_hit: the maximum of the map lies in the truth; map_miou: overlap of map and truth, mean over THRESHOLDS.
    cnr: contrast-to-noise ratio of the map, NaN where the truth is the whole image.
    chance: share of the image that the truth covers; shuffled: point_hit expected of another word of the same report,
    NaN where there is none.
    """

    point_hit: bool
    box_iou: float
    box_half: bool
    patch_hit: bool
    patch_iou: float
    map_hit: bool
    map_miou: float
    cnr: float
    chance: float
    shuffled: float


class Pointed(NamedTuple):
    """What is said of a phrase's place: a point (x, y), a box, and a map [GRID, GRID] over the image.

    Without a map, that of the patches' similarities is scored.
    """

    point: tuple[float, float]
    box: tuple[float, float, float, float]
    heat_GG: ArrayLike | None = None


class LocalizedPhrase(NamedTuple):
    """One phrase of one study, the finding that it names, whether it counts as shown, and how well it was placed."""

    study_id: str
    finding: str
    phrase: str
    groundable: bool
    score: Localization


class Averages(NamedTuple):
    """Means of the fields of `Localization` over so many phrases, those undefined (NaN) left out."""

    phrases: int
    point_hit: float
    box_iou: float
    box_half: float
    patch_hit: float
    patch_iou: float
    map_hit: float
    map_miou: float
    cnr: float
    chance: float
    shuffled: float


class Summary(NamedTuple):
    """Averages of each finding; `macro`: mean of the findings' averages; `micro`: over all phrases.

    groups: averages over the phrases of some findings together, see GROUPS.
    """

    findings: dict[str, Averages]
    groups: dict[str, Averages]
    macro: Averages
    micro: Averages


def locate(
    similarity_P: ArrayLike,
    boxes_P4: ArrayLike,
    truth_T4: ArrayLike,
    height: int,
    width: int,
    pointed: Pointed,
    others_N2: ArrayLike = (),
) -> Localization:
    """Score one phrase against its truth boxes, of which there is at least one.

    `others_N2` are the points of the report's other words.
    """
    similarity, boxes, truth = (np.asarray(a, dtype=np.float64) for a in (similarity_P, boxes_P4, truth_T4))
    assert len(truth) and similarity.shape == boxes.shape[:1], (similarity.shape, boxes.shape, truth.shape)
    best = int(similarity.argmax())
    given = pointed.heat_GG
    heat = similarity_map(similarity, boxes, height, width) if given is None else np.asarray(given, dtype=np.float64)
    inside = truth_map(truth, height, width)
    others = [contains(truth, *point) for point in np.asarray(others_N2, dtype=np.float64).reshape(-1, 2)]
    overlap = float(box_iou(np.array([pointed.box]), truth).max())
    return Localization(
        point_hit=contains(truth, *pointed.point),
        box_iou=overlap,
        box_half=overlap >= 0.5,
        patch_hit=contains(truth, *((boxes[best, :2] + boxes[best, 2:]) / 2)),
        patch_iou=float(box_iou(boxes[[best]], truth).max()),
        map_hit=contains(truth, *map_maximum(heat, height, width)),
        map_miou=_mean_iou(heat, inside),
        cnr=_contrast_to_noise(heat, inside),
        chance=float(inside.mean()),
        shuffled=float(np.mean(others)) if others else float("nan"),
    )


def summarize(rows: Sequence[LocalizedPhrase]) -> Summary:
    """Averages by finding, in alphabetical order, and overall. Raises ValueError where there is nothing to average."""
    if not rows:
        raise ValueError("no phrase with a known place: these studies have no boxes for what their reports say")
    groups: dict[str, list[Localization]] = {}
    for row in sorted(rows, key=lambda row: row.finding):
        groups.setdefault(row.finding, []).append(row.score)
    findings = {name: _averages(np.array(scores, dtype=np.float64)) for name, scores in groups.items()}
    together = {name: [row.score for row in rows if belongs(row.finding)] for name, belongs in GROUPS.items()}
    grouped = {name: _averages(np.array(scores, dtype=np.float64)) for name, scores in together.items() if scores}
    by_finding = np.array([average[1:] for average in findings.values()])
    micro = _averages(np.array([row.score for row in rows], dtype=np.float64))
    return Summary(findings, grouped, _averages(by_finding)._replace(phrases=len(rows)), micro)


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
