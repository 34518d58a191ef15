"""Experts' boxes for findings on images, as MS-CXR, VinDr-CXR and NIH ChestX-ray publish them.

A phrase may have several boxes, each a row of the file; here they are one annotation. Where a file has no phrases, the
finding's name is one. Ids of images are their file names without the ending, by which annotations join the rows of
`studies/`.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from adamatch_ray.data import sources, tables
from adamatch_ray.data.tables import Cells

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class PhraseAnnotation:
    """Where a phrase is seen: boxes xyxy in pixels of an image of `height` x `width`, and the finding it names.

    Height and width are 0 where a file does not say them: they are then the image's own.
    """

    dicom_id: str
    phrase: str
    finding: str
    boxes: tuple[Box, ...]
    height: float
    width: float

    def boxes_on(self, height: int, width: int) -> tuple[Box, ...]:
        """The boxes in pixels of a copy of the image that has another size."""
        across, down = width / (self.width or width), height / (self.height or height)
        return tuple((x0 * across, y0 * down, x1 * across, y1 * down) for x0, y0, x1, y1 in self.boxes)


class _Row(NamedTuple):
    """One box of a file, x, y, width and height, and where in the file it stands."""

    place: str
    dicom_id: str
    phrase: str
    finding: str
    size: tuple[Any, Any]
    bbox: tuple[Any, Any, Any, Any]


def read_phrase_boxes(path: str) -> list[PhraseAnnotation]:
    """The annotations of a COCO-style .json, or of a table, in the file's order, boxes of a phrase together.

    Raises ValueError naming the file and the row: a column or a text is missing, a number is none, a box is empty or
    lies beside its image, or boxes of one image disagree about its size.
    """
    rows = _json_rows(path) if path.endswith(".json") else _table_rows(path)
    annotations: dict[tuple[str, str, str], PhraseAnnotation] = {}
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
        boxes = annotations[key].boxes if key in annotations else ()
        annotations[key] = PhraseAnnotation(*key, (*boxes, box), height, width)
    if not annotations:
        raise ValueError(f"{path} has no annotations")
    return list(annotations.values())


class _Layout(NamedTuple):
    """A published table: the columns that a row needs, and the row they make."""

    columns: tuple[str, ...]
    row: Callable[[str, Cells], _Row]


def _ms_cxr(place: str, cells: Cells) -> _Row:
    image = tables.text(cells.get("dicom_id", "")) or sources.image_stem(tables.text(cells.get("path", "")))
    phrase, finding = (tables.text(cells[name]) for name in ("label_text", "category_name"))
    size, box = (cells["image_width"], cells["image_height"]), (cells["x"], cells["y"], cells["w"], cells["h"])
    return _Row(place, image, phrase, finding, size, box)


def _vindr(place: str, cells: Cells) -> _Row:
    finding = tables.text(cells["class_name"])
    x0, y0, x1, y1 = (_number(place, name, cells[name]) for name in ("x_min", "y_min", "x_max", "y_max"))
    image = sources.image_stem(tables.text(cells["image_id"]))
    size = cells.get("width") or 0, cells.get("height") or 0
    return _Row(place, image, finding.lower(), finding, size, (x0, y0, x1 - x0, y1 - y0))


def _nih(place: str, cells: Cells) -> _Row:
    finding = tables.text(cells["Finding Label"])
    image = sources.image_stem(tables.text(cells["Image Index"]))
    box = (cells["Bbox [x"], cells["y"], cells["w"], cells["h]"])
    return _Row(place, image, {"Infiltrate": "infiltration"}.get(finding, finding.lower()), finding, (1024, 1024), box)


_LAYOUTS = (
    _Layout(("label_text", "category_name", "x", "y", "w", "h", "image_width", "image_height"), _ms_cxr),
    _Layout(("image_id", "class_name", "x_min", "y_min", "x_max", "y_max"), _vindr),
    _Layout(("Image Index", "Finding Label", "Bbox [x", "y", "w", "h]"), _nih),
)


def _table_rows(path: str) -> Iterator[_Row]:
    layout: _Layout | None = None
    for number, cells in enumerate(tables.read_table(path), start=2):
        # The layout of which the fewest columns are missing, so that a message names what is.
        layout = layout or min(_LAYOUTS, key=lambda known: len(set(known.columns) - cells.keys()))
        tables.require(path, cells, *layout.columns)
        if layout.row is _ms_cxr and not cells.keys() & {"dicom_id", "path"}:
            raise ValueError(f"{path} has no column dicom_id or path; it has {', '.join(cells)}")
        if tables.text(cells.get("class_name", "")) != "No finding":  # VinDr-CXR's images without a box
            yield layout.row(f"{path}, line {number}", cells)


def _json_rows(path: str) -> Iterator[_Row]:
    content = tables.read_json(path)
    parts = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(_is_list_of_objects(content.get(name)) for name in parts):
        raise ValueError(f"{path}: a COCO-style object with the lists images, annotations and categories is needed")
    images = {str(image.get("id")): image for image in content["images"]}
    names = {str(category.get("id")): category.get("name", "") for category in content["categories"]}
    for number, annotation in enumerate(content["annotations"]):
        place = f"{path}, annotation {number}"
        image, bbox = images.get(str(annotation.get("image_id"))), annotation.get("bbox")
        if image is None:
            raise ValueError(f"{place}: no image of id {annotation.get('image_id')}")
        if not isinstance(bbox, list) or len(bbox) != 4:
            raise ValueError(f"{place}: bbox must be [x, y, width, height]")
        yield _Row(
            place,
            sources.image_stem(str(image.get("file_name") or image.get("path") or "")),
            str(annotation.get("label_text") or "").strip(),
            str(names.get(str(annotation.get("category_id"))) or "").strip(),
            (image.get("width", annotation.get("width")), image.get("height", annotation.get("height"))),
            (bbox[0], bbox[1], bbox[2], bbox[3]),
        )


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _corners(row: _Row, width: float, height: float) -> Box:
    """Upper left corner, width and height to xyxy, cut at the image's edges."""
    x, y, w, h = (_number(row.place, name, value) for name, value in zip("xywh", row.bbox, strict=True))
    box = max(x, 0.0), max(y, 0.0), min(x + w, width or math.inf), min(y + h, height or math.inf)
    if w <= 0 or h <= 0 or box[0] >= box[2] or box[1] >= box[3]:
        raise ValueError(f"{row.place}: box {x:g}, {y:g}, {w:g}, {h:g} has no part on an image of {width:g}x{height:g}")
    return box


def _number(place: str, name: str, value: Any) -> float:
    try:
        number = tables.number(value)
    except (TypeError, ValueError):
        raise ValueError(f"{place}: {name} {value!r} is no number") from None
    if not math.isfinite(number):
        raise ValueError(f"{place}: {name} {value!r} is no number")
    return number
