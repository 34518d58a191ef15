"""Save a training state so that the resumed run is the uninterrupted one, and load it safely."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import ray.train
import torch
from torch import nn

from adamatch_ray.train.distributed import Worker


class Stateful(Protocol):
    """Anything whose state can be taken and put back: a module, an optimiser, a running average."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Any) -> Any: ...


@dataclass
class TrainState:
    """What changes while a model is fitted. `step` counts finished optimiser steps; `others` go by name."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0
    others: dict[str, Stateful] = field(default_factory=dict)

    def snapshot(self) -> dict[str, Any]:
        """Everything that a resumed run needs; tensors are not copied."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "others": {name: part.state_dict() for name, part in self.others.items()},
        }

    def put_back(self, saved: dict[str, Any]) -> None:
        """Continue from a snapshot."""
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step = saved["step"]
        for name, part in self.others.items():
            part.load_state_dict(saved["others"][name])


UNSCORED = -1e9
"""Score of a state that was not validated: it must never pass for the best one, whatever the metric's range."""


def report(
    state: TrainState, worker: Worker, score: str, scores: dict[str, float], save_model: Callable[[Path], None]
) -> None:
    """Tell Ray Train the scores with a checkpoint; every worker calls it equally often, the first one writes.

    `score` names the metric that marks the best checkpoint; `scores` is empty where none was taken. The checkpoint
    holds `state.pt` (a snapshot) and what `save_model` writes under `model/`.
    """
    metrics = {score: UNSCORED, **scores, "step": state.step}
    if not worker.is_first:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        torch.save(state.snapshot(), Path(folder) / "state.pt")
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
    state.put_back(saved)
