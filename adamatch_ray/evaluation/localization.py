"""Do the words of a report point at what they name? Scored where boxes are known, so on phantoms (docs/method.md 1).

The paper shows its adaptive boxes in pictures and has no such table.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from adamatch_ray.engines.localizing import Located
from adamatch_ray.metrics.bootstrap import bootstrap_sums
from adamatch_ray.metrics.localization import THRESHOLDS, Averages, LocalizedPhrase, roc_auc, summarize

INTERVALS = ("point_hit", "box_iou", "box_half", "patch_hit", "map_hit")


def score(located: Located, resamples: int, seed: int) -> dict[str, Any]:
    """Averages over phrases, by finding and overall; intervals by drawing studies, whose phrases go together."""
    rows = located.rows
    summary = summarize(rows)
    auc = roc_auc(located.shown, located.lacks)
    return {
        "what": "words that name a finding, and the one region of the image that each is given: its point and its box",
        "map_thresholds": THRESHOLDS,
        "phrases": len(rows),
        "unplaced": located.unplaced,
        "denied": {"words": located.denied, "with_region": located.denied_placed},
        "groundable": {
            "auc": None if math.isnan(auc) else auc,
            "shown": len(located.shown),
            "lacking": len(located.lacks),
            "share_of_shown": float(np.mean([row.groundable for row in rows])),
        },
        "studies": len({row.study_id for row in rows}),
        "micro": _json(summary.micro),
        "macro": _json(summary.macro),
        "findings": {name: _json(averages) for name, averages in summary.findings.items()},
        "groups": {name: _json(averages) for name, averages in summary.groups.items()},
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
    return [
        {"study_id": r.study_id, "finding": r.finding, "phrase": r.phrase, "groundable": r.groundable,
         **r.score._asdict()}
        for r in rows
    ]  # fmt: skip
