"""A model with one optimiser, as the encoder and AdaMatch are trained, and the state that a resumed run needs."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from adamatch_ray.data import loading
from adamatch_ray.models.weights import read_saved
from adamatch_ray.train import optim
from adamatch_ray.train.distributed import Worker, seed_step
from adamatch_ray.train.loop import Source, TrainSettings, study_source
from adamatch_ray.train.tracking import Tracker


class Stateful(Protocol):
    """Anything whose state can be taken and put back: a module, an optimiser, a running average."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Any) -> Any: ...


@dataclass(frozen=True)
class TrainState:
    """What changes while a model is fitted, so that the resumed run is the uninterrupted one; `others` go by name."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: optim.Schedule
    others: dict[str, Stateful] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Keep everything that a resumed run needs in `state.pt`."""
        saved = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.schedule.step,
            "others": {name: part.state_dict() for name, part in self.others.items()},
        }
        torch.save(saved, folder / "state.pt")

    def read(self, folder: Path) -> None:
        """Continue from what `write` kept."""
        saved: dict[str, Any] = read_saved(folder / "state.pt")
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.schedule.step = saved["step"]
        for name, part in self.others.items():
            part.load_state_dict(saved["others"][name])


class ModelFitter(ABC):
    """Steps a model down its loss, data-parallel over the workers; the first worker scores and saves."""

    def __init__(self, settings: TrainSettings, worker: Worker, model: nn.Module) -> None:
        self.settings, self.worker, self.train = settings, worker, settings.train
        self.schedule = optim.Schedule(settings.total_steps, self.train.warmup)
        self.model = self.wrapped = model.to(worker.device)
        batch_size = self.train.batch_size * worker.world
        self.peak_lr = optim.peak_lr(self.train, batch_size)
        self.optimizer = optim.build_optimizer(self.model, self.train, batch_size)
        self.state = TrainState(self.model, self.optimizer, self.schedule)

    @abstractmethod
    def loss(self, batch: loading.Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise on a batch, and further scalars to show. Forward passes go through `wrapped`."""

    @abstractmethod
    def scores(self) -> dict[str, float]:
        """How well the model, in evaluation mode, does on the validate split."""

    @abstractmethod
    def save_model(self, folder: Path) -> None:
        """Write the model as its readers load it; `folder` is not there yet."""

    @property
    def source(self) -> Source:
        return study_source(self.settings)

    def begin(self, checkpoint: Path | None) -> None:
        if checkpoint:
            self.state.read(checkpoint)
        self.wrapped = self.worker.wrap(self.model)

    def step(self, batch: loading.Batch) -> dict[str, Tensor | float]:
        generator = seed_step(self.train.seed, self.schedule.step, self.worker.rank)
        optim.set_lr(self.optimizer, self.peak_lr * self.schedule.share)
        self.model.train()
        with self.worker.autocast():
            loss, shown = self.loss(batch, generator)
        optim.descend(self.optimizer, self.model, loss, self.train.clip)
        return {"loss": loss.detach(), **{name: value.detach() for name, value in shown.items()}}

    def validate(self, tracker: Tracker) -> dict[str, float]:
        if not self.worker.is_first:  # the others wait for it in Ray Train's barrier when they report
            return {}
        self.model.eval()
        with torch.inference_mode(), self.worker.autocast():
            scores = self.scores()
        tracker.score(self.schedule.step, scores)
        return scores

    def save(self, folder: Path) -> None:
        if self.worker.is_first:
            self.state.write(folder)
            self.save_model(folder / "model")
