"""The gallery as one HTML page that needs nothing else: styles, script and pictures are inside."""

import io
from collections.abc import Sequence
from typing import Literal, NamedTuple

from adamatch_ray.pages.html import render
from adamatch_ray.pages.layout import FONT, Drawn, css_pixel, lay_out
from adamatch_ray.pages.view import Mark, StudyView, picture, spotlight


class Figure(NamedTuple):
    """An X-ray with words of its report (w) or keywords of the image (k) on it, and the colour of each, "" for none."""

    kind: Literal["w", "k"]
    marks: list[Mark]
    drawn: list[Drawn]
    colours: list[str]


class Shown(NamedTuple):
    """A study as the page takes it."""

    view: StudyView
    xray: bytes
    pixel: float
    words: Figure
    keywords: Figure


def render_page(views: Sequence[StudyView], title: str, telling: frozenset[str] = frozenset()) -> str:
    """The page of some studies; `telling` are the lower-case words that may be drawn, as in `spotlight`."""
    return render(
        "gallery.html",
        title=title,
        phantom=any(view.phantom for view in views),
        outlined=any(mark.outline for view in views for mark in (*view.words, *view.keywords)),
        studies=[_study(view, telling) for view in views],
        font=FONT,
    )


def _study(view: StudyView, telling: frozenset[str]) -> Shown:
    stream = io.BytesIO()
    picture(view.image).save(stream, "PNG", optimize=True)
    keywords = frozenset(keyword.text.lower() for keyword in view.keywords)
    return Shown(
        view,
        stream.getvalue(),
        css_pixel(view.image.width, view.image.height),
        _figure("w", view, view.words, spotlight(view.words, telling)),
        _figure("k", view, view.keywords, spotlight(view.keywords, keywords)),
    )


def _figure(kind: Literal["w", "k"], view: StudyView, marks: list[Mark], top: list[int]) -> Figure:
    drawn = lay_out(marks, top, view.image.width, view.image.height)
    return Figure(kind, marks, drawn, [one.colour for one in sorted(drawn, key=lambda one: one.number)])
