"""Where marks, arrows and labels go on a picture, in pixels of the original; for the page and for PNGs alike."""

from collections.abc import Sequence
from typing import NamedTuple

from adamatch_ray.engines.matching import Box
from adamatch_ray.pages.view import Mark, Point, centre, drawn_box

COLOURS = ("#ffb224", "#4cc3ff", "#ff7aa2", "#8fdc6c")
"""One for each mark drawn at once; told apart on gray, also by readers who confuse red and green."""

LARGEST = (440, 520)
"""Largest width and height of a picture on the page, CSS pixels."""

FONT = 13
"""Height of a label's letters, CSS pixels."""

_DOT, _HEAD = 2.5, 7.0  # of an arrow, CSS pixels


class Label(NamedTuple):
    """Upper left corner and size of a label."""

    x: float
    y: float
    width: float
    height: float


class Arrow(NamedTuple):
    """From a dot of some radius, where the patch was fixed, to where it went; the head's tip is `end`."""

    start: Point
    radius: float
    end: Point
    head: tuple[Point, Point, Point]


class Drawn(NamedTuple):
    """A mark as it is drawn. `number`: its place among the marks; `colour`: empty where it shows when pointed at."""

    number: int
    mark: Mark
    colour: str
    box: Box
    arrow: Arrow | None
    label: Label


def css_pixel(width: int, height: int) -> float:
    """Pixels of the original to a CSS pixel of the page."""
    return max(width / LARGEST[0], height / LARGEST[1])


def lay_out(marks: Sequence[Mark], top: Sequence[int], width: int, height: int) -> list[Drawn]:
    """All marks on a picture; those numbered in `top` get the COLOURS in turn and come last: they lie on the others."""
    pixel = css_pixel(width, height)
    boxes = [drawn_box(mark.box, 4 * pixel) for mark in marks]
    widths = [(len(mark.text) * 0.6 * FONT + 10) * pixel for mark in marks]

    def labels(numbers: Sequence[int]) -> list[Label]:
        chosen = [boxes[n] for n in numbers], [widths[n] for n in numbers]
        return place_labels(*chosen, (FONT + 6) * pixel, (width, height))

    together, rank = dict(zip(top, labels(top), strict=True)), {n: place for place, n in enumerate(top, start=1)}
    colours = dict(zip(top, COLOURS, strict=False))
    drawn = [
        Drawn(n, mark, colours.get(n, ""), boxes[n], _arrow(mark, pixel), together.get(n) or labels([n])[0])
        for n, mark in enumerate(marks)
    ]
    return sorted(drawn, key=lambda one: rank.get(one.number, 0))


def _arrow(mark: Mark, pixel: float) -> Arrow | None:
    """None where the patch moved too little for an arrow to be seen."""
    (x0, y0), (x1, y1) = centre(mark.fixed), centre(mark.box)
    length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
    if length < 8 * pixel:
        return None
    dx, dy = (x1 - x0) / length * _HEAD * pixel, (y1 - y0) / length * _HEAD * pixel
    wings = (x1 - dx - dy / 2, y1 - dy + dx / 2), (x1 - dx + dy / 2, y1 - dy - dx / 2)
    return Arrow((x0, y0), _DOT * pixel, (x1, y1), ((x1, y1), *wings))


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
