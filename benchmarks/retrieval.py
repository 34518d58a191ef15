"""R@K over every pair of a test split as large as MIMIC-CXR's, on a CPU: time and memory of the blocks.

Embeddings are random and seeded: neither figure depends on what they say. At the sizes of the laptop preset the whole
split is scored; at the paper's only its first blocks, since all of them take two cores a quarter of an hour, and the
time of the whole is that of its parts: every block multiplies the same numbers of patches and words.
"""

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F

from adamatch_ray.metrics.retrieval import PairScores, recall_full, score_pairs
from benchmarks.measure import Row, Work, peak_megabytes, row, time_in_turns

STUDIES = 5159
"""Studies of MIMIC-CXR's test split that have a frontal image and a report."""

BLOCK = 128


@dataclass(frozen=True)
class Case:
    """A split to be scored: `measured` of its images against the reports of all its `studies`."""

    studies: int
    measured: int
    patches: int
    words: int
    dim: int


def cases(studies: int = STUDIES) -> dict[str, Case]:
    """The sizes of the laptop preset, whole, and those of the paper, two blocks of it."""
    return {
        "laptop": Case(studies, studies, patches=64, words=48, dim=64),
        "paper": Case(studies, min(studies, 2 * BLOCK), patches=196, words=96, dim=256),
    }


def retrieval_rows(studies: int = STUDIES) -> list[Row]:
    """{name, ours: seconds of the whole split, unit, measured_images, peak_mb, unblocked_gb, …}, a row for each size.

    `peak_mb` is what the scoring needs above the embeddings, `unblocked_gb` what all products at once would take.
    """
    return [_row(name, case) for name, case in cases(studies).items()]


def _row(name: str, case: Case) -> Row:
    seconds = time_in_turns({"": prepare(**asdict(case))}, repeats=1)[""].wall_s
    peak = peak_megabytes("benchmarks.retrieval:prepare", asdict(case))
    scale = case.studies / case.measured
    title = f"R@K of {case.studies:,} x {case.studies:,} pairs, {name}: {case.patches} patches, {case.words} words"
    products = case.studies**2 * case.patches * case.words * 4
    return row(
        f"{title}, {case.dim} features", "s", seconds * scale, measured_images=case.measured, measured_s=seconds,
        peak_mb=peak, unblocked_gb=products / 1e9,
    )  # fmt: skip


def prepare(studies: int, measured: int, patches: int, words: int, dim: int) -> Work:
    """Make the embeddings; the call scores them, and ranks where all studies are scored."""
    generator = torch.Generator().manual_seed(0)
    patch_IPD = F.normalize(torch.randn(measured, patches, dim, generator=generator), dim=-1)
    word_JND = F.normalize(torch.randn(studies, words, dim, generator=generator), dim=-1)
    length_J = torch.randint(words // 3, words + 1, (studies,), generator=generator)
    mask_JN = torch.arange(words) < length_J[:, None]

    def work() -> dict[str, float] | PairScores:
        scores = score_pairs([patch_IPD], word_JND, mask_JN, block=BLOCK)
        return recall_full(scores, [str(i) for i in range(studies)]) if measured == studies else scores

    return work
