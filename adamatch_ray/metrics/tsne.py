"""Two-dimensional maps of image and text features, as in the paper's Figure 6; no library that we need has t-SNE."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Embedding:
    """Points (S, 2) and the Kullback-Leibler divergence that remains, comparable at equal perplexity only."""

    points_S2: Array
    divergence: float


def tsne(features_SD: NDArray[np.floating], *, perplexity: float = 30.0, steps: int = 750, seed: int = 0) -> Embedding:
    """Exact t-SNE (van der Maaten and Hinton 2008) of up to a few thousand features; O(S²) time and memory.

    Args:
        features_SD: one row a study.
        perplexity: effective number of neighbours; must be below a third of S.
        steps: gradient steps, the first quarter with attraction exaggerated 12 times.
        seed: seed of the initial points.
    """
    studies = len(features_SD)
    if not 1 <= perplexity < studies / 3:
        raise ValueError(f"perplexity {perplexity} needs to be >= 1 and below a third of the {studies} features")
    target_SS = _neighbour_probabilities(np.asarray(features_SD, dtype=np.float64), perplexity)
    points = np.random.default_rng(seed).normal(scale=1e-4, size=(studies, 2))
    velocity, gains = np.zeros_like(points), np.ones_like(points)
    rate = max(studies / 48, 50.0)
    near_SS = np.zeros_like(target_SS)
    for step in range(steps):
        early = step < steps // 4
        near_SS = 1 / (1 + _squared_distances(points))
        np.fill_diagonal(near_SS, 0)
        force_SS = (target_SS * (12 if early else 1) - near_SS / near_SS.sum()) * near_SS
        gradient = 4 * (force_SS.sum(axis=1, keepdims=True) * points - force_SS @ points)
        gains = np.clip(np.where(gradient * velocity < 0, gains + 0.2, gains * 0.8), 0.01, None)
        velocity = (0.5 if early else 0.8) * velocity - rate * gains * gradient
        points = points + velocity
        points = points - points.mean(axis=0)
    model_SS = np.maximum(near_SS / near_SS.sum(), 1e-12)
    divergence = float((target_SS * np.log(target_SS / model_SS)).sum())
    return Embedding(points, divergence)


def _squared_distances(rows_SD: Array) -> Array:
    norms_S = np.square(rows_SD).sum(axis=1)
    return np.maximum(norms_S[:, None] + norms_S - 2 * rows_SD @ rows_SD.T, 0)


def _neighbour_probabilities(features_SD: Array, perplexity: float) -> Array:
    """Symmetric joint probabilities whose rows have the given perplexity, by bisection of all precisions at once."""
    distances_SS = _squared_distances(features_SD)
    distances_SS /= distances_SS.mean()
    np.fill_diagonal(distances_SS, np.inf)
    distances_SS -= distances_SS.min(axis=1, keepdims=True)
    low, high = np.full((len(features_SD), 1), -20.0), np.full((len(features_SD), 1), 40.0)  # log precision
    weights = np.zeros_like(distances_SS)
    for _ in range(60):
        middle = (low + high) / 2
        weights = np.exp(-np.exp(middle) * distances_SS)
        weights /= weights.sum(axis=1, keepdims=True)
        entropy = -(weights * np.log(np.maximum(weights, 1e-300))).sum(axis=1, keepdims=True)
        wide = entropy > np.log(perplexity)
        low, high = np.where(wide, middle, low), np.where(wide, high, middle)
    joint = (weights + weights.T) / (2 * len(features_SD))
    return np.maximum(joint, 1e-12)
