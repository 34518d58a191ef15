"""Save a training state so that the resumed run is the uninterrupted one, and load it safely."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import torch
from torch import nn

from adamatch_ray.train.distributed import Worker


@dataclass
class TrainState:
    """What changes while a model is fitted. `step` counts finished optimiser steps."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0
    best: float = float("-inf")


def report(state: TrainState, worker: Worker, metrics: dict[str, float], save_model: Callable[[Path], None]) -> None:
    """Tell Ray Train the metrics with a checkpoint; every worker calls it equally often, the first one writes.

    The checkpoint holds `state.pt` (model, optimiser, step) and what `save_model` writes under `model/`.
    """
    metrics = {**metrics, "step": state.step}
    if not worker.is_first:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        torch.save(
            {
                "model": state.model.state_dict(),
                "optimizer": state.optimizer.state_dict(),
                "step": state.step,
                "best": state.best,
            },
            Path(folder) / "state.pt",
        )
        save_model(Path(folder) / "model")
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


def restore(state: TrainState, path: str) -> None:
    """Continue from Ray Train's latest checkpoint of this run, or from `path` when the run is new; else leave as is."""
    latest = ray.train.get_checkpoint()
    checkpoint = latest or (ray.train.Checkpoint(path) if path else None)
    if checkpoint is None:
        return
    with checkpoint.as_directory() as folder:
        saved: dict[str, Any] = torch.load(Path(folder) / "state.pt", map_location="cpu", weights_only=True)
    state.model.load_state_dict(saved["model"])
    state.optimizer.load_state_dict(saved["optimizer"])
    state.step, state.best = saved["step"], saved["best"]
