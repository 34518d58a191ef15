"""MS-CXR: radiologists' boxes for phrases on MIMIC-CXR images, as its COCO-style JSON or its CSV (PhysioNet).

A phrase may have several boxes, each a row of the file; here they are one annotation. Ids of images are MIMIC-CXR's
`dicom_id`, by which annotations join the rows of `studies/`.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from adamatch_ray.data import sources
from adamatch_ray.data.sources import OpenFile

Box = tuple[float, float, float, float]

_COLUMNS = ("label_text", "category_name", "x", "y", "w", "h", "image_width", "image_height")


@dataclass(frozen=True)
class PhraseAnnotation:
    """Where a phrase is seen: boxes xyxy in pixels of an image of `height` x `width`, and the finding it names."""

    dicom_id: str
    phrase: str
    finding: str
    boxes: tuple[Box, ...]
    height: float
    width: float

    def boxes_on(self, height: int, width: int) -> tuple[Box, ...]:
        """The boxes in pixels of a copy of the image that has another size."""
        across, down = width / self.width, height / self.height
        return tuple((x0 * across, y0 * down, x1 * across, y1 * down) for x0, y0, x1, y1 in self.boxes)


class _Row(NamedTuple):
    """One box of a file, and where in the file it stands."""

    place: str
    dicom_id: str
    phrase: str
    finding: str
    size: tuple[Any, Any]
    bbox: tuple[Any, Any, Any, Any]


def read_ms_cxr(path: str, open_file: OpenFile = sources.open_file) -> list[PhraseAnnotation]:
    """The annotations of a .json, .csv or .csv.gz in the file's order, boxes of a phrase together.

    Raises ValueError naming the file and the row: a column or a text is missing, a number is none, a box is empty or
    lies beside its image, or boxes of one image disagree about its size.
    """
    rows = _json_rows(path, open_file) if path.endswith(".json") else _csv_rows(path, open_file)
    found: dict[tuple[str, str, str], PhraseAnnotation] = {}
    sizes: dict[str, tuple[float, float]] = {}
    for row in rows:
        for name in ("dicom_id", "phrase", "finding"):
            if not getattr(row, name):
                raise ValueError(f"{row.place}: no {name}")
        width, height = (_number(row.place, name, v) for name, v in zip(("width", "height"), row.size, strict=True))
        if sizes.setdefault(row.dicom_id, (width, height)) != (width, height):
            raise ValueError(f"{row.place}: {row.dicom_id} had another size in an earlier row")
        box = _corners(row, width, height)
        key = row.dicom_id, row.phrase, row.finding
        boxes = found[key].boxes if key in found else ()
        found[key] = PhraseAnnotation(*key, (*boxes, box), height, width)
    if not found:
        raise ValueError(f"{path} has no annotations")
    return list(found.values())


def _csv_rows(path: str, open_file: OpenFile) -> Iterator[_Row]:
    for number, cells in enumerate(sources.read_csv(path, open_file), start=2):
        missing = [name for name in _COLUMNS if name not in cells]
        if missing or not cells.keys() & {"dicom_id", "path"}:
            raise ValueError(f"{path} has no column {(missing or ['dicom_id or path'])[0]}; it has {', '.join(cells)}")
        yield _Row(
            f"{path}, line {number}",
            cells.get("dicom_id", "").strip() or PurePosixPath(cells.get("path", "")).stem,
            cells["label_text"].strip(),
            cells["category_name"].strip(),
            (cells["image_width"], cells["image_height"]),
            (cells["x"], cells["y"], cells["w"], cells["h"]),
        )


def _json_rows(path: str, open_file: OpenFile) -> Iterator[_Row]:
    with open_file(path) as stream:
        try:
            said = json.load(stream)
        except ValueError as error:
            raise ValueError(f"{path}: not JSON ({error})") from None
    parts = ("images", "annotations", "categories")
    if not isinstance(said, dict) or not all(isinstance(said.get(name), list) for name in parts):
        raise ValueError(f"{path}: a COCO-style object with the lists images, annotations and categories is needed")
    images = {image.get("id"): image for image in said["images"]}
    names = {category.get("id"): category.get("name", "") for category in said["categories"]}
    for number, annotation in enumerate(said["annotations"]):
        place = f"{path}, annotation {number}"
        image, bbox = images.get(annotation.get("image_id")), annotation.get("bbox")
        if image is None:
            raise ValueError(f"{place}: no image of id {annotation.get('image_id')}")
        if not isinstance(bbox, list) or len(bbox) != 4:
            raise ValueError(f"{place}: bbox must be [x, y, width, height]")
        yield _Row(
            place,
            PurePosixPath(str(image.get("file_name") or image.get("path") or "")).stem,
            str(annotation.get("label_text") or "").strip(),
            str(names.get(annotation.get("category_id")) or "").strip(),
            (image.get("width", annotation.get("width")), image.get("height", annotation.get("height"))),
            (bbox[0], bbox[1], bbox[2], bbox[3]),
        )


def _corners(row: _Row, width: float, height: float) -> Box:
    """Upper left corner, width and height to xyxy, cut at the image's edges."""
    x, y, w, h = (_number(row.place, name, value) for name, value in zip("xywh", row.bbox, strict=True))
    box = max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)
    if w <= 0 or h <= 0 or box[0] >= box[2] or box[1] >= box[3]:
        raise ValueError(f"{row.place}: box {x:g}, {y:g}, {w:g}, {h:g} has no part on an image of {width:g}x{height:g}")
    return box


def _number(place: str, name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{place}: {name} {value!r} is no number") from None
    if not math.isfinite(number):
        raise ValueError(f"{place}: {name} {value!r} is no number")
    return number
