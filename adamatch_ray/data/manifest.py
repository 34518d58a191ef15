"""Any table of images and texts, CSV or JSON lines, as studies (docs/method.md 7).

Only an image column and a text are needed. A subject is what is kept on one side of a split, so subjects that list the
same image file are taken for one person, under the id that comes first.
"""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from itertools import islice
from pathlib import PurePosixPath

from adamatch_ray.data import reports, sources, views
from adamatch_ray.data.sources import OpenFile, Row


@dataclass(frozen=True)
class ManifestColumns:
    """Names of a table's columns; empty: the table has none such."""

    image: str = field(default="image", metadata={"help": "path of the image, relative to the images folder"})
    text: str = field(default="report", metadata={"help": "whole report; not read where findings or impression is"})
    study: str = field(default="", metadata={"help": "study id; default: row number and file name"})
    subject: str = field(default="", metadata={"help": "subject id; default: the study id"})
    split: str = field(default="", metadata={"help": "train, validate or test; default: drawn by subject"})
    view: str = field(default="", metadata={"help": "view position; blank is taken for frontal"})
    findings: str = field(default="", metadata={"help": "findings section"})
    impression: str = field(default="", metadata={"help": "impression section"})


def list_manifest(
    path: str, columns: ManifestColumns, images: str | None = None, open_file: OpenFile = sources.open_file
) -> Iterator[Row]:
    """Yield one row of `schema.SOURCE` per row of a .csv, .csv.gz, .jsonl or .ndjson table.

    Image paths are relative to `images`, by default the table's own folder. Every row gets a dicom_id of its own, its
    image's name without the ending, numbered where that was seen before. Rows of another view, of an unknown split,
    or without image or text, have a reason. Raises ValueError for a column that is not there, naming those that are.
    """
    folder = images if images else path.rpartition("/")[0] or "."
    people = _people(path, columns, open_file) if columns.subject else {}
    seen: set[str] = set()
    for number, cells in enumerate(_read(path, columns, open_file), start=1):
        name = cells.get("image", "").strip()
        stem = PurePosixPath(name).name.rsplit(".", 1)[0] if name else "none"
        study = cells.get("study", "").strip() or f"{number}-{stem}"
        subject = cells.get("subject", "").strip()
        split = cells.get("split", "").strip()
        yield sources.source_row(
            study_id=study,
            subject_id=people.get(subject, subject) or study,
            dicom_id=_unique(stem, seen),
            view_position=cells.get("view", "").strip(),
            split=sources.normalise_split(split) or "",
            image_path=name if not name or _is_absolute(name) else sources.join(folder, name),
            findings=_findings(cells),
            impression=cells.get("impression", "").strip(),
            source="manifest",
            reason=_problem(cells, split),
        )


def _problem(cells: dict[str, str], split: str) -> str:
    if not cells.get("image", "").strip():
        return "no image in the row"
    if not reports.compose_report(_findings(cells), cells.get("impression", "")):
        return "empty report"
    if split and sources.normalise_split(split) is None:
        return f"{sources.UNKNOWN_SPLIT} {split[:16]}"
    return views.view_problem(cells.get("view", ""), blank_is_frontal=True)


def _findings(cells: dict[str, str]) -> str:
    sections = cells.get("findings", "").strip(), cells.get("impression", "").strip()
    return sections[0] if any(sections) else cells.get("text", "").strip()


def _people(path: str, columns: ManifestColumns, open_file: OpenFile) -> dict[str, str]:
    """Subject id to the first id of those it shares an image with, directly or through others."""
    parent: dict[str, str] = {}

    def first(subject: str) -> str:
        while parent[subject] != subject:
            parent[subject] = parent[parent[subject]]
            subject = parent[subject]
        return subject

    order: dict[str, int] = {}
    owner: dict[str, str] = {}
    for cells in _read(path, columns, open_file):
        subject, image = cells["subject"].strip(), cells["image"].strip()
        if not subject or not image:
            continue
        parent.setdefault(subject, subject)
        order.setdefault(subject, len(order))
        pair = sorted((first(subject), first(owner.setdefault(image, subject))), key=order.__getitem__)
        parent[pair[1]] = pair[0]
    return {subject: first(subject) for subject in parent}


def _read(path: str, columns: ManifestColumns, open_file: OpenFile) -> Iterator[dict[str, str]]:
    """Cells by the names of `ManifestColumns`' fields, those without a column left out."""
    present = columns_of(path, open_file)
    names = {item.name: getattr(columns, item.name) for item in fields(columns) if getattr(columns, item.name)}
    if (columns.findings or columns.impression) and names.get("text") not in present:
        names.pop("text", None)  # its default name need not exist where the sections have columns of their own
    if "image" not in names or not names.keys() & {"text", "findings", "impression"}:
        raise ValueError("a manifest needs an image column and a text (or findings, or impression) column")
    missing = [name for name in names.values() if name not in present]
    if missing and present:
        raise ValueError(f"{path} has no column {', '.join(missing)}; it has {', '.join(present)}")
    for row in read_table(path, open_file):
        yield {key: row.get(name, "") for key, name in names.items()}


def read_table(path: str, open_file: OpenFile = sources.open_file) -> Iterator[dict[str, str]]:
    """Rows of a .csv, .csv.gz, .jsonl or .ndjson table, streamed. Raises ValueError for a line that is not JSON."""
    lines = _json_lines if path.endswith((".jsonl", ".ndjson")) else sources.read_csv
    return lines(path, open_file)


def columns_of(path: str, open_file: OpenFile = sources.open_file) -> list[str]:
    """Names of a table's columns. Rows of a CSV have the same; JSON lines may leave some out, so many are read."""
    return list(dict.fromkeys(key for row in islice(read_table(path, open_file), 1000) for key in row))


def _json_lines(path: str, open_file: OpenFile) -> Iterator[dict[str, str]]:
    with open_file(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", errors="replace") as text:
        for number, line in enumerate(text, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error.msg})") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}: a JSON object is needed")
            yield {key: "" if value is None else str(value) for key, value in row.items()}


def _is_absolute(name: str) -> bool:
    return name.startswith("/") or sources.is_remote(name)


def _unique(name: str, seen: set[str]) -> str:
    chosen, number = name, 1
    while chosen in seen:
        number += 1
        chosen = f"{name}-{number}"
    seen.add(chosen)
    return chosen
