"""`report.html`: every headline with where it stands, figures, generated next to real, and the worst cases.

One file that needs nothing from outside and no script. It holds images and reports of the split: keep it where those
may be kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np

from adamatch_ray.data.images import decode_png
from adamatch_ray.data.predictions import Encoded
from adamatch_ray.evaluation.images import ImageScore
from adamatch_ray.evaluation.reports import StudyScore
from adamatch_ray.evaluation.split import Placed, Split
from adamatch_ray.pages import parts as parts
from adamatch_ray.pages.style import CSS

SHOWN_PAIRS, SHOWN_CASES = 12, 5

TITLES = {
    "reports": (
        "Reports from X-rays",
        "What the generated reports share with the radiologists' in words and findings.",
    ),
    "images": ("X-rays from reports", "Whether generated X-rays look like real ones and show what was asked for."),
    "retrieval": ("Retrieval", "How often the right report is among the first for an X-ray, and the other way round."),
    "localization": ("Pointing", "Whether the region matched to a word lies on what the word names."),
    "cycle": ("The cycle", "Whether going there and back keeps what the study says."),
}
TILES = (
    "BLEU-4",
    "finding F1, 14 labels pooled",
    "FID",
    "asked findings seen, F1",
    "X-ray → report, R@1",
    "a finding's word points at it, best box",
    "second report against first, finding F1",
)


@dataclass
class Material:
    """What the page shows besides figures; a part that was not scored stays empty."""

    split: Split
    reports: Placed[str] | None = None
    report_rows: Sequence[StudyScore] = ()
    images: Placed[Encoded] | None = None
    image_rows: Sequence[ImageScore] = ()
    points: dict[str, Any] | None = None
    canvas: int = field(init=False)

    def __post_init__(self) -> None:
        self.canvas = decode_png(self.split.studies[0].image).shape[0]
        self.study_of = {study.id: study for study in self.split.studies}


def build(summary: dict[str, Any], shown: Material, files: Sequence[str]) -> str:
    """The page of a `metrics.json`; `files` are the names that lie beside it."""
    tables = [name for name in TITLES if name in summary["tables"]]
    links = "".join(f'<a href="#{name}">{TITLES[name][0]}</a>' for name in tables)
    sections = "".join(_section(name, summary, shown) for name in tables)
    left_out = "".join(f"<li>{escape(name)}: {escape(why)}</li>" for name, why in summary["left_out"].items())
    sections += f"<h2>Not scored</h2><ul>{left_out}</ul>" if left_out else ""
    title = escape(summary["title"])
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{CSS}</style></head><body><main>'
        f'<header><div class="over">AdaMatch-Cyclic on Ray</div><h1>{title}</h1><p class="soft">{_source(summary)}</p>'
        f"{_banner(shown.split)}<nav>{links}</nav></header>{_tiles(summary)}{sections}"
        f"{_footer(summary, files)}</main></body></html>\n"
    )


def _source(summary: dict[str, Any]) -> str:
    made = f" · predictions: <code>{escape(summary['predictions'])}</code>" if summary["predictions"] else ""
    return f"{summary['studies']} studies · {escape(summary['data'])}{made}"


def _banner(split: Split) -> str:
    said = "<strong>Research use only.</strong> Not for diagnosis."
    if split.is_phantom:
        said += (
            " Every X-ray here is a <strong>synthetic phantom</strong>: a drawing with a report written beside it. The "
            "numbers tell whether the system works; they say nothing about patients, nor how it would do on MIMIC-CXR."
        )
    return f'<div class="banner"><p>{said}</p></div>'


def _tiles(summary: dict[str, Any]) -> str:
    by_name = {row["measure"]: row for row in summary["headlines"]}
    found = "".join(parts.tile(by_name[name]) for name in TILES if name in by_name)
    return f'<div class="tiles">{found}</div>'


def _section(name: str, summary: dict[str, Any], shown: Material) -> str:
    title, what = TITLES[name]
    rows = [row for row in summary["headlines"] if row["table"] == name]
    differs = summary["differences"].get(name, "")
    drawn = _FIGURES[name](summary["tables"][name], shown)
    return (
        f'<section id="{name}"><h2>{title}</h2><p>{what}</p>{parts.headline_table(rows)}'
        f'<p class="differs">{escape(differs)}</p>{drawn}</section>'
    )


def _reports(table: dict[str, Any], shown: Material) -> str:
    findings = table["findings"]
    drawn = _missing(table) + "<h3>F1 by finding</h3>"
    drawn += _finding_bars(findings["by_report"]["labels"], "generated report", None, "")
    ranked = sorted(shown.report_rows, key=lambda row: (row.finding_f1, row.rouge_l))
    typical = [ranked[round(share * (len(ranked) - 1))] for share in (1.0, 0.75, 0.5)]
    drawn += "<h3>From best to median</h3>" + "".join(_report_case(row, shown) for row in typical)
    drawn += "<h3>Worst by findings</h3>" + "".join(_report_case(row, shown) for row in ranked[:SHOWN_CASES])
    return drawn


def _images(table: dict[str, Any], shown: Material) -> str:
    findings = table["findings"]
    drawn = _missing(table) + "<h3>Asked findings that the classifier sees, F1</h3>"
    drawn += _finding_bars(
        findings["generated"]["labels"], "in generated X-rays", findings["real"]["labels"], "in real X-rays"
    )
    drawn += '<p class="differs">Thresholds are chosen on real X-rays of validate; the mark is the ceiling that the '
    drawn += "classifier itself sets.</p>"
    drawn += parts.scatter(shown.points) if shown.points else ""
    order = np.random.default_rng(0).permutation(len(shown.image_rows))[:SHOWN_PAIRS]
    chosen = [shown.image_rows[place] for place in sorted(order.tolist())]
    drawn += "<h3>Drawn at random: real, and generated from its report</h3>" + _pairs(chosen, shown)
    worst = sorted(shown.image_rows, key=lambda row: (len(row.shown) - len(row.lacking), -_or_zero(row.niqe)))
    return drawn + "<h3>Most asked findings lacking</h3>" + _pairs(worst[: SHOWN_CASES + 1], shown)


def _retrieval(table: dict[str, Any], shown: Material) -> str:
    names = (("image_to_text", "X-ray → report"), ("text_to_image", "report → X-ray"))
    rows = [
        parts.Bar(f"{said}, R@{k}", table["full"][f"{name}@{k}"], table["chance"][f"@{k}"])
        for name, said in names
        for k in (1, 5, 10)
    ]
    return parts.bars(rows, 100.0, "percent of studies", "chance")


def _localization(table: dict[str, Any], shown: Material) -> str:
    rows = [
        parts.Bar(name, found["box_hit"], found["chance"], f"{found['phrases']:.0f} words")
        for name, found in table["findings"].items()
    ]
    return "<h3>Hits by finding</h3>" + parts.bars(rows, 1.0, "best box lies on the finding", "chance")


def _cycle(table: dict[str, Any], shown: Material) -> str:
    steps = (("generated_image", "X-ray made from the report"), ("second_image", "X-ray made from the X-ray's report"))
    rows = [
        parts.Bar(f"{said}, R@{k}", table[name]["recall"][f"image_to_text@{k}"], table["chance"][f"@{k}"])
        for name, said in steps
        if name in table
        for k in (1, 5, 10)
    ]
    if not rows:
        return ""
    return "<h3>AdaMatch finds the study's own report from</h3>" + parts.bars(
        rows, 100.0, "percent of studies", "chance"
    )


_FIGURES = {
    "reports": _reports,
    "images": _images,
    "retrieval": _retrieval,
    "localization": _localization,
    "cycle": _cycle,
}


def _finding_bars(ours: dict[str, Any], said: str, other: dict[str, Any] | None, other_said: str) -> str:
    rows = [
        parts.Bar(name, score["f1"], other[name]["f1"] if other else None, f"{score['reference']} studies")
        for name, score in ours.items()
        if score["reference"]
    ]
    rows.sort(key=lambda row: -int(row.note.split()[0]))
    return parts.bars(rows, 1.0, said, other_said)


def _missing(table: dict[str, Any]) -> str:
    if not table["missing"]:
        return ""
    return (
        f"<p><strong>{table['missing']} of {table['studies']} studies have no prediction</strong> and count as empty; "
        "their ids stand in the table's file.</p>"
    )


def _report_case(row: StudyScore, shown: Material) -> str:
    study = shown.study_of[row.id]
    assert shown.reports is not None
    made = shown.reports.values.get(row.id, "")
    marks = parts.chips(found=row.found, missed=row.missed, invented=row.invented)
    return (
        f'<div class="case"><div>{parts.picture(study.image, shown.canvas, "X-ray")}<small>{escape(row.id)}<br>'
        f"finding F1 {row.finding_f1:.2f}<br>ROUGE-L {row.rouge_l:.2f}</small></div><div>{marks}"
        f"<h4>report</h4><p>{escape(study.report)}</p><h4>generated</h4><p>{escape(made) or '(none)'}</p></div></div>"
    )


def _pairs(rows: Sequence[ImageScore], shown: Material) -> str:
    assert shown.images is not None
    drawn = []
    for row in rows:
        study = shown.study_of[row.id]
        real = parts.picture(study.image, shown.canvas, "real X-ray")
        made = parts.picture(shown.images.values.get(row.id), shown.canvas, "generated X-ray")
        marks = parts.chips(found=row.shown, missed=row.lacking)
        drawn.append(
            f'<div class="pair"><div class="two"><div>{real}<small>real</small></div>'
            f"<div>{made}<small>generated</small></div></div>{marks}"
            f"<details><summary>{escape(row.id)}</summary>{escape(study.report)}</details></div>"
        )
    return f'<div class="pairs">{"".join(drawn)}</div>'


def _footer(summary: dict[str, Any], files: Sequence[str]) -> str:
    links = "".join(f'<li><a href="{escape(name)}">{escape(name)}</a></li>' for name in files if name != "report.html")
    return (
        "<footer><p>Every number above names the file and the key it stands under; the files lie beside this page. "
        f"Intervals are percentile bootstraps over studies. {escape(summary['use'])}</p><ul>{links}</ul></footer>"
    )


def _or_zero(value: float) -> float:
    return value if np.isfinite(value) else 0.0
