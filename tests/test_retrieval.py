"""Recall at K against a plain count, its three protocols, and the cases that flatter a score if they go unseen."""

from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from adamatch_ray.metrics.retrieval import (
    PairScores,
    chance_full,
    recall_candidates,
    recall_full,
    recall_released,
    score_pairs,
)
from adamatch_ray.ops.late_interaction import naive

KS = (1, 5, 10)


def random_scores(count: int, seed: int = 0, levels: int = 1000) -> PairScores:
    rng = np.random.default_rng(seed)
    both = rng.integers(0, levels, (2, count, count)).astype(np.float32)
    return PairScores(both[0], both[1])


def hits_at(row: NDArray[np.float32], true: list[int], k: int) -> bool:
    """Whether a hit is among the first k candidates when every tie is broken against the hits."""
    order = sorted(range(len(row)), key=lambda j: (-row[j], j in true))
    return any(j in true for j in order[:k])


def brute_force(scores: NDArray[np.float32], reports: list[str], k: int) -> float:
    same = [[j for j, other in enumerate(reports) if other.lower() == report.lower()] for report in reports]
    return 100 * float(np.mean([hits_at(row, true, k) for row, true in zip(scores, same, strict=True)]))


@pytest.mark.parametrize("levels", [1000, 4])  # four levels: ties everywhere
def test_full_recall_is_a_plain_count(levels: int) -> None:
    reports = [f"report {i % 29}" for i in range(41)]
    scores = random_scores(41, levels=levels)
    recall = recall_full(scores, reports)
    assert set(recall) == {f"{way}@{k}" for way, k in product(("image_to_text", "text_to_image"), KS)}
    for k in KS:
        assert recall[f"image_to_text@{k}"] == pytest.approx(brute_force(scores.image_to_text, reports, k))
        assert recall[f"text_to_image@{k}"] == pytest.approx(brute_force(scores.text_to_image, reports, k))


def test_an_identical_report_is_a_hit_whatever_its_case() -> None:
    ranking = np.array([[1, 9, 5], [9, 1, 5], [1, 2, 9]], np.float32)  # studies 0 and 1 prefer each other
    scores = PairScores(ranking, ranking)
    assert recall_full(scores, ["No effusion.", "no effusion.", "edema"])["image_to_text@1"] == pytest.approx(100)
    assert recall_full(scores, ["no effusion.", "effusion.", "edema"])["image_to_text@1"] == pytest.approx(100 / 3)


def test_a_model_that_scores_everything_alike_finds_nothing() -> None:
    flat = PairScores(np.ones((30, 30), np.float32), np.ones((30, 30), np.float32))
    reports = [str(i) for i in range(30)]
    assert set(recall_full(flat, reports).values()) == {0.0}
    assert set(recall_released(flat).values()) == {0.0}


def test_candidates_are_one_seeded_draw_for_both_directions() -> None:
    reports = [f"{i % 40}" for i in range(50)]
    scores = random_scores(50)
    drawn = np.sort(np.random.default_rng(0).permutation(50)[:20])
    subset = PairScores(*(part[drawn][:, drawn] for part in scores))
    assert recall_candidates(scores, reports, 20) == recall_full(subset, [reports[i] for i in drawn])
    assert recall_candidates(scores, reports, 20) != recall_candidates(scores, reports, 20, seed=1)
    assert recall_candidates(scores, reports, 1000) == recall_full(scores, reports)


def test_the_released_protocol_ranks_texts_in_both_columns_within_batches() -> None:
    scores = random_scores(25)
    recall = recall_released(scores, batch=10)
    for k in KS:
        wanted: dict[str, list[float]] = {"image_to_text": [], "text_to_image": []}
        for start in (0, 10, 20):
            part = slice(start, min(start + 10, 25))
            names = [str(i) for i in range(part.stop - start)]
            wanted["image_to_text"].append(brute_force(scores.image_to_text[part, part], names, k))
            # Eq. 6's scores, but each row an image and each column a text.
            wanted["text_to_image"].append(brute_force(scores.text_to_image[part, part].T, names, k))
        for way, values in wanted.items():
            assert recall[f"{way}@{k}"] == pytest.approx(np.mean(values))


def test_chance_is_what_random_orders_reach_on_average() -> None:
    reports = [str(min(i, 25)) for i in range(30)]  # five studies share a report
    chance = chance_full(reports)
    rng = np.random.default_rng(0)
    drawn = [np.array([rng.permutation(30) for _ in range(30)], np.float32) for _ in range(300)]
    for k in KS:
        found = [brute_force(scores, reports, k) for scores in drawn]
        assert chance[f"@{k}"] == pytest.approx(np.mean(found), abs=4 * np.std(found) / 300**0.5)
    assert chance_full(["same"] * 4) == {"@1": 100.0, "@5": 100.0, "@10": 100.0}
    assert chance_full([str(i) for i in range(50)])["@5"] == pytest.approx(10.0)


def test_pairs_are_scored_by_blocks_as_at_once_and_heads_add_up() -> None:
    generator = torch.Generator().manual_seed(0)
    heads = [F.normalize(torch.randn(11, 5, 8, generator=generator), dim=-1) for _ in range(2)]
    word = F.normalize(torch.randn(9, 6, 8, generator=generator), dim=-1)
    mask = torch.arange(6) < torch.randint(1, 7, (9, 1), generator=generator)
    scores = score_pairs(heads, word, mask, block=4)
    wanted = [naive(head, word, mask) for head in heads]
    np.testing.assert_allclose(scores.image_to_text, sum(w.image_to_text_IJ for w in wanted), atol=1e-5)
    np.testing.assert_allclose(scores.text_to_image, sum(w.text_to_image_JI for w in wanted), atol=1e-5)
    assert scores.text_to_image.shape == (9, 11)


def test_a_diverged_model_is_no_score() -> None:
    scores = random_scores(5)
    scores.image_to_text[3, 2] = np.nan
    with pytest.raises(ValueError, match="row 3 is not finite"):
        recall_full(scores, list("abcde"))
