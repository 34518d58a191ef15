"""Residual blocks on a CPU in fp32: a compiled GroupNorm-swish and a Winograd 3 x 3 convolution (PERFORMANCE 3).

Both take and give channels-last tensors and have no gradient. The C++ file is compiled at first use.
"""

import ctypes
import functools

import torch
from torch import Tensor, nn

from adamatch_ray.ops.compile import CompilerUnavailable, compiled

__all__ = ["CompilerUnavailable", "PackedConv", "library", "norm_swish"]

# rows of the transform of a 3-tap filter to the points 0, 1, -1, 2, -2 and infinity
_FILTER = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled functions. Raises `CompilerUnavailable`, saying what to install, where there is no compiler."""
    loaded = compiled("conv_block")
    loaded.winograd_convolve.restype = loaded.norm_swish.restype = None
    return loaded


def norm_swish(image: Tensor, norm: nn.GroupNorm, out: Tensor | None = None) -> Tensor:
    """x sigmoid(x) of the normalised `image` [B, C, H, W] fp32; `out` may be the image itself."""
    batch, channels, height, width = image.shape
    out = torch.empty_like(image) if out is None else out
    library().norm_swish(
        _pointer(image),
        *(ctypes.c_void_p(value.data_ptr()) for value in (norm.weight, norm.bias)),
        _pointer(out),
        *map(ctypes.c_int64, (batch, height * width, channels, norm.num_groups)),
        ctypes.c_double(norm.eps),
        ctypes.c_int(torch.get_num_threads()),
    )
    return out


class PackedConv:
    """A 3 x 3 convolution of stride 1 and padding 1 whose weights are transformed once, in double precision."""

    def __init__(self, conv: nn.Conv2d) -> None:
        assert self.fits(conv)
        points = torch.tensor(_FILTER, dtype=torch.float64)
        weight = torch.einsum("ui,vj,ocij->uvco", points, points, conv.weight.detach().cpu().double())
        panel = library().winograd_panel()
        self.inputs, self.outputs = conv.in_channels, conv.out_channels
        panels = weight.reshape(36, self.inputs, self.outputs // panel, panel)
        self.packed = panels.permute(0, 2, 1, 3).float().contiguous()
        assert conv.bias is not None
        self.bias = conv.bias.detach().float().contiguous()

    @staticmethod
    def fits(conv: nn.Conv2d) -> bool:
        """Whether a convolution can be packed."""
        shape = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups)
        wide = conv.in_channels % 32 == conv.out_channels % 32 == 0
        return shape == ((3, 3), (1, 1), (1, 1), (1, 1), 1) and wide and conv.bias is not None

    def __call__(self, image: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """[B, inputs, H, W] to [B, outputs, H, W], plus a shortcut of that shape; H and W are multiples of 4."""
        batch, inputs, height, width = image.shape
        assert inputs == self.inputs and height % 4 == width % 4 == 0
        out = torch.empty(batch, self.outputs, height, width, memory_format=torch.channels_last)
        library().winograd_convolve(
            _pointer(image),
            *(ctypes.c_void_p(value.data_ptr()) for value in (self.packed, self.bias)),
            ctypes.c_void_p(None) if shortcut is None else _pointer(shortcut),
            _pointer(out),
            *map(ctypes.c_int64, (batch, height, width, self.inputs, self.outputs)),
            ctypes.c_int(torch.get_num_threads()),
        )
        return out


def _pointer(image: Tensor) -> ctypes.c_void_p:
    assert image.dtype == torch.float32 and image.device.type == "cpu"
    assert image.is_contiguous(memory_format=torch.channels_last)
    return ctypes.c_void_p(image.data_ptr())
