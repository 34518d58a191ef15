"""Shards of every offline stage: there whole or not at all, made by a pool that tells how far it is.

A shard's footer holds its identity, so a rerun keeps those of the same inputs and replaces the others.
"""

import hashlib
import json
import math
import pickle
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from adamatch_ray.cluster import actors, calm_ray_data, start_ray
from adamatch_ray.config import ScaleConfig
from adamatch_ray.storage import Stage

MOST_BLOCKS = 2000
"""Most blocks that a list of orders travels in."""

Order = TypeVar("Order", contravariant=True)


@dataclass(frozen=True)
class MadeShard:
    """A shard that is there: its name, its rows, whether an earlier run had made it; what else its maker counted.

    `counts` are of what is not among the rows, `notes` of some that are.
    """

    file: str
    rows: int
    reused: bool
    counts: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    notes: Mapping[str, int] = field(default_factory=dict)


class ShardMaker(Protocol[Order]):
    """Makes one shard after another; an order names what a shard is made from."""

    def make(self, order: Order, /) -> MadeShard:
        """The shard of an order, made unless it is there."""


def spread(
    orders: Sequence[Any], maker: Callable[[], ShardMaker[Any]], scale: ScaleConfig, label: str, models: bool = True
) -> Iterator[MadeShard]:
    """Each order's shard as `maker().make(order)` makes it, in no particular order; progress on stderr.

    `models`: a maker holds models, so each of a few actors keeps one (with a GPU where the run has them); otherwise a
    shard is a task, on any core of the cluster. On a CPU a maker computes with one thread, so that its sums do not
    depend on the machine's cores.
    """
    if not orders:
        return
    import ray.data

    start_ray(scale)
    calm_ray_data()
    listed = ray.data.from_items(
        [{"order": pickle.dumps(order)} for order in orders], override_num_blocks=min(len(orders), MOST_BLOCKS)
    )
    if models:
        made = listed.map_batches(
            _Actor,
            fn_constructor_args=(maker, scale.gpu),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(actors(scale), len(orders))),
            num_cpus=scale.cpus_per_worker,
            num_gpus=1 if scale.gpu else 0,
        )
    else:
        made = listed.map_batches(lambda batch: _made(maker(), batch), batch_size=1)
    progress = Progress(label, len(orders), "shards")
    for row in made.iter_rows():
        yield pickle.loads(row["made"])
        progress.add()


class Progress:
    """A line on stderr every five seconds, and at the end: how far some work is and how long the rest will take.

    The time left is counted from the first piece on, which also waited for everything to start.
    """

    def __init__(self, label: str, total: int, unit: str, interval: float = 5.0, done: int = 0) -> None:
        self.label, self.total, self.unit, self.interval = label, total, unit, interval
        self.done = self.first = done
        self.began = self.shown = 0.0

    def add(self, amount: int = 1, values: str = "", at_most: float = math.inf) -> None:
        """Count finished pieces; `values` are shown too. The work ends in `at_most` seconds even if some are left."""
        self.done += amount
        now = time.monotonic()
        if not self.began:
            self.began, self.first = now, self.done
        # A single piece is no progress: whatever is said of it comes with the answer.
        if self.total > 1 and (now - self.shown > self.interval or self.done == self.total):
            self.shown = now
            left = min(self.seconds_left(now), at_most)
            parts = [f"{self.label} {self.done}/{self.total} {self.unit}", values]
            parts += [f"ETA {clock(left)}"] if left < math.inf else []
            print(" · ".join(part for part in parts if part), file=sys.stderr)

    def seconds_left(self, now: float) -> float:
        """Seconds that the rest will take, infinity while that cannot be told."""
        if self.done == self.first and self.done < self.total:
            return math.inf
        return (now - self.began) / max(1, self.done - self.first) * (self.total - self.done)


def clock(seconds: float) -> str:
    """Seconds as hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def identity_of(*parts: Any) -> str:
    """Identity of an output: a digest over everything that decides it (plain values)."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def write_shard(stage: Stage, name: str, table: pa.Table, identity: str) -> None:
    """Write a table as a shard of this identity, beside what its schema already says."""
    footer = {**(table.schema.metadata or {}), b"identity": identity.encode()}
    stage.write_table(name, table.replace_schema_metadata(dict(sorted(footer.items()))))


def read_footer(stage: Stage, name: str, identity: str = "") -> tuple[int, dict[str, str]] | None:
    """The rows of the shard of this name and what its footer says, if it is there with this identity (or any).

    One that is to be used again is read, page by page: a damaged shard counts as none.
    """
    path = f"{stage.path}/{name}"
    if stage.filesystem.get_file_info(path).type != pafs.FileType.File:
        return None
    try:
        metadata = pq.read_metadata(path, filesystem=stage.filesystem)
        footer = {key.decode(): value.decode() for key, value in (metadata.metadata or {}).items()}
        if identity and footer.get("identity") == identity:
            stage.read_table(name)
    except (OSError, UnicodeDecodeError, pa.ArrowException):
        return None
    return (int(metadata.num_rows), footer) if identity in ("", footer.get("identity")) else None


def make_shard(stage: Stage, name: str, identity: str, table: Callable[[], pa.Table]) -> MadeShard:
    """The shard of this name and identity, made of `table()` unless it is there."""
    if footer := read_footer(stage, name, identity):
        return MadeShard(name, footer[0], reused=True)
    rows = table()
    write_shard(stage, name, rows, identity)
    return MadeShard(name, rows.num_rows, reused=False)


class _Actor:
    """One maker, one shard after another."""

    def __init__(self, maker: Callable[[], ShardMaker[Any]], gpu: bool) -> None:
        import torch

        if not gpu:
            torch.set_num_threads(1)
        self.maker = maker()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return _made(self.maker, batch)


def _made(maker: ShardMaker[Any], batch: dict[str, Any]) -> dict[str, Any]:
    return {"made": [pickle.dumps(maker.make(pickle.loads(order))) for order in batch["order"]]}
