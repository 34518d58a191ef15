"""The loop that tunes the language model on both directions (docs/method.md 4; the `tune_llm` job)."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ray.train
import torch
from torch import Tensor

from adamatch_ray.config import LLMStage, LLMTrain, RunConfig
from adamatch_ray.data import loading
from adamatch_ray.instructions import Example
from adamatch_ray.model_config import InstructionConfig
from adamatch_ray.models.llm_tokens import TokenLayout
from adamatch_ray.storage import Root
from adamatch_ray.train import llm_records, optim
from adamatch_ray.train.checkpoint import UNSCORED
from adamatch_ray.train.distributed import Worker, current_worker
from adamatch_ray.train.llm_checkpoint import read_progress
from adamatch_ray.train.llm_tuner import Tuner, response_tokens
from adamatch_ray.train.tracking import Tracker, build_tracker

SCORE = "score"
"""The mean over both directions of a response token's log-likelihood on the validate split; higher is better."""


class Shown(NamedTuple):
    """What is told of a step once it is read: sums over this worker's records."""

    step: int
    total: Tensor
    tokens: float
    values: dict[str, float]


class Progress:
    """How far a run is: steps, minutes (counted on the first worker, over all its attempts) and refused records."""

    def __init__(self, train: LLMTrain, total: int) -> None:
        self.train, self.total = train, total
        self.step, self.overlength, self.earlier = 0, 0, 0.0
        self.minutes = 0.0
        self.began = time.monotonic()

    def clock(self) -> float:
        """Minutes of this and earlier attempts, on this worker."""
        return self.earlier + (time.monotonic() - self.began) / 60

    @property
    def out_of_time(self) -> bool:
        """Whether `max_minutes` are over, by the first worker's clock."""
        return 0 < self.train.max_minutes <= self.minutes

    @property
    def done(self) -> bool:
        return self.step >= self.total or self.out_of_time

    @property
    def share(self) -> float:
        """Share of the peak learning rate: the schedule follows the steps or the time, whichever is further on."""
        limit = self.train.max_minutes
        way = max(self.step / self.total, self.minutes / limit if limit > 0 else 0.0)
        return optim.lr_at(min(way, 1.0) * self.total, self.total, self.train.warmup)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"step": self.step, "total": self.total, "minutes": self.minutes, "overlength": self.overlength}

    def put_back(self, saved: dict[str, Any]) -> None:
        """Continue from what a checkpoint kept; a converted one, whose steps were others, at its share of the way."""
        converted = saved.get("universal", False)
        self.step = round(saved["step"] * self.total / saved["total"]) if converted else saved["step"]
        self.overlength = saved["overlength"]
        self.earlier = self.minutes = saved["minutes"]


def llm_loop(settings: dict[str, Any]) -> None:
    """Tune on this worker. settings: root, config (RunConfig), layout (TokenLayout), total_steps, resume_path."""
    config: RunConfig = settings["config"]
    stage, total = config.llm, settings["total_steps"]
    worker = current_worker(stage.train.precision, stage.train.threads)
    root = Root(settings["root"])
    progress = Progress(stage.train, total)
    tuner = _build(settings, root, worker, progress)
    tracker = build_tracker(worker.is_first, root.stage("llm"), progress.step, total)
    shards = llm_records.record_shards(root, "train")
    per_epoch = steps_per_epoch(shards, stage, worker.world)
    options = {"layout": settings["layout"], "instructions": stage.instructions}
    batches = loading.training_batches(
        settings["root"],
        shards,
        batch_size=_step_size(stage),
        world=worker.world,
        rank=worker.rank,
        seed=stage.train.seed,
        start_step=progress.step,
        total_steps=total,
        loaders=config.scale.loaders,
        reader=llm_records.RecordReader,
        options=options,
    )
    shown: list[Shown] = []
    while not progress.done:
        shown.append(_step(tuner, progress, next(batches)))
        ends_epoch = progress.step % per_epoch == 0 or progress.done
        steps = stage.train.checkpoint_steps
        saves = ends_epoch or (steps > 0 and progress.step % steps == 0)
        if saves or len(shown) == 10:  # reading a loss waits for the device, so not at every step
            _show(tracker, worker, shown)
            shown = []
        if saves:
            due = ends_epoch and (progress.done or progress.step // per_epoch % stage.train.validate_epochs == 0)
            scores = _validate(tuner, root, options, tracker, progress) if due else {}
            tracker.flush()
            _report(tuner, progress, scores)


def steps_per_epoch(shards: list[loading.ShardFile], stage: LLMStage, world: int) -> int:
    """Optimiser steps of an epoch over shards that are counted in records."""
    return loading.steps_per_epoch(shards, _step_size(stage), world)


def _step_size(stage: LLMStage) -> int:
    """Records of a worker and optimiser step."""
    return stage.train.batch_size * stage.deepspeed.accumulate


def _step(tuner: Tuner, progress: Progress, batch: loading.Batch) -> Shown:
    """Take one step. The workers agree first on the tokens of all of them and on the time."""
    worker, size = tuner.worker, tuner.stage.train.batch_size
    records = llm_records.to_examples(batch)
    refused = len(batch["study_id"]) - len(records)
    clock = progress.clock() if worker.is_first else 0.0
    told = torch.tensor([response_tokens(records), refused, clock], dtype=torch.float64, device=worker.device)
    worker.add_up(told)
    tokens, overlength, progress.minutes = told.tolist()
    if tokens == 0:
        raise ValueError("no record of a step fits the context: raise --llm.context, or leave out keywords")
    share = progress.share
    parts = list(llm_records.chunks(records, size, tuner.stage.deepspeed.accumulate))
    total = tuner.step(parts, progress.step, share, torch.tensor(tokens, device=worker.device))
    progress.step += 1
    progress.overlength += int(overlength)
    values = {"tokens": tokens, "lr": tuner.stage.train.lr * share, "overlength": overlength}
    return Shown(progress.step, total, tokens, values)


def _show(tracker: Tracker, worker: Worker, shown: list[Shown]) -> None:
    totals = torch.stack([item.total for item in shown]).double()
    worker.add_up(totals)
    for item, total in zip(shown, totals.tolist(), strict=True):
        tracker.step(item.step, {"loss": total / item.tokens, **item.values})


def _validate(
    tuner: Tuner, root: Root, options: dict[str, Any], tracker: Tracker, progress: Progress
) -> dict[str, float]:
    """Loss of a response token on the validate split, each direction apart; the workers share the studies."""
    parts = _validation_parts(root, tuner.worker, tuner.stage.train.batch_size, **options)
    losses = tuner.losses(parts, llm_records.DIRECTIONS)
    scores = {f"{name}_loss": value for name, value in losses.items()}
    scores[SCORE] = -sum(losses.values()) / len(losses)
    tracker.score(progress.step, scores)
    return scores


def _validation_parts(
    root: Root, worker: Worker, size: int, layout: TokenLayout, instructions: InstructionConfig
) -> Iterator[list[Example]]:
    """This worker's validation records in pieces, as many as every other worker has."""
    reader = llm_records.RecordReader(root.uri, layout, instructions)
    for shard in llm_records.record_shards(root, "validate"):
        records = reader.records(shard.path, worker.rank, worker.world)
        largest = -(-shard.rows // (len(llm_records.DIRECTIONS) * worker.world)) * len(llm_records.DIRECTIONS)
        for part in llm_records.chunks(records, size, -(-largest // size)):
            yield [record for record in part if isinstance(record, Example)]


def _report(tuner: Tuner, progress: Progress, scores: dict[str, float]) -> None:
    """Checkpoint and tell Ray Train; a barrier. Every worker saves its part, Ray Train lays them together."""
    told = {SCORE: UNSCORED, **scores, "step": progress.step, "out_of_time": progress.out_of_time}
    told["overlength"] = float(progress.overlength)
    with tempfile.TemporaryDirectory() as folder:
        tuner.save(Path(folder), progress.state())
        ray.train.report(told, checkpoint=ray.train.Checkpoint.from_directory(folder))


def _build(settings: dict[str, Any], root: Root, worker: Worker, progress: Progress) -> Tuner:
    """The model, continued from Ray Train's latest checkpoint of this run, or from `resume_path` when it is new."""
    config, path = settings["config"], settings["resume_path"]
    tokenizer, layout = llm_records.load_tokenizer(root), settings["layout"]
    checkpoint = ray.train.get_checkpoint() or (ray.train.Checkpoint(path) if path else None)
    if checkpoint is None:
        return Tuner(config.llm, worker, tokenizer, layout)
    with checkpoint.as_directory() as folder:
        said = read_progress(Path(folder))
        tuner = Tuner(config.llm, worker, tokenizer, layout, said.get("universal", False))
        tuner.restore(Path(folder))
    progress.put_back(said)
    return tuner
