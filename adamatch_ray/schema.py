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

BOX = pa.struct(
    [
        ("name", pa.string()),
        ("x0", pa.float32()),
        ("y0", pa.float32()),
        ("x1", pa.float32()),
        ("y1", pa.float32()),
    ]
)
"""A named region, corners in pixels of the original image (x to the right, y down)."""

SOURCE = pa.schema(
    [
        ("study_id", pa.string()),
        ("subject_id", pa.string()),
        ("dicom_id", pa.string()),
        ("view_position", pa.string()),
        ("split", pa.string()),
        ("image_path", pa.string()),
        ("report_path", pa.string()),
        ("findings", pa.string()),
        ("impression", pa.string()),
        ("labels", pa.list_(pa.float32())),
        ("source", pa.string()),
        ("reason", pa.string()),
    ]
)
"""One image of one study as its data set lists it, before any image or report file is opened.

`split` is empty where the data set has none (it is then drawn by subject); `report_path` is empty where findings and
impression are given in place; `reason` is set where the listing alone shows that the row cannot be used.
"""

STUDY = pa.schema(
    [
        ("study_id", pa.string()),
        ("subject_id", pa.string()),
        ("dicom_id", pa.string()),
        ("view_position", pa.string()),
        ("split", pa.string()),
        ("report", pa.string()),
        ("findings", pa.string()),
        ("impression", pa.string()),
        ("labels", pa.list_(pa.float32())),
        ("image", pa.binary()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("boxes", pa.list_(BOX)),
        ("source", pa.string()),
        ("sha256", pa.string()),
    ]
)
"""One usable image-report pair. `image` is a PNG of the square canvas, `height` and `width` those of the original."""

QUARANTINE = pa.schema(
    [
        ("study_id", pa.string()),
        ("subject_id", pa.string()),
        ("dicom_id", pa.string()),
        ("image_path", pa.string()),
        ("source", pa.string()),
        ("reason", pa.string()),
    ]
)
"""One row that was seen and not accepted, with the reason a person can act on."""

TOKENS = pa.schema(
    [
        ("study_id", pa.string()),
        ("dicom_id", pa.string()),
        ("split", pa.string()),
        ("tokens", pa.list_(pa.uint16())),
        ("model", pa.string()),
    ]
)
"""The codes of one image, row by row of the grid, and the fingerprint of the VQ-GAN that read them."""

KEYPATCH = pa.schema(
    [
        ("word", pa.string()),
        ("study_id", pa.string()),
        ("dicom_id", pa.string()),
        ("similarity", pa.float32()),
        ("patch", pa.int32()),
        ("x0", pa.float32()),
        ("y0", pa.float32()),
        ("x1", pa.float32()),
        ("y1", pa.float32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("feature", pa.list_(pa.float32())),
        ("crop", pa.binary()),
    ]
)
"""One entry of the visual codebook: the patch of one train study that a word of its report matched best.

The box is in pixels of the original image of `height` x `width`; `feature` is the patch's normalised embedding [D],
`crop` a PNG of the box. Rows are ordered by falling similarity, ties by word, study_id and patch.
"""

KEYPATCH_TOKENS = pa.schema([("entry", pa.int32()), ("tokens", pa.list_(pa.uint16()))])
"""VQ-GAN codes of the cells that a keypatch's box covers; `entry` is its row in the visual codebook."""

_HINT = pa.struct([("text", pa.string()), ("probability", pa.float32()), ("place", pa.string())])

HINTS = pa.schema(
    [
        ("study_id", pa.string()),
        ("dicom_id", pa.string()),
        ("keywords", pa.list_(_HINT)),
        ("keypatches", pa.list_(pa.int32())),
    ]
)
"""What AdaMatch says of one study before the language model is tuned: keywords and keypatch entries, best first."""

_FOUND = pa.struct(
    [
        ("text", pa.string()),
        ("group", pa.string()),
        ("score", pa.float32()),
        ("probability", pa.float32()),
        ("place", pa.string()),
        *((corner, pa.float32()) for corner in ("x0", "y0", "x1", "y1")),
    ]
)

_LIKENESS = pa.struct(
    [
        ("word", pa.string()),
        ("entry", pa.int32()),
        ("score", pa.float32()),
        ("study_id", pa.string()),
        *((corner, pa.float32()) for corner in ("x0", "y0", "x1", "y1")),
    ]
)

_PHRASE = pa.struct(
    [
        ("finding", pa.string()),
        ("text", pa.string()),
        ("denied", pa.bool_()),
        ("groundable", pa.bool_()),
        ("confidence", pa.float32()),
        *((corner, pa.float32()) for corner in ("x", "y", "x0", "y0", "x1", "y1")),
        ("outline", pa.list_(pa.list_(pa.float32()))),
    ]
)

GENERATION = pa.schema(
    [
        ("study_id", pa.string()),
        ("dicom_id", pa.string()),
        ("direction", pa.string()),
        ("keywords", pa.list_(_FOUND)),
        ("keypatches", pa.list_(_LIKENESS)),
        ("phrases", pa.list_(_PHRASE)),
        ("report", pa.string()),
        ("image_tokens", pa.list_(pa.uint16())),
        ("image", pa.binary()),
        ("cycle_report", pa.string()),
        ("cycle_image_tokens", pa.list_(pa.uint16())),
        ("cycle_image", pa.binary()),
        ("seed", pa.int64()),
        ("status", pa.string()),
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
