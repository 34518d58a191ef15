"""X-rays to VQ-GAN tokens and back, batch in and batch out (docs/method.md 3).

The same object is the actor of an offline pass over a data set and the body of a deployment.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adamatch_ray.models.vqgan import VQGAN
from adamatch_ray.models.vqgan_io import fingerprint, load_checkpoint, load_pretrained, save_pretrained

__all__ = ["ImageTokenizer", "fingerprint", "load_checkpoint", "load_pretrained", "save_pretrained", "tokens_of_box"]


class ImageTokenizer:
    """Encodes canvases to tokens and decodes tokens to canvases with a trained VQ-GAN.

    The model is moved to the device and into evaluation mode; its weights are taken as they are now, so make a new
    tokenizer after further training.

    `batch_size` is what goes through the model at once, however many images a call brings. Left at 0 it is 1 on a CPU,
    where one image at a time stays in the caches, and 64 elsewhere. `dtype` is that of the encoder and decoder; in
    anything but fp32 some tokens change, so measure the agreement before using it.
    """

    def __init__(
        self, model: VQGAN, device: str | torch.device = "cpu", *, batch_size: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        if batch_size < 0:
            raise ValueError(f"batch_size {batch_size} must be positive, or 0 to let the device decide")
        if model.config.codes > 1 << 16:
            raise ValueError(f"{model.config.codes} codes do not fit the uint16 of the token cache (at most 65536)")
        self.device, self.dtype = torch.device(device), dtype
        self.batch_size = batch_size or (1 if self.device.type == "cpu" else 64)
        self.config = model.config
        self.model = model.to(self.device).to(memory_format=torch.channels_last).eval()

    @classmethod
    def from_pretrained(cls, folder_or_name: str | Path, device: str | torch.device = "cpu") -> "ImageTokenizer":
        """The VQ-GAN of a model folder or hub name. ValueError where there is none."""
        return cls(load_pretrained(folder_or_name), device)

    def encode(self, images: NDArray[np.uint8]) -> NDArray[np.uint16]:
        """Gray canvases [B, image_size, image_size] uint8 to tokens [B, T] uint16, row-major."""
        side = self.config.image_size
        if images.dtype != np.uint8 or images.ndim != 3:
            raise ValueError(f"images are {images.dtype} of shape {images.shape}: give uint8 [B, height, width]")
        if images.shape[1:] != (side, side):
            raise ValueError(
                f"images are {images.shape[1]}x{images.shape[2]}, this VQ-GAN reads {side}x{side}: "
                "bring them onto its canvas first"
            )
        tokens_BT = torch.empty(len(images), self.config.tokens, dtype=torch.int32, device=self.device)
        with self._inference():
            for rows in self._batches(len(images)):
                tokens_BT[rows] = self.model.encode_tokens(self._to_model(images[rows])).int()
        # one copy to the host a call: a copy a batch would make an accelerator wait for the host each time
        return tokens_BT.cpu().numpy().astype(np.uint16)

    def decode(self, tokens_BT: NDArray[np.integer]) -> NDArray[np.uint8]:
        """Tokens [B, T] to gray canvases [B, image_size, image_size] uint8."""
        side, count = self.config.image_size, self.config.tokens
        tokens_BT = np.asarray(tokens_BT)
        if tokens_BT.ndim != 2 or not np.issubdtype(tokens_BT.dtype, np.integer):
            raise ValueError(f"tokens are {tokens_BT.dtype} of shape {tokens_BT.shape}: give integers [B, {count}]")
        if tokens_BT.shape[1] != count:
            raise ValueError(_wrong_count(tokens_BT.shape[1], count, self.config.grid))
        if tokens_BT.size and not 0 <= tokens_BT.min() <= tokens_BT.max() < self.config.codes:
            wrong = tokens_BT.max() if tokens_BT.max() >= self.config.codes else tokens_BT.min()
            raise ValueError(f"token {wrong} is no code of this VQ-GAN, which has 0 to {self.config.codes - 1}")
        indices_BT = torch.from_numpy(tokens_BT.astype(np.int64)).to(self.device)
        images = torch.empty(len(indices_BT), side, side, dtype=torch.uint8, device=self.device)
        with self._inference():
            for rows in self._batches(len(indices_BT)):
                images[rows] = to_gray(self.model.decode_tokens(indices_BT[rows]))
        return images.cpu().numpy()

    def through(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Gray canvases as their tokens give them back, [B, image_size, image_size] uint8."""
        return self.decode(self.encode(images))

    def _batches(self, count: int) -> Iterator[slice]:
        for start in range(0, count, self.batch_size):
            yield slice(start, start + self.batch_size)

    def _to_model(self, images: NDArray[np.uint8]) -> Tensor:
        # bytes travel to the device, the fourfold larger floats are made there
        gray = torch.from_numpy(np.ascontiguousarray(images)).to(self.device, non_blocking=True)
        unit = gray.float().div_(127.5).sub_(1.0)
        return unit[:, None].expand(-1, self.config.in_channels, -1, -1).contiguous(memory_format=torch.channels_last)

    @contextmanager
    def _inference(self) -> Iterator[None]:
        """No autograd, and with fp32 really fp32: convolutions would otherwise be rounded to TF32 on a GPU."""
        kind, lower = self.device.type, self.dtype != torch.float32
        before = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = False
        try:
            with torch.inference_mode(), torch.autocast(kind, self.dtype if lower else torch.bfloat16, enabled=lower):
                yield
        finally:
            torch.backends.cudnn.allow_tf32 = before


def tokens_of_box(indices_T: NDArray[np.integer], box: tuple[float, float, float, float], grid: int) -> list[int]:
    """Codes of the cells that a box covers by at least half of their area, row-major (docs/method.md 2, keypatches).

    `box` is xyxy in unit canvas coordinates, `grid` the cells to a side. A cell the box does not cover gives no token
    at all, so an empty box gives an empty list.
    """
    if len(indices_T) != grid * grid:
        raise ValueError(_wrong_count(len(indices_T), grid * grid, grid))
    x0, y0, x1, y1 = np.clip(np.asarray(box, dtype=np.float64), 0.0, 1.0) * grid
    cells = np.arange(grid)
    wide = np.clip(np.minimum(x1, cells + 1) - np.maximum(x0, cells), 0.0, 1.0)
    high = np.clip(np.minimum(y1, cells + 1) - np.maximum(y0, cells), 0.0, 1.0)
    # the small allowance keeps cells that are covered by exactly half but for rounding
    covered = np.outer(high, wide).ravel() >= 0.5 - 1e-9
    return [int(token) for token in np.asarray(indices_T)[covered]]


def to_gray(image: Tensor) -> Tensor:
    """Image [B, C, H, W] in about [-1, 1] to [B, H, W] uint8."""
    return image.float().mean(1).add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def _wrong_count(given: int, expected: int, grid: int) -> str:
    side = math.isqrt(given)
    shape = f"a {side}x{side} grid" if side * side == given else "not a square grid"
    return f"{given} tokens ({shape}) where a {grid}x{grid} grid has {expected}: use tokens of the same VQ-GAN"
