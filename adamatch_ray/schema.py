"""The tables that pass between stages: one pyarrow schema each, and the names of their values.

A stage writes rows of its schema and nothing else; a reader may rely on every column. Ids are strings, boxes are
xyxy in pixels of the original image, images are encoded grayscale canvases.
"""

import pyarrow as pa

SPLITS = ("train", "validate", "test")

CHEXPERT_LABELS = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    "No Finding",
    "Pleural Effusion",
    "Pleural Other",
    "Pneumonia",
    "Pneumothorax",
    "Support Devices",
)
"""Order of the `labels` column. Values: 1 present, 0 absent, -1 uncertain, null not mentioned."""

Columns = list[tuple[str, pa.DataType]]


def _columns(kind: pa.DataType, *names: str) -> Columns:
    return [(name, kind) for name in names]


_TEXT, _REAL, _WHOLE, _BYTES = pa.string(), pa.float32(), pa.int32(), pa.binary()
_STUDY_KEY = _columns(_TEXT, "study_id", "dicom_id")
_IMAGE_KEY = _columns(_TEXT, "study_id", "subject_id", "dicom_id")
_CORNERS = _columns(_REAL, "x0", "y0", "x1", "y1")
_SIZE = _columns(_WHOLE, "height", "width")
_LABELS = ("labels", pa.list_(_REAL))
_CODES = pa.list_(pa.uint16())

BOX = pa.struct([("name", _TEXT), *_CORNERS])
"""A named region, corners in pixels of the original image (x to the right, y down)."""

SOURCE = pa.schema(
    [
        *_IMAGE_KEY,
        *_columns(_TEXT, "view_position", "split", "image_path", "report_path", "findings", "impression"),
        _LABELS,
        *_columns(_TEXT, "source", "reason"),
    ]
)
"""One image of one study as its data set lists it, before any image or report file is opened.

`split` is empty where the data set has none (it is then drawn by subject); `report_path` is empty where findings and
impression are given in place; `reason` is set where the listing alone shows that the row cannot be used.
"""

STUDY = pa.schema(
    [
        *_IMAGE_KEY,
        *_columns(_TEXT, "view_position", "split", "report", "findings", "impression"),
        _LABELS,
        ("image", _BYTES),
        *_SIZE,
        ("boxes", pa.list_(BOX)),
        *_columns(_TEXT, "source", "sha256"),
    ]
)
"""One usable image-report pair. `image` is a PNG of the square canvas, `height` and `width` those of the original."""

QUARANTINE = pa.schema([*_IMAGE_KEY, *_columns(_TEXT, "image_path", "source", "reason")])
"""One row that was seen and not accepted, with the reason a person can act on."""

TOKENS = pa.schema([*_STUDY_KEY, ("split", _TEXT), ("tokens", _CODES), ("model", _TEXT)])
"""The codes of one image, row by row of the grid, and the fingerprint of the VQ-GAN that read them."""

KEYPATCH = pa.schema(
    [
        ("word", _TEXT),
        *_STUDY_KEY,
        ("similarity", _REAL),
        ("patch", _WHOLE),
        *_CORNERS,
        *_SIZE,
        ("feature", pa.list_(_REAL)),
        ("crop", _BYTES),
    ]
)
"""One entry of the visual codebook: the patch of one train study that a word of its report matched best.

The box is in pixels of the original image of `height` x `width`; `feature` is the patch's normalised embedding [D],
`crop` a PNG of the box. Rows are ordered by falling similarity, ties by word, study_id and patch.
"""

KEYPATCH_TOKENS = pa.schema([("entry", _WHOLE), ("tokens", _CODES)])
"""VQ-GAN codes of the cells that a keypatch's box covers; `entry` is its row in the visual codebook."""

_HINT = pa.struct([("text", _TEXT), ("probability", _REAL), ("place", _TEXT)])
HINTS = pa.schema([*_STUDY_KEY, ("keywords", pa.list_(_HINT)), ("keypatches", pa.list_(_WHOLE))])
"""What AdaMatch says of one study before the language model is tuned: keywords and keypatch entries, best first."""

_KEYWORD = pa.struct(
    [*_columns(_TEXT, "text", "group"), *_columns(_REAL, "score", "probability"), ("place", _TEXT), *_CORNERS]
)
_KEYPATCH = pa.struct([("word", _TEXT), ("entry", _WHOLE), ("score", _REAL), ("study_id", _TEXT), *_CORNERS])
_PHRASE = pa.struct(
    [
        *_columns(_TEXT, "finding", "text"),
        *_columns(pa.bool_(), "denied", "groundable"),
        *_columns(_REAL, "confidence", "x", "y"),
        *_CORNERS,
        ("outline", pa.list_(pa.list_(_REAL))),
    ]
)

GENERATION = pa.schema(
    [
        *_STUDY_KEY,
        ("direction", _TEXT),
        ("keywords", pa.list_(_KEYWORD)),
        ("keypatches", pa.list_(_KEYPATCH)),
        ("phrases", pa.list_(_PHRASE)),
        ("report", _TEXT),
        ("image_tokens", _CODES),
        ("image", _BYTES),
        ("cycle_report", _TEXT),
        ("cycle_image_tokens", _CODES),
        ("cycle_image", _BYTES),
        ("seed", pa.int64()),
        ("status", _TEXT),
    ]
)
"""What was generated from one study in one direction.

cxr_to_report: `report` from the study's X-ray and `keywords`; with cycle, `cycle_image` from that report.
report_to_cxr: `image` from the study's report and `keypatches`; with cycle, `cycle_report` from that image.
`phrases`: the findings that the first half's report names, and where its X-ray shows them (written report on given
X-ray, or given report on drawn X-ray): point, box and outline (x and y in turn, a list a polygon) in pixels of that
X-ray, null where the report denies the finding.
With cycle, the hints of the second half are there too. `status` is "ok", "truncated: …" or "error: …"; a failed row
keeps its place with what it has, the rest null. Keyword boxes are in pixels of the X-ray they were found in (the
study's original, or the drawn one), keypatch boxes in pixels of their own source image.
"""
