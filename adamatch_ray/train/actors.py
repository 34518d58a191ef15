"""Shards made by a pool of actors, as every offline stage makes them."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from adamatch_ray.config import ScaleConfig
from adamatch_ray.data.loading import calm_ray_data
from adamatch_ray.engines.shards import MadeShard
from adamatch_ray.train.cluster import actors, start_ray


class ShardMaker(Protocol):
    """Makes one file's shard after another."""

    def make(self, file: str) -> MadeShard:
        """The shard of a file, made unless it is there."""


def make_shards(
    files: Sequence[str], maker: Callable[[], ShardMaker], scale: ScaleConfig, label: str
) -> Iterator[MadeShard]:
    """Each file's shard as `maker().make(file)` makes it, in no particular order; progress on stderr.

    On a CPU an actor computes with one thread, so that its sums do not depend on the machine's cores.
    """
    import ray.data

    start_ray(scale)
    calm_ray_data()
    made = ray.data.from_items([{"file": file} for file in files], override_num_blocks=len(files)).map_batches(
        _Actor,
        fn_constructor_args=(maker, scale.gpu),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(actors(scale), len(files))),
        num_cpus=scale.cpus_per_worker,
        num_gpus=1 if scale.gpu else 0,
    )
    began = shown = 0.0
    for done, row in enumerate(made.iter_rows()):
        yield MadeShard(**row)
        now = time.monotonic()
        began = began or now  # the first shard also waited for the actors
        if done and (now - shown > 5 or done + 1 == len(files)):
            shown = now
            left = (now - began) / done * (len(files) - done - 1)
            print(f"{label} {done + 1}/{len(files)} shards · ETA {left:.0f} s", file=sys.stderr)


class _Actor:
    """One maker, one shard after another."""

    def __init__(self, maker: Callable[[], ShardMaker], gpu: bool) -> None:
        import torch

        if not gpu:
            torch.set_num_threads(1)
        self.maker = maker()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        made = self.maker.make(str(batch["file"][0]))
        return {name: [value] for name, value in made._asdict().items()}
