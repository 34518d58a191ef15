"""The loop that trains the VQ-GAN (docs/method.md 3; the `train_vqgan` job)."""

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file
from torch import Tensor

from adamatch_ray.config import RunConfig
from adamatch_ray.data import loading
from adamatch_ray.data.images import Pixels, decode_png
from adamatch_ray.model_config import PVTConfig, from_dict
from adamatch_ray.models.pvt import PyramidVisionTransformer
from adamatch_ray.models.vqgan_io import save_pretrained
from adamatch_ray.storage import Root, Stage
from adamatch_ray.train import checkpoint
from adamatch_ray.train.distributed import current_worker
from adamatch_ray.train.tracking import Tracker, build_tracker
from adamatch_ray.train.vqgan_fitter import Fitter

SHOWN = 8
"""Validation images in a picture of reconstructions."""


def vqgan_loop(settings: dict[str, Any]) -> None:
    """Train on this worker. settings: root, config (RunConfig), total_steps, resume_path, init."""
    config: RunConfig = settings["config"]
    train, total = config.vqgan.train, settings["total_steps"]
    worker = current_worker(train.precision, train.threads)
    root = Root(settings["root"])
    studies = root.stage("studies")
    encoder = load_encoder(root).to(worker.device) if config.vqgan.needs_encoder else None
    fitter = Fitter(config.vqgan, worker, encoder, settings["init"])
    state = fitter.state()
    checkpoint.restore(state, settings["resume_path"])
    tracker = build_tracker(worker.is_first, root.stage("vqgan"), state.step, total)
    shards = loading.list_shards(studies, "train")
    per_epoch = loading.steps_per_epoch(shards, train.batch_size, worker.world)
    batches = loading.training_batches(
        settings["root"],
        shards,
        batch_size=train.batch_size,
        world=worker.world,
        rank=worker.rank,
        seed=train.seed,
        start_step=state.step,
        total_steps=total,
        loaders=config.scale.loaders,
    )
    shown: list[tuple[int, dict[str, Tensor]]] = []
    while state.step < total:
        shown.append((state.step + 1, fitter.step(next(batches)["image"], state.step, total)))
        state.step += 1
        ends_epoch = state.step % per_epoch == 0 or state.step == total
        saves = ends_epoch or (train.checkpoint_steps > 0 and state.step % train.checkpoint_steps == 0)
        if saves or len(shown) == 10:  # reading a loss waits for the device, so not at every step
            for step, values in shown:
                tracker.step(step, {name: float(value) for name, value in values.items()})
            shown = []
        if saves:
            due = ends_epoch and (state.step == total or state.step // per_epoch % train.validate_epochs == 0)
            scores = _validate(fitter, state, studies, tracker) if due and worker.is_first else {}
            tracker.flush()
            checkpoint.report(state, worker, "fidelity", scores, lambda folder: save_pretrained(fitter.model, folder))


def _validate(fitter: Fitter, state: checkpoint.TrainState, studies: Stage, tracker: Tracker) -> dict[str, float]:
    """The first worker scores and draws; the others wait for it in Ray Train's barrier when they report."""
    began = time.monotonic()
    scores = fitter.score(read_canvases(studies, "validate", fitter.stage.train.batch_size))
    tracker.score(state.step, {**scores, "seconds": time.monotonic() - began})
    tracker.picture(state.step, "reconstructions", fitter.picture(next(read_canvases(studies, "validate", SHOWN))))
    return scores


def read_canvases(studies: Stage, split: str, batch_size: int) -> Iterator[Pixels]:
    """Canvases uint8 [B, S, S] of a split in their stored order; the last batch of a shard may be smaller."""
    for table in loading.read_split(studies, split, ["image"]):
        for start in range(0, table.num_rows, batch_size):
            yield np.stack([decode_png(data.as_py()) for data in table["image"][start : start + batch_size]])


def load_encoder(root: Root) -> PyramidVisionTransformer:
    """The disease classifier of the `encoder` stage, on the CPU."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = root.stage("encoder").download("model", Path(temporary))
        encoder = PyramidVisionTransformer(from_dict(PVTConfig, json.loads((folder / "config.json").read_text())))
        encoder.load_state_dict(load_file(folder / "model.safetensors"))
    return encoder
