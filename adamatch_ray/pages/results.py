"""`report.html`: every headline with where it stands, figures, generated next to real, and the worst cases.

One file that needs nothing from outside and no script. It holds images and reports of the split: keep it where those
may be kept.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from adamatch_ray.evaluation.images import ImageScore
from adamatch_ray.evaluation.memorisation import CopyRow
from adamatch_ray.evaluation.reports import StudyScore
from adamatch_ray.evaluation.split import Study
from adamatch_ray.pages.html import render
from adamatch_ray.pages.material import Material, thumbnail
from adamatch_ray.pages.round_trips import picture_rows, round_trips

MOST_PAIRS, MOST_CASES = 12, 5
TILES = (
    "BLEU-4",
    "finding F1, 14 labels pooled",
    "FID",
    "asked findings seen, F1",
    "X-ray → report, R@1",
    "a finding's word points at it",
    "second report against first, finding F1",
    "without keywords: findings with their side, F1",
)


class Bar(NamedTuple):
    """A labelled share of the chart's whole, with the mark of something to compare it with."""

    label: str
    value: float
    beside: float | None = None
    note: str = ""


class Bars(NamedTuple):
    """Bars from 0 to `most` under a heading, with what their two colours stand for."""

    heading: str
    rows: list[Bar]
    most: float
    ours: str
    beside: str = ""


class Case(NamedTuple):
    """A study, its X-ray and the generated one as PNGs (None: there is none to be read), and the study's own scores."""

    study: Study
    xray: bytes | None
    generated: bytes | None
    report: str
    score: Any


def build(summary: Mapping[str, Any], material: Material, files: Sequence[str]) -> str:
    """The page of a `metrics.json`; `files` are the names that lie beside it."""
    by_name = {row["measure"]: row for row in summary["headlines"]}
    return render(
        "results.html",
        summary=summary,
        title=summary["title"],
        phantom=material.split.is_phantom,
        tiles=[by_name[name] for name in TILES if name in by_name],
        bars={name: draw(summary["tables"][name]) for name, draw in _BARS.items() if name in summary["tables"]},
        dots=_dots(material.points) if material.points else None,
        report_cases=_report_cases(material),
        image_cases=_image_cases(material),
        pictures=picture_rows(summary["tables"].get("cycle", {})),
        trips=round_trips(material),
        copies=[(row, _drawn(row, material)) for row in material.copies[:MOST_PAIRS]],
        files=[name for name in files if name != "report.html"],
    )


def _reports(table: Mapping[str, Any]) -> Bars:
    rows = _finding_bars(table["findings"]["by_report"]["labels"])
    return Bars("F1 by finding", rows, 1.0, "generated report")


def _images(table: Mapping[str, Any]) -> Bars:
    findings = table["findings"]
    rows = _finding_bars(findings["generated"]["labels"], findings["real"]["labels"])
    return Bars("Asked findings that the classifier sees, F1", rows, 1.0, "in generated X-rays", "in real X-rays")


def _finding_bars(ours: Mapping[str, Any], other: Mapping[str, Any] | None = None) -> list[Bar]:
    """The most frequent finding first; those that no study has are left out."""
    occurring = sorted((item for item in ours.items() if item[1]["reference"]), key=lambda item: -item[1]["reference"])
    return [
        Bar(name, score["f1"], other[name]["f1"] if other else None, f"{score['reference']} studies")
        for name, score in occurring
    ]


def _retrieval(table: Mapping[str, Any]) -> Bars:
    ways = (("image_to_text", "X-ray → report"), ("text_to_image", "report → X-ray"))
    rows = [
        Bar(f"{way}, R@{k}", table["full"][f"{name}@{k}"], table["chance"][f"@{k}"]) for name, way in ways
        for k in (1, 5, 10)
    ]  # fmt: skip
    return Bars("", rows, 100.0, "percent of studies", "chance")


def _localization(table: Mapping[str, Any]) -> Bars:
    rows = [
        Bar(name, found["box_iou"], found["point_hit"], f"{found['phrases']:.0f} words")
        for kind in ("findings", "groups")
        for name, found in table[kind].items()
    ]
    return Bars("Regions by finding", rows, 1.0, "IoU of the region's box with the finding's", "share of points on it")


_BARS = {
    "reports": _reports,
    "images": _images,
    "retrieval": _retrieval,
    "localization": _localization,
}


def _dots(points: Mapping[str, Any]) -> dict[str, Any]:
    """The t-SNE map in 400 units: real images and generated ones, and how much of the 400 it takes."""
    real, generated = np.array(points["real"]), np.array(points["generated"])
    low, high = (end(np.concatenate([real, generated]), axis=0) for end in (np.min, np.max))
    scale = 380 / (float((high - low).max()) or 1.0)
    sides = {"real": real, "generated": generated}
    placed = {side: ((dots - low) * scale + 10).tolist() for side, dots in sides.items()}
    return {**placed, "size": ((high - low) * scale + 20).tolist()}


def _report_cases(material: Material) -> dict[str, list[Case]]:
    ranked = sorted(material.report_rows, key=lambda row: (row.finding_f1, row.rouge_l))
    typical = [ranked[round(share * (len(ranked) - 1))] for share in (1.0, 0.75, 0.5)] if ranked else []
    chosen = {"From best to median": typical, "Worst by findings": ranked[:MOST_CASES]}
    return {heading: [_case(row, material) for row in rows] for heading, rows in chosen.items() if rows}


def _image_cases(material: Material) -> dict[str, list[Case]]:
    rows = material.image_rows
    order = np.random.default_rng(0).permutation(len(rows))[:MOST_PAIRS]
    worst = sorted(rows, key=lambda row: (len(row.shown) - len(row.lacking), -np.nan_to_num(row.niqe, posinf=0.0)))
    chosen = {
        "Drawn at random: real, and generated from its report": [rows[place] for place in sorted(order.tolist())],
        "Most asked findings lacking": worst[: MOST_CASES + 1],
    }
    return {heading: [_case(row, material) for row in rows] for heading, rows in chosen.items() if rows}


def _drawn(row: CopyRow, material: Material) -> bytes | None:
    """The image that was flagged as a copy."""
    placed = material.images if row.kind == "generated_image" else material.second_images
    return thumbnail(placed.values.get(row.id) if placed else None, material.canvas)


def _case(row: StudyScore | ImageScore, material: Material) -> Case:
    study = material.study_of[row.id]
    generated = material.images.values.get(row.id) if material.images else None
    report = material.reports.values.get(row.id, "") if material.reports else ""
    return Case(study, thumbnail(study.image, material.canvas), thumbnail(generated, material.canvas), report, row)
