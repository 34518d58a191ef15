"""The gallery as one HTML page that needs nothing else: styles, script and pictures are inside."""

import base64
import io
from collections.abc import Iterator, Sequence
from html import escape
from importlib import resources
from typing import Literal

from adamatch_ray.engines.matching import Box
from adamatch_ray.pages.layout import COLOURS, FONT, centre, drawn_box, moved, page_scale, place_labels
from adamatch_ray.pages.view import Mark, Reference, StudyView, picture, spotlight

Kind = Literal["w", "k"]
"""Marks of words of the report, or of keywords of the image."""


def render_page(views: Sequence[StudyView], title: str, telling: frozenset[str] = frozenset()) -> str:
    """The page of some studies; `telling` are the lower-case words that may be drawn, as in `spotlight`."""
    files = {name: resources.files(__package__).joinpath(name).read_text("utf-8") for name in ("page.css", "page.js")}
    phantoms = any(view.phantom for view in views)
    notes = ["<strong>Research use only.</strong> Not for diagnosis."]
    notes += ["Synthetic phantoms: procedural pictures, no patients."] if phantoms else []
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>
{files["page.css"]}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
<p class="notes">{" ".join(notes)}</p>
<p>Each coloured word stands by the region it matched best. Point at any word, or move to it with the arrow keys, to see
its own. A box tells where a word was matched, not that the finding is there.</p>
{_key(phantoms)}
</header>
<main>
{"".join(_study(view, telling) for view in views)}</main>
<script>
{files["page.js"]}</script>
</body>
</html>
"""


def _key(phantoms: bool) -> str:
    swatches = [("box", "adaptive patch of a word"), ("arrow", "from where the patch was fixed to where it went")]
    swatches += [("dashes", "where the finding was drawn")] if phantoms else []
    items = "".join(f'<li><span class="swatch {kind}"></span>{text}</li>' for kind, text in swatches)
    return f'<ul class="key">{items}</ul>'


def _study(view: StudyView, telling: frozenset[str]) -> str:
    words, keywords = view.words, view.keywords
    top = {"w": spotlight(words, telling), "k": spotlight(keywords, frozenset(k.text.lower() for k in keywords))}
    tag = "synthetic phantom" if view.phantom else "X-ray"
    size = f"{view.image.width} by {view.image.height} px"
    return f"""<article class="study">
<h2>{escape(view.study_id)} <span class="tag">{tag}</span> <span class="size">{size}</span></h2>
<section>
<h3>Report: where its words are</h3>
{_figure(view, words, top["w"], "w")}
<p class="says" role="group" aria-label="words of the report">{_report(view, top["w"])}</p>
</section>
<section>
<h3>Image: the keywords it shows</h3>
{_figure(view, keywords, top["k"], "k")}
{_keywords(keywords, top["k"])}
</section>
{_references(view.references)}
</article>
"""


def _figure(view: StudyView, marks: Sequence[Mark], top: Sequence[int], kind: Kind) -> str:
    """The picture in pixels of the original, every mark on it, those in `top` seen from the start."""
    height, width = view.image.height, view.image.width
    pixel = 1 / page_scale(height, width)
    named = ", ".join(marks[n].text for n in top) or "nothing was matched"
    widths = [(len(mark.text) * 0.6 * FONT + 10) * pixel for mark in marks]
    first = place_labels(
        [marks[n].box for n in top], [widths[n] for n in top], (FONT + 6) * pixel, (float(width), float(height))
    )
    spots = dict(zip(top, first, strict=True))
    parts = [_truth(name, box, pixel) for name, box in view.truth]
    for n, mark in sorted(enumerate(marks), key=lambda item: item[0] in spots):  # what is seen lies on top
        alone = place_labels([mark.box], [widths[n]], (FONT + 6) * pixel, (float(width), float(height)))[0]
        label = spots.get(n, alone)
        parts.append(
            f'<g class="{"mark top" if n in spots else "mark"}" data-mark="{kind}{n}"{_colour(n, top)}>'
            f"{_drawn(mark, pixel)}"
            f'<rect class="plate" x="{label.x:.1f}" y="{label.y:.1f}" width="{label.width:.1f}" '
            f'height="{label.height:.1f}"/><text x="{label.x + 5 * pixel:.1f}" '
            f'y="{label.y + (FONT + 1) * pixel:.1f}" font-size="{FONT * pixel:.2f}">{escape(mark.text)}</text></g>'
        )
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(view.study_id)}: {escape(named)}">'
        f'<image href="{_data_uri(view)}" width="{width}" height="{height}" preserveAspectRatio="none"/>'
        f"{''.join(parts)}</svg>"
    )


def _drawn(mark: Mark, pixel: float) -> str:
    """Box and, where the patch moved, the arrow from its fixed to its adaptive centre."""
    drawn = _rect(drawn_box(mark.box, 4 * pixel), "box")
    if moved(mark.fixed, mark.box, 8 * pixel):
        (x0, y0), (x1, y1) = centre(mark.fixed), centre(mark.box)
        length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
        dx, dy = (x1 - x0) / length * 7 * pixel, (y1 - y0) / length * 7 * pixel
        wings = f"{x1 - dx - dy / 2:.1f},{y1 - dy + dx / 2:.1f} {x1 - dx + dy / 2:.1f},{y1 - dy - dx / 2:.1f}"
        drawn += (
            f'<circle cx="{x0:.1f}" cy="{y0:.1f}" r="{2.5 * pixel:.2f}"/>'
            f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}"/>'
            f'<polygon points="{x1:.1f},{y1:.1f} {wings}"/>'
        )
    return drawn


def _truth(name: str, box: Box, pixel: float) -> str:
    x, y = box[0] + 4 * pixel, box[3] - 4 * pixel
    text = f'<text x="{x:.1f}" y="{y:.1f}" font-size="{(FONT - 2) * pixel:.2f}">{escape(name)}</text>'
    return f'<g class="truth">{_rect(box, "box")}{text}</g>'


def _rect(box: Box, name: str) -> str:
    x, y, width, height = box[0], box[1], box[2] - box[0], box[3] - box[1]
    return f'<rect class="{name}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>'


def _report(view: StudyView, top: Sequence[int]) -> str:
    numbers: Iterator[int] = iter(range(len(view.words)))
    return "".join(
        _says(segment.mark, f"w{(n := next(numbers))}", n, top) if segment.mark else escape(segment.text)
        for segment in view.report
    )


def _keywords(keywords: Sequence[Mark], top: Sequence[int]) -> str:
    items = "".join(
        f'<li>{_says(mark, f"k{n}", n, top)}<span class="score">{mark.score:.2f}</span></li>'
        for n, mark in enumerate(keywords)
    )
    return f'<ol class="says" role="group" aria-label="keywords of the image">{items}</ol>'


def _says(mark: Mark, name: str, number: int, top: Sequence[int]) -> str:
    """A word that lights its box. Script lets the arrow keys go from word to word of a group: one tab stop each."""
    kind = "word top" if number in top else "word"
    return (
        f'<span class="{kind}" data-mark="{name}" tabindex="{-1 if number else 0}" '
        f'title="similarity {mark.score:.2f}"{_colour(number, top)}>{escape(mark.text)}</span>'
    )


def _references(references: Sequence[Reference]) -> str:
    if not references:
        return '<p class="references">No word of this report has a reference region.</p>'
    items = "".join(
        f'<figure><img src="{_png_uri(crop)}" alt="region matched to {escape(patch.word)}">'
        f"<figcaption><b>{escape(patch.word)}</b> {patch.score:.2f}<br>"
        f"<small>{escape(patch.study_id)}</small></figcaption></figure>"
        for patch, crop in references
    )
    return f'<div class="references"><h3>Report: like these regions of train images</h3>{items}</div>'


def _colour(number: int, top: Sequence[int]) -> str:
    return f' style="--c:{COLOURS[list(top).index(number)]}"' if number in top else ""


def _data_uri(view: StudyView) -> str:
    stream = io.BytesIO()
    picture(view.image).save(stream, "PNG", optimize=True)
    return _png_uri(stream.getvalue())


def _png_uri(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"
