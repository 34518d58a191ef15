"""Pixels of any depth to the 8 bits a model sees, and the reasons for which a picture is refused (docs/method.md 7)."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Values = NDArray[np.float64]

_TAILS = 0.01  # share of the pixels at either end that may be outliers
_GAP = 1 / 16  # an empty stretch this long, as a share of the range without those, parts a picture from what is not it
_HEADROOM = 1 / 4  # kept for outliers beyond the picture's own range, as a share of that range
_MIN_LEVELS = 64  # with fewer values than this there is nothing that scaling could lose


class BadImage(ValueError):
    """A file that cannot be used as an X-ray; the message is the quarantine reason."""


class NotAnImage(BadImage):
    """A file of another kind."""


class TooManyPixels(BadImage):
    """An image over the limit, known before it is decoded."""


class Levels(NamedTuple):
    """The different values a picture can have, so that whatever is done to its pixels is done to each value once."""

    values: Values
    """[n]"""
    counts: NDArray[np.int64]
    """[n], how many pixels have each value"""
    where: NDArray[Any]
    """[H, W], which of the values each pixel has"""


def check_size(height: int, width: int, max_pixels: int) -> None:
    """Raise BadImage for an image without pixels or with more than `max_pixels`."""
    if min(height, width) < 1:
        raise BadImage("image has no pixels")
    if height * width > max_pixels:
        raise TooManyPixels(f"image of {width}x{height} exceeds {max_pixels} pixels")


def check_promise(promised: float, data_bytes: int, most: float) -> None:
    """Raise BadImage where a header promises more than `most` units per byte of data: memory is not spent on a lie."""
    if promised > data_bytes * most:
        raise BadImage("truncated image")


def find_levels(pixels: NDArray[Any]) -> Levels:
    """Values of an integer picture [H, W]: all that 8 or 16 bits can hold, or those in use where there are more."""
    pixels = np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("="))
    if pixels.dtype.itemsize > 2:
        values, where, counts = np.unique(pixels, return_inverse=True, return_counts=True)
        return Levels(values.astype(np.float64), counts, where.reshape(pixels.shape))
    unsigned = np.uint8 if pixels.dtype.itemsize == 1 else np.uint16
    where = pixels.view(unsigned)
    size = int(np.iinfo(unsigned).max) + 1
    counts = np.zeros(size, dtype=np.int64)
    for rows in np.array_split(where, max(1, where.size >> 22)):  # bincount makes eight bytes of every pixel
        counts += np.bincount(rows.ravel(), minlength=size)
    return Levels(np.arange(size, dtype=unsigned).view(pixels.dtype).astype(np.float64), counts, where)


def stretch(values: NDArray[Any], low: float, high: float) -> Pixels:
    """Map [low, high] linearly to [0, 255], clipped; all zero where the range is empty."""
    if not high > low:
        return np.zeros(values.shape, dtype=np.uint8)
    scaled = (values.astype(np.float64) - low) / (high - low) * 255.0
    return np.rint(np.clip(scaled, 0.0, 255.0)).astype(np.uint8)


def robust_range(values: Values, counts: NDArray[np.int64]) -> tuple[float, float]:
    """What becomes black and what becomes white in a picture without a window.

    The darkest and the brightest value, unless these would leave the picture less than half of the gray levels: a few
    saturated pixels, a burnt-in marker, a border. Then it is the range of the picture itself (the values that are not
    parted from the rest by an empty stretch, without the outer 1 % of the pixels) and a quarter of it to either side.
    That headroom keeps what is far brighter than all tissue, such as a thin lead, brighter than the tissue around it.
    """
    used = np.flatnonzero(counts)
    order = used[np.argsort(values[used], kind="stable")]
    values, counts = values[order], counts[order]
    least, most = float(values[0]), float(values[-1])
    share = np.cumsum(counts) / counts.sum()
    inner = values[(share >= _TAILS) & (share - counts / counts.sum() <= 1.0 - _TAILS)]
    parts = np.split(inner, np.flatnonzero(np.diff(inner) > _GAP * np.ptp(inner)) + 1)
    body = max(parts, key=len)
    span = float(np.ptp(body))
    if body.size < _MIN_LEVELS or 2.0 * span >= most - least:
        return least, most
    return max(least, float(body[0]) - _HEADROOM * span), min(most, float(body[-1]) + _HEADROOM * span)


def scale(pixels: NDArray[Any]) -> Pixels:
    """An integer picture of any depth to 8 bits, from its `robust_range`."""
    levels = find_levels(pixels)
    return stretch(levels.values, *robust_range(levels.values, levels.counts))[levels.where]
