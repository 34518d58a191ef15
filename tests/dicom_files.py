"""Synthetic DICOM files, as well-formed or as malformed as a test wants them: a ramp of gray, no patient."""

import io
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from adamatch_ray.data.images import BadImage, decode

pydicom = pytest.importorskip("pydicom")

RAMP = np.tile(np.rint(np.linspace(0, 4095, 256)).astype(np.uint16), (32, 1))
"""What a 12-bit detector stores."""

SHOWN = np.rint(np.linspace(0, 255, 256))
"""A row of it on the screen."""

GOOD: dict[str, Any] = {
    "Modality": "DX",
    "BodyPartExamined": "CHEST",
    "SamplesPerPixel": 1,
    "PhotometricInterpretation": "MONOCHROME2",
    "BitsAllocated": 16,
    "BitsStored": 12,
    "HighBit": 11,
    "PixelRepresentation": 0,
    "WindowCenter": "2047.5",
    "WindowWidth": "4096",
}


class Raw(NamedTuple):
    """An element that is written as it is: any VR, any bytes."""

    vr: str
    value: bytes


def item(**elements: Any) -> Any:
    """The item of a sequence."""
    made = pydicom.Dataset()
    for name, value in elements.items():
        _put(made, name, value)
    return made


def lut(values: Any, bits: int, first: int = 0, entries: int | None = None) -> Any:
    """A lookup table's item; its data are 16-bit."""
    descriptor = np.array([len(values) if entries is None else entries, first, bits]).astype("<u2").tobytes()
    return item(LUTDescriptor=Raw("US", descriptor), LUTData=Raw("OW", np.asarray(values, "<u2").tobytes()))


def dataset(pixels: NDArray[Any] = RAMP, **elements: Any) -> Any:
    """A data set of `GOOD` and of `elements`; None leaves one out."""
    made = pydicom.Dataset()
    made.file_meta = pydicom.dataset.FileMetaDataset()
    made.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    made.Rows, made.Columns = pixels.shape[:2]
    made.add_new("PixelData", "OW" if pixels.itemsize > 1 else "OB", pixels.tobytes())
    for name, value in {**GOOD, **elements}.items():
        if value is not None:
            _put(made, name, value)
        elif name in made:
            delattr(made, name)
    return made


def saved(made: Any, implicit: bool = False) -> bytes:
    """A data set as a file's bytes."""
    stream = io.BytesIO()
    if implicit:
        made.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    pydicom.dcmwrite(stream, made, enforce_file_format=True)
    return stream.getvalue()


def dicom(pixels: NDArray[Any] = RAMP, **elements: Any) -> bytes:
    """A file of `dataset`."""
    return saved(dataset(pixels, **elements))


def us(*values: int) -> Raw:
    return Raw("US", np.array(values, "<u2").tobytes())


def ds(text: str) -> Raw:
    return Raw("DS", text.encode())


def fd(value: float) -> Raw:
    return Raw("FD", np.float64(value).tobytes())


def off(data: bytes, wanted: NDArray[Any] = SHOWN, columns: slice = slice(None)) -> float:
    """Gray levels by which a row of the picture misses the one wanted, at most."""
    return float(np.abs(decode(data).pixels[16].astype(float) - wanted)[columns].max())


def reason(data: bytes) -> str:
    with pytest.raises(BadImage) as caught:
        decode(data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _put(made: Any, name: str, value: Any) -> None:
    if isinstance(value, Raw):
        tag = pydicom.tag.Tag(name)
        made[tag] = pydicom.dataelem.RawDataElement(tag, value.vr, len(value.value), value.value, 0, False, True)
    elif isinstance(value, list) and all(isinstance(part, pydicom.Dataset) for part in value):
        setattr(made, name, pydicom.Sequence(value))
    else:
        setattr(made, name, value)
