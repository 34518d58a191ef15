"""Image-report retrieval: R@K in both directions under three protocols, each named (docs/method.md 5, Tables 4-6).

full       every study of the split is a candidate; a candidate with an identical report is a hit.
candidates the same among a seeded draw of at most so many studies (the older papers' 1,000).
released   the authors' code: mean over batches of 100, texts ranked per image in both columns, only the own pair a hit.

A tie counts against the model: a candidate with the score of the true one is placed before it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adamatch_ray.ops.late_interaction import late_interaction

Scores = NDArray[np.float32]
KS = (1, 5, 10)


class PairScores(NamedTuple):
    """Similarities of all images with all reports, summed over the image heads.

    image_to_text [I, J]: eq. 5; text_to_image [J, I]: eq. 6.
    """

    image_to_text: Scores
    text_to_image: Scores


def score_pairs(
    heads: Sequence[Tensor], word_JND: Tensor, mask_JN: Tensor, device: str | torch.device = "cpu", block: int = 128
) -> PairScores:
    """Score I x J pairs on a device by blocks of images; it holds all words, and one block's patches and scores.

    heads: [I, P, D] each. The block size is fixed, so the result does not depend on how embeddings were batched.
    """
    count, reports = heads[0].shape[0], word_JND.shape[0]
    forward = np.zeros((count, reports), dtype=np.float32)
    backward = np.zeros((reports, count), dtype=np.float32)
    word_JND, mask_JN = word_JND.to(device), mask_JN.to(device)
    with torch.inference_mode():
        for patch_IPD in heads:
            for start in range(0, count, block):
                scores = late_interaction(patch_IPD[start : start + block].to(device), word_JND, mask_JN)
                forward[start : start + block] += scores.image_to_text_IJ.cpu().numpy()
                backward[:, start : start + block] += scores.text_to_image_JI.cpu().numpy()
    return PairScores(forward, backward)


def recall_full(scores: PairScores, reports: Sequence[str]) -> dict[str, float]:
    """R@K in percent over all studies; studies with the same report text are hits of each other."""
    group = np.unique([report.lower() for report in reports], return_inverse=True)[1]
    return {
        **_recall("image_to_text", _ranks(scores.image_to_text, group)),
        **_recall("text_to_image", _ranks(scores.text_to_image, group)),
    }


def recall_rows(name: str, scores: Scores, reports: Sequence[str]) -> dict[str, float]:
    """R@K in percent of rows whose own candidate has their number; identical reports are hits of each other."""
    return _recall(name, _ranks(scores, np.unique([report.lower() for report in reports], return_inverse=True)[1]))


def recall_candidates(scores: PairScores, reports: Sequence[str], candidates: int, seed: int = 0) -> dict[str, float]:
    """`recall_full` among a seeded draw of at most `candidates` studies."""
    count = len(reports)
    drawn = np.sort(np.random.default_rng(seed).permutation(count)[:candidates])
    subset = PairScores(scores.image_to_text[np.ix_(drawn, drawn)], scores.text_to_image[np.ix_(drawn, drawn)])
    return recall_full(subset, [reports[i] for i in drawn])


def recall_released(scores: PairScores, batch: int = 100) -> dict[str, float]:
    """Mean R@K over consecutive batches, the last one possibly smaller; texts are ranked per image in both columns."""
    parts = []
    for start in range(0, len(scores.image_to_text), batch):
        part = slice(start, start + batch)
        own = np.arange(len(scores.image_to_text[part]))
        parts.append(
            {
                **_recall("image_to_text", _ranks(scores.image_to_text[part, part], own)),
                **_recall("text_to_image", _ranks(scores.text_to_image[part, part].T, own)),
            }
        )
    return {name: float(np.mean([part[name] for part in parts])) for name in parts[0]}


def chance_full(reports: Sequence[str]) -> dict[str, float]:
    """R@K in percent of a random order, averaged over the studies."""
    group = np.unique([report.lower() for report in reports], return_inverse=True)[1]
    hits, total = np.bincount(group)[group], len(reports)
    chance = {}
    for k in KS:
        drawn = np.arange(min(k, total))[:, None]
        missed = np.clip((total - hits[None] - drawn) / (total - drawn), 0, 1).prod(0)
        chance[f"@{k}"] = float(100 * (1 - missed).mean())
    return chance


def _ranks(scores: Scores, group: NDArray[np.integer]) -> NDArray[np.integer]:
    """Place (0-based) of the best hit among the candidates of each row; ties are placed before it."""
    ranks = np.empty(len(scores), dtype=np.int64)
    for row, values in enumerate(scores):
        if not np.isfinite(values).all():
            raise ValueError(f"score of row {row} is not finite; the model that made it diverged")
        hits = group == group[row]
        ranks[row] = (values[~hits] >= values[hits].max()).sum()
    return ranks


def _recall(name: str, ranks: NDArray[np.integer]) -> dict[str, float]:
    return {f"{name}@{k}": float(100 * (ranks < k).mean()) for k in KS}
