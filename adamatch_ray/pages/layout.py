"""Where marks and their labels go on a picture of given size, for the page and for the PNGs alike."""

from collections.abc import Sequence
from typing import NamedTuple

from adamatch_ray.engines.matching import Box

COLOURS = ("#ffb224", "#4cc3ff", "#ff7aa2", "#8fdc6c")
"""One for each mark drawn at once; told apart on gray, also by readers who confuse red and green."""

TRUTH = "#ffffff"

SHOWN = (440, 520)
"""Largest width and height of a picture on the page, CSS pixels."""

FONT = 13
"""Height of a label, CSS pixels."""


class Label(NamedTuple):
    """Upper left corner and size of a label."""

    x: float
    y: float
    width: float
    height: float


def page_scale(height: int, width: int) -> float:
    """CSS pixels to a pixel of the original."""
    return min(SHOWN[0] / width, SHOWN[1] / height)


def centre(box: Box) -> tuple[float, float]:
    """The middle of a box."""
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def drawn_box(box: Box, least: float) -> Box:
    """A box no smaller than `least` a side around its own middle, so that a box of no area is still seen."""
    x, y = centre(box)
    across, down = max(box[2] - box[0], least) / 2, max(box[3] - box[1], least) / 2
    return x - across, y - down, x + across, y + down


def moved(fixed: Box, box: Box, least: float) -> bool:
    """Whether the middle of a patch moved far enough for an arrow to be seen."""
    (x0, y0), (x1, y1) = centre(fixed), centre(box)
    return ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5 >= least


def place_labels(
    boxes: Sequence[Box], widths: Sequence[float], height: float, room: tuple[float, float]
) -> list[Label]:
    """A label for each box on a picture of (width, height) `room`: above it, else below, else beside, none overlapping.

    Where every place is taken, the label lies above all the same.
    """
    placed: list[Label] = []
    for (x0, y0, x1, y1), width in zip(boxes, widths, strict=True):
        spots = [(x0, y0 - height), (x0, y1), (x1 - width, y0 - height), (x1 - width, y1), (x1, y0), (x0 - width, y0)]
        labels = [
            Label(_within(x, room[0] - width), _within(y, room[1] - height), width, height)
            for x, y in spots
            if 0 <= y <= room[1] - height
        ] or [Label(_within(x0, room[0] - width), _within(y0, room[1] - height), width, height)]
        placed.append(next((a for a in labels if not any(_cross(a, b) for b in placed)), labels[0]))
    return placed


def _within(value: float, limit: float) -> float:
    return max(0.0, min(value, limit))


def _cross(a: Label, b: Label) -> bool:
    return a.x < b.x + b.width and b.x < a.x + a.width and a.y < b.y + b.height and b.y < a.y + a.height
