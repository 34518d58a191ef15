"""Scores of a phrase's place, on maps and boxes whose answers are known by hand; and a split of phantoms."""

from pathlib import Path

import numpy as np
import pytest

from adamatch_ray.data import loading
from adamatch_ray.data.phantom_report import FINDING_WORDS
from adamatch_ray.engines.loader import load_embedder
from adamatch_ray.engines.localizing import canvas_image, localize_split
from adamatch_ray.engines.matching import MatchingEngine
from adamatch_ray.geometry import box_iou
from adamatch_ray.metrics.localization import (
    GRID,
    THRESHOLDS,
    Localization,
    LocalizedPhrase,
    Pointed,
    locate,
    map_maximum,
    similarity_map,
    summarize,
    truth_map,
)
from adamatch_ray.storage import Root

NOWHERE = Pointed((0.0, 0.0), (0.0, 0.0, 0.0, 0.0))
"""A region for what is scored on patches alone."""

QUARTERS = np.array([[0, 0, 100, 50], [100, 0, 200, 50], [0, 50, 100, 100], [100, 50, 200, 100]], dtype=float)
"""Four boxes that tile an image of 100 x 200 pixels."""


def test_a_phrase_in_its_box_scores_full_marks() -> None:
    score = locate([0.0, 0.0, 0.0, 0.9], QUARTERS, QUARTERS[3:], 100, 200, Pointed((150, 75), (100, 50, 200, 100)))
    assert score.point_hit and score.patch_hit and score.map_hit and score.box_half
    assert score.box_iou == score.patch_iou == 1.0 and score.map_miou == pytest.approx(1.0)
    assert score.cnr > 1e6 and score.chance == pytest.approx(0.25)
    assert np.isnan(score.shuffled)


def test_a_phrase_elsewhere_scores_none() -> None:
    score = locate([0.9, 0.0, 0.0, 0.0], QUARTERS, QUARTERS[3:], 100, 200, Pointed((50, 25), (0, 0, 100, 50)))
    assert not (score.point_hit or score.patch_hit or score.map_hit or score.box_half)
    assert score.box_iou == score.patch_iou == score.map_miou == 0.0


def test_x_runs_to_the_right_and_y_down() -> None:
    """Swapped axes: the truth at the upper right of a wide image."""
    assert locate([0.0, 0.9, 0.0, 0.0], QUARTERS, [[150, 0, 200, 30]], 100, 200, NOWHERE).patch_hit is True
    assert locate([0.0, 0.0, 0.9, 0.0], QUARTERS, [[150, 0, 200, 30]], 100, 200, NOWHERE).patch_hit is False


def test_iou_is_that_of_the_best_box_with_the_truth_box_it_fits_best() -> None:
    truth = [[0, 0, 10, 10], [100, 50, 200, 75]]
    score = locate([0, 0, 0, 0.9], QUARTERS, truth, 100, 200, Pointed((5, 5), (0, 0, 10, 20)))
    assert score.patch_iou == score.box_iou == pytest.approx(0.5) and score.box_half


def test_known_overlaps() -> None:
    a = np.array([[0, 0, 2, 2], [1, 1, 1, 1]], dtype=float)
    b = np.array([[1, 1, 3, 3], [0, 0, 2, 2], [1, 1, 1, 1]], dtype=float)
    np.testing.assert_allclose(box_iou(a, b), [[1 / 7, 1.0, 0.0], [0.0, 0.0, 0.0]])


def test_mean_iou_counts_each_threshold() -> None:
    """Similarity .35 passes .1, .2 and .3 of the five; the whole of the truth and as much beside it is marked."""
    score = locate([0.35, 0.35, -1, -1], QUARTERS, QUARTERS[:1], 100, 200, NOWHERE)
    assert score.map_miou == pytest.approx(0.5 * 3 / len(THRESHOLDS))


def test_contrast_to_noise_by_hand() -> None:
    """Inside .6 everywhere; outside .3, .0 and .0: mean .1, variance .02."""
    score = locate([0.6, 0.3, 0.0, 0.0], QUARTERS, QUARTERS[:1], 100, 200, NOWHERE)
    assert score.cnr == pytest.approx(0.5 / np.sqrt(0.02))
    assert np.isnan(locate([0.6, 0.3, 0.0, 0.0], QUARTERS, [[0, 0, 200, 100]], 100, 200, NOWHERE).cnr)


def test_overlapping_boxes_are_averaged_and_bare_cells_have_the_least() -> None:
    boxes = np.array([[0, 0, 64, 64], [0, 0, 32, 64]], dtype=float)
    heat = similarity_map(np.array([0.2, 0.6]), boxes, 128, 64)
    assert heat.shape == (GRID, GRID)
    assert heat[0, 0] == pytest.approx(0.4) and heat[0, -1] == pytest.approx(0.2)
    assert (heat[GRID // 2 :] == 0.2).all()


def test_the_maximum_of_a_plateau_is_its_middle() -> None:
    heat = np.zeros((GRID, GRID))
    heat[:16, -32:] = 1.0
    assert map_maximum(heat, height=640, width=128) == pytest.approx((96.0, 80.0))


def test_a_truth_smaller_than_a_cell_still_counts() -> None:
    tiny = np.array([[101.0, 51.0, 101.5, 51.2]])
    assert truth_map(tiny, 100, 200).mean() == pytest.approx(0.5 * 0.2 / (100 * 200))
    assert np.isfinite(locate([0, 0, 0, 0.9], QUARTERS, tiny, 100, 200, NOWHERE).cnr)


def test_boxes_of_no_area_still_point() -> None:
    points = np.array([[20, 20, 20, 20], [150, 75, 150, 75]], dtype=float)
    score = locate([0.1, 0.8], points, [[140, 70, 160, 80]], 100, 200, NOWHERE)
    assert score.patch_hit and score.patch_iou == 0.0


def test_other_words_are_the_chance_of_a_shuffle() -> None:
    others = [(150, 75), (50, 25), (150, 25), (50, 75)]
    assert locate([0, 0, 0, 1], QUARTERS, QUARTERS[3:], 100, 200, NOWHERE, others).shuffled == 0.25


def test_a_map_that_is_given_is_scored_in_place_of_the_patches() -> None:
    heat = np.zeros((GRID, GRID))
    heat[:32, :32] = 1.0
    score = locate([0, 0, 0, 1], QUARTERS, QUARTERS[:1], 100, 200, NOWHERE._replace(heat_GG=heat))
    assert score.map_hit and score.map_miou == 1.0 and not score.patch_hit


def row(finding: str, hit: bool, cnr: float) -> LocalizedPhrase:
    score = Localization(hit, 0.5, True, hit, 0.5, hit, 0.5, cnr, 0.1, float("nan"))
    return LocalizedPhrase("s", finding, finding, True, score)


def test_micro_counts_phrases_and_macro_findings() -> None:
    rows = [row("nodule", True, 1.0)] * 3 + [row("edema", False, float("nan")), row("edema", False, 2.0)]
    summary = summarize(rows)
    assert list(summary.findings) == ["edema", "nodule"]
    assert summary.findings["nodule"].point_hit == 1.0 and summary.findings["edema"].phrases == 2
    assert summary.micro.point_hit == pytest.approx(0.6) and summary.macro.point_hit == pytest.approx(0.5)
    assert summary.findings["edema"].cnr == 2.0, "what is undefined takes no part"
    assert np.isnan(summary.micro.shuffled)
    assert list(summary.groups) == ["blob", "small"] and summary.groups["small"].phrases == 3
    with pytest.raises(ValueError, match="no boxes"):
        summarize([])


def test_a_split_of_phantoms_gives_a_row_to_every_mention(cycle_root: Path) -> None:
    root = Root(str(cycle_root))
    engine = MatchingEngine(load_embedder(root))
    located = localize_split(engine, root.stage("studies"), "test", batch_size=5)
    rows = located.rows
    assert len(located.shown) == len(rows) and located.lacks and located.denied > 5
    assert located.unplaced == located.denied_placed == 0, "each finding has a region, and none that is denied"
    table = next(loading.read_split(root.stage("studies"), "test"))
    studies = {study["study_id"]: study for study in table.to_pylist()}
    drawn = {(study["study_id"], box["name"]) for study in studies.values() for box in study["boxes"]}
    seen = {(row.study_id, row.finding) for row in rows}
    assert len(seen) > 5 and seen <= drawn
    for entry in rows:
        words = [word.strip(".,;").lower() for word in studies[entry.study_id]["report"].split()]
        assert entry.phrase in FINDING_WORDS[entry.finding] and entry.phrase in words
        assert 0 < entry.score.chance < 1 and 0 <= entry.score.shuffled <= 1
    whole = localize_split(engine, root.stage("studies"), "test", batch_size=16).rows
    assert [(r.study_id, r.phrase, r.score.point_hit) for r in rows] == [
        (r.study_id, r.phrase, r.score.point_hit) for r in whole
    ]


def test_a_model_that_knows_the_place_is_scored_as_one(cycle_root: Path) -> None:
    """Words replaced by the truth: if geometry or the order of boxes were wrong, a perfect map would miss."""
    root = Root(str(cycle_root))
    engine = MatchingEngine(load_embedder(root))
    hits = []
    for study in next(loading.read_split(root.stage("studies"), "test")).to_pylist():
        match = engine.match([canvas_image(study)], ["none"])[0]
        for box in study["boxes"]:
            truth = np.array([[box["x0"], box["y0"], box["x1"], box["y1"]]])
            overlap, size = box_iou(match.boxes_P4, truth)[:, 0], (study["height"], study["width"])
            score = locate(overlap, match.boxes_P4, truth, *size, NOWHERE)
            if min(truth[0, 2] - truth[0, 0], truth[0, 3] - truth[0, 1]) > 0.2 * study["width"]:
                hits.append(score.patch_hit)
    assert len(hits) >= 3 and all(hits)
