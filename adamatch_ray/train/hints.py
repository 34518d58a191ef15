"""AdaMatch's hints for all studies that the language model is tuned or selected on, made by Ray Data's actors."""

import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import ray.data
import torch

from adamatch_ray.config import ScaleConfig
from adamatch_ray.data.loading import calm_ray_data
from adamatch_ray.engines.hints import HintCache
from adamatch_ray.engines.shards import MadeShard
from adamatch_ray.stages import StageRun

SPLITS = ("train", "validate")


def make_hints(run: StageRun) -> dict[str, int]:
    """Make the missing hint shards; rows by file within the stage. Ray must have been started."""
    studies = run.root.stage("studies").require()
    wanted = {name: rows for name, rows in studies.files.items() if rows and name.startswith(SPLITS)}
    files: dict[str, int] = {}
    began = shown = time.monotonic()
    for shard in _make(sorted(wanted), run.root.uri, run.config.scale, run.config.evaluate.batch_size):
        files[shard.file] = shard.rows
        now = time.monotonic()
        if now - shown > 5 or len(files) == len(wanted):
            shown = now
            left = (now - began) / len(files) * (len(wanted) - len(files))
            print(f"llm hints {len(files)}/{len(wanted)} shards · ETA {left:.0f} s", file=sys.stderr)
    assert files == wanted, "hints have other rows than the studies"
    return {f"hints/{name}": rows for name, rows in sorted(files.items())}


def _make(files: list[str], root: str, scale: ScaleConfig, batch_size: int) -> Iterator[MadeShard]:
    calm_ray_data()
    actors = scale.workers if scale.gpu else max(scale.workers, os.cpu_count() or 1)
    shards = ray.data.from_items([{"file": file} for file in files], override_num_blocks=len(files))
    made = shards.map_batches(
        _Maker,
        fn_constructor_args=(root, scale.gpu, batch_size),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(actors, len(files))),
        num_cpus=scale.cpus_per_worker,
        num_gpus=1 if scale.gpu else 0,
    )
    for row in made.iter_rows():
        yield MadeShard(**row)


class _Maker:
    """The actor: one AdaMatch, one shard after another."""

    def __init__(self, root: str, gpu: bool, batch_size: int) -> None:
        if not gpu:
            torch.set_num_threads(1)
        self.cache = HintCache(root, "cuda" if gpu else "cpu", batch_size)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        made = self.cache.make(str(batch["file"][0]))._asdict()
        return {name: [value] for name, value in made.items()}
