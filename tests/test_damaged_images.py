"""Damaged images of every kind: taken, or refused with one line, and never at a cost that their header sets."""

import io
import random
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from adamatch_ray.data.images import decode, to_canvas

_NUMBERS = (0, 1, 2, 3, 7, 8, 12, 15, 16, 31, 32, 64, 127, 128, 254, 255)
_LONG = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\1\0\0", b"\0\0\x4e\x20")


def pictures(kind: str) -> list[bytes]:
    gray = Image.fromarray((np.add.outer(np.arange(40), np.arange(56)) * 2).astype(np.uint8))
    images = [
        gray.convert(mode) for mode in (("L", "RGB", "CMYK") if kind == "JPEG" else ("L", "RGBA", "P", "1", "I;16"))
    ]
    return [_saved(image, kind) for image in images]


def dicoms(_: str) -> list[bytes]:
    pytest.importorskip("pydicom")
    from dicom_files import RAMP, Raw, dataset, dicom, lut, pydicom, saved

    colour = np.stack([RAMP] * 3, -1)
    made = [
        dicom(PixelPaddingValue=Raw("US", b"\0\0"), RescaleSlope="1", RescaleIntercept="0", VOILUTFunction="LINEAR"),
        dicom(VOILUTSequence=[lut(range(4096), 12)], ModalityLUTSequence=[lut(range(4096), 12)]),
        dicom(colour, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0, BitsStored=16),
        saved(dataset(), implicit=True)[132:],
    ]
    for name in ("RLELossless", "JPEG2000Lossless"):
        packed = pydicom.dcmread(io.BytesIO(dicom()))
        packed.compress(getattr(pydicom.uid, name))
        made.append(saved(packed))
    return made


def mutate(data: bytes, draw: random.Random) -> bytes:
    """A few bytes changed, dropped, doubled or cut off, most of them in the first thousand."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 3, 8))):
        at = draw.randrange(min(len(changed), 1000) if draw.random() < 0.8 else len(changed))
        kind = draw.randrange(7)
        if kind < 2:
            changed[at] = draw.choice(_NUMBERS)
        elif kind == 2:
            changed[at] ^= 1 << draw.randrange(8)
        elif kind == 3:
            changed[at : at + 4] = draw.choice(_LONG)
        elif kind == 4:
            del changed[at : at + draw.choice((1, 2, 8))]
        elif kind == 5:
            changed[at:at] = changed[at : at + draw.choice((1, 2, 8))]
        elif draw.random() < 0.3:
            del changed[max(1, draw.randrange(len(changed))) :]
    return bytes(changed)


@pytest.mark.parametrize(("kind", "make"), [("PNG", pictures), ("JPEG", pictures), ("DICOM", dicoms)])
def test_damaged_files_are_taken_or_refused_with_one_line(kind: str, make: Callable[[str], list[bytes]]) -> None:
    draw = random.Random(23)
    taken = refused = 0
    tracemalloc.start()
    for data in make(kind) * 50:
        try:
            to_canvas(decode(mutate(data, draw), max_side=32), 32)
            taken += 1
        except ValueError as error:
            assert str(error) and "\n" not in str(error) and len(str(error)) < 200
            refused += 1
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken > 10 and refused > 10 and peak < 64 << 20


def test_sizes_that_the_data_cannot_hold_are_refused_before_anything_is_allocated() -> None:
    png = _saved(Image.new("L", (2, 2)), "PNG")
    jpeg = _saved(Image.new("L", (16, 16)), "JPEG")
    at = jpeg.index(b"\xff\xc0") + 5
    tracemalloc.start()
    for data in (
        png[:16] + (14000).to_bytes(4, "big") * 2 + png[24:],
        jpeg[:at] + (14000).to_bytes(2, "big") * 2 + jpeg[at + 4 :],
    ):
        with pytest.raises(ValueError, match=r"truncated image|corrupt PNG"):
            decode(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_a_jpeg_as_thin_as_a_line_is_read() -> None:
    """Pillow divides by the side that it is asked for."""
    decoded = decode(_saved(Image.new("CMYK", (4000, 1)), "JPEG"), max_side=32)
    assert (decoded.height, decoded.width) == (1, 4000)


def _saved(image: Image.Image, kind: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()
