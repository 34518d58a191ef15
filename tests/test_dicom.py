"""DICOM files as hospitals have them: each is shown as a viewer would show it, or refused with one line."""

import io
from typing import Any

import numpy as np
import pytest
from dicom_files import RAMP, SHOWN, Raw, dataset, dicom, item, lut, off, pydicom, reason, saved, us
from numpy.typing import NDArray

from adamatch_ray.data.images import decode

NO_WINDOW = {"WindowCenter": None, "WindowWidth": None}


# ---- tables and windows ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [0, 8, 10, 12, 16])
@pytest.mark.parametrize("entries", [None, 0, 256])
def test_a_voi_table_is_scaled_by_what_it_holds_not_by_what_its_descriptor_says(bits: int, entries: int | None) -> None:
    assert off(dicom(VOILUTSequence=[lut(range(4096), bits, entries=entries)])) <= 2


def test_a_table_of_single_bytes_is_read() -> None:
    table = item(LUTDescriptor=us(4096, 0, 8), LUTData=Raw("OB", (np.arange(4096) // 16).astype(np.uint8).tobytes()))
    assert off(dicom(VOILUTSequence=[table])) <= 2


def test_the_first_input_of_a_table_may_have_the_wrong_sign() -> None:
    signed = RAMP.astype(np.int16) - 2048
    for first in (-2048, 63488):
        table = lut(range(4096), 12, first=first)
        data = dicom(signed, VOILUTSequence=[table], PixelRepresentation=1, BitsStored=16, HighBit=15)
        assert off(data) <= 2


def test_a_modality_table_stands_before_the_window() -> None:
    falling = lut(range(4095, -1, -1), 12)
    assert off(dicom(ModalityLUTSequence=[falling]), SHOWN[::-1]) <= 2
    assert off(dicom(ModalityLUTSequence=[falling], RescaleSlope="3", RescaleIntercept="9"), SHOWN[::-1]) <= 2


def test_slope_without_intercept_and_intercept_without_slope_are_rescales() -> None:
    assert off(dicom(RescaleSlope="2", WindowCenter="4095", WindowWidth="8192")) <= 2
    assert off(dicom(RescaleIntercept="-1000", WindowCenter="1047.5")) <= 2


def test_a_window_for_other_values_gives_way_to_the_next_or_to_the_pictures_own_range() -> None:
    assert off(dicom(WindowCenter=["30000", "2047.5"], WindowWidth=["10", "4096"])) <= 2
    assert off(dicom(WindowCenter="32768", WindowWidth="65536")) <= 2
    assert off(dicom(WindowCenter=["1", "2047.5"], WindowWidth=["0", "4096"])) <= 2


def test_window_functions() -> None:
    exact = decode(dicom(VOILUTFunction="LINEAR_EXACT", WindowCenter="2048", WindowWidth="1024")).pixels[16]
    assert exact[95] == 0 and exact[160] == 255 and 0 < exact[100] < 40
    threshold = decode(dicom(WindowCenter="2048", WindowWidth="1")).pixels[16]
    assert set(threshold) == {0, 255} and threshold[127] == 0 and threshold[128] == 255
    sigmoid = decode(dicom(VOILUTFunction=" sigmoid", WindowCenter="2048", WindowWidth="1024")).pixels[16]
    assert 0 < sigmoid[90] < 60 and abs(int(sigmoid[128]) - 128) < 4


@pytest.mark.parametrize("shape", ["INVERSE", None, "IDENTITY"])
def test_monochrome1_is_turned_over_once_whatever_the_presentation_shape_says(shape: str | None) -> None:
    for said in ("MONOCHROME1", "Monochrome 1"):
        assert off(dicom(PhotometricInterpretation=said, PresentationLUTShape=shape), SHOWN[::-1]) <= 2


def test_the_inverse_shape_turns_monochrome2_over() -> None:
    assert off(dicom(PresentationLUTShape="INVERSE"), SHOWN[::-1]) <= 2


# ---- bits and padding -----------------------------------------------------------------------------------------------


def test_bits_above_those_stored_are_no_pixels_compressed_or_not() -> None:
    marked = RAMP.copy()
    marked[10:14, 10:14] |= 0xF000
    plain = decode(dicom()).pixels
    assert np.array_equal(decode(dicom(marked)).pixels, plain)
    packed = pydicom.dcmread(io.BytesIO(dicom(marked, BitsStored=16, HighBit=15)))
    packed.compress(pydicom.uid.RLELossless)
    packed.BitsStored, packed.HighBit = 12, 11
    stream = io.BytesIO()
    packed.save_as(stream)
    assert np.array_equal(decode(stream.getvalue()).pixels, plain)


def test_values_in_the_upper_bits_are_found_by_the_high_bit() -> None:
    assert off(dicom(RAMP << 4, HighBit=15)) <= 2
    assert off(dicom((RAMP << 4) | 5, HighBit=15)) <= 2


@pytest.mark.parametrize(("vr", "value"), [("SS", -2000), ("US", 63536), ("DS", "-2000"), ("IS", "63536")])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_of_either_sign_is_black_and_sets_no_range(vr: str, value: Any, photometric: str) -> None:
    values = np.tile(np.linspace(-1000, 1000, 256), (32, 1)).astype(np.int16)
    values[:, :40] = -2000
    raw = value.encode() if isinstance(value, str) else np.array([value]).astype("<u2").tobytes()
    signed = {"PixelRepresentation": 1, "BitsStored": 16, "HighBit": 15, "PhotometricInterpretation": photometric}
    row = decode(dicom(values, PixelPaddingValue=Raw(vr, raw), **signed, **NO_WINDOW)).pixels[16].astype(int)
    if photometric == "MONOCHROME1":
        row[40:] = 255 - row[40:]
    assert row[:40].max() == 0 and row[40] <= 2 and row[255] >= 253 and abs(row[148] - 128) < 4


def test_padding_beyond_the_bits_stored_is_found_in_all_bits_and_spares_the_brightest() -> None:
    values = RAMP.copy()
    values[:, :40] = 65535
    row = decode(dicom(values, PixelPaddingValue=us(65535))).pixels[16]
    assert row[:40].max() == 0 and row[255] == 255


def test_a_padding_range_is_black() -> None:
    values = RAMP + np.uint16(100)
    values[:, :40] = np.arange(40)
    row = decode(
        dicom(values, BitsStored=16, PixelPaddingValue=us(0), PixelPaddingRangeLimit=us(50), **NO_WINDOW)
    ).pixels[16]
    assert row[:40].max() == 0 and row[41] < 4 and row[255] == 255


def test_a_picture_of_padding_alone_is_refused() -> None:
    assert reason(dicom(np.full((8, 8), 7, np.uint16), PixelPaddingValue=us(7))) == "image has no pixels"


# ---- colour ---------------------------------------------------------------------------------------------------------


def colour(pixels: NDArray[Any], photometric: str, stored: int, planar: int = 0) -> bytes:
    bits = 8 * pixels.itemsize
    return dicom(pixels, SamplesPerPixel=3, PhotometricInterpretation=photometric, PlanarConfiguration=planar,
                 BitsAllocated=bits, BitsStored=stored, HighBit=stored - 1)  # fmt: skip


@pytest.mark.parametrize(("scale", "stored"), [(1 / 16, 8), (1, 12), (1, 16), (16, 16)])
def test_colour_of_every_depth_in_either_order(scale: float, stored: int) -> None:
    gray = (RAMP * scale).astype(np.uint8 if stored == 8 else np.uint16)
    interleaved, planes = np.stack([gray] * 3, -1), np.stack([gray] * 3)
    assert off(colour(interleaved, "RGB", stored)) <= 2
    data = dataset(planes, Rows=32, Columns=256, SamplesPerPixel=3, PhotometricInterpretation="RGB",
                   PlanarConfiguration=1, BitsAllocated=8 * gray.itemsize, BitsStored=stored)  # fmt: skip
    assert off(saved(data)) <= 2


def test_the_first_sample_of_ybr_is_the_gray() -> None:
    luminance = (RAMP >> 4).astype(np.uint8)
    ybr = np.stack([luminance, np.full_like(luminance, 90), np.full_like(luminance, 200)], -1)
    assert off(colour(ybr, "YBR_FULL", 8)) <= 2
    halved = np.stack([luminance[:, ::2], luminance[:, 1::2], ybr[:, ::2, 1], ybr[:, ::2, 2]], -1)
    assert off(saved(dataset(halved, Rows=32, Columns=256, SamplesPerPixel=3, BitsAllocated=8, BitsStored=8,
                             PhotometricInterpretation="YBR_FULL_422", PlanarConfiguration=0))) <= 2  # fmt: skip


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("first", [0, 100])
def test_a_palette_is_looked_up(bits: int, first: int) -> None:
    index = np.tile(np.arange(256, dtype=np.uint16), (32, 1)) + first
    shades = (255 - np.arange(256)) * (257 if bits == 16 else 1)
    data = shades.astype(np.uint16 if bits == 16 else np.uint8).tobytes()
    elements: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR", "BitsStored": 16, "HighBit": 15}
    for name in ("Red", "Green", "Blue"):
        elements[f"{name}PaletteColorLookupTableDescriptor"] = us(256, first, bits)
        elements[f"{name}PaletteColorLookupTableData"] = Raw("OW", data)
    assert off(dicom(index, **elements), SHOWN[::-1]) <= 1


def test_a_palette_in_segments_is_looked_up() -> None:
    segments = np.array([0, 1, 65535, 1, 255, 0], "<u2").tobytes()  # one value, then a line down to 0
    elements: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR", "BitsStored": 16}
    for name in ("Red", "Green", "Blue"):
        elements[f"{name}PaletteColorLookupTableDescriptor"] = us(256, 0, 16)
        elements[f"Segmented{name}PaletteColorLookupTableData"] = Raw("OW", segments)
    assert off(dicom(np.tile(np.arange(256, dtype=np.uint16), (32, 1)), **elements), SHOWN[::-1]) <= 1


# ---- files ----------------------------------------------------------------------------------------------------------


def without_syntax(whole: bytes) -> bytes:
    """The file without its Transfer Syntax UID; the length of the group is corrected."""
    at = whole.index(b"\x02\x00\x10\x00UI")
    gone = 8 + int.from_bytes(whole[at + 6 : at + 8], "little")
    group = int.from_bytes(whole[140:144], "little") - gone
    return whole[:140] + group.to_bytes(4, "little") + whole[144:at] + whole[at + gone :]


def body_of(whole: bytes) -> bytes:
    return whole[144 + int.from_bytes(whole[140:144], "little") :]


@pytest.mark.parametrize("implicit", [False, True])
def test_preamble_mark_meta_information_and_transfer_syntax_may_be_missing(implicit: bool) -> None:
    whole = saved(dataset(), implicit)
    for data in (whole, whole[128:], whole[132:], body_of(whole), without_syntax(whole), without_syntax(whole)[132:]):
        assert off(data) <= 2


def test_a_big_endian_file_is_read_with_and_without_its_head() -> None:
    made = dataset(
        RAMP.astype(">u2"),
        VOILUTSequence=[item(LUTDescriptor=[4096, 0, 16], LUTData=Raw("OW", np.arange(4096, dtype=">u2").tobytes()))],
    )
    made.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRBigEndian
    whole = saved(made)
    assert off(whole) <= 2 and off(body_of(whole)) <= 2


@pytest.mark.parametrize("name", ["RLELossless", "JPEG2000Lossless", "DeflatedExplicitVRLittleEndian"])
def test_compressed_files_are_read_and_those_that_lost_their_syntax(name: str) -> None:
    uid = getattr(pydicom.uid, name)
    made = pydicom.dcmread(io.BytesIO(dicom()))
    if uid.is_deflated:
        made.file_meta.TransferSyntaxUID = uid
    else:
        if name == "JPEG2000Lossless":
            pytest.importorskip("openjpeg")
        made.compress(uid)
    stream = io.BytesIO()
    made.save_as(stream, enforce_file_format=True)
    assert off(stream.getvalue()) <= 2
    if not uid.is_deflated:
        assert off(without_syntax(stream.getvalue())) <= 2
        assert off(stream.getvalue().replace(uid.encode(), b"1.2.840.10008.1.2.1".ljust(len(uid), b"\0"))) <= 2


def test_a_codestream_in_many_fragments_is_read() -> None:
    pytest.importorskip("openjpeg")
    made = pydicom.dcmread(io.BytesIO(dicom()))
    made.compress(pydicom.uid.JPEG2000Lossless)
    stream = pydicom.encaps.get_frame(made.PixelData, 0, number_of_frames=1)
    parts = [stream[:30], stream[30:60], stream[60:]]
    items = [b"", *(part + bytes(len(part) % 2) for part in parts)]
    made.PixelData = b"".join(b"\xfe\xff\x00\xe0" + len(part).to_bytes(4, "little") + part for part in items)
    made.PixelData += b"\xfe\xff\xdd\xe0" + bytes(4)
    assert off(saved(made)) <= 2


def test_a_header_that_promises_more_than_the_file_holds_is_refused_before_anything_is_allocated() -> None:
    made = pydicom.dcmread(io.BytesIO(dicom()))
    made.compress(pydicom.uid.RLELossless)
    made.Rows = made.Columns = 14000
    stream = io.BytesIO()
    made.save_as(stream)
    assert reason(stream.getvalue()) == "truncated image"
    pytest.importorskip("openjpeg")
    made = pydicom.dcmread(io.BytesIO(dicom()))
    made.compress(pydicom.uid.JPEG2000Lossless)
    made.Rows = 14000
    stream = io.BytesIO()
    made.save_as(stream)
    assert reason(stream.getvalue()) == "DICOM of 256x14000 holds an image of 256x32"


def test_pixels_left_unpacked_under_a_compressed_syntax_are_read() -> None:
    made = dataset()
    whole = saved(made).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0")
    assert off(whole) <= 2


def test_an_empty_element_of_an_unknown_vr_is_an_empty_element() -> None:
    data = dicom(PixelData=Raw("OW", b""))
    assert reason(data.replace(b"\xe0\x7f\x10\x00OW", b"\xe0\x7f\x10\x00O?")) == "DICOM without pixel data"
