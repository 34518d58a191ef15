"""Fréchet distance of generated to real X-rays (paper, Table 3), streamed.

The number depends on the feature extractor more than on the images, so a result carries its extractor's name. The
published 1.09 is over 1,024 features of a chest-X-ray DenseNet-121, not over Inception.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class FeatureStatistics:
    """Running mean and scatter of feature vectors in float64: constant memory, any batch size.

    `scatter_DD` is the sum of outer products about the mean, which stays accurate where raw second moments cancel.
    """

    def __init__(self, dimensions: int) -> None:
        self.count = 0
        self.mean_D: Array = np.zeros(dimensions)
        self.scatter_DD: Array = np.zeros((dimensions, dimensions))

    def update(self, features_BD: NDArray[np.floating]) -> None:
        """Add a batch (B, D). Raises ValueError for another width or for values that are not finite."""
        features = np.asarray(features_BD, dtype=np.float64)
        if features.ndim != 2 or features.shape[1] != len(self.mean_D):
            raise ValueError(f"expected features (B, {len(self.mean_D)}), not {features.shape}")
        if not np.isfinite(features).all():
            raise ValueError("features are not finite; look at the extractor's input range and precision")
        if len(features):
            mean_D = features.mean(axis=0)
            centred = features - mean_D
            total, step_D = self.count + len(features), mean_D - self.mean_D
            between_DD = np.outer(step_D, step_D) * (self.count * len(features) / total)
            self.scatter_DD = self.scatter_DD + centred.T @ centred + between_DD
            self.mean_D = self.mean_D + step_D * (len(features) / total)
            self.count = total

    @property
    def covariance_DD(self) -> Array:
        """Unbiased covariance (D, D). Raises ValueError below two samples, where there is none."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least two images, not {self.count}")
        return self.scatter_DD / (self.count - 1)

    def save(self, path: Path | str) -> None:
        """Write an .npz file without pickled objects."""
        np.savez(Path(path), count=np.array(self.count), mean=self.mean_D, scatter=self.scatter_DD)


def collect(batches_BD: Iterable[NDArray[np.floating]], dimensions: int) -> FeatureStatistics:
    """Statistics of a stream of feature batches."""
    statistics = FeatureStatistics(dimensions)
    for features_BD in batches_BD:
        statistics.update(features_BD)
    return statistics


def frechet_distance(mean1_D: Array, covariance1_DD: Array, mean2_D: Array, covariance2_DD: Array) -> float:
    """|μ1 - μ2|² + tr(Σ1 + Σ2 - 2 (Σ1 Σ2)^½) of two Gaussians, never below 0; singular covariances are allowed.

    With Σ1 = F Fᵀ the product has the eigenvalues of the symmetric Fᵀ Σ2 F, so a symmetric eigenvalue problem replaces
    the matrix square root. Raises ValueError for shapes that do not fit.
    """
    # torchmetrics has the same to 1e-12, in a private function that takes the general eigenvalues, twice as slow for
    # 1,024 features; its public class wants the network and sums raw second moments, which cannot be merged and saved.
    square = (len(mean1_D), len(mean1_D))
    if mean1_D.shape != mean2_D.shape or covariance1_DD.shape != square or covariance2_DD.shape != square:
        raise ValueError(f"cannot compare features of {mean1_D.shape} and {mean2_D.shape}; use one extractor for both")
    factor_DR = _factor(covariance1_DD)
    eigenvalues_R = np.linalg.eigvalsh(factor_DR.T @ covariance2_DD @ factor_DR)
    cross = np.sqrt(np.clip(eigenvalues_R, 0, None)).sum()
    difference = mean1_D - mean2_D
    distance = difference @ difference + np.trace(covariance1_DD) + np.trace(covariance2_DD) - 2 * cross
    # Equal collections come out a rounding below zero, and a negative distance would look like a mistake.
    return max(0.0, float(distance))


def _factor(covariance_DD: Array) -> Array:
    """F with F Fᵀ equal to the covariance: Cholesky where it has full rank, else its scaled eigenvectors."""
    try:
        return np.asarray(np.linalg.cholesky(covariance_DD), dtype=np.float64)
    except np.linalg.LinAlgError:
        values_D, vectors_DD = np.linalg.eigh(covariance_DD)
        kept = values_D > values_D.max(initial=0.0) * len(values_D) * np.finfo(np.float64).eps
        return np.asarray(vectors_DD[:, kept] * np.sqrt(values_D[kept]), dtype=np.float64)


class FrechetResult(NamedTuple):
    """A Fréchet distance with everything that it depends on."""

    value: float
    extractor: str
    dimensions: int
    real: int
    generated: int
    note: str

    def __str__(self) -> str:
        of = f"{self.extractor}, {self.dimensions} features, {self.real} real and {self.generated} generated images"
        return f"FID {self.value:.4f} ({of}{'; ' if self.note else ''}{self.note})"

    def to_json(self) -> dict[str, Any]:
        return self._asdict()


def fid(real: FeatureStatistics, generated: FeatureStatistics, extractor: str) -> FrechetResult:
    """Fréchet distance of two collections, named after the extractor that both went through.

    `note` says where a side has no more images than dimensions: its covariance is then singular and the distance is
    biased upwards, comparable only at equal numbers of images. Raises ValueError below two images a side.
    """
    value = frechet_distance(real.mean_D, real.covariance_DD, generated.mean_D, generated.covariance_DD)
    dimensions = len(real.mean_D)
    short = [side for side, found in (("real", real), ("generated", generated)) if found.count <= dimensions]
    note = f"fewer {' and '.join(short)} images than dimensions: biased upwards" if short else ""
    return FrechetResult(value, extractor, dimensions, real.count, generated.count, note)
