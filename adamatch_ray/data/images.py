"""X-ray files to grayscale pixels, and pixels to the square canvas the models see (docs/method.md 1.1 and 7).

The format is told by the bytes, never by the file name. A file is opened once and, where the format allows it, decoded
at a fraction of its size: everything later reads the small canvas. EXIF orientation is ignored, so that coordinates
stay those of the stored pixels.
"""

import io
import re
import struct
import zlib
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from adamatch_ray.data.pixels import BadImage, NotAnImage, Pixels, check_promise, check_size, scale
from adamatch_ray.geometry import Geometry

MAX_PIXELS = 200_000_000
"""Largest image that is decoded; more is taken for a decompression bomb."""

_DECODE_MARGIN = 1.4
# A JPEG decoded to exactly the canvas is a plain block average; with this much to spare, the filter of `to_canvas`
# still shapes the result, and it stays within 52 dB of resizing the full image.

_MIN_LEVELS = 64
# Pillow keeps the high byte of 16-bit colour; fewer levels than this in use means that the picture is in the low byte.

_JPEG_PIXELS, _PNG_BYTES = 512, 1032
# The most that a byte of data can hold: a JPEG block of 8 x 8 pixels takes a bit, and deflate packs 1032 bytes in one.

_PNG_MAGIC, _JPEG_MAGIC, _DICOM_MAGIC = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"DICM"
_BARE_DICOM = re.compile(rb"DICM|[\x02\x08]\0[\x00-\x80]\0([A-Z]{2}|..\0\0)|\0\x08\0.[A-Z]{2}", re.DOTALL)
# Without the 128 bytes that precede the mark: the mark itself, or an element of group 2 or 8 in any byte order.

_PIL_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)
# What Pillow's readers raise on damaged input (SyntaxError is its word for a broken chunk).


@dataclass(frozen=True)
class Decoded:
    """Gray `pixels` uint8 [H, W] of an image whose original is `height` x `width`; [H, W] may be smaller."""

    pixels: Pixels
    height: int
    width: int


def decode(data: bytes, max_side: int | None = None, max_pixels: int = MAX_PIXELS) -> Decoded:
    """Decode a JPEG, PNG or DICOM file to gray.

    With `max_side` a JPEG may come out smaller than it is, its long side at least `max_side`. Depths of 16 bits are
    scaled linearly from the darkest to the brightest value in use (`pixels.robust_range` says which do not count);
    DICOM as `dicom` describes. Transparent pixels become black.

    Raises BadImage with the reason to record, or ValueError where a DICOM decoder is not installed.
    """
    if not data:
        raise BadImage("zero-byte file")
    if data[128:132] == _DICOM_MAGIC:  # first: the bytes before it may be anything, another format's mark too
        return _decode_dicom(data, max_pixels)
    if data.startswith(_JPEG_MAGIC):
        return _decode_jpeg(data, max_side, max_pixels)
    if data.startswith(_PNG_MAGIC):
        return _decode_png(data, max_pixels)
    if _BARE_DICOM.match(data):
        return _decode_dicom(data, max_pixels)
    raise NotAnImage("not an image: text" if _looks_like_text(data) else "not a JPEG, PNG or DICOM file")


def to_canvas(decoded: Decoded, canvas: int) -> Pixels:
    """Image to uint8 [canvas, canvas], placed as `Geometry(height, width, canvas)` says, zero around it.

    Large images are first averaged over whole blocks of pixels, then resampled with a Lanczos filter; images smaller
    than the canvas are enlarged bilinearly.
    """
    geometry = Geometry(decoded.height, decoded.width, canvas)
    size = (geometry.inner_width, geometry.inner_height)
    image = Image.fromarray(decoded.pixels)
    if max(decoded.pixels.shape) < canvas:
        image = image.resize(size, Image.Resampling.BILINEAR)
    else:
        image = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    placed = np.zeros((canvas, canvas), dtype=np.uint8)
    placed[geometry.top : geometry.top + size[1], geometry.left : geometry.left + size[0]] = np.asarray(image)
    return placed


def encode_png(pixels: Pixels) -> bytes:
    """Gray uint8 [H, W] as PNG; equal pixels give equal bytes."""
    assert pixels.dtype == np.uint8 and pixels.ndim == 2, (pixels.dtype, pixels.shape)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=6)
    return stream.getvalue()


def decode_png(data: bytes) -> Pixels:
    """The inverse of `encode_png`: uint8 [H, W]. Raises BadImage for anything but an 8-bit gray PNG."""
    try:
        with PngImageFile(io.BytesIO(data)) as image:
            if image.mode != "L":
                raise BadImage(f"stored image has mode {image.mode}, not 8-bit gray")
            return np.array(image)
    except BadImage:
        raise
    except _PIL_ERRORS as error:
        raise BadImage("stored image is not a readable PNG") from error


def _decode_jpeg(data: bytes, max_side: int | None, max_pixels: int) -> Decoded:
    wanted = 0 if max_side is None else int(max_side * _DECODE_MARGIN)
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except (ValueError, KeyError):  # KeyError: a colour layout that it has no name for
        colorspace = ""
    if colorspace not in ("Gray", "YCbCr", "RGB"):
        return _jpeg_by_pillow(data, wanted, max_pixels)
    check_size(height, width, max_pixels)
    check_promise(height * width, len(data), _JPEG_PIXELS)
    # Only the long side is asked for: the decoder would otherwise keep both sides above their limits.
    limits = {"min_height": wanted} if height >= width else {"min_width": wanted}
    try:
        pixels = simplejpeg.decode_jpeg(data, "GRAY", **limits)
    except ValueError as error:
        message = str(error).lower()
        if "extraneous bytes before marker 0xd9" not in message:
            raise BadImage("truncated image" if "premature end of jpeg" in message else "corrupt JPEG") from error
        # Bytes between the last pixel and the end marker harm nothing, though strict decoding refuses them.
        pixels = simplejpeg.decode_jpeg(data, "GRAY", strict=False, **limits)
    return Decoded(pixels[..., 0], height, width)


def _jpeg_by_pillow(data: bytes, wanted: int, max_pixels: int) -> Decoded:
    try:
        with JpegImageFile(io.BytesIO(data)) as image:
            width, height = image.size
            check_size(height, width, max_pixels)
            check_promise(height * width, len(data), _JPEG_PIXELS)
            if wanted:
                scale = max(1.0, max(image.size) / wanted)
                image.draft(None, (max(1, int(width / scale)), max(1, int(height / scale))))
            return Decoded(np.asarray(image.convert("L")), height, width)
    except BadImage:
        raise
    except _PIL_ERRORS as error:
        raise BadImage("truncated image" if "truncated" in str(error) else "corrupt JPEG") from error


def _decode_png(data: bytes, max_pixels: int) -> Decoded:
    if len(data) < 26:
        raise BadImage("truncated image")
    width, height, depth, colour = struct.unpack(">IIBB", data[16:26])
    check_size(height, width, max_pixels)
    try:
        with PngImageFile(io.BytesIO(data)) as image:
            check_size(image.height, image.width, max_pixels)  # a second header may say something else
            check_promise(image.height * image.width * len(image.getbands()) * depth / 8, len(data), _PNG_BYTES)
            image.load()
            pixels = _gray(image, deep=depth == 16 and colour != 0)
    except BadImage:
        raise
    except _PIL_ERRORS as error:
        truncated = b"IEND" not in data[-64:] or "truncated" in str(error)
        raise BadImage("truncated image" if truncated else "corrupt PNG") from error
    return Decoded(pixels, height, width)


def _gray(image: Image.Image, deep: bool) -> Pixels:
    if image.mode.startswith("I"):
        return scale(np.asarray(image))
    if image.mode == "P" or "transparency" in image.info:
        image = image.convert("RGBA")
    gray = image.convert("L")
    if deep:
        if np.ptp(np.asarray(gray)) < _MIN_LEVELS:
            raise BadImage("16-bit colour PNG uses too few levels: store it as 16-bit gray")
        gray = Image.fromarray(scale(np.asarray(gray)))
    if "A" in image.getbands():
        black = Image.new("L", image.size)
        black.paste(gray, mask=image.getchannel("A"))
        gray = black
    return np.asarray(gray)


def _decode_dicom(data: bytes, max_pixels: int) -> Decoded:
    try:
        from adamatch_ray.data.dicom import read_dicom
    except ModuleNotFoundError as error:
        raise ValueError("reading DICOM needs more packages: pip install 'adamatch-ray[dicom]'") from error
    pixels = read_dicom(data, max_pixels)
    return Decoded(pixels, *pixels.shape)


def _looks_like_text(data: bytes) -> bool:
    try:
        head = data[:512].decode("utf-8", errors="strict" if len(data) <= 512 else "ignore")
    except UnicodeDecodeError:
        return False
    return bool(head) and all(letter.isprintable() or letter in "\t\r\n\f" for letter in head)
