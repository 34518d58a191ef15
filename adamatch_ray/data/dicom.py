"""Radiographs in DICOM to gray pixels (docs/method.md 7): rescale, window, MONOCHROME1, signed values, JPEG 2000.

Needs the `dicom` extra; `images.decode` imports this file when it meets a DICOM.
"""

import io
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.errors import InvalidDicomError
from pydicom.pixels import apply_modality_lut, apply_voi_lut, get_decoder
from pydicom.uid import UID

from adamatch_ray.data.images import BadImage, Pixels, check_size, stretch

_CHEST = ("CHEST", "THOR", "TORAX", "LUNG", "RIB", "CXR", "TRUNK")
_DAMAGE = (AttributeError, EOFError, IndexError, KeyError, NotImplementedError, OSError, RuntimeError, TypeError)
# What pydicom and its decoders raise on damaged or unreadable data, besides ValueError.


def read_dicom(data: bytes, max_pixels: int) -> Pixels:
    """Gray uint8 [H, W], brighter where the body absorbs more.

    Raises BadImage with the reason, or ValueError where the decoder of the file's compression is not installed.
    """
    try:
        dataset = pydicom.dcmread(io.BytesIO(data))
        _check(dataset, max_pixels)
        stored = np.asarray(dataset.pixel_array)
        return _display(stored, dataset)
    except (BadImage, _MissingDecoder):
        raise
    except InvalidDicomError as error:
        raise BadImage("corrupt DICOM") from error
    except (ValueError, *_DAMAGE) as error:
        raise BadImage("truncated or corrupt DICOM") from error


class _MissingDecoder(ValueError):
    """Not the file's fault, so not a BadImage."""


def _check(dataset: pydicom.Dataset, max_pixels: int) -> None:
    if "PixelData" not in dataset:
        raise BadImage("DICOM without pixel data")
    part = str(dataset.get("BodyPartExamined") or "").upper()
    if part and not any(word in part for word in _CHEST):
        raise BadImage(f"not a chest view: BodyPartExamined {part[:16]}")
    if (frames := int(dataset.get("NumberOfFrames") or 1)) > 1:
        raise BadImage(f"DICOM with {frames} frames")
    check_size(int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0), max_pixels)
    syntax = UID(dataset.file_meta.TransferSyntaxUID)
    decoder = get_decoder(syntax)
    if not decoder.is_available:
        raise _MissingDecoder(f"reading {syntax.name} DICOM needs more packages: pip install 'adamatch-ray[dicom]'")


def _display(stored: NDArray[Any], dataset: pydicom.Dataset) -> Pixels:
    if stored.ndim == 3:
        return np.rint(stored[..., :3] @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)
    padding = _padding(stored, dataset)
    values = apply_modality_lut(stored, dataset)
    if dataset.get("VOILUTSequence"):
        depth = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        gray = stretch(apply_voi_lut(values, dataset, prefer_lut=True), 0.0, 2.0**depth - 1)
    else:
        gray = _windowed(values, dataset, values[~padding])
    if dataset.get("PhotometricInterpretation") == "MONOCHROME1":
        gray = np.uint8(255) - gray
    gray[padding] = 0
    return gray


def _windowed(values: NDArray[Any], dataset: pydicom.Dataset, inside: NDArray[Any]) -> Pixels:
    centre, width = _first(dataset.get("WindowCenter")), _first(dataset.get("WindowWidth"))
    if centre is None or width is None or width < 1:
        if inside.size == 0:
            raise BadImage("image has no pixels")
        return stretch(values, float(inside.min()), float(inside.max()))
    function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    if function == "SIGMOID":
        bend = np.exp(np.clip(-4.0 * (values.astype(np.float32) - centre) / width, -50.0, 50.0))
        return stretch(1.0 / (1.0 + bend), 0.0, 1.0)
    if function == "LINEAR_EXACT":
        return stretch(values, centre - width / 2, centre + width / 2)
    # The standard's LINEAR: half a value off the exact window at either end (PS3.3 C.11.2.1.2).
    half = (width - 1) / 2
    return stretch(values, centre - 0.5 - half, centre - 0.5 + half)


def _padding(stored: NDArray[Any], dataset: pydicom.Dataset) -> NDArray[np.bool_]:
    """Pixels the detector never saw; they must not set the range, nor turn white when MONOCHROME1 is inverted."""
    value = _first(dataset.get("PixelPaddingValue"))
    if value is None:
        return np.zeros(stored.shape, dtype=np.bool_)
    limit = _first(dataset.get("PixelPaddingRangeLimit"))
    low, high = sorted((value, value if limit is None else limit))
    return (stored >= low) & (stored <= high)


def _first(value: Any) -> float | None:
    """The first of one or several numbers; None for an empty or missing element."""
    if isinstance(value, (list, pydicom.multival.MultiValue)):
        value = value[0] if len(value) else None
    return None if value is None or value == "" else float(value)
