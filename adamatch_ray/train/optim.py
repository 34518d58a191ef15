"""Optimisers and the learning-rate schedule (docs/method.md 1.5)."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from timm.optim import Lamb
from torch import Tensor, nn

from adamatch_ray.training_config import ImageTrain, TrainConfig

PLACING = (".patch_embed.predictor.", ".patch_embed.offsets.", ".patch_embed.size_bias")
"""Parameters that decide where adaptive patches lie (eqs. 1 and 2)."""


def build_optimizer(model: nn.Module, train: TrainConfig, global_batch_size: int) -> torch.optim.Optimizer:
    """LAMB or AdamW; biases, norms, position embeddings and the temperature are not decayed."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            plain = parameter.ndim < 2 or "cls_token" in name or ".position" in name
            share = train.box_lr if isinstance(train, ImageTrain) and any(part in name for part in PLACING) else 1.0
            groups.setdefault((0.0 if plain else train.weight_decay, share), []).append(parameter)
    listed = [{"params": found, "weight_decay": decay, "share": share} for (decay, share), found in groups.items()]
    lr = peak_lr(train, global_batch_size)
    if train.optimizer == "adamw":
        return torch.optim.AdamW(listed, lr=lr, fused=True)
    if isinstance(train, ImageTrain) and train.released_lamb:
        return Lamb(listed, lr=lr, eps=1e-4, bias_correction=False, max_grad_norm=None, always_adapt=True)
    return Lamb(listed, lr=lr)


def peak_lr(train: TrainConfig, global_batch_size: int) -> float:
    """The highest learning rate; the released code scales it with the square root of batch / 256."""
    released = isinstance(train, ImageTrain) and train.released_lamb
    return train.lr * math.sqrt(global_batch_size / 256) if released else train.lr


def lr_at(step: float, total: int, warmup: float) -> float:
    """Share of the peak learning rate at a step (0-based): linear warm-up, then a half cosine to zero."""
    rising = max(1, round(total * warmup))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total - rising)))


@dataclass
class Schedule:
    """How far a run is, `step` finished optimiser steps of `total`, and what belongs to that place."""

    total: int
    warmup: float
    step: int = 0

    @property
    def done(self) -> bool:
        """Whether no step is left."""
        return self.step >= self.total

    @property
    def share(self) -> float:
        """Share of the peak learning rate that the next step takes."""
        return lr_at(self.step, self.total, self.warmup)

    @property
    def seconds_left(self) -> float:
        """Seconds after which the run ends, however many steps are left then."""
        return math.inf

    def figures(self) -> dict[str, Any]:
        """What is told of a run's progress beside its scores."""
        return {"step": self.step}


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Use this learning rate from the next step on; a group may have its own share of it."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("share", 1.0)


def descend(optimizer: torch.optim.Optimizer, model: nn.Module, loss: Tensor, clip: float) -> None:
    """One step of a model down a loss, with gradients of at most the norm `clip`."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    clip_gradients(model, clip)
    optimizer.step()


def clip_gradients(model: nn.Module, limit: float) -> None:
    """Scale the gradient down to a norm of `limit`; 0 leaves it."""
    if limit > 0:
        torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
