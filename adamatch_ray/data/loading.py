"""`studies/` shards to batches: what Ray Data streams into a training worker, in an order that can be repeated.

An epoch's order is a pure function of (seed, epoch): shards are permuted, rows are permuted within windows of a few
shards, and each worker takes an equal share of the rows. A worker's whole remaining run is one Ray Dataset of windows,
so a resumed run continues at the very next row, and no pipeline is restarted between epochs.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adamatch_ray.cluster import calm_ray_data
from adamatch_ray.data.images import decode_png
from adamatch_ray.schema import CHEXPERT_LABELS
from adamatch_ray.storage import Root, Stage

Batch = dict[str, Any]
"""image uint8 [B, S, S], labels float32 [B, 14] (NaN: not mentioned), report and study_id object arrays [B]."""

COLUMNS = ("image", "labels", "report", "study_id")


@dataclass(frozen=True)
class ShardFile:
    """A committed shard: its path on the stage's filesystem and its number of rows."""

    path: str
    rows: int


@dataclass(frozen=True)
class Window:
    """A few shards whose rows are shuffled together; rows [start, stop) of the shuffled order are used."""

    paths: tuple[str, ...]
    seed: tuple[int, ...]
    start: int
    stop: int

    def order(self, rows: int) -> np.ndarray:
        """Which of the shards' rows are used, in their shuffled order."""
        return np.random.default_rng(self.seed).permutation(rows)[self.start : self.stop]


def list_shards(stage: Stage, split: str) -> list[ShardFile]:
    """The committed shards of a split. Raises ValueError when the stage is unfinished or the split is empty."""
    manifest = stage.require()
    names = sorted(name for name in manifest.files if name.startswith(f"{split}/") and manifest.files[name] > 0)
    if not names:
        raise ValueError(f"{stage.uri} has no {split} studies; its counts are {manifest.rows}")
    return [ShardFile(f"{stage.path}/{name}", manifest.files[name]) for name in names]


def steps_per_epoch(shards: list[ShardFile], batch_size: int, world: int) -> int:
    """Steps of an epoch: whole batches for all workers. Raises ValueError when there is none."""
    rows = sum(shard.rows for shard in shards)
    if rows < batch_size * world:
        raise ValueError(
            f"{rows} studies give {world} worker(s) no batch of {batch_size}; use a smaller train.batch_size, or fewer "
            "workers"
        )
    return rows // (batch_size * world)


def plan_windows(
    shards: list[ShardFile], *, batch_size: int, world: int, rank: int, seed: int, epoch: int, skip: int, window: int
) -> list[Window]:
    """One worker's windows of one epoch, beginning after `skip` steps; they hold exactly the remaining steps' rows.

    The windows of all shards lie end to end, and each worker takes its share of their rows: only the windows at a
    share's ends are read by two workers, and no row is left out but those of the last batch that is not whole.
    """
    order = np.random.default_rng((seed, epoch)).permutation(len(shards))
    share = steps_per_epoch(shards, batch_size, world) * batch_size
    first, end = rank * share + skip * batch_size, (rank + 1) * share
    windows: list[Window] = []
    position, group = 0, []
    for number, shard in enumerate(shards[i] for i in order):
        group.append(shard)
        rows = sum(s.rows for s in group)
        if rows < window and number < len(shards) - 1:
            continue
        start, stop = max(0, first - position), min(rows, end - position)
        if start < stop:
            # 0 was the worker's number, when each had shards of its own: one worker's order has stayed.
            windows.append(Window(tuple(s.path for s in group), (seed, epoch, 0, number), start, stop))
        position, group = position + rows, []
    return windows


class WindowReader:
    """Reads a window: shuffled, decoded rows. The Ray Data actor, usable without Ray as well."""

    def __init__(self, root: str) -> None:
        self.studies = Root(root).stage("studies")

    def read(self, window: Window) -> Batch:
        """The rows of a window in their shuffled order."""
        tables = [_read(self.studies, path, list(COLUMNS)) for path in window.paths]
        table = pa.concat_tables(tables)
        return to_batch(table.take(pa.array(window.order(table.num_rows))))

    def __call__(self, item: dict[str, Any]) -> Batch:
        return self.read(Window(**json.loads(item["window"][0])))


def to_batch(table: pa.Table) -> Batch:
    """Decode the rows of a studies table."""
    return {
        "image": np.stack([decode_png(data.as_buffer()) for data in table["image"]]),
        "labels": _labels(table["labels"]),
        "report": table["report"].to_numpy(),
        "study_id": table["study_id"].to_numpy(),
    }


def training_batches(
    root: str,
    shards: list[ShardFile],
    *,
    batch_size: int,
    world: int,
    rank: int,
    seed: int,
    start_step: int,
    total_steps: int,
    window: int = 2048,
    loaders: int = 1,
    reader: type[WindowReader] = WindowReader,
    options: dict[str, Any] | None = None,
) -> Iterator[Batch]:
    """Batches of steps start_step … total_steps - 1, streamed by Ray Data, the same after any interruption.

    `reader` (made with `root` and `options`) turns a window into rows; they are what shards, batches and windows count.
    """
    import ray.data

    per_epoch = steps_per_epoch(shards, batch_size, world)
    windows: list[Window] = []
    for epoch in range(start_step // per_epoch, -(-total_steps // per_epoch)):
        windows += plan_windows(
            shards,
            batch_size=batch_size,
            world=world,
            rank=rank,
            seed=seed,
            epoch=epoch,
            skip=max(0, start_step - epoch * per_epoch),
            window=window,
        )
    calm_ray_data()
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    items = [{"window": json.dumps(asdict(window))} for window in windows]
    stream = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        reader,
        fn_constructor_kwargs={"root": root, **(options or {})},
        compute=ray.data.ActorPoolStrategy(size=loaders),
        batch_size=1,
        num_cpus=0.25,
    )
    batches = stream.iter_batches(batch_size=batch_size, batch_format="numpy", prefetch_batches=2)
    for _, batch in zip(range(start_step, total_steps), batches, strict=False):
        yield cast(Batch, batch)


def read_split(stage: Stage, split: str, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """Tables of a split's shards in their stored order, a shard at a time."""
    for shard in list_shards(stage, split):
        yield _read(stage, shard.path, columns)


def read_parts(stage: Stage, split: str, size: int, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """As `read_split`, at most `size` studies at a time; the last part of a shard may be smaller."""
    for table in read_split(stage, split, columns):
        yield from (table.slice(start, size) for start in range(0, table.num_rows, size))


def first_studies(stage: Stage, split: str, count: int, columns: list[str] | None = None) -> pa.Table:
    """The first `count` studies of a split in their stored order, or all where it has fewer."""
    tables: list[pa.Table] = []
    for table in read_split(stage, split, columns):
        tables.append(table.slice(0, count))
        count -= tables[-1].num_rows
        if not count:
            break
    return pa.concat_tables(tables)


def _read(stage: Stage, path: str, columns: list[str] | None) -> pa.Table:
    return stage.read_table(path.removeprefix(f"{stage.path}/"), columns)


def _labels(column: pa.ChunkedArray) -> np.ndarray:
    width = len(CHEXPERT_LABELS)
    filled = pc.fill_null(column.combine_chunks().cast(pa.list_(pa.float32())), [None] * width)
    values = pc.list_flatten(filled)
    return np.asarray(values.to_numpy(zero_copy_only=False), dtype=np.float32).reshape(-1, width)
