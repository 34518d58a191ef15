"""An X-ray with its marks as a PNG: adaptive boxes, arrows from fixed to adaptive centres, known places dashed."""

import io
from collections.abc import Sequence
from math import atan2, cos, hypot, pi, sin

from PIL import Image, ImageDraw, ImageFont

from adamatch_ray.engines.matching import Box
from adamatch_ray.pages.layout import COLOURS, TRUTH, centre, drawn_box, moved, place_labels
from adamatch_ray.pages.view import Mark, StudyView, picture

SIDE = 800
"""Long side of a PNG, pixels."""

_FINE = 2  # drawn so much larger, then averaged: smooth edges
_LINE, _FONT, _NOTE = 3, 24, 30


def draw_study(view: StudyView, marks: Sequence[Mark], title: str) -> bytes:
    """The X-ray of a view with `marks`, first to last in COLOURS, over a line that says what is seen; a PNG."""
    height, width = view.image.height, view.image.width
    scale = SIDE / max(height, width) * _FINE
    size = max(1, round(width * scale / _FINE)) * _FINE, max(1, round(height * scale / _FINE)) * _FINE
    canvas = picture(view.image).resize(size, Image.Resampling.BICUBIC).convert("RGB")
    draw = ImageDraw.Draw(canvas)
    for name, box in view.truth:
        x0, y0, x1, y1 = _scaled(box, scale)
        _dashed(draw, (x0, y0, x1, y1))
        _write(draw, x0 + 5 * _FINE, y1 - (_FONT - 2) * _FINE, name, TRUTH, _FONT - 8)
    boxes = [drawn_box(_scaled(mark.box, scale), 8 * _FINE) for mark in marks]
    for mark, box, colour in zip(marks, boxes, COLOURS, strict=False):
        draw.rectangle(box, outline=colour, width=_LINE * _FINE)
        _arrow(draw, _scaled(mark.fixed, scale), box, colour)
    _label(draw, marks, boxes, size)
    said = f"{title} · {'synthetic phantom' if view.phantom else 'X-ray'} · research use only"
    framed = Image.new("RGB", (max(size[0], 320 * _FINE), size[1] + _NOTE * _FINE), "#111113")
    framed.paste(canvas, (0, 0))
    _write(ImageDraw.Draw(framed), 8 * _FINE, size[1] + 5 * _FINE, said, "#d8d8d4", _FONT - 8)
    stream = io.BytesIO()
    framed.resize((framed.width // _FINE, framed.height // _FINE), Image.Resampling.LANCZOS).save(stream, "PNG")
    return stream.getvalue()


def _scaled(box: Box, scale: float) -> Box:
    return box[0] * scale, box[1] * scale, box[2] * scale, box[3] * scale


def _label(draw: ImageDraw.ImageDraw, marks: Sequence[Mark], boxes: Sequence[Box], size: tuple[int, int]) -> None:
    font = ImageFont.load_default(_FONT * _FINE)
    pad = 6 * _FINE
    widths = [draw.textlength(mark.text, font) + 2 * pad for mark in marks]
    labels = place_labels(boxes, widths, (_FONT + 8) * _FINE, size)
    for mark, label, colour in zip(marks, labels, COLOURS, strict=False):
        draw.rectangle((label.x, label.y, label.x + label.width, label.y + label.height), fill=colour)
        draw.text((label.x + pad, label.y + 3 * _FINE), mark.text, "#111113", font)


def _arrow(draw: ImageDraw.ImageDraw, fixed: Box, box: Box, colour: str) -> None:
    """From a dot where the patch was to the middle of where it went."""
    (x0, y0), (x1, y1) = centre(fixed), centre(box)
    dot, head = 4 * _FINE, 13 * _FINE
    if not moved(fixed, box, head):
        return
    draw.ellipse((x0 - dot, y0 - dot, x0 + dot, y0 + dot), fill=colour)
    draw.line((x0, y0, x1, y1), colour, _LINE * _FINE)
    turn = atan2(y1 - y0, x1 - x0)
    wings = [(x1 + head * cos(turn + pi + side), y1 + head * sin(turn + pi + side)) for side in (-0.45, 0.45)]
    draw.polygon([(x1, y1), *wings], fill=colour)


def _dashed(draw: ImageDraw.ImageDraw, box: Box) -> None:
    x0, y0, x1, y1 = box
    dash = 9 * _FINE
    for ax, ay, bx, by in ((x0, y0, x1, y0), (x1, y0, x1, y1), (x1, y1, x0, y1), (x0, y1, x0, y0)):
        length = hypot(bx - ax, by - ay)
        for start in range(0, int(length), 2 * dash):
            part, end = start / length, min(start + dash, length) / length
            ends = ax + (bx - ax) * part, ay + (by - ay) * part, ax + (bx - ax) * end, ay + (by - ay) * end
            draw.line(ends, TRUTH, 2 * _FINE)


def _write(draw: ImageDraw.ImageDraw, x: float, y: float, text: str, colour: str, size: int) -> None:
    font = ImageFont.load_default(size * _FINE)
    draw.text((x, y), text, colour, font, stroke_width=_FINE, stroke_fill="#333333")  # read on white as well
