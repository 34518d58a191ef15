"""What a system says of a split: our own `generations/`, or anyone's table of reports and image files, by study id.

Other systems are scored by the same code as ours: a CSV, JSON-lines or parquet file with a study id and a report
column, an image column, or both is enough.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from adamatch_ray.data import sources, tables
from adamatch_ray.data.images import BadImage, Pixels, decode, to_canvas
from adamatch_ray.storage import Stage

Encoded = bytes | str
"""The bytes of an image file, or its path or URL."""

_GENERATED = ["study_id", "dicom_id", "report", "image", "cycle_report", "cycle_image"]


class Key(NamedTuple):
    """Whom a prediction is for; an empty `dicom_id` stands for every image of the study."""

    study_id: str
    dicom_id: str = ""


@dataclass(frozen=True)
class Predictions:
    """Reports and images by study. A whole column is None where the source has none such.

    A study whose report or image failed or is empty is not in its column: it then counts as missing.
    """

    source: str
    reports: dict[Key, str] | None = None
    images: dict[Key, Encoded] | None = None
    cycle_reports: dict[Key, str] | None = None
    cycle_images: dict[Key, Encoded] | None = None
    split: str = ""
    """The split they are of, where the source says so."""
    limit: int = 0
    """How many studies of the split were asked for, from its beginning; 0: all."""


def read_generations(stage: Stage) -> Predictions:
    """The rows of a finished `generations/` stage. A direction that was not generated leaves its columns None."""
    manifest = stage.require()
    options = manifest.config["generate"]
    columns: dict[str, dict[Key, Any] | None] = {}
    for direction, first, second in (
        ("cxr_to_report", "reports", "cycle_images"),
        ("report_to_cxr", "images", "cycle_reports"),
    ):
        names = sorted(name for name in manifest.files if name.startswith(f"{direction}/"))
        if not names:
            continue
        rows = [row for name in names for row in stage.read_table(name, _GENERATED).to_pylist()]
        source, cycled = ("report", "cycle_image") if direction == "cxr_to_report" else ("image", "cycle_report")
        columns[first] = _by_key(((_key(row), row[source]) for row in rows), stage.uri)
        if options["cycle"]:
            columns[second] = _by_key(((_key(row), row[cycled]) for row in rows), stage.uri)
    split = "" if options["manifest"] else options["split"]
    return Predictions(stage.uri, **columns, split=split, limit=options["limit"])


def read_predictions(path: str, id_column: str, report_column: str, image_column: str) -> Predictions:
    """Anyone's predictions from a table: CSV, JSON lines or parquet.

    Images are paths relative to the file, or in parquet the bytes of image files, as in a shard of `generations/`. A
    column `dicom_id` is read where there is one. Empty text, null and NaN are no prediction, however they are written,
    and a column of nothing else is none. Raises ValueError for a missing column, an id that occurs twice, or a value of
    another kind.
    """
    if not sources.exists(path):
        raise ValueError(f"--evaluate.predictions {path}: no such file")
    rows = list(tables.read_table(path))
    present = dict.fromkeys(name for row in rows for name in row)
    if not rows:
        raise ValueError(f"{path} has no rows")
    if id_column not in present or not {report_column, image_column} & present.keys():
        raise ValueError(
            f"{path} needs a column {id_column} and one of {report_column} and {image_column}; it has "
            f"{', '.join(present)}. Name yours: --evaluate.id_column, --evaluate.report_column, --evaluate.image_column"
        )
    keys = [Key(_identifier(row.get(id_column, ""), path), _identifier(row.get("dicom_id", ""), path)) for row in rows]
    if blank := sum(not key.study_id for key in keys):
        raise ValueError(f"{path}: {blank} rows have no {id_column}")

    def column(name: str, value: Callable[[Any], Any]) -> dict[Key, Any] | None:
        cells = [row.get(name, "") for row in rows]
        if not any(cell != "" for cell in cells):
            return None
        return _by_key(((key, value(cell)) for key, cell in zip(keys, cells, strict=True)), path)

    folder = path.rpartition("/")[0] or "."
    return Predictions(
        path,
        column(report_column, lambda cell: _text(cell, report_column, path)),
        column(image_column, lambda cell: cell if isinstance(cell, bytes)
               else sources.locate(folder, _text(cell, image_column, path))),
    )  # fmt: skip


def read_ids(path: str) -> frozenset[str]:
    """Study ids of a text file, one a line, as the tables spell them: without the "s" of MIMIC-CXR's folders."""
    with sources.open_file(path) as stream:
        lines = tables.decode(stream.read()).splitlines()
    return frozenset(tables.identifier(line, "s") for line in lines if line.strip())


def load_canvas(image: Encoded, canvas: int) -> Pixels:
    """A predicted image as uint8 [canvas, canvas]. Raises BadImage where there is no readable one."""
    if isinstance(image, str):
        if not sources.exists(image):
            raise BadImage("no such image file")
        with sources.open_file(image) as stream:
            image = stream.read()
    decoded = decode(image, max_side=canvas)
    if decoded.pixels.shape == (canvas, canvas):
        return np.asarray(decoded.pixels)
    return to_canvas(decoded, canvas)


def _key(row: Mapping[str, Any]) -> Key:
    return Key(row["study_id"], row["dicom_id"] or "")


def _by_key(items: Iterable[tuple[Key, Any]], source: str) -> dict[Key, Any]:
    """Values that are there by key. Raises ValueError for a key that occurs twice, whether it has a value or not."""
    values: dict[Key, Any] = {}
    for key, value in items:
        if key in values:
            named = " image ".join(part for part in key if part)
            raise ValueError(f"{source}: study {named} occurs more than once; keep one row a study")
        values[key] = value
    return {key: value for key, value in values.items() if value}


def _identifier(value: Any, path: str) -> str:
    if isinstance(value, str) or (isinstance(value, int | float) and not isinstance(value, bool) and value % 1 == 0):
        return tables.identifier(value)
    raise ValueError(f"{path}: id {value!r} is neither text nor a whole number")


def _text(value: Any, column: str, path: str) -> str:
    if not isinstance(value, str):
        shown = type(value).__name__ if isinstance(value, bytes) else f"{type(value).__name__} {value!r}"
        raise ValueError(f"{path}: column {column} holds {shown} where text is needed")
    return tables.text(value)
