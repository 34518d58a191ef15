"""Do the words of a report point at what they name? Scored where boxes are known, so on phantoms (docs/method.md 1).

The paper shows its adaptive boxes in pictures and has no such table.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from adamatch_ray.metrics.bootstrap import bootstrap_sums
from adamatch_ray.metrics.localization import Averages, LocalizedPhrase, summarize

INTERVALS = ("box_hit", "map_hit")


def score(rows: Sequence[LocalizedPhrase], resamples: int, seed: int) -> dict[str, Any]:
    """Averages over phrases, by finding and overall; intervals by drawing studies, whose phrases go together."""
    summary = summarize(rows)
    return {
        "what": "words that name a finding, and the adaptive box of the image that is most similar to each",
        "phrases": len(rows),
        "studies": len({row.study_id for row in rows}),
        "micro": _json(summary.micro),
        "macro": _json(summary.macro),
        "findings": {name: _json(averages) for name, averages in summary.findings.items()},
        "intervals": _intervals(rows, resamples, seed) if resamples else {},
    }


def _intervals(rows: Sequence[LocalizedPhrase], resamples: int, seed: int) -> dict[str, dict[str, float]]:
    study_of = np.unique([row.study_id for row in rows], return_inverse=True)[1]
    found = {}
    for name in INTERVALS:
        hits = np.array([getattr(row.score, name) for row in rows], dtype=np.float64)
        sums_SK = np.stack([np.bincount(study_of, hits), np.bincount(study_of)], axis=1)
        interval = bootstrap_sums(sums_SK, lambda sums: sums[..., :1] / sums[..., 1:], resamples=resamples, seed=seed)
        found[name] = interval[0]._asdict()
    return found


def _json(averages: Averages) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in averages._asdict().items()}


def phrase_rows(rows: Sequence[LocalizedPhrase]) -> list[dict[str, Any]]:
    """One row a phrase, for a table of them."""
    return [{"study_id": r.study_id, "finding": r.finding, "phrase": r.phrase, **r.score._asdict()} for r in rows]
