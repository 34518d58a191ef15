"""The late interaction in C++ on a CPU, called through ctypes (docs/method.md 1.4)."""

import ctypes
import functools
from collections.abc import Callable

import torch
from torch import Tensor

from adamatch_ray.ops.compile import compiled
from adamatch_ray.ops.ragged import Result, Side, index_dtype


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled kernel. Raises `CompilerUnavailable`, saying what to install, where it cannot be built."""
    loaded = compiled("late_interaction")
    for function in (loaded.late_interaction_forward, loaded.late_interaction_backward):
        function.restype = None
    return loaded


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    assert tensor is None or (tensor.is_contiguous() and tensor.device.type == "cpu")
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _side(side: Side) -> list[ctypes.c_void_p | ctypes.c_int64]:
    assert side.data.dtype == torch.float32 and side.rows.dtype == side.start.dtype == torch.int64
    return [_pointer(side.data), _pointer(side.rows), _pointer(side.start), ctypes.c_int64(side.items)]


def _wide(side: Side) -> Side:
    return side._replace(data=side.data.float())


def _call(function: Callable[..., None], one: Side, other: Side, dtype: torch.dtype, *rest: Tensor | None) -> None:
    sizes = [ctypes.c_int64(one.data.shape[1]), ctypes.c_int(torch.get_num_threads()), ctypes.c_int(dtype.itemsize)]
    function(*_side(one), *_side(other), *sizes, *map(_pointer, rest))


def forward(images: Side, texts: Side, keep: bool) -> Result:
    """Eqs. 5-6, in fp32, on `torch.get_num_threads()` threads. Raises `CompilerUnavailable` without a compiler."""
    images, texts, dtype = _wide(images), _wide(texts), index_dtype(images, texts)
    result = Result(
        torch.empty(images.items, texts.items),
        torch.empty(texts.items, images.items),
        torch.empty(texts.items, images.total, dtype=dtype) if keep else None,
        torch.empty(images.items, texts.total, dtype=dtype) if keep else None,
    )
    _call(library().late_interaction_forward, images, texts, dtype, *result)
    return result


def backward(images: Side, texts: Side, kept: Result, grad_IJ: Tensor, grad_JI: Tensor) -> tuple[Tensor, Tensor]:
    """fp32 gradients of both `data`; each item is summed by one thread in one order, so repeated runs agree bitwise."""
    assert kept.word_of_patch is not None
    images, texts, dtype = _wide(images), _wide(texts), kept.word_of_patch.dtype
    grad_IJ, grad_JI = grad_IJ.contiguous(), grad_JI.contiguous()
    grad_patch, grad_word = torch.zeros_like(images.data), torch.zeros_like(texts.data)
    both = (kept.word_of_patch, kept.patch_of_word)
    run = library().late_interaction_backward
    _call(run, images, texts, dtype, *both, grad_IJ, grad_JI, grad_patch)
    _call(run, texts, images, dtype, *both[::-1], grad_JI, grad_IJ, grad_word)
    return grad_patch, grad_word
