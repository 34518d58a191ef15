"""How fast the metrics are beside their usual implementations: JSON rows for the benchmark table.

    python -m benchmarks.metrics

Process CPU seconds, ours and the peer's turns interleaved, median of five, equal results asserted in the same run.
Inputs are synthetic and seeded, so no patient data is needed.
"""

import importlib.util
import json
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from adamatch_ray.data.labeler import RuleLabeler
from adamatch_ray.metrics.image import collect, frechet_distance
from adamatch_ray.metrics.meteor import meteor_nltk
from adamatch_ray.metrics.niqe import block_features
from adamatch_ray.metrics.text import ROUGE_BETA, rouge_l
from benchmarks.measure import Row, row, time_in_turns

TURNS = 5
Work = Callable[[], Any]

_STATEMENTS = (
    "the heart is {} in size",
    "there is a {} right pleural effusion",
    "no focal consolidation , pneumothorax or {} effusion",
    "{} bibasilar opacities which may represent atelectasis",
    "the lungs are {} clear",
    "{} degenerative changes of the thoracic spine",
    "no evidence of {} pulmonary edema",
    "a left chest tube is {} unchanged",
)
_WORDS = ("normal", "mild", "small", "moderate", "stable", "grossly", "large", "persistent", "minimal", "acute")


def metric_rows(studies: int = 2000, dimensions: int = 1024, seed: int = 0) -> list[Row]:
    """All rows: {name, ours, peer, ratio, unit, peer_name, difference, hardware, versions, date}.

    `ours` and `peer` are CPU seconds of the same work; `peer`, `ratio` and `difference` are None where there is no
    usual implementation to compare with. The METEOR row is left out where WordNet is not installed.
    """
    rng = np.random.default_rng(seed)
    references, hypotheses = (_reports(studies, rng) for _ in range(2))
    rows = [_rouge_row(references, hypotheses), _frechet_row(dimensions, rng)]
    if _wordnet():
        rows.append(_meteor_row(references[:300], hypotheses[:300]))
    rows += [_niqe_row(rng), _labeler_row(references)]
    return rows


def _rouge_row(references: Sequence[str], hypotheses: Sequence[str]) -> Row:
    pairs = list(zip(references, hypotheses, strict=True))
    if importlib.util.find_spec("pycocoevalcap"):
        from pycocoevalcap.rouge.rouge import Rouge

        score, peer_name = Rouge().calc_score, f"pycocoevalcap {version('pycocoevalcap')}"
    else:
        score, peer_name = _table_rouge, "textbook table in Python"

    def peer() -> list[float]:
        return [score([hypothesis], [reference]) for reference, hypothesis in pairs]

    def ours() -> list[float]:
        return [rouge_l([reference], hypothesis) for reference, hypothesis in pairs]

    return _row(f"ROUGE-L of {len(pairs)} reports", ours, peer, peer_name, 1e-9)


def _table_rouge(hypothesis: list[str], reference: list[str]) -> float:
    first, second = hypothesis[0].split(" "), reference[0].split(" ")
    above = [0] * (len(second) + 1)
    for word in first:
        line = [0]
        for column, other in enumerate(second):
            line.append(above[column] + 1 if word == other else max(above[column + 1], line[column]))
        above = line
    if not above[-1]:
        return 0.0
    precision, recall = above[-1] / len(first), above[-1] / len(second)
    return (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)


def _frechet_row(dimensions: int, rng: np.random.Generator) -> Row:
    from scipy.linalg import sqrtm

    mixing = rng.normal(size=(2, dimensions, dimensions)) / dimensions**0.5
    real, generated = (collect([rng.normal(size=(2 * dimensions, dimensions)) @ one], dimensions) for one in mixing)
    means, covariances = (real.mean_D, generated.mean_D), (real.covariance_DD, generated.covariance_DD)

    def ours() -> list[float]:
        return [frechet_distance(means[0], covariances[0], means[1], covariances[1])]

    def peer() -> list[float]:
        difference = means[0] - means[1]
        root = sqrtm(covariances[0] @ covariances[1]).real
        return [float(difference @ difference + np.trace(covariances[0] + covariances[1] - 2 * root))]

    return _row(f"FID from statistics of {dimensions} features", ours, peer, f"scipy {version('scipy')} sqrtm", 1e-6)


def _meteor_row(references: Sequence[str], hypotheses: Sequence[str]) -> Row:
    from nltk.translate.meteor_score import single_meteor_score

    def ours() -> list[float]:
        return meteor_nltk([[text] for text in references], hypotheses).tolist()

    def peer() -> list[float]:
        pairs = zip(references, hypotheses, strict=True)
        return [single_meteor_score(reference.split(), hypothesis.split()) for reference, hypothesis in pairs]

    return _row(f"METEOR of {len(references)} reports", ours, peer, f"nltk {version('nltk')}", 1e-12)


def _niqe_row(rng: np.random.Generator) -> Row:
    images = rng.integers(0, 256, size=(64, 256, 256), dtype=np.uint8)
    return _row("NIQE features of 64 images of 256 x 256", lambda: block_features(images), None, None, 0)


def _labeler_row(reports: Sequence[str]) -> Row:
    return _row(
        f"rule labels of {len(reports)} reports, no sentence remembered",
        lambda: RuleLabeler(0).label(reports),
        None,
        None,
        0,
    )


def _row(name: str, ours: Work, peer: Work | None, peer_name: str | None, tolerance: float) -> Row:
    difference = None
    if peer is not None:
        difference = float(np.abs(np.subtract(ours(), peer())).max())
        if not difference <= tolerance:
            raise RuntimeError(f"{name}: ours and {peer_name} differ by {difference}; a speed would mean nothing")
    calls = {"ours": ours} if peer is None else {"ours": ours, "peer": peer}
    seconds = {side: timing.cpu_s for side, timing in time_in_turns(calls, TURNS).items()}
    packages = ("numpy", "scipy")
    return row(name, "CPU seconds", seconds["ours"], seconds.get("peer"), packages=packages, peer_name=peer_name,
               difference=difference)  # fmt: skip


def _reports(count: int, rng: np.random.Generator) -> list[str]:
    """Reports of 4 to 9 statements, each with a word that varies, as long as real ones."""
    reports = []
    for _ in range(count):
        chosen = rng.integers(0, len(_STATEMENTS), size=rng.integers(4, 10))
        words = rng.integers(0, len(_WORDS), size=len(chosen))
        pairs = zip(chosen, words, strict=True)
        reports.append(" . ".join(_STATEMENTS[first].format(_WORDS[second]) for first, second in pairs) + " .")
    return reports


def _wordnet() -> bool:
    from nltk.corpus import wordnet

    try:
        wordnet.ensure_loaded()
    except LookupError:
        return False
    return True


if __name__ == "__main__":
    for line in metric_rows():
        print(json.dumps(line))
