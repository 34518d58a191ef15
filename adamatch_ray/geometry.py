"""Where a pixel of the original X-ray lies on the square canvas the models see, and back (docs/method.md 1.1).

The long side is scaled to the canvas, the short side centred and zero-padded. AdaMatch and the VQ-GAN share this one
object, so a box found by one is the same place for the other and on the original image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.floating]

SIDES = ("left", "right", "midline")
"""Of the patient, whose right is on the left of the image."""

MIDLINE = 0.06
"""Share of an image's width to both sides of its middle that belongs to neither side."""

ZONES = (0.36, 0.55)
"""Shares of an image's height where the mid and the lower zone of the lungs begin."""


class CanvasImage(NamedTuple):
    """An X-ray as every engine takes it: gray canvas uint8 [S, S] and the size of the original, in pixels."""

    pixels: NDArray[np.uint8]
    height: int
    width: int

    @property
    def geometry(self) -> "Geometry":
        """Where its boxes lie on the original."""
        return Geometry(self.height, self.width, self.pixels.shape[-1])

    @property
    def inner(self) -> NDArray[np.uint8]:
        """The canvas without the padding beside the image."""
        place = self.geometry
        return self.pixels[place.top : place.top + place.inner_height, place.left : place.left + place.inner_width]

    def shows(self, boxes_P4: Boxes) -> NDArray[np.bool_]:
        """Whether the middle of each unit box of the canvas lies on the image, not on the padding beside it."""
        place = self.geometry
        x, y = ((boxes_P4[:, i] + boxes_P4[:, i + 2]) / 2 * place.canvas for i in (0, 1))
        across = (place.left <= x) & (x <= place.left + place.inner_width)
        return np.asarray(across & (place.top <= y) & (y <= place.top + place.inner_height))


@dataclass(frozen=True)
class Geometry:
    """Map between an image of `height` x `width` pixels and a square canvas of `canvas` pixels a side."""

    height: int
    width: int
    canvas: int

    def __post_init__(self) -> None:
        if min(self.height, self.width, self.canvas) < 1:
            raise ValueError(f"image {self.height}x{self.width} on canvas {self.canvas}: every side needs a pixel")

    @property
    def inner_height(self) -> int:
        """Rows of the canvas that the image covers."""
        return max(1, round(self.height * self.canvas / max(self.height, self.width)))

    @property
    def inner_width(self) -> int:
        """Columns of the canvas that the image covers."""
        return max(1, round(self.width * self.canvas / max(self.height, self.width)))

    @property
    def top(self) -> int:
        """Rows of padding above the image."""
        return (self.canvas - self.inner_height) // 2

    @property
    def left(self) -> int:
        """Columns of padding to the left of the image."""
        return (self.canvas - self.inner_width) // 2

    def to_canvas(self, boxes: Boxes) -> Boxes:
        """Original-pixel boxes [..., 4] (xyxy) to unit canvas coordinates in [0, 1]."""
        scale, shift = self._affine()
        return (np.asarray(boxes, dtype=np.float64) * scale + shift) / self.canvas

    def to_original(self, boxes: Boxes) -> Boxes:
        """Unit canvas boxes [..., 4] (xyxy) to original pixels, clipped to the image."""
        scale, shift = self._affine()
        pixels = (np.asarray(boxes, dtype=np.float64) * self.canvas - shift) / scale
        limit = np.array([self.width, self.height, self.width, self.height], dtype=np.float64)
        return np.clip(pixels, 0.0, limit)

    def _affine(self) -> tuple[Boxes, Boxes]:
        sx, sy = self.inner_width / self.width, self.inner_height / self.height
        return np.array([sx, sy, sx, sy]), np.array([self.left, self.top, self.left, self.top], dtype=np.float64)


def place_of(box: Sequence[float], height: int, width: int) -> str:
    """Side and zone of a box (xyxy, pixels) in a frontal X-ray of that size, as a report says it: "right lower".

    The patient's right is on the left of the image. What lies in the middle is "midline".
    """
    x, y = (box[0] + box[2]) / (2 * width), (box[1] + box[3]) / (2 * height)
    return f"{side_of(x)} {'upper' if y < ZONES[0] else 'mid' if y < ZONES[1] else 'lower'}"


def side_of(across: float) -> str:
    """One of `SIDES`: that of a place so far across a frontal X-ray, as a share of its width from the left edge."""
    return "midline" if abs(across - 0.5) < MIDLINE else "right" if across < 0.5 else "left"


def box_iou(boxes_A4: Boxes, boxes_B4: Boxes) -> NDArray[np.float64]:
    """Intersection over union [A, B] of each box with each; 0 where neither has an area."""
    a, b = boxes_A4[:, None].astype(np.float64), boxes_B4[None].astype(np.float64)
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    both = sides.clip(min=0).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - both
    return np.divide(both, union, out=np.zeros_like(both), where=union > 0)
