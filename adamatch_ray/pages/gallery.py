"""The gallery as one HTML page that needs nothing else: styles, script and pictures are inside."""

import io
import sys
from collections.abc import Sequence
from typing import Literal, NamedTuple

from adamatch_ray.codebooks import VisualCodebook
from adamatch_ray.data import loading
from adamatch_ray.engines.matching import MatchingEngine
from adamatch_ray.pages.drawing import draw_study
from adamatch_ray.pages.html import render
from adamatch_ray.pages.layout import FONT, Drawn, css_pixel, lay_out
from adamatch_ray.pages.view import Mark, StudyView, picture, spotlight, view_studies
from adamatch_ray.storage import Root


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


def draw_gallery(root: str, split: str, count: int, device: str) -> dict[str, bytes]:
    """The first `count` studies of a split matched and drawn: files by name, two PNGs a study and the page."""
    stages = Root(root)
    engine = MatchingEngine.load(stages, device)
    codebook = VisualCodebook.load(stages.stage("codebooks"), crops=True)
    studies = loading.first_studies(stages.stage("studies"), split, count).to_pylist()
    views = view_studies(engine, codebook, studies)
    files: dict[str, bytes] = {}
    for number, view in enumerate(views, start=1):
        words = [view.words[n] for n in spotlight(view.words, engine.entity_words)]
        keywords = [view.keywords[n] for n in spotlight(view.keywords)]
        files[f"{number:03d}-words.png"] = draw_study(view, words, "words of the report")
        files[f"{number:03d}-keywords.png"] = draw_study(view, keywords, "keywords of the image")
        print(f"gallery: {number} of {len(views)} studies drawn", file=sys.stderr)
    page = render_page(views, "Which region for which word", engine.entity_words)
    return {**files, "index.html": page.encode()}


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
