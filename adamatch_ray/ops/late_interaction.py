"""Patch-word similarity of every image with every text, in both directions (docs/method.md 1.4, eqs. 5-6).

    image_to_text[i, j] = mean over patches p of  max over words n of   patch[i, p] . word[j, n]      (5)
    text_to_image[j, i] = mean over words n of    max over patches p of patch[i, p] . word[j, n]      (6)

Both come from one pass over the products, which are never stored: what the backward pass needs is where each maximum
was, one byte each. Padding is dropped before the multiplication, so it can neither win a maximum nor cost time.
"""

import functools
import importlib
import importlib.util
import logging
from types import ModuleType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from adamatch_ray.ops import native, ragged
from adamatch_ray.ops.compile import CompilerUnavailable
from adamatch_ray.ops.ragged import Result, Side

Backend = Literal["auto", "native", "torch", "triton", "naive"]

logger = logging.getLogger(__name__)


class LateInteraction(NamedTuple):
    """Scores of every image with every text: eq. 5 as [I images, J texts], eq. 6 as [J texts, I images]."""

    image_to_text_IJ: Tensor
    text_to_image_JI: Tensor


def late_interaction(
    patch_IPD: Tensor,
    word_JND: Tensor,
    word_mask_JN: Tensor,
    patch_mask_IP: Tensor | None = None,
    *,
    backend: Backend = "auto",
) -> LateInteraction:
    """Eqs. 5-6 for I images and J texts (I and J may differ), differentiable once in patches and words.

    Masks are bool, True where valid. Scores are fp32 (fp64 for fp64 inputs) and sums are too, whatever the inputs'
    precision and autocast; gradients come back in the inputs' dtype. Of equal products the first index wins and gets
    the gradient. Without gradients nothing but the scores is kept.

    `backend`: `native` (C++, fp32 on a CPU), `triton` (CUDA), `torch` (anywhere, by blocks), `naive` (stores all
    products; for checks), `auto` the fastest that can run. Raises `ValueError` for shapes that do not fit, an image
    or text without a valid row, and a backend that cannot take these tensors; `CompilerUnavailable` if `native`
    is asked for by name and cannot be compiled.
    """
    _check(patch_IPD, word_JND, word_mask_JN, patch_mask_IP)
    with torch.autocast(patch_IPD.device.type, enabled=False):
        if backend == "naive":
            return naive(patch_IPD, word_JND, word_mask_JN, patch_mask_IP)
        module = _backend(backend, patch_IPD, word_JND.shape[1])
        if torch.is_grad_enabled() and (patch_IPD.requires_grad or word_JND.requires_grad):
            scores = _LateInteraction.apply(patch_IPD, word_JND, word_mask_JN, patch_mask_IP, module)
            return LateInteraction(*scores)
        images = ragged.ragged(patch_IPD, patch_mask_IP, "patch")
        texts = ragged.ragged(word_JND, word_mask_JN, "word")
        result: Result = module.forward(images, texts, keep=False)
        return LateInteraction(result.image_to_text_IJ, result.text_to_image_JI)


def naive(
    patch_IPD: Tensor, word_JND: Tensor, word_mask_JN: Tensor, patch_mask_IP: Tensor | None = None
) -> LateInteraction:
    """Eqs. 5-6 as written, all I x J x P x N products stored and differentiated by autograd. The reference."""
    _check(patch_IPD, word_JND, word_mask_JN, patch_mask_IP)
    ragged.ragged(word_JND, word_mask_JN, "word")
    dtype = torch.promote_types(patch_IPD.dtype, torch.float32)
    score_IJPN = torch.einsum("ipd,jnd->ijpn", patch_IPD.to(dtype), word_JND.to(dtype))
    padding = ~word_mask_JN[None, :, None, :]
    if patch_mask_IP is None:
        patch_mask_IP = patch_IPD.new_ones(patch_IPD.shape[:2], dtype=torch.bool)
    else:
        ragged.ragged(patch_IPD, patch_mask_IP, "patch")
        padding = padding | ~patch_mask_IP[:, None, :, None]
    score_IJPN = score_IJPN.masked_fill(padding, -torch.inf)
    patch_IJP, word_IJN = score_IJPN.max(3).values, score_IJPN.max(2).values
    patch_IJP = patch_IJP.masked_fill(~patch_mask_IP[:, None], 0.0)
    word_IJN = word_IJN.masked_fill(~word_mask_JN[None], 0.0)
    image_to_text = patch_IJP.sum(2) / patch_mask_IP.sum(1)[:, None]
    text_to_image = word_IJN.sum(2) / word_mask_JN.sum(1)
    return LateInteraction(image_to_text, text_to_image.T)


class _LateInteraction(torch.autograd.Function):
    """Keeps the inputs and one small index for each maximum; `module` computes both passes."""

    @staticmethod
    def forward(
        ctx: Any, patch_IPD: Tensor, word_JND: Tensor, word_mask: Tensor, patch_mask: Tensor | None, module: ModuleType
    ) -> tuple[Tensor, Tensor]:
        images = ragged.ragged(patch_IPD, patch_mask, "patch")
        texts = ragged.ragged(word_JND, word_mask, "word")
        result: Result = module.forward(images, texts, keep=True)
        rows = (images.rows, images.start, texts.rows, texts.start)
        ctx.save_for_backward(patch_IPD, word_JND, result.word_of_patch, result.patch_of_word, *rows)
        ctx.module = module
        return result.image_to_text_IJ, result.text_to_image_JI

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_IJ: Tensor, grad_JI: Tensor) -> tuple[Tensor | None, ...]:
        patch, word, word_of_patch, patch_of_word, patch_rows, patch_start, word_rows, word_start = ctx.saved_tensors
        images = Side(ragged.matrix(patch), patch_rows, patch_start)
        texts = Side(ragged.matrix(word), word_rows, word_start)
        kept = Result(grad_IJ, grad_JI, word_of_patch, patch_of_word)
        with torch.autocast(patch.device.type, enabled=False):
            grad_patch, grad_word = ctx.module.backward(images, texts, kept, grad_IJ, grad_JI)
        return grad_patch.view_as(patch).to(patch.dtype), grad_word.view_as(word).to(word.dtype), None, None, None


def _check(patch: Tensor, word: Tensor, word_mask: Tensor, patch_mask: Tensor | None) -> None:
    if patch.ndim != 3 or word.ndim != 3 or patch.shape[2] != word.shape[2]:
        shapes = f"{tuple(patch.shape)} and {tuple(word.shape)}"
        raise ValueError(f"patches [I, P, D] and words [J, N, D] need three dimensions and one D, got {shapes}")
    if patch.dtype != word.dtype and torch.float64 in (patch.dtype, word.dtype):
        raise ValueError(f"patches are {patch.dtype} and words {word.dtype}: give both in one precision")
    if not (patch.is_floating_point() and word.is_floating_point()) or patch.device != word.device:
        raise ValueError("patches and words must be floating point and on one device")
    for mask, side, name in ((word_mask, word, "word_mask_JN"), (patch_mask, patch, "patch_mask_IP")):
        if mask is not None and (mask.dtype != torch.bool or mask.shape != side.shape[:2]):
            wanted = tuple(side.shape[:2])
            raise ValueError(f"{name} must be bool {wanted}, True where valid, got {mask.dtype} {tuple(mask.shape)}")


def _backend(backend: Backend, patch: Tensor, words: int) -> ModuleType:
    device, double = patch.device.type, patch.dtype == torch.float64
    if backend == "torch" or (backend == "auto" and double):
        return ragged
    if backend == "auto":
        return _automatic(device, words)
    needed = {"native": "cpu", "triton": "cuda"}.get(backend)
    if needed is None:
        raise ValueError(f"unknown backend {backend!r}: use auto, native, torch, triton or naive")
    if device != needed or double:
        raise ValueError(
            f"{backend!r} takes fp32, bf16 or fp16 on {needed}, not {patch.dtype} on {device}: use 'torch'"
        )
    return _native() if backend == "native" else _triton()


def _native() -> ModuleType:
    native.library()
    return native


def _triton() -> ModuleType:
    if importlib.util.find_spec("triton") is None:
        raise ValueError("the GPU kernel needs triton: pip install triton")
    from adamatch_ray.ops import late_interaction_triton

    return late_interaction_triton


@functools.cache
def _automatic(device: str, words: int) -> ModuleType:
    """The fastest backend for the device and the texts' width; what keeps a faster one away is logged once."""
    try:
        if device == "cpu":
            return _native()
        if device == "cuda":
            kernel = _triton()
            return kernel if words <= kernel.MAX_WORDS else ragged
    except (CompilerUnavailable, ValueError) as error:
        _warn_once(str(error))
    return ragged


@functools.cache
def _warn_once(reason: str) -> None:
    logger.warning("late interaction falls back to the slower torch backend: %s", reason)
