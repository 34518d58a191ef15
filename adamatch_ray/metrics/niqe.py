"""NIQE of the paper's Table 3: how far an image's local statistics are from those of natural (or real X-ray) images.

The model of Mittal, Soundararajan and Bovik (IEEE SPL 2013): locally normalised luminance, 96-pixel blocks at two
scales, 18 generalised-Gaussian parameters a scale, and a Mahalanobis-like distance to a Gaussian fitted on pristine
images. Lower is better. Which pristine images were used changes the number: print `NiqeParameters.source` with it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat
from scipy.ndimage import correlate1d
from scipy.special import gamma

BLOCK = 96
FEATURES = 36
SHARP = 0.75
"""Pristine blocks must have at least this share of the sharpness of their image's sharpest block."""
FLAT = 1e-3
"""Range of luminance below which a block is flat: its statistics would be those of rounding errors."""

Array = NDArray[np.float64]

_OFFSETS = ((0, 1), (1, 0), (1, 1), (-1, 1))
_GAUSS = np.exp(-0.5 * (np.arange(-3, 4) / (7 / 6)) ** 2)
_GAUSS /= _GAUSS.sum()


def _cubic(distance: Array) -> Array:
    near, far = np.abs(distance), np.abs(distance)
    inner = 1.5 * near**3 - 2.5 * near**2 + 1
    outer = -0.5 * far**3 + 2.5 * far**2 - 4 * far + 2
    return np.where(near <= 1, inner, np.where(far <= 2, outer, 0.0))


_HALVE = _cubic((np.arange(8) - 3.5) / 2) / 2  # bicubic, widened by the reduction so that it does not alias


@dataclass(frozen=True)
class NiqeParameters:
    """Mean (36,) and covariance (36, 36) of the features of pristine blocks, and where they come from."""

    mean: Array
    covariance: Array
    source: str

    def __post_init__(self) -> None:
        if self.mean.shape != (FEATURES,) or self.covariance.shape != (FEATURES, FEATURES):
            raise ValueError(
                f"NIQE parameters must be (36,) and (36, 36), not {self.mean.shape}, {self.covariance.shape}"
            )

    def save(self, path: Path | str) -> None:
        """Write an .npz file without pickled objects."""
        np.savez(Path(path), mean=self.mean, covariance=self.covariance, source=np.array(self.source))

    @classmethod
    def load(cls, path: Path | str) -> "NiqeParameters":
        """Read a file of `save`, or the `modelparameters.mat` of the LIVE release of NIQE."""
        path = Path(path)
        if not path.exists():
            raise ValueError(f"there are no NIQE parameters at {path}; fit them on real images or get the LIVE release")
        if path.suffix == ".mat":
            stored = loadmat(path)
            return cls(stored["mu_prisparam"].ravel(), stored["cov_prisparam"], "LIVE modelparameters.mat")
        with np.load(path, allow_pickle=False) as stored:
            return cls(stored["mean"], stored["covariance"], str(stored["source"]))


def niqe(images_BHW: NDArray[np.generic], parameters: NiqeParameters) -> Array:
    """NIQE of grayscale images, shape (B, H, W) to (B,), values in 0..255 (uint8, or floats on that scale).

    Blocks without texture (flat borders, saturated film) have no defined statistics and are left out. Raises
    ValueError where no block is left or a side is below 96.
    """
    scores = []
    for number, (features_KF, _) in enumerate(zip(*block_features(images_BHW), strict=True)):
        usable = features_KF[np.isfinite(features_KF).all(axis=1)]
        if not len(usable):
            raise ValueError(f"image {number} of the batch is flat: NIQE is not defined for it")
        covariance = np.cov(usable, rowvar=False) if len(usable) > 1 else np.zeros_like(parameters.covariance)
        difference = parameters.mean - usable.mean(axis=0)
        inverse = np.linalg.pinv((parameters.covariance + covariance) / 2)
        scores.append(np.sqrt(max(0.0, difference @ inverse @ difference)))
    return np.array(scores)


def fit_parameters(images: Iterable[NDArray[np.generic]], source: str) -> NiqeParameters:
    """Pristine parameters from the sharp blocks of real images, each (H, W), streamed one by one.

    Raises ValueError where fewer than 37 usable blocks remain: the covariance would be singular by construction.
    """
    kept = []
    for image_HW in images:
        features_BKF, sharpness_BK = block_features(image_HW[None])
        finite_K = np.isfinite(features_BKF[0]).all(axis=1)
        sharp_K = sharpness_BK[0] > SHARP * sharpness_BK[0].max()
        kept.append(features_BKF[0][finite_K & sharp_K])
    blocks = np.concatenate(kept) if kept else np.zeros((0, FEATURES))
    if len(blocks) <= FEATURES:
        raise ValueError(f"NIQE needs more than {FEATURES} sharp blocks to fit and got {len(blocks)}; add images")
    return NiqeParameters(blocks.mean(axis=0), np.cov(blocks, rowvar=False), source)


def block_features(images_BHW: NDArray[np.generic]) -> tuple[Array, Array]:
    """Features (B, K, 36) and sharpness (B, K) of the K whole 96-pixel blocks; NaN where a block has no texture."""
    images = np.asarray(images_BHW, dtype=np.float64)
    if images.ndim != 3 or min(images.shape[1:]) < BLOCK:
        raise ValueError(f"NIQE takes images (B, H, W) of at least {BLOCK} pixels a side, not {images.shape}")
    height, width = (side // BLOCK * BLOCK for side in images.shape[1:])
    images = images[:, :height, :width]
    scales = []
    sharpness_BK = np.zeros(0)
    for block in (BLOCK, BLOCK // 2):
        normalised, deviation = _normalise(images)
        deviation_BKhw = _blocks(deviation, block)
        features_BKF = _scale_features(_blocks(normalised, block))
        features_BKF[np.ptp(_blocks(images, block), axis=(2, 3)) < FLAT] = np.nan
        scales.append(features_BKF)
        if block == BLOCK:
            sharpness_BK = deviation_BKhw.mean(axis=(2, 3))
            images = _halve(images)
    return np.concatenate(scales, axis=-1), sharpness_BK


def _normalise(images: Array) -> tuple[Array, Array]:
    """Luminance minus its local mean over its local deviation plus one, and that deviation."""
    mean = _blur(images)
    deviation = np.sqrt(np.abs(_blur(images * images) - mean * mean))
    return (images - mean) / (deviation + 1), deviation


def _blur(images: Array) -> Array:
    return correlate1d(correlate1d(images, _GAUSS, axis=1, mode="nearest"), _GAUSS, axis=2, mode="nearest")


def _halve(images: Array) -> Array:
    """Bicubic reduction by two of both (even) sides, mirrored at the borders."""
    for axis in (1, 2):
        padding = [(3, 3) if number == axis else (0, 0) for number in range(3)]
        padded = np.moveaxis(np.pad(images, padding, mode="symmetric"), axis, -1)
        size = images.shape[axis] // 2
        taps = (weight * padded[..., tap : tap + 2 * size : 2] for tap, weight in enumerate(_HALVE))
        images = np.moveaxis(sum(taps, np.zeros(1)), -1, axis)
    return images


def _blocks(images: Array, block: int) -> Array:
    batch, height, width = images.shape
    grid = images.reshape(batch, height // block, block, width // block, block).swapaxes(2, 3)
    return grid.reshape(batch, -1, block, block)


def _scale_features(blocks_BKhw: Array) -> Array:
    """18 features a block: shape and spread of the values, then shape, mean and two spreads of four neighbour products.

    Neighbours wrap around inside the block, as in the published model.
    """
    shape, left, right = _fit_asymmetric(blocks_BKhw)
    features = [shape, (left + right) / 2]
    for offset in _OFFSETS:
        shape, left, right = _fit_asymmetric(blocks_BKhw * np.roll(blocks_BKhw, offset, axis=(2, 3)))
        mean = (right - left) * gamma(2 / shape) / gamma(1 / shape)
        features += [shape, mean, left, right]
    return np.stack(features, axis=-1)


def _fit_asymmetric(values_BKhw: Array) -> tuple[Array, Array, Array]:
    """Moment fit of an asymmetric generalised Gaussian: shape, left and right scale, each (B, K)."""
    squares = np.square(values_BKhw)
    negative, positive = values_BKhw < 0, values_BKhw > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        left = np.sqrt((squares * negative).sum((2, 3)) / negative.sum((2, 3)))
        right = np.sqrt((squares * positive).sum((2, 3)) / positive.sum((2, 3)))
        ratio = left / right
        moment = np.abs(values_BKhw).mean((2, 3)) ** 2 / squares.mean((2, 3))
        moment = moment * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    shapes, moments = _shape_table()
    upper = np.clip(np.searchsorted(moments, np.nan_to_num(moment)), 1, len(moments) - 1)
    nearest = np.where(moment - moments[upper - 1] <= moments[upper] - moment, upper - 1, upper)
    shape = np.where(np.isfinite(moment), shapes[nearest], np.nan)
    scale = np.sqrt(gamma(1 / shape) / gamma(3 / shape))
    return shape, left * scale, right * scale


@cache
def _shape_table() -> tuple[Array, Array]:
    """Shapes 0.2..10 and their (increasing) ratio of squared first to second moment."""
    shapes = np.arange(9801) / 1000 + 0.2
    return shapes, gamma(2 / shapes) ** 2 / (gamma(1 / shapes) * gamma(3 / shapes))
