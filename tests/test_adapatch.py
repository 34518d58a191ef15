"""Adaptive patches: where the boxes lie, what is read there, and what gradients say."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from adamatch_ray.models.adapatch import AdaPatch, cell_boxes, sample_boxes


def moved(module: AdaPatch, seed: int = 0, scale: float = 0.2) -> AdaPatch:
    """The same module with boxes away from their start, where bilinear reading has a kink."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        weight = module.offsets.weight
        weight.copy_(scale * torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    return module


def adapatch(channels: int = 3, dim: int = 8, dtype: torch.dtype = torch.float32) -> AdaPatch:
    torch.manual_seed(0)
    return AdaPatch(channels, dim).to(dtype)


def picture(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def test_first_boxes_join_the_pixel_centres_of_each_cell() -> None:
    boxes = adapatch().predict_boxes(picture(2, 3, 28, 28))
    cells = cell_boxes(14)
    centre, stride = (cells[:, :2] + cells[:, 2:]) / 2, 1 / 14
    expected = torch.cat([centre - stride / 4, centre + stride / 4], dim=-1).expand(2, -1, -1)
    torch.testing.assert_close(boxes, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("side", [8, 28])
def test_first_samples_hold_the_four_source_pixels(side: int) -> None:
    x = picture(2, 3, side, side, dtype=torch.float64)
    module = adapatch(dtype=torch.float64)
    points = sample_boxes(x, module.predict_boxes(x), 3).view(2, side // 2, side // 2, 3, 3, 3)  # b i j x y c
    for dx in (0, 1):
        for dy in (0, 1):
            pixels = x[:, :, dy::2, dx::2].permute(0, 2, 3, 1)
            torch.testing.assert_close(points[:, :, :, 2 * dx, 2 * dy], pixels, rtol=0, atol=1e-6)
    torch.testing.assert_close(points[:, :, :, 1, 1], F.avg_pool2d(x, 2).permute(0, 2, 3, 1), rtol=0, atol=1e-6)


def test_box_formula() -> None:
    """Equations 1 to 4 with the four outputs chosen by hand, on a map of one cell a side 4."""
    module = adapatch(dim=4, dtype=torch.float64)
    raw = torch.tensor([0.3, -0.2, 0.1, -0.15], dtype=torch.float64)
    embedding = F.gelu(module.predictor(torch.zeros(1, 3, 8, 8, dtype=torch.float64)))[0, 0]
    with torch.no_grad():
        module.offsets.weight.copy_(raw[:, None] * embedding / embedding.square().sum())
    box = module.predict_boxes(torch.zeros(1, 3, 8, 8, dtype=torch.float64))[0, 6]  # row 1, column 2
    bias = torch.log(torch.sqrt(torch.tensor(5 / 3, dtype=torch.float64)))
    x, y = 2.5 / 4 + torch.tanh(raw[0]) / 4, 1.5 / 4 + torch.tanh(raw[1]) / 4
    w, h = torch.tanh(raw[2] + bias) / 4, torch.tanh(raw[3] + bias) / 4
    torch.testing.assert_close(box, torch.stack([x - w, y - h, x + w, y + h]), rtol=0, atol=1e-7)


@pytest.mark.parametrize(("output", "stripe_along_x"), [(0, True), (1, False)])
def test_a_predicted_shift_reads_the_next_pixel_along_its_own_axis(output: int, stripe_along_x: bool) -> None:
    """Half a stride is one pixel: over a stripe, a move across it changes what is read, a move along it does not."""
    module = adapatch(channels=1, dtype=torch.float64)
    ramp = torch.arange(8, dtype=torch.float64).expand(8, 8)
    across, along = (ramp, ramp.T) if stripe_along_x else (ramp.T, ramp)
    with torch.no_grad():
        module.predictor.proj.weight.zero_()  # the same embedding, so the same move, everywhere
        embedding = F.gelu(module.predictor(ramp[None, None]))[0, 0]
        module.offsets.weight[output] = torch.atanh(torch.tensor(0.5)) * embedding / embedding.square().sum()
    boxes = module.predict_boxes(ramp[None, None])
    start = adapatch(channels=1, dtype=torch.float64).predict_boxes(ramp[None, None])
    inside = torch.ones(4, 4, dtype=torch.bool)
    inside[(slice(None), -1) if stripe_along_x else -1] = False  # the last cell's box is clamped
    for stripe, change in ((across, 1.0), (along, 0.0)):
        before, after = (sample_boxes(stripe[None, None], b, 3).view(4, 4, 9)[inside] for b in (start, boxes))
        torch.testing.assert_close(after - before, torch.full_like(before, change), rtol=0, atol=1e-6)


def test_samples_run_x_outer_y_inner_channel_fastest() -> None:
    """On a map whose two channels are its own coordinates, each sample reads its own position."""
    centre = (torch.arange(8, dtype=torch.float64) + 0.5) / 8
    y, x = torch.meshgrid(centre, centre, indexing="ij")
    box = torch.tensor([[[0.2, 0.3, 0.6, 0.9]]], dtype=torch.float64)
    points = sample_boxes(torch.stack([x, y])[None], box, 3).view(3, 3, 2)
    torch.testing.assert_close(points[:, 0, 0], torch.tensor([0.2, 0.4, 0.6], dtype=torch.float64))
    torch.testing.assert_close(points[0, :, 1], torch.tensor([0.3, 0.6, 0.9], dtype=torch.float64))
    torch.testing.assert_close(points[:, 2, 1], torch.full((3,), 0.9, dtype=torch.float64))


@pytest.mark.parametrize("samples", [2, 3, 4])
def test_samples_agree_with_grid_sample(samples: int) -> None:
    x = picture(2, 5, 8, 8, dtype=torch.float64).requires_grad_()
    corner = torch.rand(2, 9, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    boxes = torch.cat([corner * 0.6, corner * 0.6 + 0.4 * corner.flip(1)], dim=-1).requires_grad_()
    steps = torch.linspace(0, 1, samples, dtype=torch.float64)
    xs = boxes[..., 0, None] + (boxes[..., 2] - boxes[..., 0])[..., None] * steps
    ys = boxes[..., 1, None] + (boxes[..., 3] - boxes[..., 1])[..., None] * steps
    grid = torch.stack([xs[..., :, None].expand(-1, -1, -1, samples), ys[..., None, :].expand(-1, -1, samples, -1)], -1)
    peer = F.grid_sample(x, grid.flatten(2, 3) * 2 - 1, padding_mode="zeros", align_corners=False)
    ours = sample_boxes(x, boxes, samples)
    torch.testing.assert_close(ours, peer.permute(0, 2, 3, 1).flatten(2))
    weight = picture(*ours.shape, dtype=torch.float64)
    gradients = [
        torch.autograd.grad((out * weight).sum(), (x, boxes))
        for out in (ours, peer.permute(0, 2, 3, 1).reshape(ours.shape))
    ]
    torch.testing.assert_close(gradients[0], gradients[1])


def test_zeros_lie_outside_the_map() -> None:
    ones = torch.ones(1, 1, 4, 4)
    edge = torch.tensor([[[0.0, 0.5, 0.125, 0.5]]])
    values = sample_boxes(ones, edge, 3).view(3, 3)[:, 0]
    torch.testing.assert_close(values, torch.tensor([0.5, 0.75, 1.0]))


def test_boxes_are_clamped_to_the_map() -> None:
    module = adapatch()
    with torch.no_grad():
        module.size_bias.fill_(5.0)
    boxes = module.predict_boxes(picture(1, 3, 8, 8))[0]
    assert boxes.min() == 0 and boxes.max() == 1
    torch.testing.assert_close(
        boxes[5], torch.tensor([0.375 - 0.25, 0.375 - 0.25, 0.375 + 0.25, 0.375 + 0.25]), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(boxes[0], torch.tensor([0.0, 0.0, 0.375, 0.375]), atol=1e-4, rtol=0)


def test_negative_size_is_a_point() -> None:
    module = adapatch()
    with torch.no_grad():
        module.size_bias.fill_(-1.0)
    boxes = module.predict_boxes(picture(1, 3, 8, 8))
    torch.testing.assert_close(boxes[..., :2], boxes[..., 2:], rtol=0, atol=0)


def test_gradients_with_moved_boxes() -> None:
    module = moved(adapatch(2, 4, torch.float64))
    x = picture(1, 2, 4, 4, dtype=torch.float64).requires_grad_()
    names = [name for name, _ in module.named_parameters()]
    values = [value for _, value in module.named_parameters()]

    def run(x: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        out = torch.func.functional_call(module, dict(zip(names, weights, strict=True)), (x,))
        return out.tokens, out.boxes

    assert torch.autograd.gradcheck(run, (x, *values))


def test_boxes_keep_single_precision_under_autocast() -> None:
    module, x = moved(adapatch(16, 32)), picture(2, 16, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = module(x)
    full = module(x)
    assert low.boxes.dtype == torch.float32
    torch.testing.assert_close(low.boxes, full.boxes, rtol=0, atol=0)
    assert (low.boxes - adapatch().predict_boxes(picture(2, 3, 16, 16))).abs().max() > 1e-2
    torch.testing.assert_close(low.tokens.float(), full.tokens, rtol=0, atol=0.1)


def test_half_precision_weights_still_place_boxes_in_single_precision() -> None:
    module = adapatch().to(torch.bfloat16)
    out = module(picture(1, 3, 28, 28, dtype=torch.bfloat16))
    assert out.boxes.dtype == torch.float32 and out.tokens.dtype == torch.bfloat16
    assert out.boxes[0, :14, 0].diff().min() > 0.07


def test_each_image_has_its_own_boxes() -> None:
    module, x = moved(adapatch()), picture(5, 3, 8, 8)
    order = torch.tensor([3, 1, 4, 0, 2])
    straight, shuffled = module(x), module(x[order])
    torch.testing.assert_close(shuffled.boxes, straight.boxes[order])
    torch.testing.assert_close(shuffled.tokens, straight.tokens[order])
    assert (straight.boxes[0] - straight.boxes[1]).abs().max() > 1e-3


def test_cells_tile_the_square_row_by_row() -> None:
    boxes = cell_boxes(4)
    assert boxes[1].tolist() == [0.25, 0.0, 0.5, 0.25]
    assert boxes[4].tolist() == [0.0, 0.25, 0.25, 0.5]
    assert boxes[-1].tolist() == [0.75, 0.75, 1.0, 1.0]
