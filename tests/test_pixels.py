"""The range of a picture without a window: outliers do not set it, and thin bright things stay bright."""

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from adamatch_ray.data.images import decode
from adamatch_ray.data.pixels import BadImage, check_promise, find_levels, scale


def chest(side: int = 256, most: int = 4095) -> NDArray[np.uint16]:
    """A 16-bit picture with smooth values 0 .. `most`, about as many of each."""
    y, x = np.mgrid[0 : 1 : side * 1j, 0 : 1 : side * 1j]
    return np.rint((x + 0.3 * np.sin(5 * y) + 0.3) / 1.6 * most).clip(0, most).astype(np.uint16)


def hot_pixels(picture: NDArray[np.uint16]) -> None:
    picture[0, :3] = 65535


def scattered(picture: NDArray[np.uint16]) -> None:
    draw = np.random.default_rng(0)
    places = draw.choice(picture.size, picture.size // 200, replace=False)
    picture.flat[places] = draw.integers(0, 65536, len(places))


def burnt_in_marker(picture: NDArray[np.uint16]) -> None:
    picture[8:40, 8:40] = 65535


def white_border(picture: NDArray[np.uint16]) -> None:
    picture[:12] = picture[-12:] = 65535


def black_border(picture: NDArray[np.uint16]) -> None:
    picture += 30000
    picture[:, :100] = 0


OUTLIERS = [hot_pixels, scattered, burnt_in_marker, white_border, black_border]


@pytest.mark.parametrize("spoil", OUTLIERS)
def test_outliers_leave_a_picture_most_of_its_gray_levels(spoil: Any) -> None:
    picture = chest()
    spoil(picture)
    inside = np.s_[60:200, 110:250]
    for shown in (scale(picture), decode(_png(picture)).pixels):
        assert np.ptp(shown[inside].astype(int)) > 0.5 * np.ptp(chest()[inside].astype(int)) / 4095 * 255
        assert len(np.unique(shown)) > 100


def test_a_dicom_without_a_window_is_scaled_alike() -> None:
    pytest.importorskip("pydicom")
    from dicom_files import dicom

    picture = chest()
    burnt_in_marker(picture)
    data = dicom(picture, BitsStored=16, HighBit=15, WindowCenter=None, WindowWidth=None)
    assert np.array_equal(decode(data).pixels, scale(picture))
    inverted = dicom(
        picture, BitsStored=16, WindowCenter=None, WindowWidth=None, PhotometricInterpretation="MONOCHROME1"
    )
    assert np.array_equal(decode(inverted).pixels, 255 - scale(picture))


@pytest.mark.parametrize("spoil", [None, hot_pixels, burnt_in_marker])
@pytest.mark.parametrize("value", [5500, 8000, 30000, 65535])
def test_a_lead_two_pixels_wide_stays_brighter_than_the_tissue_beside_it(spoil: Any, value: int) -> None:
    picture = chest()
    if spoil:
        spoil(picture)
    rows = np.arange(50, 240)
    for shift in (0, 1):
        picture[rows, 245 - rows // 4 + shift] = value  # across the brightest quarter
    shown = scale(picture).astype(int)
    lead, left, right = (shown[rows, 245 - rows // 4 + shift] for shift in (0, -4, 5))
    assert (lead - np.maximum(left, right)).min() >= 30
    assert np.unique(shown[:, :180]).size > 80


def test_without_outliers_the_darkest_is_black_and_the_brightest_white() -> None:
    for picture in (chest(), chest(most=60000), np.array([[0, 100, 150, 200, 400]], np.uint16), chest() + np.uint16(9)):
        low, high = int(picture.min()), int(picture.max())
        wanted = (picture.astype(float) - low) / (high - low) * 255
        assert np.abs(scale(picture) - wanted).max() <= 0.5
    assert scale(np.full((3, 4), 7, np.uint16)).max() == 0


def test_levels_of_every_depth_rebuild_the_picture() -> None:
    draw = np.random.default_rng(1)
    for kind in ("u1", "i1", "<u2", ">i2", "<i4", "<u4"):
        limits = np.iinfo(kind)
        picture = draw.integers(limits.min, limits.max, (5, 7)).astype(kind)
        levels = find_levels(picture)
        assert np.array_equal(levels.values[levels.where], picture) and levels.counts.sum() == 35


def test_a_promise_is_compared_with_the_data() -> None:
    check_promise(512 * 100, 100, 512)
    with pytest.raises(BadImage, match="truncated image"):
        check_promise(512 * 100 + 1, 100, 512)


def _png(picture: NDArray[np.uint16]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    return stream.getvalue()
