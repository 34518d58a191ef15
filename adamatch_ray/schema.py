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
