"""The same layout as a PNG, for where there is no browser: marks on the X-ray, known places dashed."""

import io
from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import hypot

from PIL import Image, ImageDraw, ImageFont

from adamatch_ray.pages.layout import FONT, Drawn, css_pixel, lay_out
from adamatch_ray.pages.view import Mark, Point, StudyView, picture

SIDE = 800
"""Long side of a PNG, pixels."""

_FINE = 2  # drawn so much larger, then averaged: smooth edges
_LINE, _SMALL, _NOTE = 3 * _FINE, 16 * _FINE, 30 * _FINE


def draw_study(view: StudyView, marks: Sequence[Mark], title: str) -> bytes:
    """The X-ray of a view with `marks`, first to last in COLOURS, over a line that says what is seen; a PNG."""
    height, width = view.image.height, view.image.width
    scale = SIDE / max(height, width) * _FINE
    size = max(1, round(width * scale / _FINE)) * _FINE, max(1, round(height * scale / _FINE)) * _FINE
    xray = picture(view.image).resize(size, Image.Resampling.BICUBIC)
    canvas = Image.new("RGB", (max(size[0], 320 * _FINE), size[1] + _NOTE), "#111113")
    canvas.paste(xray.convert("RGB"), (0, 0))
    draw = ImageDraw.Draw(canvas)
    for name, (x0, y0, x1, y1) in view.truth:
        _dashed(draw, _scaled([(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)], scale))
        _write(draw, x0 * scale + 5 * _FINE, y1 * scale - _SMALL - 6 * _FINE, name, "#ffffff")
    drawn = lay_out(marks, range(len(marks)), width, height)
    for mark in drawn:
        _draw_mark(draw, mark, scale)
    font = ImageFont.load_default(FONT * css_pixel(width, height) * scale)
    for mark in drawn:  # after all boxes: no line crosses a name
        x, y, across, down = (value * scale for value in mark.label)
        draw.rectangle((x, y, x + across, y + down), fill=mark.colour)
        draw.text((x + across / 2, y + down / 2), mark.mark.text, "#111113", font, anchor="mm")
    note = f"{title} · {'synthetic phantom' if view.phantom else 'X-ray'} · research use only"
    _write(draw, 8 * _FINE, size[1] + 5 * _FINE, note, "#d8d8d4")
    stream = io.BytesIO()
    canvas.resize((canvas.width // _FINE, canvas.height // _FINE), Image.Resampling.LANCZOS).save(stream, "PNG")
    return stream.getvalue()


def _draw_mark(draw: ImageDraw.ImageDraw, drawn: Drawn, scale: float) -> None:
    draw.rectangle([value * scale for value in drawn.box], outline=drawn.colour, width=_LINE)
    for polygon in drawn.mark.outline:
        draw.line(_scaled([*polygon, polygon[0]], scale), drawn.colour, _LINE, joint="curve")
    if drawn.arrow:
        start, end = _scaled([drawn.arrow.start, drawn.arrow.end], scale)
        draw.circle(start, drawn.arrow.radius * scale, fill=drawn.colour)
        draw.line((start, end), drawn.colour, _LINE)
        draw.polygon(_scaled(drawn.arrow.head, scale), fill=drawn.colour)


def _scaled(points: Iterable[Point], scale: float) -> list[Point]:
    return [(x * scale, y * scale) for x, y in points]


def _dashed(draw: ImageDraw.ImageDraw, corners: Sequence[Point]) -> None:
    dash = 9 * _FINE
    for (x0, y0), (x1, y1) in pairwise(corners):
        length = hypot(x1 - x0, y1 - y0)
        for start in range(0, int(length), 2 * dash):
            ends = (start / length, min(start + dash, length) / length)
            draw.line([(x0 + (x1 - x0) * part, y0 + (y1 - y0) * part) for part in ends], "#ffffff", 2 * _FINE)


def _write(draw: ImageDraw.ImageDraw, x: float, y: float, text: str, colour: str) -> None:
    font = ImageFont.load_default(_SMALL)
    draw.text((x, y), text, colour, font, stroke_width=_FINE, stroke_fill="#333333")  # read on white as well
