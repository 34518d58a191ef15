"""Weak scaling of data preparation and token caching: twice the actors for twice the shards, on one machine.

`efficiency` is the speed of n actors over n times that of one. What is missing has one of two reasons, and both are
shown: actors wait for a core (`busy` below 1: the cores' share of the actors' time), or a row costs more CPU time when
others compute beside it (`cpu_ms` grows: shared caches, memory, hyper-threads).
"""

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from adamatch_ray.config import ScaleConfig, load_config
from adamatch_ray.storage import Manifest, Root
from benchmarks.measure import Row, row

ACTORS = (1, 2, 4)


class Maker:
    """An actor's body: shards of one kind, made one after another."""

    def __init__(self, kind: str, root: str, shards: list[Any], rows_per_shard: int) -> None:
        import torch

        torch.set_num_threads(1)
        self.kind, self.root = kind, root
        self.shards = shards
        self.data = replace(load_config("phantom").data, rows_per_shard=rows_per_shard)
        if kind == "tokens":
            from adamatch_ray.pipeline.tokens import TokenCache

            self.cache = TokenCache(root)
            self.cache.make(shards[0])  # compiles what it compiles before anything is timed

    def make(self, numbers: list[int]) -> tuple[int, float]:
        """Rows made, and CPU seconds of this process."""
        from adamatch_ray.pipeline.studies import StudyShards

        before, rows = time.process_time(), 0
        for number in numbers:
            maker = self.cache if self.kind == "tokens" else StudyShards(self.data, self.root)
            rows += maker.make(self.shards[number]).rows
        return rows, time.process_time() - before


def rows(rows_per_shard: int = 64, shards_per_actor: int = 4) -> list[Row]:
    """A row for each kind of work and number of actors; the peer is n times the speed of one actor."""
    from adamatch_ray.cluster import start_ray

    start_ray(ScaleConfig(local_cpus=max(ACTORS)))
    table = []
    for kind in ("prepare", "tokens"):
        alone = 0.0
        for actors in ACTORS:
            with tempfile.TemporaryDirectory() as folder:
                count, wall, cpu = _measure(kind, folder, actors, rows_per_shard, shards_per_actor)
            alone = alone or count / wall
            table.append(
                row(f"{kind}, {actors} actor(s)", "rows/s", count / wall, alone * actors, more_is_better=True,
                    packages=("ray",), cpu_ms=round(1e3 * cpu / count, 2), busy=round(cpu / (wall * actors), 2))
            )  # fmt: skip
    return table


def _measure(kind: str, root: str, actors: int, rows_per_shard: int, each: int) -> tuple[int, float, float]:
    """Rows, wall seconds and CPU seconds of `actors` actors that make `each` shards."""
    import ray

    from adamatch_ray.pipeline import studies as preparing

    data = replace(load_config("phantom").data, rows_per_shard=rows_per_shard, phantoms=rows_per_shard * each * actors)
    listed = [entry for entry in preparing.list_rows(data) if entry["split"] == "train"]
    shards: list[Any] = preparing.plan(listed, data)[0]
    if kind == "tokens":
        shards = _studies_and_model(root, shards[: each * actors + 1], data)
    offset = 1 if kind == "tokens" else 0  # the first shard is every actor's warm-up
    spread = [list(range(offset + n * each, offset + (n + 1) * each)) for n in range(actors)]
    spread = [[n for n in numbers if n < len(shards)] for numbers in spread]
    actor_class: Any = ray.remote(num_cpus=0)(Maker)
    made = [actor_class.remote(kind, root, shards, rows_per_shard) for _ in spread]
    ray.get([actor.make.remote([]) for actor in made])  # all of them are there
    began = time.monotonic()
    done = ray.get([actor.make.remote(numbers) for actor, numbers in zip(made, spread, strict=True)])
    wall = time.monotonic() - began
    for actor in made:
        ray.kill(actor)
    return sum(count for count, _ in done), wall, sum(cpu for _, cpu in done)


def _studies_and_model(root: str, shards: list[Any], data: Any) -> list[str]:
    """A finished `studies/` and an untrained `vqgan/` of the phantom preset's size; the names of the shards."""
    import torch

    from adamatch_ray.models.vqgan import VQGAN
    from adamatch_ray.models.vqgan_io import save_pretrained
    from adamatch_ray.pipeline.studies import StudyShards
    from adamatch_ray.train.fit_vqgan import model_config

    files = {shard.file: StudyShards(data, root).make(shard).rows for shard in shards}
    Root(root).stage("studies").commit(Manifest("studies", "scaling", {}, {}, {"train": sum(files.values())}, files))
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(VQGAN(model_config(load_config("phantom").vqgan)), folder)
        Root(root).stage("vqgan").upload(Path(folder), "model")
    Root(root).stage("vqgan").commit(Manifest("vqgan", "scaling", {}, {}))
    return sorted(files)
