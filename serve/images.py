"""An uploaded X-ray to the canvas the models see, within limits that are checked before anything is decoded.

What a header promises is compared with the limits first: pixels of a JPEG or PNG, pixels inside a DICOM (its own and
its compressed frame's), and how far a deflated DICOM would inflate.
"""

import asyncio
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

from adamatch_ray.data.images import BadImage, NotAnImage, TooManyPixels, check_size, decode, to_canvas
from adamatch_ray.geometry import CanvasImage
from serve.problems import Problem

_DEFLATED = "1.2.840.10008.1.2.1.99"
_INFLATED_PIXEL = 8
# Bytes a pixel of a deflated DICOM may take, header included: 16-bit colour takes six.


class Decoder:
    """Decodes uploads in a few threads; one that takes too long keeps its thread until it ends, but not its client."""

    def __init__(self, canvas: int, max_pixels: int, timeout_s: float, threads: int = 2) -> None:
        self._canvas, self._max_pixels, self._timeout = canvas, max_pixels, timeout_s
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    async def __call__(self, data: bytes) -> CanvasImage:
        """The canvas of an upload. Raises Problem 413 (too many pixels), 415 (no image), 422 or 504."""
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._pool, read_image, data, self._canvas, self._max_pixels)
        try:
            return await asyncio.wait_for(work, self._timeout)
        except TimeoutError as error:
            raise Problem(504, "decoding the image took too long") from error


def read_image(data: bytes, canvas: int, max_pixels: int) -> CanvasImage:
    """Check, decode and place an upload. Raises Problem."""
    try:
        check_header(data, max_pixels)
        decoded = decode(data, canvas, max_pixels)
        return CanvasImage(to_canvas(decoded, canvas), decoded.height, decoded.width)
    except BadImage as error:
        status = 413 if isinstance(error, TooManyPixels) else 415 if isinstance(error, NotAnImage) else 422
        raise Problem(status, f"this X-ray cannot be used: {error}") from error


def check_header(data: bytes, max_pixels: int) -> None:
    """Refuse, by BadImage, what would decode to far more than it says; the rest of a header `decode` checks itself."""
    if data[128:132] != b"DICM":
        return
    syntax, start = _file_meta(data)
    if syntax == _DEFLATED:
        _check_inflation(data[start:], max_pixels * _INFLATED_PIXEL)
    elif size := _codestream_size(data[start:]):
        check_size(*size, max_pixels)


def _file_meta(data: bytes) -> tuple[str, int]:
    """Transfer syntax of a DICOM, and where its file meta information (group 2, explicit little endian) ends."""
    position, syntax = 132, ""
    while data[position : position + 2] == b"\x02\x00" and position + 12 <= len(data):
        element, kind, length = struct.unpack("<H2sH", data[position + 2 : position + 8])
        position += 8
        if kind in (b"OB", b"OW", b"SQ", b"UN", b"UT"):
            (length,) = struct.unpack("<I", data[position : position + 4])
            position += 4
        if element == 0x0010:
            syntax = data[position : position + length].rstrip(b"\0 ").decode("ascii", "replace")
        position += length
    return syntax, position


def _check_inflation(packed: bytes, limit: int) -> None:
    """Inflate piece by piece, keeping nothing."""
    inflater, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
    try:
        while packed and not inflater.eof:
            total += len(inflater.decompress(packed, 1 << 20))
            packed = inflater.unconsumed_tail
            if total > limit:
                raise TooManyPixels(f"deflated DICOM exceeds {limit} bytes")
    except zlib.error as error:
        raise BadImage("truncated or corrupt DICOM") from error


def _codestream_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) that the first JPEG 2000 or JPEG frame of encapsulated pixel data says of itself."""
    begin = data.find(b"\xfe\xff\x00\xe0")  # the first item of a sequence or of encapsulated pixel data
    while begin >= 0:
        frame = data[begin + 8 : begin + 8 + (1 << 16)]
        if frame.startswith(b"\xff\x4f\xff\x51") and len(frame) >= 24:
            x1, y1, x0, y0 = struct.unpack(">4I", frame[8:24])
            return max(0, y1 - y0), max(0, x1 - x0)
        if frame.startswith(b"\xff\xd8"):
            return _jpeg_size(frame)
        begin = data.find(b"\xfe\xff\x00\xe0", begin + 8)
    return None


def _jpeg_size(frame: bytes) -> tuple[int, int] | None:
    position = 2
    while position + 9 <= len(frame) and frame[position] == 0xFF:
        marker, length = frame[position + 1], int.from_bytes(frame[position + 2 : position + 4], "big")
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            height, width = struct.unpack(">HH", frame[position + 5 : position + 9])
            return height, width
        position += 2 + length
    return None
