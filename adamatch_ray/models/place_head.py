"""The place head: where in an image a word's finding is seen, at half a stage-1 patch (docs/method.md 1.6).

It reads the frozen tokens of stages 1 to 3, coarse to fine, and the image itself; it learns from words alone.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from adamatch_ray.model_config import PVTConfig
from adamatch_ray.models.pvt import StageOutput, to_map
from adamatch_ray.models.weights import read_weights

STAGES = 3
"""Stages of the image encoder that are read."""


@dataclass(frozen=True)
class PlaceSizes:
    """What a place head is made for: widths of the stages, of a word, its own two, and the side of a stage-1 patch."""

    stages: tuple[int, ...]
    word: int
    width: int
    dim: int
    patch: int

    @classmethod
    def of(cls, image: PVTConfig, word: int, width: int, dim: int) -> "PlaceSizes":
        """The sizes for an image encoder and words of `word` dimensions."""
        return cls(image.dims[:STAGES], word, width, dim, image.patch_size)


class PlaceHead(nn.Module):
    """Unit features for each place, and the logit of a word at each: scale · cosine + bias."""

    shown_from: Tensor

    def __init__(self, sizes: PlaceSizes) -> None:
        super().__init__()
        self.sizes = sizes
        width, half = sizes.width, sizes.patch // 2
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for dim in sizes.stages)
        self.laterals = nn.ModuleList(nn.Linear(dim, width) for dim in sizes.stages)
        self.mixers = nn.ModuleList(_Mixer(width) for _ in sizes.stages)
        self.stem = nn.Sequential(
            nn.Conv2d(1, 12, 2 * half, stride=half, padding=half // 2), nn.GELU(), nn.Conv2d(12, width, 3, padding=1)
        )
        self.fine = _Mixer(width)
        self.project = nn.Conv2d(width, sizes.dim, 1)
        self.query = nn.Linear(sizes.word, sizes.dim)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.bias = nn.Parameter(torch.tensor(-3.0))
        self.register_buffer("shown_from", torch.tensor(0.0))  # evidence from which a finding counts as shown

    def forward(self, image_BCHW: Tensor, stages: Sequence[StageOutput]) -> Tensor:
        """Unit features [B, D, G, G] of images in [-1, 1] and their stages' outputs; G = S / (patch / 2)."""
        x: Tensor | None = None
        for number in reversed(range(STAGES)):
            lateral = to_map(self.laterals[number](self.norms[number](stages[number].tokens_BPC)))
            x = self.mixers[number](lateral if x is None else _larger(x) + lateral)
        assert x is not None
        x = self.fine(_larger(x) + self.stem(image_BCHW[:, :1]))
        return F.normalize(self.project(x), dim=1)

    def logits(self, feature_DGG: Tensor, word_JW: Tensor) -> Tensor:
        """Logits [J, G, G] of J words at each place of one image."""
        query_JD = F.normalize(self.query(word_JW), dim=-1)
        side = feature_DGG.shape[-1]
        return (query_JD @ feature_DGG.flatten(1)).view(-1, side, side) * self.log_scale.exp() + self.bias


class _Mixer(nn.Module):
    """A residual block: each channel's neighbourhood, then all channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.near = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.GroupNorm(4, width)
        self.up, self.down = nn.Conv2d(width, 2 * width, 1), nn.Conv2d(2 * width, width, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW + self.down(F.gelu(self.up(self.norm(self.near(x_BCHW)))))


def _larger(x_BCHW: Tensor) -> Tensor:
    return F.interpolate(x_BCHW, scale_factor=2, mode="bilinear", align_corners=False)


def evidence(logit_JGG: Tensor) -> Tensor:
    """How strongly each map [J] says that the finding is somewhere: log-sum-exp less half the log of the places."""
    return logit_JGG.flatten(1).logsumexp(1) - 0.5 * math.log(logit_JGG.shape[-1] ** 2)


def save(head: PlaceHead, folder: Path) -> None:
    """Write `place.json` and `model.safetensors`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "place.json").write_text(json.dumps(asdict(head.sizes), indent=2) + "\n")
    save_file({k: v.detach().cpu().contiguous() for k, v in head.state_dict().items()}, folder / "model.safetensors")


def load(folder: Path) -> PlaceHead:
    """The head that `save` wrote, in evaluation mode. Raises ValueError when the folder is not one."""
    if not (folder / "place.json").is_file():
        raise ValueError(f"{folder} is not a place head's folder: no place.json; run: python jobs/train_place.py")
    sizes = json.loads((folder / "place.json").read_text())
    head = PlaceHead(PlaceSizes(**{**sizes, "stages": tuple(sizes["stages"])}))
    head.load_state_dict(read_weights(folder / "model.safetensors"))
    return head.eval()
