"""What offline generation starts from: studies of a split, or a user's own table of images and reports.

Either is cut into slices of parquet files, so that a worker reads what it needs and the driver holds names alone. A
table is first copied into `generations/inputs/`, in one pass, because nobody can start in the middle of a CSV.
"""

import hashlib
import io
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from adamatch_ray.data import images, loading, reports, sources, tables
from adamatch_ray.geometry import CanvasImage
from adamatch_ray.instructions import CXR_TO_REPORT, REPORT_TO_CXR
from adamatch_ray.storage import Root, Stage

COLUMN = {CXR_TO_REPORT: "image", REPORT_TO_CXR: "report"}
"""What a direction starts from, in studies and in a user's table."""

TABLE = pa.schema([("study_id", pa.string()), ("image", pa.string()), ("report", pa.string())])
TABLE_ROWS = 4096
"""Rows of a user's table in one file of `inputs/`: many small files would be slow to write to a bucket."""


@dataclass(frozen=True)
class InputFile:
    """A parquet file of inputs: its name within the root, its rows, and what its content is known by."""

    name: str
    rows: int
    digest: str


@dataclass(frozen=True)
class Slice:
    """Rows [start, stop) of an input file."""

    file: InputFile
    start: int
    stop: int


class Item(NamedTuple):
    """One row to generate from: an X-ray or a report, or the `problem` that stands in its place."""

    study_id: str
    dicom_id: str
    given: CanvasImage | str | None
    problem: str = ""


def cut(files: Iterable[InputFile], size: int, limit: int = 0) -> Iterator[tuple[Slice, ...]]:
    """The rows of files, one file after another, `size` at a time; no more than `limit` of them, where that is set."""
    group: list[Slice] = []
    room, left = size, limit or sys.maxsize
    for file in files:
        start = 0
        while start < file.rows and left > 0:
            take = min(room, file.rows - start, left)
            group.append(Slice(file, start, start + take))
            start, room, left = start + take, room - take, left - take
            if room == 0:
                yield tuple(group)
                group, room = [], size
    if group:
        yield tuple(group)


def split_files(studies: Stage, split: str) -> list[InputFile]:
    """The shards of a split. Raises ValueError when there is none."""
    made_by = studies.require().fingerprint
    shards = loading.list_shards(studies, split)
    return [InputFile(s.path.removeprefix(f"{studies.root.path}/"), s.rows, made_by) for s in shards]


def table_directions(path: str, wanted: Sequence[str]) -> list[str]:
    """The directions of `wanted` that a table has a column for. Raises ValueError where there is none."""
    present = tables.columns_of(path)
    directions = [direction for direction in wanted if COLUMN[direction] in present]
    if not directions:
        needed = " or ".join(COLUMN[direction] for direction in wanted)
        raise ValueError(f"generate.manifest {path} needs a column {needed}; it has {', '.join(present) or 'none'}")
    return directions


def copy_table(path: str, stage: Stage, limit: int = 0) -> Iterator[InputFile]:
    """Write a table of id, image and report to `inputs/` of a stage; reports are cleaned like those of studies.

    Image names are relative to the table's folder. A row without an id is known by its number.
    """
    path = path if sources.is_remote(path) else str(Path(path).expanduser().resolve())
    listed = enumerate(islice(tables.read_table(path), limit or None), start=1)
    number = 0
    while part := [_table_row(row, path, place) for place, row in islice(listed, TABLE_ROWS)]:
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(part, schema=TABLE), buffer, compression="zstd")
        name = f"inputs/{number:05d}.parquet"
        stage.write_bytes(name, buffer.getvalue())
        yield InputFile(f"{stage.name}/{name}", len(part), hashlib.sha256(buffer.getvalue()).hexdigest())
        number += 1


def read_items(root: Root, slices: Sequence[Slice], direction: str, canvas: int) -> list[Item]:
    """The rows of slices; images of a user's table are decoded and brought onto a canvas of that side."""
    items: list[Item] = []
    for part in slices:
        own = part.file.name.startswith("generations/")
        columns = ["study_id", COLUMN[direction], *([] if own else ["dicom_id", "height", "width"])]
        stage, _, name = part.file.name.partition("/")
        table = root.stage(stage).read_table(name, columns)
        for row in table.slice(part.start, part.stop - part.start).to_pylist():
            ids = row["study_id"], row.get("dicom_id", "")
            try:
                items.append(Item(*ids, _own(row, direction, canvas) if own else _stored(row, direction)))
            except _BadRow as error:
                items.append(Item(*ids, None, str(error)))
    return items


class _BadRow(ValueError):
    """A row that cannot be used; the message is what its status says."""


def _stored(row: dict[str, Any], direction: str) -> CanvasImage | str:
    if direction == REPORT_TO_CXR:
        return str(row["report"])
    try:
        return CanvasImage(images.decode_png(row["image"]), row["height"], row["width"])
    except images.BadImage as error:
        raise _BadRow(str(error)) from None


def _own(row: dict[str, Any], direction: str, canvas: int) -> CanvasImage | str:
    if not row[COLUMN[direction]]:
        raise _BadRow(f"the row has no {COLUMN[direction]}")
    if direction == REPORT_TO_CXR:
        return str(row["report"])
    try:
        with sources.open_file(row["image"]) as stream:
            decoded = images.decode(stream.read(), max_side=canvas)
    except images.BadImage as error:
        raise _BadRow(str(error)) from None
    except OSError as error:
        raise _BadRow(f"the image cannot be read: {error.strerror or type(error).__name__}") from None
    return CanvasImage(images.to_canvas(decoded, canvas), decoded.height, decoded.width)


def _table_row(row: tables.Cells, path: str, number: int) -> dict[str, str]:
    sections = reports.split_text(tables.text(row.get("report", "")))
    return {
        "study_id": tables.identifier(row.get("id", "")) or f"row-{number}",
        "image": sources.locate(path.rpartition("/")[0], tables.text(row.get("image", ""))),
        "report": reports.compose_report(*sections),
    }
