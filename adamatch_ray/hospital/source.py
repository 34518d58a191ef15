"""The header of a source image: what a document made from it refers to and inherits.

Only what is named here is taken over. Of a de-identified source that is what its de-identification left, and the note
that it is de-identified. UIDs of documents follow from the source's, so that a document made twice is the same one.
"""

import io
import re
import uuid
from contextlib import suppress
from datetime import datetime
from typing import Any

import numpy as np
import pydicom
from pydicom import Dataset
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    SecondaryCaptureImageStorage,
)

from adamatch_ray import __version__
from adamatch_ray.data.dicom_values import Table, integer, items, number, numbers, table, text
from adamatch_ray.data.pixels import BadImage

NOTICE = "Research use only. Not for clinical decisions."
PRODUCT = "adamatch_ray"
RADIOGRAPHS = (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    SecondaryCaptureImageStorage,
)
"""Kinds of instances that reports are written on."""

_UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_TEXTS, _NAMES = (
    ("PatientID", "AccessionNumber", "StudyID", "StudyDescription"),
    ("PatientName", "ReferringPhysicianName"),
)
_IDENTITY = ("PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence")
_DATES, _TIME = ("PatientBirthDate", "StudyDate"), re.compile(r"\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?")


def read_header(data: bytes) -> Dataset:
    """What documents need of a DICOM file that `data.dicom` can read.

    What the standard demands and the file lacks, or has in a form that is none, is empty. Raises BadImage where nothing
    could refer to the image, or a presentation state cannot be laid over it.
    """
    try:
        source = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True, force=True)
    except Exception as error:  # whatever pydicom raises on damaged bytes
        raise BadImage("truncated or corrupt DICOM") from error
    header = Dataset()
    for keyword in _UIDS:
        value = text(source, keyword)
        if not re.fullmatch(r"[0-9.]{1,64}", value):
            raise BadImage(f"DICOM without a {keyword}")
        setattr(header, keyword, UID(value))
    if header.SOPClassUID not in RADIOGRAPHS:
        raise BadImage("DICOM that is no radiograph")
    if integer(source, "SamplesPerPixel", 1) != 1:
        raise BadImage("DICOM in colour, which no grayscale presentation state can be laid over")
    header.SamplesPerPixel, header.Rows, header.Columns = 1, integer(source, "Rows"), integer(source, "Columns")
    header.InstanceNumber = max(1, integer(source, "InstanceNumber", 1))
    _inherit(header, source)
    _copy_presentation(header, source)
    return header


def derived_uid(*parts: str) -> str:
    """The UID that follows from what something is made of: the same parts, the same UID."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, '/'.join(parts)).int}"


def document_uid(source_uid: str, kind: str, version: str) -> str:
    """UID of the document of a kind ("SR", "PR") that models of this version make from a source image."""
    return derived_uid(source_uid, kind, version)


def document_fields(header: Dataset, kind: str, version: str) -> dict[str, Any]:
    """What every document says of itself: series, instance, who made it, and what it is good for."""
    return {
        "series_instance_uid": derived_uid(header.StudyInstanceUID, kind, version),
        "series_number": {"SR": 9001, "PR": 9002}[kind],
        "sop_instance_uid": document_uid(header.SOPInstanceUID, kind, version),
        "instance_number": header.InstanceNumber,
        "manufacturer": PRODUCT,
        "manufacturer_model_name": PRODUCT,
        "software_versions": software_version(version),
        "device_serial_number": version,
        "series_description": f"{PRODUCT}: {NOTICE}",
        "specific_character_set": "ISO_IR 192",
    }


def software_version(version: str) -> str:
    """The program's version and that of the models."""
    return f"{__version__}, models {version}"


def _inherit(header: Dataset, source: Dataset) -> None:
    """Patient and study."""
    for keyword in _TEXTS:
        setattr(header, keyword, text(source, keyword))
    for keyword in _NAMES:
        setattr(header, keyword, _name(source, keyword))
    for keyword in _DATES:
        date = text(source, keyword)
        with suppress(ValueError):
            datetime.strptime(date, "%Y%m%d")
            setattr(header, keyword, date)
        header.setdefault(keyword, None)
    time, sex = text(source, "StudyTime"), text(source, "PatientSex").upper()
    header.StudyTime = time if _TIME.fullmatch(time) else None
    header.PatientSex = sex if sex in ("M", "F", "O") else ""
    for keyword in _IDENTITY:
        if keyword in source:
            header[keyword] = source[keyword]


def _name(source: Dataset, keyword: str) -> str:
    """A person's name in the file's own letters."""
    try:
        return str(source.get(keyword, ""))
    except Exception:  # whatever pydicom raises for letters that are not of the file's character set
        return ""


def _copy_presentation(header: Dataset, source: Dataset) -> None:
    """How the source's values become gray: a presentation state has to say it again."""
    header.PhotometricInterpretation = text(source, "PhotometricInterpretation").upper()
    slope, intercept = number(source, "RescaleSlope"), number(source, "RescaleIntercept")
    if slope and intercept is not None:
        header.RescaleSlope, header.RescaleIntercept = slope, intercept
        header.RescaleType = text(source, "RescaleType") or "US"
    shown = Dataset()
    tables = [lut for item in items(source, "VOILUTSequence") if (lut := table(item))]
    windows = zip(numbers(source, "WindowCenter"), numbers(source, "WindowWidth"), strict=False)
    if tables:
        shown.VOILUTSequence = [_sixteen_bits(tables[0])]
    elif window := next(((centre, width) for centre, width in windows if centre == centre and width >= 1), None):
        shown.WindowCenter, shown.WindowWidth = window
        function = text(source, "VOILUTFunction").upper().replace(" ", "_")
        shown.VOILUTFunction = function if function in ("SIGMOID", "LINEAR_EXACT") else "LINEAR"
    if shown:
        header.SoftcopyVOILUTSequence = [shown]


def _sixteen_bits(lut: Table) -> Dataset:
    """The item of a lookup table as presentation states must have it (PS3.3 C.11.8)."""
    item, first = Dataset(), int(lut.first)
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(lut.values) % 65536, first, 16])
    item.add_new("LUTData", "OW", np.rint(lut.values / lut.top * 65535).astype("<u2").tobytes())
    return item
