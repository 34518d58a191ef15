"""Seeded bootstrap intervals over studies for the figures of the paper's section 4.

The study is the unit that is drawn. Corpus figures such as BLEU are functions of sums over studies, so a resample is a
vector of multinomial weights and all resamples are one matrix product.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Maps sums over studies, shape (..., K), to figures, shape (..., F), row by row."""

_CELLS = 4_000_000  # weights held at once: 32 MB of float64


class Interval(NamedTuple):
    """A figure with its percentile bootstrap interval."""

    value: float
    low: float
    high: float
    level: float


def bootstrap_mean(
    values_S: NDArray[np.floating], *, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Interval of the mean of one value a study, shape (S,). Raises ValueError without studies."""
    values = np.asarray(values_S, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"bootstrap_mean takes one value a study, shape (S,), not {values.shape}")
    count = max(len(values), 1)
    return bootstrap_sums(values[:, None], lambda sums: sums / count, resamples=resamples, level=level, seed=seed)[0]


def bootstrap_sums(
    table_SK: NDArray[np.floating] | NDArray[np.integer],
    statistic: Statistic,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> list[Interval]:
    """Intervals of corpus figures that depend on the studies through column sums only.

    Args:
        table_SK: one row a study, columns that add up over the corpus (counts, sums).
        statistic: column sums (..., K) to figures (..., F), applied to all resamples at once.
        resamples: how many corpora of S studies are drawn with replacement.
        level: coverage of the percentile interval, in (0, 1).
        seed: the same seed, studies and order give the same interval; order the studies by id.

    Returns:
        F intervals. `value` is the figure of the corpus itself, not the mean of the resamples.
    """
    table = np.asarray(table_SK, dtype=np.float64)
    studies = _check(table.shape, resamples, level)
    rng = np.random.default_rng(seed)
    uniform = np.full(studies, 1 / studies)
    step = max(1, _CELLS // studies)
    parts = []
    for start in range(0, resamples, step):
        weights = rng.multinomial(studies, uniform, size=min(step, resamples - start))
        parts.append(np.atleast_2d(statistic(weights @ table)))
    value_F = np.atleast_1d(statistic(table.sum(axis=0)))
    return _intervals(value_F, np.concatenate(parts), level)


def _check(shape: tuple[int, ...], resamples: int, level: float) -> int:
    if len(shape) != 2 or shape[0] == 0:
        raise ValueError(f"a bootstrap needs one row for each of at least one study, not a table of shape {shape}")
    if resamples < 1 or not 0 < level < 1:
        raise ValueError(f"resamples must be >= 1 and level inside (0, 1), not {resamples} and {level}")
    return shape[0]


def _intervals(value_F: NDArray[np.float64], figures_RF: NDArray[np.float64], level: float) -> list[Interval]:
    low_F, high_F = np.quantile(figures_RF, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return [
        Interval(float(value), float(low), float(high), level)
        for value, low, high in zip(value_F, low_F, high_F, strict=True)
    ]
