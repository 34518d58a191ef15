"""Stored canvases to what the image encoders see, and the crop of training (docs/method.md 1.1)."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def model_input(image_BHW: np.ndarray, size: int, device: torch.device, crop_B4: Tensor | None = None) -> Tensor:
    """uint8 canvases [B, S, S] as [B, 3, size, size] in [-1, 1]; of each only the unit box `crop_B4`, when given."""
    # A batch from Ray is read-only memory, which torch would warn of sharing: this copies.
    pixels = torch.tensor(image_BHW, device=device).unsqueeze(1).float()
    if crop_B4 is not None:
        pixels = F.grid_sample(pixels, _crop_grid(crop_B4.to(device), size), align_corners=False, padding_mode="zeros")
    elif pixels.shape[-1] != size:
        pixels = F.interpolate(pixels, size=(size, size), mode="area")
    return pixels.div(127.5).sub(1.0).expand(-1, 3, -1, -1)


def random_crops(count: int, smallest_area: float, generator: torch.Generator) -> Tensor:
    """Unit boxes [count, 4] (xyxy) of `smallest_area` or more of the canvas, sides within 10 % of each other.

    Nothing is mirrored: left and right are part of a report.
    """
    u = torch.rand(count, 4, generator=generator)
    area = smallest_area + (1.0 - smallest_area) * u[:, 0]
    # log 1.1; a large crop has less room to be oblong
    ratio = torch.exp((2 * u[:, 1] - 1) * 0.0953).clamp(min=area, max=1 / area)
    width, height = (area * ratio).sqrt().clamp(max=1.0), (area / ratio).sqrt().clamp(max=1.0)
    left, top = (1 - width) * u[:, 2], (1 - height) * u[:, 3]
    return torch.stack([left, top, left + width, top + height], 1)


def _crop_grid(crop_B4: Tensor, size: int) -> Tensor:
    step = (torch.arange(size, device=crop_B4.device) + 0.5) / size
    x0, y0, x1, y1 = (crop_B4[:, i, None] for i in range(4))
    x_BW, y_BH = x0 + (x1 - x0) * step, y0 + (y1 - y0) * step
    grid = torch.stack([x_BW[:, None, :].expand(-1, size, -1), y_BH[:, :, None].expand(-1, -1, size)], -1)
    return grid * 2 - 1
