"""Stored canvases to model inputs: the crop of training carries its boxes, and no crop changes nothing."""

import warnings

import numpy as np
import pytest
import torch

from adamatch_ray.models.inputs import model_input, random_crops

CPU = torch.device("cpu")


def crops(count: int, area: float, seed: int = 0) -> torch.Tensor:
    return random_crops(count, area, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("area", [0.5, 0.8, 0.95, 1.0])
def test_crops_are_inside_large_enough_and_nearly_square(area: float) -> None:
    boxes = crops(2000, area)
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert boxes.min() >= 0 and boxes.max() <= 1 + 1e-6
    assert (width * height).min() >= area - 1e-5
    assert (width / height).log().abs().max() <= np.log(1.1) + 1e-4


def test_a_smallest_area_of_one_is_no_crop() -> None:
    torch.testing.assert_close(crops(100, 1.0), torch.tensor([0.0, 0, 1, 1]).expand(100, 4), rtol=0, atol=1e-5)


def test_crops_follow_their_generator_and_vary() -> None:
    assert torch.equal(crops(8, 0.8, seed=1), crops(8, 0.8, seed=1))
    assert not torch.equal(crops(8, 0.8, seed=1), crops(8, 0.8, seed=2))
    boxes = crops(2000, 0.8)
    assert boxes[:, 0].std() > 0.02 and boxes[:, 1].std() > 0.02


def test_a_bright_square_seen_in_a_crop_is_where_it_was_on_the_canvas() -> None:
    square = np.array([40, 60, 64, 80])
    canvas = np.zeros((6, 128, 128), np.uint8)
    canvas[:, square[1] : square[3], square[0] : square[2]] = 255
    crop = crops(6, 0.6, seed=4)
    seen = model_input(canvas, 112, CPU, crop)[:, 0] > 0
    for b in range(6):
        rows, columns = seen[b].any(1).nonzero().flatten(), seen[b].any(0).nonzero().flatten()
        box = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / 112
        origin, size = crop[b, :2].repeat(2), (crop[b, 2:] - crop[b, :2]).repeat(2)
        np.testing.assert_allclose((box * size + origin) * 128, square, atol=1.0)


def test_the_whole_canvas_keeps_its_grey_levels() -> None:
    canvas = np.random.default_rng(0).integers(0, 256, (2, 64, 64)).astype(np.uint8)
    image = model_input(canvas, 64, CPU)
    assert image.shape == (2, 3, 64, 64) and image.dtype == torch.float32
    for channel in range(3):
        torch.testing.assert_close((image[:, channel] + 1) * 127.5, torch.tensor(canvas).float(), rtol=0, atol=1e-4)
    full = model_input(canvas, 64, CPU, torch.tensor([[0.0, 0, 1, 1]] * 2))
    torch.testing.assert_close(full, image, rtol=0, atol=1e-5)


def test_shrinking_averages_over_areas() -> None:
    canvas = np.random.default_rng(0).integers(0, 256, (1, 64, 64)).astype(np.uint8)
    small = (model_input(canvas, 32, CPU)[0, 0] + 1) * 127.5
    blocks = canvas[0].reshape(32, 2, 32, 2).mean((1, 3))
    np.testing.assert_allclose(small, blocks, atol=1e-3)


def test_read_only_memory_is_taken_without_a_warning() -> None:
    canvas = np.full((1, 8, 8), 200, np.uint8)
    canvas.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model_input(canvas, 8, CPU).shape == (1, 3, 8, 8)
