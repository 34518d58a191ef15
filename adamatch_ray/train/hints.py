"""AdaMatch's hints for all studies that the language model is tuned or selected on, made by Ray Data's actors."""

import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import ray.data
import torch

from adamatch_ray.data.loading import calm_ray_data
from adamatch_ray.engines.hints import HintCache
from adamatch_ray.engines.shards import MadeShard
from adamatch_ray.model_config import InstructionConfig
from adamatch_ray.stages import StageRun

SPLITS = ("train", "validate")


def make_hints(run: StageRun) -> dict[str, int]:
    """Make the missing hint shards; rows by file within the stage. Ray must have been started."""
    studies = run.root.stage("studies").require()
    wanted = {name: rows for name, rows in studies.files.items() if rows and name.startswith(SPLITS)}
    files: dict[str, int] = {}
    began = shown = time.monotonic()
    for shard in _make(sorted(wanted), run):
        files[shard.file] = shard.rows
        now = time.monotonic()
        if now - shown > 5 or len(files) == len(wanted):
            shown = now
            left = (now - began) / len(files) * (len(wanted) - len(files))
            print(f"llm hints {len(files)}/{len(wanted)} shards · ETA {left:.0f} s", file=sys.stderr)
    assert files == wanted, "hints have other rows than the studies"
    return {f"hints/{name}": rows for name, rows in sorted(files.items())}


def _make(files: list[str], run: StageRun) -> Iterator[MadeShard]:
    calm_ray_data()
    scale, instructions = run.config.scale, run.config.llm.instructions
    actors = scale.workers if scale.gpu else max(scale.workers, os.cpu_count() or 1)
    shards = ray.data.from_items([{"file": file} for file in files], override_num_blocks=len(files))
    made = shards.map_batches(
        _Maker,
        fn_constructor_args=(run.root.uri, scale.gpu, run.config.evaluate.batch_size, instructions),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(actors, len(files))),
        num_cpus=scale.cpus_per_worker,
        num_gpus=1 if scale.gpu else 0,
    )
    for row in made.iter_rows():
        yield MadeShard(**row)


class _Maker:
    """The actor: one AdaMatch, one shard after another."""

    def __init__(self, root: str, gpu: bool, batch_size: int, shown: InstructionConfig) -> None:
        if not gpu:
            torch.set_num_threads(1)
        device = "cuda" if gpu else "cpu"
        self.cache = HintCache(root, device, batch_size, keywords=shown.keywords, keypatches=shown.keypatches)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        made = self.cache.make(str(batch["file"][0]))._asdict()
        return {name: [value] for name, value in made.items()}
