"""Adaptive patches: patch embedding whose boxes are predicted from the image (docs/method.md 1.2, eqs. 1-4)."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn

EMBED_EPS = 1e-5
"""LayerNorm epsilon of patch embeddings; the transformer blocks use another one (docs/method.md 1.1)."""

INITIAL_SIZE_BIAS = math.log(math.sqrt(5 / 3))
"""b3 and b4: tanh of it is 1/4 stride, the distance from the centre of a 2x2 patch to the centre of its pixels."""


class AdaPatchOutput(NamedTuple):
    """Embedded patches and where they were read."""

    tokens: Tensor
    """[B, P, dim], patches row by row."""
    boxes: Tensor
    """[B, P, 4] xyxy in [0, 1] of the input map, at least fp32."""


def cell_boxes(grid: int, device: torch.device | None = None) -> Tensor:
    """Boxes [P, 4] (xyxy in [0, 1], fp32) of the `grid` x `grid` cells that tile a square, row by row."""
    edge = torch.arange(grid, device=device, dtype=torch.float32)
    y, x = torch.meshgrid(edge, edge, indexing="ij")
    return torch.stack([x, y, x + 1, y + 1], dim=-1).reshape(-1, 4) / grid


class PatchEmbed(nn.Module):
    """Fixed patches: each `patch` x `patch` square of the map through one linear map and LayerNorm."""

    def __init__(self, in_channels: int, dim: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, kernel_size=patch, stride=patch)
        self.norm = nn.LayerNorm(dim, eps=EMBED_EPS)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map [B, C, H, W] to tokens [B, P, dim], patches row by row."""
        return self.norm(self.proj(x_BCHW).flatten(2).transpose(1, 2))


class AdaPatch(nn.Module):
    """Patches whose centre moves by up to one stride and whose size is predicted, one box a 2x2 cell.

    A box's corners are sample positions: at the start they are the centres of the cell's four pixels, so the box spans
    half a stride and its `samples` x `samples` points (for 3) include those pixels exactly.
    """

    def __init__(self, in_channels: int, dim: int, samples: int = 3) -> None:
        super().__init__()
        assert samples >= 2, "points run from corner to corner"
        self.samples = samples
        self.predictor = PatchEmbed(in_channels, dim, patch=2)
        self.offsets = nn.Linear(dim, 4, bias=False)
        self.size_bias = nn.Parameter(torch.full((2,), INITIAL_SIZE_BIAS))
        self.project = nn.Linear(in_channels * samples**2, dim)
        self.norm = nn.LayerNorm(dim, eps=EMBED_EPS)
        nn.init.zeros_(self.offsets.weight)
        trunc_normal_(self.project.weight, std=0.02)
        nn.init.zeros_(self.project.bias)

    def forward(self, x_BCHW: Tensor) -> AdaPatchOutput:
        """Embed the square map [B, C, H, H] (H even) as P = (H/2)^2 patches, each read where its box lies."""
        # Reduced precision moves boxes by more than 1e-3, so everything up to the samples ignores autocast.
        with torch.autocast(x_BCHW.device.type, enabled=False):
            boxes = self.predict_boxes(x_BCHW.to(self.offsets.weight.dtype))
            samples_BPF = sample_boxes(x_BCHW.to(boxes.dtype), boxes, self.samples)
        return AdaPatchOutput(self.norm(self.project(samples_BPF.to(x_BCHW.dtype))), boxes)

    def predict_boxes(self, x_BCHW: Tensor) -> Tensor:
        """Boxes [B, P, 4] (xyxy, clamped to [0, 1]) of the map's patches, in at least fp32 (eqs. 1-4)."""
        raw = self.offsets(F.gelu(self.predictor(x_BCHW)))
        raw = raw.to(torch.promote_types(raw.dtype, torch.float32))
        grid = x_BCHW.shape[-1] // 2
        step = (torch.arange(grid, device=raw.device, dtype=raw.dtype) + 0.5) / grid
        y, x = torch.meshgrid(step, step, indexing="ij")
        centre = torch.stack([x, y], dim=-1).reshape(-1, 2) + torch.tanh(raw[..., :2]) / grid
        # Where relu closes a box its size has no gradient any more: why these weights learn slower (`box_lr`).
        half = F.relu(torch.tanh(raw[..., 2:] + self.size_bias)) / grid
        return torch.cat([centre - half, centre + half], dim=-1).clamp(0.0, 1.0)


def sample_boxes(x_BCHW: Tensor, boxes_BP4: Tensor, samples: int) -> Tensor:
    """Read `samples` x `samples` points of each box, corners included, bilinearly, with zeros outside the map.

    Pixel (i, j) of the map is centred on ((j + .5) / W, (i + .5) / H). Returns [B, P, samples^2 * C] with x outermost,
    y next and the channel fastest.
    """
    batch, channels, height, width = x_BCHW.shape
    fraction = torch.linspace(0.0, 1.0, samples, device=boxes_BP4.device, dtype=boxes_BP4.dtype)
    low, high = boxes_BP4[..., None, :2], boxes_BP4[..., None, 2:]
    points = low + (high - low) * fraction[:, None]
    column, column_weight = _neighbours(points[..., 0], width)
    row, row_weight = _neighbours(points[..., 1], height)
    image = torch.arange(batch, device=row.device).view(-1, 1, 1, 1) * height
    index = ((image + row) * width)[:, :, None, :, :, None] + column[:, :, :, None, None, :]
    weight = row_weight[:, :, None, :, :, None] * column_weight[:, :, :, None, None, :]
    # A weighted sum of four rows of the channels-last map: tokens come in and go out in this layout, so nothing is
    # transposed, and a CPU needs a third to four fifths of the time of grid_sample.
    pixels = x_BCHW.flatten(2).transpose(1, 2).reshape(-1, channels)
    values = F.embedding_bag(index.reshape(-1, 4), pixels, per_sample_weights=weight.reshape(-1, 4), mode="sum")
    return values.view(batch, -1, samples**2 * channels)


def _neighbours(position: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The two pixels around each unit position [...] along an axis and their weights, [..., 2] each, 0 outside."""
    centre = position * size - 0.5
    low = centre.floor()
    above = centre - low
    index = low.long()[..., None] + torch.arange(2, device=position.device)
    weight = torch.stack([1 - above, above], dim=-1) * ((index >= 0) & (index < size))
    return index.clamp(0, size - 1), weight
