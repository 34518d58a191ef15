"""Radiographs in DICOM to gray pixels (docs/method.md 7): what the file says is checked, then one frame is decoded.

Needs the `dicom` extra; `images.decode` imports this file when it meets a DICOM. Only the elements that are named here
are read. Headers are made consistent before pydicom's decoders see them, and nothing is allocated by a header's word.
"""

import io
import logging
import struct
import warnings
import zlib
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.pixels import get_decoder
from pydicom.uid import UID

from adamatch_ray.data import views
from adamatch_ray.data.dicom_display import PixelForm, show
from adamatch_ray.data.dicom_values import integer, items, raw_value, text
from adamatch_ray.data.pixels import BadImage, Pixels, TooManyPixels, check_promise, check_size

_PALETTE = "PaletteColorLookupTable"
_ELEMENTS = [
    *("Modality", "BodyPartExamined", "AnatomicRegionSequence", "ViewPosition", "NumberOfFrames", "PixelData"),
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("ModalityLUTSequence", "RescaleSlope", "RescaleIntercept", "VOILUTSequence", "VOILUTFunction"),
    *("WindowCenter", "WindowWidth", "PresentationLUTSequence", "PresentationLUTShape"),
    *(f"{colour}{_PALETTE}{part}" for colour in ("Red", "Green", "Blue") for part in ("Descriptor", "Data")),
    *(f"Segmented{colour}{_PALETTE}Data" for colour in ("Red", "Green", "Blue")),
]

_NATIVE, _DEFLATED, _RLE = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.5"
_FAMILIES = {
    "JPEG 2000": tuple(f"1.2.840.10008.1.2.4.{number}" for number in ("90", "91", "201", "202", "203")),
    "JPEG-LS": ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"),
    "JPEG": tuple(f"1.2.840.10008.1.2.4.{number}" for number in ("50", "51", "57", "70")),
}
"""Transfer syntaxes by the kind of codestream they hold; the first stands for a file that names none of them."""
_GRAYS = ("MONOCHROME1", "MONOCHROME2", "PALETTE_COLOR")
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "YBR_PARTIAL_420", "YBR_PARTIAL_422")
_ITEM = b"\xfe\xff\x00\xe0"
_CODED_PIXELS, _RUN_BYTES = 1024, 64
# The most that a byte can hold: of a codestream, far more than of any picture; of RLE, a run of 128 in two bytes.
_INFLATED_PIXEL, _INFLATED_RATIO = 8, 100
# A pixel of a deflated DICOM may take so many bytes, header included (16-bit colour: six), and deflate pack so well.
_CORRUPT = "truncated or corrupt DICOM"

# pydicom reports every oddity it meets, values included; here each of them is either mended or a reason of its own.
logging.getLogger("pydicom").setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")


def read_dicom(data: bytes, max_pixels: int) -> Pixels:
    """Gray uint8 [H, W], brighter where the body absorbs more.

    Preamble, file meta information and transfer syntax may be missing. Raises BadImage with the reason, or ValueError
    where the decoder of the file's compression is not installed.
    """
    dataset, syntax = _parse(data, max_pixels)
    frame = raw_value(dataset, "PixelData")
    if not isinstance(frame, bytes) or not frame:
        raise BadImage("DICOM without pixel data")
    _check_subject(dataset)
    if (frames := integer(dataset, "NumberOfFrames", 1)) > 1:
        raise BadImage(f"DICOM with {frames} frames")
    check_size(integer(dataset, "Rows"), integer(dataset, "Columns"), max_pixels)
    coded = frame.startswith(_ITEM)
    stream = _codestream(frame) if coded else None
    form = _coded_form(dataset, stream, len(frame)) if coded else _native_form(dataset, frame)
    syntax = _settle(syntax, coded, stream, dataset)
    pixels, photometric = _decode(frame, form, syntax, dataset)
    return show(pixels, replace(form, photometric=photometric), dataset)


class _Codestream(NamedTuple):
    """What the first compressed frame says of itself."""

    kind: str
    height: int
    width: int
    bits: int
    samples: int


class _MissingDecoder(ValueError):
    """Not the file's fault, so not a BadImage."""


def _parse(data: bytes, max_pixels: int) -> tuple[pydicom.Dataset, str]:
    """The elements that are read here, and the transfer syntax that the file names, if any."""
    if data.startswith(b"DICM"):
        data = data[4:]
    syntax, start = _file_meta(data, 132 if data[128:132] == b"DICM" else 0)
    if syntax == _DEFLATED:
        data, syntax = _inflate(data[start:], max_pixels * _INFLATED_PIXEL), _NATIVE
    try:
        return pydicom.dcmread(io.BytesIO(data), force=True, specific_tags=_ELEMENTS), syntax
    except Exception as error:  # whatever pydicom raises on damaged bytes
        raise BadImage(_CORRUPT) from error


def _file_meta(data: bytes, position: int) -> tuple[str, int]:
    """Transfer syntax of a DICOM, and where its file meta information (group 2, explicit little endian) ends."""
    syntax = ""
    while data[position : position + 2] == b"\x02\x00" and position + 12 <= len(data):
        element, kind, length = struct.unpack("<H2sH", data[position + 2 : position + 8])
        position += 8
        if kind in (b"OB", b"OW", b"SQ", b"UN", b"UT"):
            (length,) = struct.unpack("<I", data[position : position + 4])
            position += 4
        if element == 0x0010:
            syntax = data[position : position + length].strip(b"\0 ").decode("ascii", "replace")
        position += length
    return syntax, position


def _inflate(packed: bytes, limit: int) -> bytes:
    limit = min(limit, (1 << 24) + _INFLATED_RATIO * len(packed))
    try:
        data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, limit + 1)
    except zlib.error as error:
        raise BadImage(_CORRUPT) from error
    if len(data) > limit:
        raise TooManyPixels(f"deflated DICOM exceeds {limit} bytes")
    return data


def _check_subject(dataset: pydicom.Dataset) -> None:
    """Refuse what is known not to be a frontal X-ray of the chest."""
    region = [
        text(item, name) for item in items(dataset, "AnatomicRegionSequence") for name in ("CodeValue", "CodeMeaning")
    ]
    view = text(dataset, "ViewPosition")
    problem = views.modality_problem(text(dataset, "Modality"))
    problem = problem or views.part_problem(text(dataset, "BodyPartExamined"), *region)
    if problem or views.is_frontal(view) is False:
        raise BadImage(problem or views.view_problem(view, blank_is_frontal=True))


def _coded_form(dataset: pydicom.Dataset, stream: _Codestream | None, size: int) -> PixelForm:
    """The form of a compressed frame: depth and samples are those of its codestream, where it has a header."""
    rows, columns = integer(dataset, "Rows"), integer(dataset, "Columns")
    if stream is None:
        form = _form(dataset, integer(dataset, "BitsAllocated") or 16)
        check_promise(rows * columns * form.samples * form.allocated / 8, size, _RUN_BYTES)
        return form
    if (stream.height, stream.width) != (rows, columns):
        raise BadImage(f"DICOM of {columns}x{rows} holds an image of {stream.width}x{stream.height}")
    check_promise(rows * columns, size, _CODED_PIXELS)
    return _form(dataset, 8 if stream.bits <= 8 else 16, stream.samples)


def _native_form(dataset: pydicom.Dataset, frame: bytes) -> PixelForm:
    """The form of an uncompressed frame: where bits allocated make no sense, the number of bytes tells them."""
    form = _form(dataset, integer(dataset, "BitsAllocated"))
    pixels = form.rows * form.columns * form.samples
    if form.allocated not in (1, 8, 16, 32) or integer(dataset, "BitsStored") > form.allocated:
        form = _form(dataset, 8 * min(2, len(frame) // pixels))
    halved = form.photometric == "YBR_FULL_422" and len(frame) < pixels
    if form.allocated == 0 or len(frame) < pixels * form.allocated / 8 * (2 / 3 if halved else 1):
        raise BadImage(_CORRUPT)
    return form


def _form(dataset: pydicom.Dataset, allocated: int, samples: int = 0) -> PixelForm:
    named = text(dataset, "PhotometricInterpretation").upper().replace(" ", "_").replace("MONOCHROME_", "MONOCHROME")
    samples = samples or integer(dataset, "SamplesPerPixel") or (3 if named in _COLOURS else 1)
    if samples not in (1, 3):
        raise BadImage(f"DICOM with {samples} samples per pixel")
    known, usual = (_COLOURS, "RGB") if samples == 3 else (_GRAYS, "MONOCHROME2")
    stored = integer(dataset, "BitsStored")
    return PixelForm(
        rows=integer(dataset, "Rows"),
        columns=integer(dataset, "Columns"),
        samples=samples,
        allocated=allocated,
        stored=stored if 0 < stored <= allocated else allocated,
        signed=samples == 1 and integer(dataset, "PixelRepresentation") == 1,
        photometric=named if named in known else usual,
    )


def _settle(syntax: str, coded: bool, stream: _Codestream | None, dataset: pydicom.Dataset) -> UID:
    """The transfer syntax that the pixel data are really in: files lose it, or keep the one of before a conversion."""
    if not coded:
        big = dataset.original_encoding[1] is False
        return UID("1.2.840.10008.1.2.2" if big else _NATIVE)
    family = _FAMILIES[stream.kind] if stream else (_RLE,)
    known = UID(syntax)
    if syntax in family or (stream is None and known.is_transfer_syntax and known.is_compressed):
        return known
    return UID(family[0])


def _decode(frame: bytes, form: PixelForm, syntax: UID, dataset: pydicom.Dataset) -> tuple[NDArray[Any], str]:
    """Pixels and their photometric interpretation, which is the codestream's where it has one."""
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise BadImage(f"DICOM in a transfer syntax that cannot be read: {syntax.name[:64]}") from None
    if not decoder.is_available:
        raise _MissingDecoder(f"reading {syntax.name} DICOM needs more packages: pip install 'adamatch-ray[dicom]'")
    options: dict[str, Any] = {
        "rows": form.rows,
        "columns": form.columns,
        "samples_per_pixel": form.samples,
        "bits_allocated": form.allocated,
        "bits_stored": form.stored,
        "pixel_representation": int(form.signed),
        "photometric_interpretation": form.photometric,
        "planar_configuration": int(integer(dataset, "PlanarConfiguration") == 1),
        "number_of_frames": 1,
        "pixel_keyword": "PixelData",
        "pixel_vr": dataset.get_item("PixelData").VR,
        "correct_unused_bits": False,  # `show` does, for compressed data too, and needs the padding as it was written
    }
    try:
        pixels, properties = decoder.as_array(frame, index=0, raw=True, **options)
    except Exception as error:  # whatever the decoders raise on damaged data
        raise BadImage(_CORRUPT) from error
    return np.asarray(pixels), str(properties["photometric_interpretation"])


def _codestream(frame: bytes) -> _Codestream | None:
    """The header of the first JPEG 2000, JPEG-LS or JPEG frame of encapsulated pixel data; None for RLE."""
    position, head = 0, b""
    while frame.startswith(_ITEM, position) and len(head) < 1 << 16:  # the header may lie in several fragments
        (length,) = struct.unpack("<I", frame[position + 4 : position + 8].ljust(4, b"\0"))
        head += frame[position + 8 : position + 8 + min(length, 1 << 16)] if position else b""  # first: a table
        position += 8 + length
    begin = head[:512].find(b"\xff\x4f\xff\x51")  # inside the boxes of a JP2 file, if they were left on
    if begin >= 0 and len(head) >= begin + 43:
        x1, y1, x0, y0 = struct.unpack(">4I", head[begin + 8 : begin + 24])
        (samples,) = struct.unpack(">H", head[begin + 40 : begin + 42])
        return _Codestream("JPEG 2000", max(0, y1 - y0), max(0, x1 - x0), (head[begin + 42] & 127) + 1, samples)
    position = 2 if head.startswith(b"\xff\xd8") else len(head)
    while position + 10 <= len(head) and head[position] == 0xFF:
        marker, length = head[position + 1], int.from_bytes(head[position + 2 : position + 4], "big")
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            bits, height, width, samples = struct.unpack(">BHHB", head[position + 4 : position + 10])
            return _Codestream("JPEG-LS" if marker == 0xF7 else "JPEG", height, width, bits, samples)
        position += 2 + length
    return None
