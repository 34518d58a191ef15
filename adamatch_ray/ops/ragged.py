"""One side of a late interaction without its padding: which rows are valid, and where each item's rows start.

Every backend reads the same two `Side`s and keeps the same two index tables for the backward pass, so a forward pass
of one may be compared with another entry by entry. The pure-torch blocked backend lives here as well: it needs no
compiler, no GPU, and takes float64.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK_BYTES = 16 << 20  # one block of scores, or of gathered patches, in the torch backend


class Side(NamedTuple):
    """Images with their patches, or texts with their words: `data` [items * width, D], valid `rows` [R] in order.

    `start` [items + 1] (CPU) holds where each item's rows begin in `rows`. `data` has the precision it was given in;
    a backend widens what it needs.
    """

    data: Tensor
    rows: Tensor
    start: Tensor

    @property
    def items(self) -> int:
        return len(self.start) - 1

    @property
    def total(self) -> int:
        return len(self.rows)

    @property
    def counts(self) -> Tensor:
        """Valid rows of each item [items], on the device of `data`."""
        return self.start.diff().to(self.data.device)

    @property
    def longest(self) -> int:
        return int(self.start.diff().max())


class Result(NamedTuple):
    """Scores of both directions and, if kept, the first best index behind each maximum.

    `word_of_patch` [J, patches of all images] counts valid words within a text, `patch_of_word` [I, words of all
    texts] valid patches within an image; uint8 where 256 is enough, else int16 or int32.
    """

    image_to_text_IJ: Tensor
    text_to_image_JI: Tensor
    word_of_patch: Tensor | None
    patch_of_word: Tensor | None


def ragged(data_KMD: Tensor, mask_KM: Tensor | None, what: str) -> Side:
    """Drop the padding of [items, width, D]. An item without a valid row is a `ValueError` that names it."""
    items, width, _ = data_KMD.shape
    if items == 0 or width == 0:
        raise ValueError(f"no {what}s to compare: got shape {tuple(data_KMD.shape)}")
    counts = torch.full((items,), width) if mask_KM is None else mask_KM.sum(1).cpu()
    if int(counts.min()) == 0:
        empty = counts.eq(0).nonzero().flatten().tolist()
        raise ValueError(f"no valid {what} in row(s) {empty}: remove these rows or fix their mask")
    start = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    if mask_KM is None:
        rows = torch.arange(items * width, device=data_KMD.device)
    else:
        rows = mask_KM.flatten().nonzero().flatten()
    return Side(matrix(data_KMD), rows, start)


def matrix(data_KMD: Tensor) -> Tensor:
    """[items, width, D] as contiguous rows [items * width, D]."""
    return data_KMD.detach().reshape(-1, data_KMD.shape[2]).contiguous()


def sum_dtype(images: Side, texts: Side) -> torch.dtype:
    """The precision of products and sums: fp64 for fp64, else fp32."""
    return torch.promote_types(torch.promote_types(images.data.dtype, texts.data.dtype), torch.float32)


def index_dtype(images: Side, texts: Side) -> torch.dtype:
    """The smallest dtype that holds an index of a patch within its image and of a word within its text."""
    largest = max(images.longest, texts.longest)
    return torch.uint8 if largest <= 256 else torch.int16 if largest <= 32768 else torch.int32


class _Block(NamedTuple):
    first: int  # the block's images are [first, last)
    last: int
    lanes: slice  # their patches in `Side.rows`
    valid_IP: Tensor  # which of the left-packed patches exist
    patch_IPD: Tensor  # left-packed, zero-padded


def _image_blocks(images: Side, texts: Side) -> Iterator[_Block]:
    width, dim = images.longest, images.data.shape[1]
    dtype = sum_dtype(images, texts)
    bytes_per_image = width * max(dim, texts.longest) * dtype.itemsize
    size = max(1, BLOCK_BYTES // bytes_per_image)
    for first in range(0, images.items, size):
        last = min(first + size, images.items)
        lanes = slice(int(images.start[first]), int(images.start[last]))
        valid = torch.arange(width, device=images.data.device) < images.counts[first:last, None]
        patch = images.data.new_zeros(last - first, width, dim, dtype=dtype)
        patch[valid] = images.data[images.rows[lanes]].to(dtype)
        yield _Block(first, last, lanes, valid, patch)


def _each_text(texts: Side, dtype: torch.dtype) -> Iterator[tuple[int, slice, Tensor]]:
    for j in range(texts.items):
        words = slice(int(texts.start[j]), int(texts.start[j + 1]))
        yield j, words, texts.data[texts.rows[words]].to(dtype)


def forward(images: Side, texts: Side, keep: bool) -> Result:
    """Eqs. 5-6 by blocks of images, one text at a time: peak extra memory is a few blocks. Runs on any device."""
    new = images.data.new_empty(0, dtype=sum_dtype(images, texts)).new_empty
    to_text, to_image = new(images.items, texts.items), new(texts.items, images.items)
    dtype = index_dtype(images, texts)
    word_of_patch = new(texts.items, images.total, dtype=dtype) if keep else None
    patch_of_word = new(images.items, texts.total, dtype=dtype) if keep else None
    for block in _image_blocks(images, texts):
        i = slice(block.first, block.last)
        for j, words, word_ND in _each_text(texts, block.patch_IPD.dtype):
            score_IPN = block.patch_IPD @ word_ND.T
            word = score_IPN.max(2)
            to_text[i, j] = word.values.masked_fill(~block.valid_IP, 0.0).sum(1) / images.counts[i]
            patch = score_IPN.masked_fill_(~block.valid_IP[:, :, None], -torch.inf).max(1)
            to_image[j, i] = patch.values.mean(1)
            if word_of_patch is not None and patch_of_word is not None:
                word_of_patch[j, block.lanes] = word.indices[block.valid_IP].to(dtype)
                patch_of_word[i, words] = patch.indices.to(dtype)
    return Result(to_text, to_image, word_of_patch, patch_of_word)


def backward(images: Side, texts: Side, kept: Result, grad_IJ: Tensor, grad_JI: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of both `data`. Each block's score gradient has one entry a maximum; no atomics, so deterministic."""
    assert kept.word_of_patch is not None and kept.patch_of_word is not None
    dtype = sum_dtype(images, texts)
    grad_patch, grad_word = torch.zeros_like(images.data, dtype=dtype), torch.zeros_like(texts.data, dtype=dtype)
    for block in _image_blocks(images, texts):
        i = slice(block.first, block.last)
        block_grad = torch.zeros_like(block.patch_IPD)
        for j, words, word_ND in _each_text(texts, block.patch_IPD.dtype):
            grad_IPN = block.patch_IPD.new_zeros(*block.valid_IP.shape, len(word_ND))
            best = block.valid_IP.new_zeros(block.valid_IP.shape, dtype=torch.int64)
            best[block.valid_IP] = kept.word_of_patch[j, block.lanes].long()
            share = (grad_IJ[i, j] / images.counts[i])[:, None] * block.valid_IP
            grad_IPN.scatter_(2, best[:, :, None], share[:, :, None])
            best = kept.patch_of_word[i, words].long()[:, None, :]
            share = (grad_JI[j, i] / len(word_ND))[:, None, None]
            grad_IPN.scatter_(1, best, grad_IPN.gather(1, best) + share)
            block_grad += grad_IPN @ word_ND
            grad_word.index_add_(0, texts.rows[words], grad_IPN.flatten(0, 1).T @ block.patch_IPD.flatten(0, 1))
        grad_patch[images.rows[block.lanes]] = block_grad[block.valid_IP]
    return grad_patch, grad_word
