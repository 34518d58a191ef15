"""Both directions of the late interaction on a GPU (docs/method.md 1.4, eqs. 5-6), in Triton.

One program a pair of image and text: its products live in registers, a tile of patches at a time, and both maxima are
read from the same tile. The backward pass rebuilds each tile of the score gradient from the saved indices and
multiplies it, so it needs no atomics and repeats bitwise. Both precisions reach the tensor cores and are summed in
fp32: half precision as it is, fp32 as three products of tf32, which were as exact as fp32's own (docs/measured.md).

These kernels have been run in Triton's interpreter (TRITON_INTERPRET=1) and compiled for compute capabilities 8.0 and
9.0, but never run on a GPU: compare with `backend="torch"` on the target hardware before trusting speed or memory.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from adamatch_ray.ops.ragged import Result, Side, index_dtype

MAX_WORDS = 256  # one program holds all words of its text
FULL = "tf32x3"  # how fp32 is multiplied; half precision is not asked


def forward(images: Side, texts: Side, keep: bool) -> Result:
    """Eqs. 5-6 of sides on one GPU. Texts of more than `MAX_WORDS` valid words are a `ValueError`."""
    if texts.longest > MAX_WORDS:
        raise ValueError(f"a text has {texts.longest} words, the triton backend takes {MAX_WORDS}: use backend='torch'")
    images, texts = _same_dtype(images, texts)
    device, dtype = images.data.device, index_dtype(images, texts)
    result = Result(
        torch.empty(images.items, texts.items, device=device),
        torch.empty(texts.items, images.items, device=device),
        torch.empty(texts.items, images.total, device=device, dtype=dtype) if keep else None,
        torch.empty(images.items, texts.total, device=device, dtype=dtype) if keep else None,
    )
    _forward_kernel[(images.items * texts.items,)](
        *_pointers(images),
        *_pointers(texts),
        *result[:2],
        *(index if index is not None else result.image_to_text_IJ for index in result[2:]),
        images.items,
        texts.items,
        images.total,
        texts.total,
        images.data.shape[1],
        PRECISION=FULL,
        KEEP=keep,
        TILE_P=64,
        TILE_N=max(16, triton.next_power_of_2(texts.longest)),
        TILE_D=64 if images.data.element_size() == 2 else 32,
        num_warps=8,
    )
    return result


def backward(images: Side, texts: Side, kept: Result, grad_IJ: Tensor, grad_JI: Tensor) -> tuple[Tensor, Tensor]:
    """fp32 gradients of both `data`. Deterministic."""
    images, texts = _same_dtype(images, texts)
    assert kept.word_of_patch is not None and kept.patch_of_word is not None
    image_side = (images, kept.word_of_patch, grad_IJ.contiguous())
    text_side = (texts, kept.patch_of_word, grad_JI.contiguous())
    return _side_gradient(image_side, text_side), _side_gradient(text_side, image_side)


def _side_gradient(own: tuple[Side, Tensor, Tensor], other: tuple[Side, Tensor, Tensor]) -> Tensor:
    (side, own_best, own_grad), (others, other_best, other_grad) = own, other
    dim = side.data.shape[1]
    grad = torch.zeros(side.data.shape, device=side.data.device)
    tile_r, tile_d = 64, 64
    _gradient_kernel[(side.items, triton.cdiv(side.longest, tile_r), triton.cdiv(dim, tile_d))](
        *_pointers(side)[1:],
        *_pointers(others),
        own_best,
        other_best,
        own_grad,
        other_grad,
        grad,
        side.items,
        others.items,
        side.total,
        others.total,
        dim,
        # The one rounded factor is a score's gradient, to 11 bits, where the answer has 8 (bf16) or 11 (fp16).
        PRECISION=FULL if side.data.dtype == torch.float32 else "tf32",
        TILE_R=tile_r,
        TILE_S=32,
        TILE_D=tile_d,
    )
    return grad


def _pointers(side: Side) -> tuple[Tensor, Tensor, Tensor]:
    return side.data, side.rows, side.start.to(side.data.device)


def _same_dtype(images: Side, texts: Side) -> tuple[Side, Side]:
    dtype = torch.promote_types(images.data.dtype, texts.data.dtype)
    return images._replace(data=images.data.to(dtype)), texts._replace(data=texts.data.to(dtype))


@triton.jit
def _forward_kernel(
    patch: tl.tensor, patch_rows: tl.tensor, patch_start: tl.tensor,
    word: tl.tensor, word_rows: tl.tensor, word_start: tl.tensor,
    image_to_text: tl.tensor, text_to_image: tl.tensor, word_of_patch: tl.tensor, patch_of_word: tl.tensor,
    images: tl.tensor, texts: tl.tensor, total_patches: tl.tensor, total_words: tl.tensor, dim: tl.tensor,
    PRECISION: tl.constexpr, KEEP: tl.constexpr, TILE_P: tl.constexpr, TILE_N: tl.constexpr, TILE_D: tl.constexpr,
) -> None:  # fmt: skip
    i = (tl.program_id(0) // texts).to(tl.int64)
    j = (tl.program_id(0) % texts).to(tl.int64)
    patch_first, word_first = tl.load(patch_start + i), tl.load(word_start + j)
    patches = (tl.load(patch_start + i + 1) - patch_first).to(tl.int32)
    words = (tl.load(word_start + j + 1) - word_first).to(tl.int32)

    n = tl.arange(0, TILE_N)
    n_valid = n < words
    word_row = tl.load(word_rows + word_first + n, mask=n_valid, other=0)
    best_patch = tl.full([TILE_N], float("-inf"), tl.float32)
    best_patch_at = tl.zeros([TILE_N], tl.int32)
    word_sum = tl.zeros([TILE_P], tl.float32)
    for first in range(0, patches, TILE_P):
        p = first + tl.arange(0, TILE_P)
        p_valid = p < patches
        patch_row = tl.load(patch_rows + patch_first + p, mask=p_valid, other=0)
        score = tl.zeros([TILE_P, TILE_N], tl.float32)
        for start in range(0, dim, TILE_D):
            d = start + tl.arange(0, TILE_D)
            d_valid = d < dim
            x = tl.load(
                patch + patch_row[:, None] * dim + d[None, :], mask=p_valid[:, None] & d_valid[None, :], other=0
            )
            e = tl.load(word + word_row[None, :] * dim + d[:, None], mask=d_valid[:, None] & n_valid[None, :], other=0)
            score = tl.dot(x, e, score, input_precision=PRECISION)

        best_word, best_word_at = tl.max(tl.where(n_valid[None, :], score, float("-inf")), 1, return_indices=True)
        word_sum += tl.where(p_valid, best_word, 0.0)
        if KEEP:
            out = word_of_patch + j * total_patches + patch_first + p
            tl.store(out, best_word_at.to(word_of_patch.dtype.element_ty), mask=p_valid)
        here, here_at = tl.max(tl.where(p_valid[:, None], score, float("-inf")), 0, return_indices=True)
        better = here > best_patch  # strict: an earlier tile keeps a tie
        best_patch = tl.where(better, here, best_patch)
        best_patch_at = tl.where(better, here_at.to(tl.int32) + first, best_patch_at)

    tl.store(image_to_text + i * texts + j, tl.sum(word_sum, 0) / patches)
    tl.store(text_to_image + j * images + i, tl.sum(tl.where(n_valid, best_patch, 0.0), 0) / words)
    if KEEP:
        out = patch_of_word + i * total_words + word_first + n
        tl.store(out, best_patch_at.to(patch_of_word.dtype.element_ty), mask=n_valid)


@triton.jit
def _gradient_kernel(
    own_rows: tl.tensor, own_start: tl.tensor, other: tl.tensor, other_rows: tl.tensor, other_start: tl.tensor,
    own_best: tl.tensor, other_best: tl.tensor, own_grad: tl.tensor, other_grad: tl.tensor, grad: tl.tensor,
    own_items: tl.tensor, other_items: tl.tensor, own_total: tl.tensor, other_total: tl.tensor, dim: tl.tensor,
    PRECISION: tl.constexpr, TILE_R: tl.constexpr, TILE_S: tl.constexpr, TILE_D: tl.constexpr,
) -> None:  # fmt: skip
    item = tl.program_id(0).to(tl.int64)
    r = tl.program_id(1) * TILE_R + tl.arange(0, TILE_R)
    d = tl.program_id(2) * TILE_D + tl.arange(0, TILE_D)
    d_valid = d < dim
    own_first = tl.load(own_start + item)
    size = (tl.load(own_start + item + 1) - own_first).to(tl.int32)
    r_valid = r < size
    total = tl.zeros([TILE_R, TILE_D], tl.float32)
    for o in range(0, other_items):
        row_o = tl.full([], 0, tl.int64) + o  # 64 bits: a row of a large index table lies past 2**31
        o_first = tl.load(other_start + o)
        o_size = (tl.load(other_start + o + 1) - o_first).to(tl.int32)
        pull = tl.load(own_grad + item * other_items + o) / size
        push = tl.load(other_grad + row_o * own_items + item) / o_size
        pulled = tl.load(own_best + row_o * own_total + own_first + r, mask=r_valid, other=0).to(tl.int32)
        for first in range(0, o_size, TILE_S):
            s = first + tl.arange(0, TILE_S)
            s_valid = s < o_size
            pushed = tl.load(other_best + item * other_total + o_first + s, mask=s_valid, other=0).to(tl.int32)
            share = tl.where(pulled[:, None] == s[None, :], pull, 0.0)
            share += tl.where(pushed[None, :] == r[:, None], push, 0.0)
            row = tl.load(other_rows + o_first + s, mask=s_valid, other=0)
            e = tl.load(other + row[:, None] * dim + d[None, :], mask=s_valid[:, None] & d_valid[None, :], other=0)
            total = tl.dot(share, e.to(tl.float32), total, input_precision=PRECISION)
    own_row = tl.load(own_rows + own_first + r, mask=r_valid, other=0)
    tl.store(grad + own_row[:, None] * dim + d[None, :], total, mask=r_valid[:, None] & d_valid[None, :])
