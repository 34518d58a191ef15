"""One token a row through the middle of a folded GPT-NeoX layer, in C++ on a CPU (section 3.2)."""

import ctypes
import functools

import torch
from torch import Tensor

from adamatch_ray.ops.compile import compiled


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled kernel. Raises `CompilerUnavailable`, saying what to install, where it cannot be built."""
    loaded = compiled("decode_mix")
    loaded.decode_mix.restype = None
    return loaded


def takes(head_size: int, inner: int) -> bool:
    """Whether there is a kernel for heads and MLPs of these sizes. Raises `CompilerUnavailable` without a compiler."""
    return bool(library().decode_mix_takes(*map(ctypes.c_int64, (head_size, inner))))


def decode_mix(
    wide: Tensor, kv: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, joined: Tensor, slot: int
) -> None:
    """Fill `joined` [B, attended | activated] and cache slot `slot` from `wide`, all contiguous fp32 on the CPU.

    wide: [B, query | key | value | turned query | turned key | up]; kv: one layer's [2, B, heads, slots, head size];
    cos, sin: [B, 1, rotary]; mask, added to the scores: [B, 1, 1, slots].
    """
    _, rows, heads, capacity, head = kv.shape
    rotary, inner = cos.shape[-1], joined.shape[1] - heads * head
    assert wide.shape[1] == 3 * heads * head + 2 * heads * rotary + inner
    library().decode_mix(
        *map(_pointer, (wide, kv, cos, sin, mask, joined)),
        *map(ctypes.c_int64, (rows, heads, head, rotary, inner, capacity, slot)),
        ctypes.c_int(torch.get_num_threads()),
    )


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    assert tensor is None or tensor.is_contiguous()
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())
