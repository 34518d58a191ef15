"""Pieces of the page: tables of headlines, bars, the t-SNE picture, cases with their X-rays. All text is escaped."""

import base64
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, NamedTuple

from adamatch_ray.data.images import BadImage, Pixels, encode_png
from adamatch_ray.data.predictions import Encoded, load_canvas
from adamatch_ray.evaluation.headline import number


class Bar(NamedTuple):
    """A labelled share of `most`, with the mark of something to compare it with."""

    label: str
    value: float
    beside: float | None = None
    note: str = ""


def tile(row: dict[str, Any]) -> str:
    """One headline as a large number."""
    beside = "" if row["reference"] is None else f"{row['reference_name']} {number(row['reference'], row['digits'])}"
    lines = "".join(f"<span>{escape(line)}</span>" for line in (interval(row), beside) if line)
    better = " ↓" if row["lower_is_better"] else ""
    return (
        f'<div class="tile"><span class="what">{escape(row["measure"])}{better}</span>'
        f"<b>{number(row['value'], row['digits'])}</b>{lines}</div>"
    )


def interval(row: dict[str, Any]) -> str:
    """The 95 % interval of a headline as text, empty where there is none."""
    return "" if row["low"] is None else " … ".join(number(row[end], row["digits"]) for end in ("low", "high"))


def headline_table(rows: Iterable[dict[str, Any]]) -> str:
    """Headlines with interval, what stands beside them, the paper's value and the source."""
    body = []
    for row in rows:
        beside = (
            "" if row["reference"] is None else f"{number(row['reference'], row['digits'])} {row['reference_name']}"
        )
        paper = "" if row["paper"] is None else f"{number(row['paper'], row['digits'])} ({row['paper_table']})"
        better = " ↓" if row["lower_is_better"] else ""
        cells = (
            _cell("", f"{row['measure']}{better}"),
            _cell(' class="n"', number(row["value"], row["digits"])),
            _cell(' class="i" data-name="95 %"', interval(row)),
            _cell(' data-name="against"', beside),
            _cell(' class="i" data-name="paper"', paper),
        )
        body.append(f"<tr>{''.join(cells)}<td><code>{escape(row['source'])}</code></td></tr>")
    head = "".join(
        f"<th>{name}</th>" for name in ("", "this run", "95 % interval", "for comparison", "paper", "found in")
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _cell(attributes: str, text: str) -> str:
    return f"<td{attributes}>{escape(text)}</td>" if text else "<td></td>"


def bars(rows: Sequence[Bar], most: float, ours: str, beside: str = "") -> str:
    """Horizontal bars from 0 to `most` with a key."""
    lines = []
    for row in rows:
        mark = "" if row.beside is None else f'<b style="left:{_percent(row.beside, most)}"></b>'
        note = f"<small>{escape(row.note)}</small>" if row.note else ""
        lines.append(
            f'<div class="bar"><span>{escape(row.label)}{note}</span><span class="track">'
            f'<i style="width:{_percent(row.value, most)}"></i>{mark}</span>'
            f'<span class="n">{row.value:.{2 if most <= 1 else 1}f}</span></div>'
        )
    return key(ours, beside) + f'<div class="bars">{"".join(lines)}</div>'


def key(ours: str, beside: str = "") -> str:
    """What the two colours stand for."""
    entries = (("ours", ours), ("beside", beside))
    marks = (f'<span><i class="{style}"></i>{escape(text)}</span>' for style, text in entries if text)
    return f'<div class="key">{"".join(marks)}</div>'


def scatter(points: dict[str, Any]) -> str:
    """The t-SNE map: real images and generated ones."""
    both = [*points["real"], *points["generated"]]
    low = [min(point[axis] for point in both) for axis in (0, 1)]
    span = max(max(point[axis] for point in both) - low[axis] for axis in (0, 1)) or 1.0

    def dots(side: str, style: str) -> str:
        places = (((x - low[0]) / span * 380 + 10, (y - low[1]) / span * 380 + 10) for x, y in points[side])
        return "".join(f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="3.2"/>' for x, y in places)

    size = [(max(point[axis] for point in both) - low[axis]) / span * 380 + 20 for axis in (0, 1)]
    drawn = dots("real", "beside") + dots("generated", "ours")
    return (
        f'<figure><svg viewBox="0 0 {size[0]:.0f} {size[1]:.0f}" role="img" aria-label="t-SNE of image features" '
        f'fill-opacity=".62">{drawn}</svg>{key("generated", "real")}<figcaption>t-SNE of the features that FID '
        f"compares, {len(points['real'])} studies, each once real and once generated (paper, Fig. 6). Where the "
        "colours mix, the generated images lie where real ones do.</figcaption></figure>"
    )


def picture(image: Encoded | None, canvas: int, caption: str) -> str:
    """An X-ray as part of the page, or a frame that says there is none."""
    pixels: Pixels | None = None
    if image is not None:
        try:
            pixels = load_canvas(image, canvas)
        except BadImage:
            pixels = None
    if pixels is None:
        return '<div class="none">no image</div>'
    data = base64.b64encode(encode_png(pixels)).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{escape(caption)}" loading="lazy">'


def chips(**groups: Sequence[str]) -> str:
    """Names of findings, coloured by group: found, missed, invented."""
    sign = {"found": "✓", "missed": "✗", "invented": "+"}
    marks = [
        f'<span class="chip {group}" title="{group}">{sign[group]} {escape(name)}</span>'
        for group, names in groups.items()
        for name in names
    ]
    return f'<div class="chips">{"".join(marks)}</div>' if marks else ""


def _percent(value: float, most: float) -> str:
    return f"{100 * min(max(value / most, 0.0), 1.0):.1f}%"
