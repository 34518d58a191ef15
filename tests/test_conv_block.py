"""The compiled residual-block functions against double precision."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adamatch_ray.ops import conv_block
from adamatch_ray.ops.conv_block import PackedConv, norm_swish


def _available() -> bool:
    try:
        conv_block.library()
    except conv_block.CompilerUnavailable:
        return False
    return True


pytestmark = pytest.mark.skipif(not _available(), reason="no C++ compiler here")


def image(batch: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    made = torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(seed))
    return made.contiguous(memory_format=torch.channels_last)


def convolution(inputs: int, outputs: int) -> nn.Conv2d:
    torch.manual_seed(1)
    return nn.Conv2d(inputs, outputs, 3, padding=1)


@pytest.mark.parametrize(
    ("batch", "inputs", "outputs", "height", "width"),
    [(1, 32, 32, 4, 4), (2, 32, 64, 12, 20), (3, 96, 32, 8, 36), (1, 64, 64, 32, 32)],
)
def test_convolution_is_that_of_torch(batch: int, inputs: int, outputs: int, height: int, width: int) -> None:
    """All sizes: one tile, fewer tiles than an item, several items, items that cross images."""
    conv, x = convolution(inputs, outputs), image(batch, inputs, height, width)
    assert conv.bias is not None
    expected = F.conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=1)
    found = PackedConv(conv)(x)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert (found - expected).abs().max() < 3e-5
    shortcut = image(batch, outputs, height, width, seed=2)
    assert torch.allclose(PackedConv(conv)(x, shortcut), found + shortcut, atol=1e-6)


def test_neither_batch_nor_threads_change_a_bit() -> None:
    conv, x = PackedConv(convolution(32, 32)), image(5, 32, 12, 20)
    norm = nn.GroupNorm(32, 32, eps=1e-6)
    before = torch.get_num_threads()
    whole = conv(norm_swish(x, norm))
    try:
        torch.set_num_threads(3)
        assert torch.equal(conv(norm_swish(x, norm)), whole)
    finally:
        torch.set_num_threads(before)
    for i in range(5):
        one = x[i : i + 1].contiguous(memory_format=torch.channels_last)
        assert torch.equal(conv(norm_swish(one, norm)), whole[i : i + 1])


@pytest.mark.parametrize("shift", [0.0, 30.0])
@pytest.mark.parametrize(("channels", "side"), [(32, 5), (96, 12), (128, 4)])
def test_norm_swish_is_that_of_torch(channels: int, side: int, shift: float) -> None:
    norm = nn.GroupNorm(32, channels, eps=1e-6)
    torch.manual_seed(0)
    nn.init.normal_(norm.weight, 1.0, 5.0)
    nn.init.normal_(norm.bias, 0.0, 20.0)
    x = image(2, channels, side, side) + shift
    expected = F.silu(norm.double()(x.double()))
    norm.float()
    found = norm_swish(x, norm)
    assert (found - expected).abs().max() < (5e-5 if shift == 0.0 else 1e-3)
    assert torch.equal(norm_swish(x, norm, out=x), found) and torch.equal(x, found)


def test_swish_of_extreme_values_is_finite() -> None:
    norm = nn.GroupNorm(32, 32, eps=1e-6)
    nn.init.constant_(norm.weight, 500.0)
    found, expected = norm_swish(image(1, 32, 8, 8), norm), F.silu(norm(image(1, 32, 8, 8)))
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-3)


def test_what_cannot_be_packed_says_so() -> None:
    assert PackedConv.fits(convolution(32, 64))
    assert not PackedConv.fits(convolution(32, 40))
    assert not PackedConv.fits(nn.Conv2d(32, 32, 3, padding=1, stride=2))
    assert not PackedConv.fits(nn.Conv2d(32, 32, 1))
