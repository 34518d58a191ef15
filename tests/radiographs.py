"""Phantoms as an archive has radiographs: valid DICOM of a made-up patient, or of none."""

import io
from typing import Any

import pydicom

from adamatch_ray.data.phantom import generate

DAY = "20260102"


def radiograph(index: int, side: int = 320, **elements: Any) -> Any:
    """Phantom number `index` as a computed radiograph of DAY, 12 bits; `elements` replace those of the file."""
    study = generate(index, 7, side)
    made = pydicom.Dataset()
    made.file_meta = pydicom.dataset.FileMetaDataset()
    made.preamble = b"\0" * 128
    made.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = pydicom.uid.ComputedRadiographyImageStorage
    for level, keyword in enumerate(("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"), start=1):
        setattr(made, keyword, f"2.25.{index + 1}{level}")
    made.SpecificCharacterSet = "ISO_IR 100"
    made.StudyDate, made.StudyTime, made.Modality = DAY, "101500", "CR"
    made.PatientName, made.PatientID, made.PatientBirthDate, made.PatientSex = (
        "Müller^Eva",
        f"P{index}",
        "19500203",
        "F",
    )
    made.AccessionNumber = made.StudyID = made.ReferringPhysicianName = made.Manufacturer = ""
    made.SeriesNumber = made.InstanceNumber = 1
    made.PatientOrientation = ["L", "F"]
    made.ImageType = ["ORIGINAL", "PRIMARY"]
    made.BodyPartExamined, made.ViewPosition = "CHEST", study.view_position
    made.Rows, made.Columns = study.image.shape
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, 12, 11, 0
    made.WindowCenter, made.WindowWidth = "2040.5", "4081"
    made.add_new("PixelData", "OW", (study.image.astype("<u2") * 16).tobytes())
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    return made


def encoded(made: Any) -> bytes:
    """A data set as a file's bytes."""
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, made, enforce_file_format=True)
    return stream.getvalue()
