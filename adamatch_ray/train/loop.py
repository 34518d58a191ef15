"""The one training loop: restore → batches → step → show → validate and save → report."""

import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import ray.train
from torch import Tensor

from adamatch_ray.config import RunConfig
from adamatch_ray.data import loading
from adamatch_ray.storage import Root
from adamatch_ray.train.distributed import Worker, current_worker
from adamatch_ray.train.optim import Schedule
from adamatch_ray.train.tracking import Tracker, open_tracker
from adamatch_ray.training_config import TrainConfig

UNSCORED = -1e9
"""Score of a state that was not validated: it must never pass for the best one, whatever the metric's range."""


@dataclass(frozen=True)
class TrainSettings:
    """What every worker of a training is told.

    `score` names the metric whose highest value marks the best state; `init` is a published file to start from.
    """

    stage: str
    score: str
    root: str
    config: RunConfig
    total_steps: int
    resume_path: str = ""
    init: str = ""

    @property
    def train(self) -> TrainConfig:
        """How this stage's model is fitted."""
        train: TrainConfig = getattr(self.config, self.stage).train
        return train


@dataclass(frozen=True)
class Source:
    """Where batches come from: shards, counted in the rows that `reader` (made with `options`) makes of them."""

    shards: list[loading.ShardFile]
    batch_size: int
    reader: type[loading.WindowReader] = loading.WindowReader
    options: dict[str, Any] = field(default_factory=dict)


class Fitter(Protocol):
    """What is trained, on one worker. Every worker makes each call, and at the same time."""

    @property
    def schedule(self) -> Schedule:
        """How far it is; the loop counts the steps."""

    @property
    def source(self) -> Source:
        """Where its batches come from."""

    def begin(self, checkpoint: Path | None) -> None:
        """Be ready for the first step, or for the one that follows a checkpoint (the folder that `save` wrote)."""

    def step(self, batch: loading.Batch) -> dict[str, Tensor | float]:
        """Take step `schedule.step`, counted from 0; the scalars to show."""

    def validate(self, tracker: Tracker) -> dict[str, float]:
        """Tell the tracker how well the validate split is done, and return it; empty where another worker does it."""

    def save(self, folder: Path) -> None:
        """Write this worker's part of a checkpoint, if it has one; the first worker's holds the plain `model/`."""


MakeFitter = Callable[[TrainSettings, Worker], Fitter]


def study_source(settings: TrainSettings) -> Source:
    """The train split's studies as they are."""
    shards = loading.list_shards(Root(settings.root).stage("studies"), "train")
    return Source(shards, settings.train.batch_size)


def fit(settings: TrainSettings, make: MakeFitter) -> None:
    """Train on this worker, from Ray Train's latest checkpoint of the run or from `resume_path`, until all is done."""
    worker = current_worker(settings.train.precision, settings.train.threads)
    fitter = make(settings, worker)
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None and settings.resume_path:
        checkpoint = ray.train.Checkpoint(settings.resume_path)
    with checkpoint.as_directory() if checkpoint else nullcontext() as folder:
        fitter.begin(Path(folder) if folder else None)
    with open_tracker(worker.is_first, Root(settings.root).stage(settings.stage), fitter.schedule) as tracker:
        _run(fitter, settings, worker, tracker)


def _run(fitter: Fitter, settings: TrainSettings, worker: Worker, tracker: Tracker) -> None:
    train, schedule, source = settings.train, fitter.schedule, fitter.source
    per_epoch = loading.steps_per_epoch(source.shards, source.batch_size, worker.world)
    batches = loading.training_batches(
        settings.root,
        source.shards,
        batch_size=source.batch_size,
        world=worker.world,
        rank=worker.rank,
        seed=train.seed,
        start_step=schedule.step,
        total_steps=schedule.total,
        loaders=settings.config.scale.loaders,
        reader=source.reader,
        options=source.options,
    )
    shown: list[tuple[int, dict[str, Tensor | float]]] = []
    waited, began = 0.0, time.monotonic()
    while not schedule.done:
        asked = time.monotonic()
        batch = next(batches)
        waited += time.monotonic() - asked
        values = fitter.step(batch)
        schedule.step += 1
        shown.append((schedule.step, values))
        ends_epoch = schedule.step % per_epoch == 0 or schedule.done
        saves = ends_epoch or (train.checkpoint_steps > 0 and schedule.step % train.checkpoint_steps == 0)
        if saves or len(shown) == 10:  # reading a loss waits for the device, so not at every step
            read = [(step, {name: float(value) for name, value in values.items()}) for step, values in shown]
            wait = waited / max(1e-9, time.monotonic() - began)
            tracker.steps([(step, {**values, "wait": wait}) for step, values in read])
            shown, waited, began = [], 0.0, time.monotonic()
        if saves:
            due = ends_epoch and (schedule.done or schedule.step // per_epoch % train.validate_epochs == 0)
            scores = fitter.validate(tracker) if due else {}
            tracker.flush()
            _report(fitter, {settings.score: UNSCORED, **scores, **schedule.figures()})
            began = time.monotonic()


def _report(fitter: Fitter, figures: dict[str, Any]) -> None:
    """Tell Ray Train the figures with a checkpoint, laid together from what the workers wrote; a barrier."""
    with tempfile.TemporaryDirectory() as folder:
        fitter.save(Path(folder))
        wrote = any(Path(folder).iterdir())
        ray.train.report(figures, checkpoint=ray.train.Checkpoint.from_directory(folder) if wrote else None)
