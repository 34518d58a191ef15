"""X-ray files to pixels and canvases: every kind of file comes out right or is refused with its reason."""

import io
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from adamatch_ray.data import images
from adamatch_ray.data.images import BadImage, Decoded, decode, decode_png, encode_png, to_canvas
from adamatch_ray.geometry import Geometry

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="no real X-rays at ../shared/data")


def scene(height: int = 96, width: int = 80) -> NDArray[np.uint8]:
    """A smooth picture with values 0..255 and no symmetry."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    values = np.sin(3 * x + 1) * np.cos(2 * y) + y * x
    values = (values - values.min()) / np.ptp(values)
    return np.rint(values * 255).astype(np.uint8)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def deep_png(pixels: NDArray[np.uint16], colour: int) -> bytes:
    """A 16-bit PNG of [H, W, C], which Pillow cannot write for colour."""
    height, width = pixels.shape[:2]

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def reason(data: bytes, **options: int) -> str:
    with pytest.raises(BadImage) as caught:
        decode(data, **options)
    return str(caught.value)


def psnr(one: NDArray[np.uint8], two: NDArray[np.uint8]) -> float:
    return float(10 * np.log10(255**2 / np.mean((one.astype(float) - two.astype(float)) ** 2)))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P"])
def test_png_of_every_mode_gives_the_same_gray(mode: str) -> None:
    pixels = scene()
    image = Image.fromarray(pixels)
    image = image.quantize(256) if mode == "P" else image.convert(mode)
    decoded = decode(saved(image, "PNG"))
    assert (decoded.height, decoded.width) == pixels.shape
    assert decoded.pixels.dtype == np.uint8
    assert np.abs(decoded.pixels.astype(int) - pixels).max() <= (8 if mode == "P" else 0)


def test_one_bit_png_is_black_and_white() -> None:
    decoded = decode(saved(Image.fromarray(scene() > 128), "PNG"))
    assert set(np.unique(decoded.pixels)) == {0, 255}


def test_transparent_pixels_are_black_in_rgba_and_palette() -> None:
    alpha = np.full((96, 80), 255, dtype=np.uint8)
    alpha[:10] = 0
    rgba = np.dstack([scene()] * 3 + [alpha])
    assert decode(saved(Image.fromarray(rgba), "PNG")).pixels[:10].max() == 0
    palette = Image.new("P", (4, 2), 1)
    palette.putpalette([255, 255, 255, 200, 200, 200])
    palette.putpixel((0, 0), 0)
    decoded = decode(saved(palette, "PNG", transparency=0)).pixels
    assert decoded[0, 0] == 0 and decoded[0, 1] == 200


def test_sixteen_bit_png_is_scaled_from_the_range_in_use() -> None:
    values = scene().astype(np.uint16) * 16 + 700  # as a 12-bit detector stores it
    for data in (saved(Image.fromarray(values), "PNG"), deep_png(values[..., None], 0)):
        pixels = decode(data).pixels
        assert pixels.min() == 0 and pixels.max() == 255
        assert np.abs(pixels.astype(int) - scene()).max() <= 1


def test_sixteen_bit_colour_is_scaled_or_refused_never_dark() -> None:
    wide = np.repeat((scene().astype(np.uint16) * 128)[..., None], 3, axis=2)
    pixels = decode(deep_png(wide, 2)).pixels
    assert pixels.min() == 0 and pixels.max() == 255
    assert "too few levels" in reason(deep_png(wide // 16, 2))


def test_format_is_told_by_bytes_and_bad_files_give_their_reason() -> None:
    jpeg, png = (saved(Image.fromarray(scene(400, 300)), kind) for kind in ("JPEG", "PNG"))
    assert reason(b"") == "zero-byte file"
    assert reason(jpeg[: len(jpeg) // 2]) == "truncated image"
    assert reason(png[: len(png) // 2]) == "truncated image"
    assert reason(png[:20]) == "truncated image"
    assert reason(jpeg[:30]) == "corrupt JPEG"
    assert reason(b"<html>The page was not found</html>") == "not an image: text"
    assert reason("Lungenrundherd, größer".encode()) == "not an image: text"
    assert reason(bytes(range(256))) == "not a JPEG, PNG or DICOM file"
    assert reason(saved(Image.fromarray(scene()), "GIF")) == "not a JPEG, PNG or DICOM file"
    assert reason(deep_png(np.zeros((0, 4, 1), np.uint16), 0)) == "image has no pixels"
    assert reason(png[:41] + b"\0" * 60 + png[101:]) == "corrupt PNG"


def test_huge_images_are_refused_before_they_are_decoded() -> None:
    assert "exceeds" in reason(deep_png(np.zeros((1, 1, 1), np.uint16), 0).replace(b"\0\0\0\1" * 2, b"\0\1\0\0" * 2))
    for kind in ("JPEG", "PNG"):
        data = saved(Image.fromarray(scene()), kind)
        assert reason(data, max_pixels=96 * 80 - 1) == "image of 80x96 exceeds 7679 pixels"
        assert decode(data, max_pixels=96 * 80).width == 80


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_is_decoded_at_a_fraction_but_reports_its_own_size(mode: str, progressive: bool) -> None:
    image = Image.fromarray(scene(1600, 1200)).convert(mode)
    data = saved(image, "JPEG", quality=95, progressive=progressive)
    decoded = decode(data, max_side=128)
    assert (decoded.height, decoded.width) == (1600, 1200)
    assert 128 <= max(decoded.pixels.shape) < 800
    assert decode(data).pixels.shape == (1600, 1200)
    small = np.asarray(Image.fromarray(scene(1600, 1200)).resize(decoded.pixels.shape[::-1], Image.Resampling.BOX))
    assert psnr(decoded.pixels, small) > 38


def test_jpeg_with_stray_bytes_before_its_end_is_kept() -> None:
    data = saved(Image.fromarray(scene()), "JPEG")
    assert decode(data[:-2] + b"\x12" * 16 + data[-2:]).pixels.shape == (96, 80)


def test_jpeg_damaged_in_the_middle_is_refused_rather_than_half_gray() -> None:
    data = bytearray(saved(Image.fromarray(scene(400, 300)), "JPEG"))
    data[len(data) // 2 : len(data) // 2 + 3] = b"\xff\xd9\x00"
    assert reason(bytes(data)) in ("corrupt JPEG", "truncated image")


@pytest.mark.slow
def test_scaled_decode_stays_close_to_resizing_the_full_image() -> None:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.normal(size=(200, 160)).astype(np.float32)).resize((2544, 3056))
    noisy = scene(3056, 2544) * 0.7 + 30 + 4 * np.asarray(coarse) + 2.5 * rng.normal(size=(3056, 2544))
    data = saved(Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)), "JPEG", quality=92)
    full = Image.open(io.BytesIO(data)).convert("RGB").resize((213, 256), Image.Resampling.LANCZOS).convert("L")
    canvas = to_canvas(decode(data, max_side=256), 256)
    left = Geometry(3056, 2544, 256).left
    assert psnr(canvas[:, left : left + 213], np.asarray(full)) >= 52


@pytest.mark.parametrize(("height", "width"), [(300, 200), (200, 300), (64, 40), (256, 256), (1000, 3), (1, 1)])
def test_canvas_places_the_image_where_the_geometry_says(height: int, width: int) -> None:
    geometry = Geometry(height, width, 64)
    canvas = to_canvas(Decoded(np.full((height, width), 200, np.uint8), height, width), 64)
    expected = np.zeros((64, 64), np.uint8)
    bottom, right = geometry.top + geometry.inner_height, geometry.left + geometry.inner_width
    expected[geometry.top : bottom, geometry.left : right] = 200
    assert np.array_equal(canvas, expected)


def test_a_mark_lands_where_its_box_is_mapped() -> None:
    pixels = np.zeros((900, 600), np.uint8)
    pixels[300:420, 150:270] = 255
    for decoded in (Decoded(pixels, 900, 600), Decoded(pixels[::3, ::3], 900, 600)):  # as if decoded at a third
        rows, columns = np.nonzero(to_canvas(decoded, 128) > 127)
        box = Geometry(900, 600, 128).to_canvas(np.array([150.0, 300, 270, 420])) * 128
        assert np.abs(np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) - box).max() < 1


def test_small_images_are_enlarged_without_ringing() -> None:
    pixels = np.full((20, 20), 100, np.uint8)
    pixels[:, 10:] = 200
    canvas = to_canvas(Decoded(pixels, 20, 20), 64)
    assert canvas.min() == 100 and canvas.max() == 200


def test_stored_canvas_round_trips_and_is_deterministic() -> None:
    pixels = scene(256, 256)
    assert encode_png(pixels) == encode_png(pixels.copy())
    assert np.array_equal(decode_png(encode_png(pixels)), pixels)
    with pytest.raises(BadImage, match="mode RGB"):
        decode_png(saved(Image.fromarray(pixels).convert("RGB"), "PNG"))
    with pytest.raises(BadImage, match="not a readable PNG"):
        decode_png(b"nothing")


def dicom(values: NDArray[Any], **elements: Any) -> bytes:
    pydicom = pytest.importorskip("pydicom")
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = *values.shape, 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelRepresentation = int(values.dtype == np.int16)
    dataset.add_new("PixelData", "OW", values.tobytes())
    for name, value in elements.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def test_dicom_without_window_uses_its_range_signed_too() -> None:
    values = scene().astype(np.int16) * 4 - 500
    assert np.abs(decode(dicom(values)).pixels.astype(int) - scene()).max() <= 1


def test_monochrome1_is_inverted() -> None:
    values = scene().astype(np.uint16)
    plain = decode(dicom(values)).pixels
    inverted = decode(dicom(values, PhotometricInterpretation="MONOCHROME1")).pixels
    assert np.array_equal(inverted, 255 - plain)


def test_dicom_window_is_read_after_the_rescale() -> None:
    values = np.array([[0, 100, 150, 200, 400]], np.uint16)
    # Rescaled to -1000 .. -200; the window shows -800 .. -600, that is stored 100 .. 200.
    options = {"RescaleSlope": 2, "RescaleIntercept": -1000, "WindowCenter": [-700, 5], "WindowWidth": [200, 1]}
    exact = decode(dicom(values, VOILUTFunction="LINEAR_EXACT", **options)).pixels[0]
    assert exact.tolist() == [0, 0, 128, 255, 255]
    assert np.abs(decode(dicom(values, **options)).pixels[0].astype(int) - exact).max() <= 2
    sigmoid = decode(dicom(values, VOILUTFunction="SIGMOID", **options)).pixels[0]
    assert sigmoid[2] == 128 and 0 < sigmoid[1] < 64 and 192 < sigmoid[3] < 255


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_dicom_padding_is_black_and_does_not_set_the_range(photometric: str) -> None:
    values = scene().astype(np.uint16) + 1000
    values[:5] = 0
    pixels = decode(dicom(values, PixelPaddingValue=0, PhotometricInterpretation=photometric)).pixels
    assert pixels[:5].max() == 0
    assert np.ptp(pixels[5:]) > 230


def test_unusable_dicoms_give_their_reason() -> None:
    values = scene().astype(np.uint16)
    assert reason(dicom(values, PixelData=None)) == "DICOM without pixel data"
    assert reason(dicom(values, BodyPartExamined="ANKLE")) == "not a chest view: BodyPartExamined ANKLE"
    assert reason(dicom(values, NumberOfFrames=3)) == "DICOM with 3 frames"
    assert reason(dicom(values, Rows=None)) == "image has no pixels"
    assert "exceeds" in reason(dicom(values), max_pixels=100)
    assert reason(dicom(values)[:-2000]) == "truncated or corrupt DICOM"
    assert decode(dicom(values, BodyPartExamined="PORT CHEST")).width == 80


def test_missing_dicom_packages_are_the_users_to_install_not_a_bad_image(monkeypatch: pytest.MonkeyPatch) -> None:
    data = dicom(scene().astype(np.uint16))
    monkeypatch.delitem(sys.modules, "adamatch_ray.data.dicom", raising=False)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ValueError, match=r"pip install 'adamatch-ray\[dicom\]'") as caught:
        decode(data)
    assert not isinstance(caught.value, BadImage)


@needs_data
@pytest.mark.slow
def test_real_files_of_every_format() -> None:
    pytest.importorskip("pydicom")
    formats = {path.name: path.read_bytes() for path in (DATA / "formats").iterdir()}
    assert reason(formats.pop("RG3_J2KI.dcm")) == "not a chest view: BodyPartExamined EXTREMITY"
    decoded = {name: decode(data) for name, data in formats.items()}
    plain = next(value for name, value in decoded.items() if name.startswith("1.2.276"))
    assert np.array_equal(decoded["Fake_MONOHR1.dcm"].pixels, 255 - plain.pixels)
    thorax = decoded["RG1_J2KI.dcm"]
    assert (thorax.height, thorax.width) == (1955, 1841)
    # Inverted as MONOCHROME1 asks: the mediastinum is brighter than the lungs beside it.
    assert thorax.pixels[700:900, 880:960].mean() > thorax.pixels[700:900, 450:600].mean() + 20


@needs_data
@pytest.mark.slow
def test_every_real_covid_image_decodes_whatever_its_name_says() -> None:
    paths = sorted((DATA / "covid" / "images").iterdir())
    assert len(paths) == 60
    assert sum(path.suffix == ".jpg" and path.read_bytes().startswith(b"\x89PNG") for path in paths) == 6
    for path in paths:
        canvas = images.to_canvas(decode(path.read_bytes(), max_side=256), 256)
        assert canvas.shape == (256, 256) and canvas.std() > 20
