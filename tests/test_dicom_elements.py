"""Every element of a DICOM that is read: absent, empty, absurd, of another VR, and several of these together."""

import random
from typing import Any

import pytest
from dicom_files import RAMP, Raw, dataset, dicom, ds, fd, item, lut, off, reason, saved, us

from adamatch_ray.data.images import BadImage, decode

EMPTY = Raw("UN", b"")

HARMLESS: dict[str, list[Any]] = {
    # Every element that is read, as it may be written without changing the picture: absent, empty, absurd, wrong VR.
    "Modality": [None, EMPTY, "CR", "OT", "RF", Raw("LO", b"dx "), Raw("OB", b"\1\2")],
    "BodyPartExamined": [None, EMPTY, "UNKNOWN", "TORAX", "X" * 64, Raw("LO", b"T\xd3RAX"), Raw("OB", b"\0\1")],
    "AnatomicRegionSequence": [[], [item()], [item(CodeValue="51185008")], Raw("OB", b"none"), Raw("LO", b"CHEST ")],
    "ViewPosition": [None, EMPTY, "PA", "ap", "W033", Raw("LO", b"A.P.")],
    "NumberOfFrames": [None, EMPTY, "1", 0, Raw("IS", b"1.0 "), Raw("IS", b"one "), Raw("US", b"\1\0")],
    "Rows": [Raw("UL", b"\x20\0\0\0"), Raw("IS", b"32"), Raw("DS", b"32.0"), Raw("UN", b"\x20\0")],
    "Columns": [Raw("SS", b"\0\1"), Raw("IS", b"256 "), Raw("OB", b"\0\1")],
    "SamplesPerPixel": [None, EMPTY, 0, Raw("IS", b"1 "), Raw("UL", b"\1\0\0\0")],
    "PhotometricInterpretation": [None, EMPTY, "monochrome2", "FOO", Raw("LO", b"MONOCHROME2 "), Raw("OB", b"\0")],
    "PlanarConfiguration": [None, EMPTY, 1, 7],
    "BitsAllocated": [None, EMPTY, 0, 12, 99, Raw("IS", b"16")],
    "BitsStored": [None, EMPTY, 0, 16, 99, Raw("IS", b"12")],
    "HighBit": [None, EMPTY, 0, 15, 99, Raw("SS", b"\xff\xff")],
    "PixelRepresentation": [None, EMPTY, 7, Raw("IS", b"0 ")],
    "PixelPaddingValue": [EMPTY, us(0), us(60000), Raw("SS", b"\xff\xff"), Raw("LO", b"none"), Raw("DS", b"-2000 ")],
    "PixelPaddingRangeLimit": [EMPTY, us(65535), Raw("SS", b"\0\x80"), Raw("IS", b"99999999")],
    "ModalityLUTSequence": [[], [item()], [item(LUTDescriptor=us(0, 0, 16))], [lut([5, 5, 5], 16)], Raw("OB", b"??")],
    "RescaleSlope": [None, EMPTY, "1", ds("1,0"), ds("nan"), ds("one "), ds("1\\2 "), fd(1)],
    "RescaleIntercept": [None, EMPTY, "0", ds("0,0"), ds("inf "), Raw("US", b"\0\0"), Raw("LO", b"HU")],
    "VOILUTSequence": [[], [item()], [lut([7] * 4096, 12)], [lut(range(4096), 12, first=9000)], Raw("OB", b"lut ")],
    "VOILUTFunction": [None, EMPTY, "LINEAR", "linear exact", "FOO", Raw("OB", b"\0\0")],
    "WindowCenter": [None, EMPTY, ds("2047,5"), ds("nan "), ds("2047.5\\9"), ds("1e30"), fd(2047.5)],
    "WindowWidth": [None, EMPTY, ds("4096,0"), ds("-nan"), ds("4096\\1"), ds("1e30"), us(4096), Raw("LO", b"4096")],
    "PresentationLUTSequence": [[], [item()], [lut(range(256), 8)]],
    "PresentationLUTShape": [EMPTY, "IDENTITY", "FOO", Raw("OB", b"\0\0")],
}  # fmt: skip

REFUSED = [
    ("PixelData", None, "DICOM without pixel data"),
    ("PixelData", Raw("OW", b""), "DICOM without pixel data"),
    ("PixelData", Raw("OW", bytes(RAMP.nbytes - 2)), "truncated or corrupt DICOM"),
    ("PixelData", Raw("OB", b"\xfe\xff\x00\xe0" + bytes(60)), "truncated image"),
    ("Rows", None, "image has no pixels"),
    ("Columns", Raw("US", b""), "image has no pixels"),
    ("Rows", Raw("SS", b"\xff\xff"), "image has no pixels"),
    ("Rows", 65535, "truncated or corrupt DICOM"),
    ("Rows", Raw("UL", b"\xff\xff\xff\xff"), "exceeds"),
    ("SamplesPerPixel", 4, "DICOM with 4 samples per pixel"),
    ("NumberOfFrames", 3, "DICOM with 3 frames"),
    ("RescaleSlope", "0", "DICOM with a rescale slope of 0"),
    ("RescaleSlope", Raw("DS", b"1e308 "), "beyond all numbers"),
    ("RescaleIntercept", Raw("DS", b"-1e300"), "beyond all numbers"),
    ("WindowWidth", "0", "DICOM with a window width of 0"),
    ("WindowWidth", "-4096", "DICOM with a window width of -4096"),
    ("PhotometricInterpretation", "PALETTE COLOR", "DICOM without a readable palette"),
    ("Modality", "CT", "not an X-ray: Modality CT"),
    ("BodyPartExamined", "ANKLE", "not a chest view: BodyPartExamined ANKLE"),
    ("AnatomicRegionSequence", [item(CodeMeaning="Knee joint")], "not a chest view: BodyPartExamined Knee joint"),
    ("ViewPosition", "LL", "view LL is not frontal"),
]


@pytest.mark.parametrize("name", HARMLESS)
def test_an_element_that_is_absent_empty_absurd_or_of_another_vr_does_not_spoil_the_picture(name: str) -> None:
    for value in HARMLESS[name]:
        assert off(dicom(**{name: value})) <= 2, value


@pytest.mark.parametrize(("name", "value", "says"), REFUSED, ids=[f"{row[0]}-{row[2]}" for row in REFUSED])
def test_what_cannot_be_shown_is_refused_with_one_line(name: str, value: Any, says: str) -> None:
    assert says in reason(dicom(**{name: value}))


def test_combinations_of_odd_elements_give_the_picture_too() -> None:
    draw = random.Random(17)
    for _ in range(200):
        names = draw.sample(sorted(HARMLESS), draw.randint(2, 6))
        elements = {name: draw.choice(HARMLESS[name]) for name in names}
        assert off(dicom(**elements)) <= 2, elements
        usual = {name: value for name, value in elements.items() if not isinstance(value, Raw) or value.vr == "UN"}
        assert off(saved(dataset(**usual), implicit=True)) <= 2, usual  # where no element can have another VR


def test_combinations_with_what_is_refused_are_refused_or_shown_never_anything_else() -> None:
    draw = random.Random(18)
    for _ in range(150):
        odd = {name: draw.choice(HARMLESS[name]) for name in draw.sample(sorted(HARMLESS), 4)}
        bad = {name: value for name, value, _ in draw.sample(REFUSED, 2)}
        try:
            decode(dicom(**odd, **{name: value for name, value in bad.items() if name not in odd}))
        except BadImage as error:
            assert "\n" not in str(error)
