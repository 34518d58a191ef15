"""The training loop of the encoder and of AdaMatch: load → step → save → validate."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from adamatch_ray.config import TrainConfig
from adamatch_ray.data import loading
from adamatch_ray.storage import Root
from adamatch_ray.train import checkpoint, optim
from adamatch_ray.train.distributed import Worker, seed_step
from adamatch_ray.train.tracking import build_tracker


class Loss(NamedTuple):
    """What a task says of a batch: the scalar to minimise and scalars to show."""

    value: Tensor
    shown: dict[str, Tensor]


@dataclass(frozen=True)
class Task:
    """One kind of training: a model, its loss on a batch, its score on the validate split, and how it is saved."""

    stage: str
    train: TrainConfig
    model: nn.Module
    loss: Callable[[nn.Module, loading.Batch, torch.Generator, Worker], Loss]
    validate: Callable[[Worker], dict[str, float]]
    score: str
    save_model: Callable[[Path], None]


def run(task: Task, settings: dict[str, Any], worker: Worker) -> None:
    """Train from the latest checkpoint to `settings["total_steps"]`, reporting to Ray Train at each epoch's end."""
    train, total = task.train, settings["total_steps"]
    root = Root(settings["root"])
    shards = loading.list_shards(root.stage("studies"), "train")
    per_epoch = loading.steps_per_epoch(shards, train.batch_size, worker.world)
    optimizer = optim.build_optimizer(task.model, train, train.batch_size * worker.world)
    state = checkpoint.TrainState(task.model, optimizer)
    checkpoint.restore(state, settings["resume_path"])
    tracker = build_tracker(worker.is_first, root.stage(task.stage), state.step, total)
    wrapped = worker.wrap(task.model)
    batches = loading.training_batches(
        settings["root"],
        shards,
        batch_size=train.batch_size,
        world=worker.world,
        rank=worker.rank,
        seed=train.seed,
        start_step=state.step,
        total_steps=total,
        loaders=settings["config"].scale.loaders,
    )
    shown: list[tuple[int, dict[str, Tensor]]] = []
    waited, began = 0.0, time.monotonic()
    while state.step < total:
        asked = time.monotonic()
        batch = next(batches)
        waited += time.monotonic() - asked
        shown.append((state.step + 1, _step(task, wrapped, state, batch, worker, total)))
        state.step += 1
        ends_epoch = state.step % per_epoch == 0 or state.step == total
        saves = ends_epoch or (train.checkpoint_steps > 0 and state.step % train.checkpoint_steps == 0)
        if saves or len(shown) == 10:  # reading a loss waits for the device, so not at every step
            share = waited / max(1e-9, time.monotonic() - began)
            for step, values in shown:
                tracker.step(step, {**{name: float(v) for name, v in values.items()}, "wait": share})
            shown, waited, began = [], 0.0, time.monotonic()
        if saves:
            scores = _validate(task, state, worker, per_epoch, total) if ends_epoch else {}
            if scores:
                tracker.score(state.step, scores)
            tracker.flush()
            checkpoint.report(state, worker, task.score, scores, task.save_model)
            began = time.monotonic()


def _step(task: Task, wrapped: nn.Module, state: checkpoint.TrainState, batch: loading.Batch, worker: Worker,
          total: int) -> dict[str, Tensor]:  # fmt: skip
    train = task.train
    generator = seed_step(train.seed, state.step, worker.rank)
    optim.set_lr(
        state.optimizer,
        optim.peak_lr(train, train.batch_size * worker.world) * optim.lr_at(state.step, total, train.warmup),
    )
    task.model.train()
    with worker.autocast():
        loss = task.loss(wrapped, batch, generator, worker)
    state.optimizer.zero_grad(set_to_none=True)
    loss.value.backward()
    optim.clip_gradients(task.model, train.clip)
    state.optimizer.step()
    return {"loss": loss.value.detach(), **{name: value.detach() for name, value in loss.shown.items()}}


def _validate(task: Task, state: checkpoint.TrainState, worker: Worker, per_epoch: int, total: int) -> dict[str, float]:
    """The first worker scores; the others wait for it in Ray Train's barrier when they report."""
    epoch = state.step // per_epoch
    due = state.step == total or epoch % task.train.validate_epochs == 0
    if not due or not worker.is_first:
        return {}
    task.model.eval()
    with torch.inference_mode(), worker.autocast():
        scores = task.validate(worker)
    return scores
