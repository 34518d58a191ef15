"""A VQ-GAN whose residual blocks run on the compiled CPU functions: fp32, inference only (PERFORMANCE 3)."""

import copy

from torch import Tensor, nn

from adamatch_ray.models.vqgan import VQGAN
from adamatch_ray.models.vqgan_layers import ResnetBlock, Upsample
from adamatch_ray.ops.conv_block import PackedConv, norm_swish

_WIDEST = 256 * 256
"""Packed weights are four times the plain ones: beyond this their reading costs more than is saved on small sides."""


class PackedBlock(nn.Module):
    """What a `ResnetBlock` computes, with its weights as they are now."""

    def __init__(self, block: ResnetBlock) -> None:
        super().__init__()
        self.norm1, self.norm2, self.nin_shortcut = block.norm1, block.norm2, block.nin_shortcut
        self.conv1, self.conv2 = PackedConv(block.conv1), PackedConv(block.conv2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, outputs, H, W], channels last."""
        hidden = self.conv1(norm_swish(x, self.norm1))
        return self.conv2(norm_swish(hidden, self.norm2, out=hidden), shortcut=self.nin_shortcut(x))


def packed(model: VQGAN) -> VQGAN:
    """A copy for channels-last fp32 inference on the CPU; what it does not replace it shares with `model`.

    Later changes of the model's weights do not reach the copy. Raises `CompilerUnavailable` without a compiler.
    """
    shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    faster = copy.deepcopy(model, shared)
    for name, module in list(faster.named_modules()):
        if isinstance(module, ResnetBlock) and _worth_it(module.conv1) and _worth_it(module.conv2):
            faster.set_submodule(name, PackedBlock(module))
        elif isinstance(module, Upsample) and _worth_it(module.conv):
            faster.set_submodule(f"{name}.conv", _Packed(module.conv))
    return faster


class _Packed(nn.Module):
    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = PackedConv(conv)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def _worth_it(conv: nn.Conv2d) -> bool:
    return PackedConv.fits(conv) and conv.in_channels * conv.out_channels <= _WIDEST
