"""Pixels of the original and of the canvas: exact both ways, and where `to_canvas` really puts the picture."""

import numpy as np
import pytest

from adamatch_ray.data.images import Decoded, to_canvas
from adamatch_ray.geometry import Geometry

SHAPES = [(512, 512), (3056, 2544), (2544, 3056), (200, 640), (640, 200), (1, 1), (3, 2), (7, 1000), (20000, 12000)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("canvas", [64, 256])
def test_boxes_come_back_exactly(shape: tuple[int, int], canvas: int) -> None:
    geometry = Geometry(*shape, canvas)
    corner = np.random.default_rng(0).random((50, 2, 2)) * [shape[1], shape[0]]
    boxes = np.concatenate([corner.min(1), corner.max(1)], 1)
    unit = geometry.to_canvas(boxes)
    assert unit.min() >= 0 and unit.max() <= 1
    np.testing.assert_allclose(geometry.to_original(unit), boxes, rtol=0, atol=1e-9 * max(shape))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_whole_image_maps_to_the_inner_rectangle(shape: tuple[int, int]) -> None:
    geometry = Geometry(*shape, 256)
    height, width = shape
    x0, y0, x1, y1 = geometry.to_canvas(np.array([0, 0, width, height])) * 256
    assert (x0, y0) == pytest.approx((geometry.left, geometry.top))
    assert (x1 - x0, y1 - y0) == pytest.approx((geometry.inner_width, geometry.inner_height))
    assert max(geometry.inner_width, geometry.inner_height) == 256
    # Centred: the padding on both sides differs by a pixel at most.
    assert 0 <= 256 - geometry.inner_width - 2 * geometry.left <= 1
    assert 0 <= 256 - geometry.inner_height - 2 * geometry.top <= 1


def test_a_portrait_image_is_padded_left_and_right_and_a_landscape_above_and_below() -> None:
    portrait, landscape = Geometry(400, 200, 100), Geometry(200, 400, 100)
    assert (portrait.left, portrait.top, portrait.inner_width, portrait.inner_height) == (25, 0, 50, 100)
    assert (landscape.left, landscape.top, landscape.inner_width, landscape.inner_height) == (0, 25, 100, 50)
    np.testing.assert_allclose(portrait.to_canvas(np.array([0, 0, 100, 100])), [0.25, 0, 0.5, 0.25])
    np.testing.assert_allclose(landscape.to_canvas(np.array([0, 0, 100, 100])), [0, 0.25, 0.25, 0.5])


def test_boxes_over_the_padding_are_clipped_to_the_image() -> None:
    geometry = Geometry(400, 200, 100)
    np.testing.assert_allclose(geometry.to_original(np.array([0.0, 0.0, 1.0, 1.0])), [0, 0, 200, 400])
    np.testing.assert_allclose(geometry.to_original(np.array([0.0, 0.5, 0.1, 0.6])), [0, 200, 0, 240])


def test_boxes_of_any_leading_shape_are_mapped_alike() -> None:
    geometry = Geometry(300, 500, 128)
    boxes = np.random.default_rng(1).random((2, 3, 4)).astype(np.float32)
    np.testing.assert_array_equal(geometry.to_canvas(boxes)[1, 2], geometry.to_canvas(boxes[1, 2]))
    np.testing.assert_array_equal(geometry.to_original(boxes)[1, 2], geometry.to_original(boxes[1, 2]))


@pytest.mark.parametrize("shape", [(600, 400), (400, 600), (512, 512), (90, 60), (333, 101)])
def test_a_bright_rectangle_lies_on_the_canvas_where_the_geometry_says(shape: tuple[int, int]) -> None:
    height, width = shape
    box = np.array([width // 5, height // 2, width // 2, height * 3 // 4])
    image = np.full(shape, 20, np.uint8)
    image[box[1] : box[3], box[0] : box[2]] = 250
    placed = to_canvas(Decoded(image, height, width), 128)
    rows, columns = np.flatnonzero((placed > 135).any(1)), np.flatnonzero((placed > 135).any(0))
    found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    np.testing.assert_allclose(found, Geometry(height, width, 128).to_canvas(box) * 128, atol=1.0)
    padding = placed.copy()
    geometry = Geometry(height, width, 128)
    padding[
        geometry.top : geometry.top + geometry.inner_height, geometry.left : geometry.left + geometry.inner_width
    ] = 0
    assert not padding.any()


@pytest.mark.parametrize("sides", [(0, 10, 256), (10, 0, 256), (10, 10, 0)])
def test_an_empty_image_or_canvas_is_refused(sides: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="every side needs a pixel"):
        Geometry(*sides)
