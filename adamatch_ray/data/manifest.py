"""Any table of images and texts as studies (docs/method.md 7).

Only an image column and a text are needed. A subject is what is kept on one side of a split, so subjects that list the
same image file are taken for one person, under the id that comes first.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from itertools import islice
from pathlib import PurePosixPath

from adamatch_ray.data import reports, sources, tables, views
from adamatch_ray.data.reports import Sections
from adamatch_ray.data.sources import Row
from adamatch_ray.schema import CHEXPERT_LABELS


@dataclass(frozen=True)
class ManifestColumns:
    """Names of a table's columns; empty: the table has none such. `a/b` is column a, a slash, and column b."""

    image: str = field(default="image", metadata={"help": "path of the image, relative to the images folder"})
    text: str = field(default="report", metadata={"help": "whole report; not read where findings or impression is"})
    study: str = field(default="", metadata={"help": "study id; default: row number and file name"})
    subject: str = field(default="", metadata={"help": "subject id; default: the one in the path, else the study id"})
    split: str = field(default="", metadata={"help": "train, validate or test; default: drawn by subject"})
    view: str = field(default="", metadata={"help": "view position; blank is taken for frontal"})
    findings: str = field(default="", metadata={"help": "findings section"})
    impression: str = field(default="", metadata={"help": "impression section"})


KNOWN = (
    ManifestColumns(  # CheXpert Plus
        image="path_to_image",
        subject="deid_patient_id",
        split="split",
        view="frontal_lateral",
        findings="section_findings",
        impression="section_impression",
    ),
    ManifestColumns(image="Path", view="Frontal/Lateral"),  # CheXpert, with reports beside it
    ManifestColumns(image="ImageDir/ImageID", text="Report", study="StudyID", subject="PatientID", view="Projection"),
    ManifestColumns(
        image="ImageID", text="Report", study="StudyID", subject="PatientID", view="Projection"
    ),  # PadChest
)
"""Columns of published tables, for one that lacks the default image column where no other is asked for."""

_ENDINGS = ("", ".jpg", ".png", ".dcm", ".dicom")
_ENDING = re.compile(r"\.(?:jpe?g|png|dcm|dicom)$", re.IGNORECASE)
_PATIENT = re.compile(r"(?:^|/)(patient\d+|p\d{8})(?=/)")
_LOOKED_AT = 20
"""Images that are looked for to learn how the names in a table and those on the disk differ."""


def list_manifest(path: str, columns: ManifestColumns, images: str | None = None) -> Iterator[Row]:
    """Yield one row of `schema.SOURCE` per row of a table (`tables.read_table`).

    Image paths are relative to `images`, by default the table's own folder; leading folders that are not there, and
    another ending than the files have, are passed over. Every row gets a dicom_id of its own, its image's name without
    the ending, numbered where that was seen before. Labels are read where the table has a column for each of the 14.
    Rows of another view, of an unknown split, or without image or text, have a reason. Raises ValueError for a column
    that is not there, naming those that are.
    """
    table = _Table.of(path, columns)
    place = _Places.learn(images if images else path.rpartition("/")[0] or ".", table)
    people = _people(table) if "subject" in table.names else {}
    seen: set[str] = set()
    for number, cells in enumerate(table.rows(), start=1):
        name = cells["image"]
        stem = sources.image_stem(name) or "none"
        study = tables.identifier(cells.get("study", "")) or f"{number}-{stem}"
        subject, split = tables.identifier(cells.get("subject", "")), cells.get("split", "")
        patient = _PATIENT.search(name)
        sections = _sections(cells)
        yield sources.source_row(
            study_id=study,
            subject_id=people.get(subject, subject) or (patient[1] if patient else study),
            dicom_id=_unique(stem, seen),
            view_position=cells.get("view", ""),
            split=sources.normalise_split(split) or "",
            image_path=place.of(name),
            findings=sections.findings,
            impression=sections.impression,
            labels=_labels(cells, f"{path}, row {number}") if table.labelled else None,
            source="manifest",
            reason=_problem(cells, sections, split),
        )


def _problem(cells: dict[str, str], sections: Sections, split: str) -> str:
    if not cells["image"]:
        return "no image in the row"
    if not reports.compose_report(*sections):
        return "empty report"
    if split and sources.normalise_split(split) is None:
        return f"{sources.UNKNOWN_SPLIT} {split[:16]}"
    return views.view_problem(cells.get("view", ""), blank_is_frontal=True)


def _labels(cells: dict[str, str], place: str) -> list[float | None] | None:
    """The labels of a row; None where all are blank, so that its report is read for them."""
    values = sources.label_values(cells, place)
    return None if values == (None,) * len(values) else list(values)


def _sections(cells: dict[str, str]) -> Sections:
    """The sections of a row: of their own columns, else of the whole report."""
    findings, impression = (cells.get(name, "") for name in ("findings", "impression"))
    if not findings and not impression:
        return reports.split_text(cells.get("text", ""))
    return Sections(*("\n".join(filter(None, reports.split_text(text))) for text in (findings, impression)))


@dataclass(frozen=True)
class _Table:
    """A table, and which of its columns stand for what."""

    path: str
    names: dict[str, tuple[str, ...]]
    labelled: bool

    @classmethod
    def of(cls, path: str, columns: ManifestColumns) -> "_Table":
        present = tables.columns_of(path)
        if columns == ManifestColumns() and columns.image not in present:
            fits = (known for known in KNOWN if not _lacking(_names(known, present), present))
            columns = next(fits, columns)
        names = _names(columns, present)
        if "image" not in names or not names.keys() & {"text", "findings", "impression"}:
            raise ValueError("a manifest needs an image column and a text (or findings, or impression) column")
        if present and (missing := _lacking(names, present)):
            raise ValueError(f"{path} has no column {', '.join(missing)}; it has {', '.join(present)}")
        return cls(path, names, set(CHEXPERT_LABELS) <= set(present))

    def rows(self) -> Iterator[dict[str, str]]:
        """Cells by the names of `ManifestColumns`' fields and of the labels, those without a column left out."""
        for row in tables.read_table(self.path):
            cells = {key: "/".join(filter(None, (tables.text(row.get(part, "")) for part in parts)))
                     for key, parts in self.names.items()}  # fmt: skip
            yield cells | {name: tables.text(row.get(name, "")) for name in CHEXPERT_LABELS if self.labelled}


def _names(columns: ManifestColumns, present: list[str]) -> dict[str, tuple[str, ...]]:
    named = {item.name: getattr(columns, item.name) for item in fields(columns) if getattr(columns, item.name)}
    if (columns.findings or columns.impression) and columns.text not in present:
        named.pop("text", None)  # its default name need not exist where the sections have columns of their own
    return {key: (name,) if name in present else tuple(name.split("/")) for key, name in named.items()}


def _lacking(names: dict[str, tuple[str, ...]], present: list[str]) -> list[str]:
    return [part for parts in names.values() for part in parts if part not in present]


@dataclass(frozen=True)
class _Places:
    """Where the images of a table lie: in a folder, without their first `dropped` folders, with another ending."""

    folder: str
    dropped: int = 0
    ending: str = ""

    @classmethod
    def learn(cls, folder: str, table: _Table) -> "_Places":
        for name in (cells["image"] for cells in islice(table.rows(), _LOOKED_AT)):
            if not sources.locate(folder, name).startswith(folder):
                continue  # no name, or one that says a place of its own
            for dropped in range(len(_parts(name))):
                for ending in _ENDINGS:
                    place = cls(folder, dropped, ending)
                    if sources.exists(place.of(name)):
                        return place
        return cls(folder)

    def of(self, name: str) -> str:
        if self.dropped:
            name = "/".join(_parts(name)[self.dropped :])
        return sources.locate(self.folder, _ENDING.sub("", name) + self.ending if self.ending else name)


def _parts(name: str) -> tuple[str, ...]:
    return PurePosixPath(name.replace("\\", "/")).parts


def _people(table: _Table) -> dict[str, str]:
    """Subject id to the first id of those it shares an image with, directly or through others."""
    parent: dict[str, str] = {}

    def first(subject: str) -> str:
        while parent[subject] != subject:
            parent[subject] = parent[parent[subject]]
            subject = parent[subject]
        return subject

    order: dict[str, int] = {}
    owner: dict[str, str] = {}
    for cells in table.rows():
        subject, image = tables.identifier(cells["subject"]), cells["image"]
        if not subject or not image:
            continue
        parent.setdefault(subject, subject)
        order.setdefault(subject, len(order))
        pair = sorted((first(subject), first(owner.setdefault(image, subject))), key=order.__getitem__)
        parent[pair[1]] = pair[0]
    return {subject: first(subject) for subject in parent}


def _unique(name: str, seen: set[str]) -> str:
    chosen, number = name, 1
    while chosen in seen:
        number += 1
        chosen = f"{name}-{number}"
    seen.add(chosen)
    return chosen
