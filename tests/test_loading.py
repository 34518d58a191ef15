"""The order of studies in training: a pure function of (seed, epoch) that any resumed run can re-enter."""

import json
from collections import Counter
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from adamatch_ray.data.images import encode_png
from adamatch_ray.data.loading import (
    ShardFile,
    Window,
    WindowReader,
    list_shards,
    plan_windows,
    read_split,
    steps_per_epoch,
    to_batch,
)
from adamatch_ray.schema import STUDY
from adamatch_ray.storage import Root

SHARDS = [ShardFile(f"part-{i}", rows) for i, rows in enumerate((50, 50, 50, 37, 50, 11, 50, 50, 50))]
PLAN: dict[str, Any] = {"batch_size": 8, "world": 2, "rank": 0, "seed": 3, "epoch": 0, "skip": 0, "window": 120}


def planned(**changes: Any) -> list[Window]:
    return plan_windows(SHARDS, **{**PLAN, **changes})


def rows_of(windows: list[Window]) -> list[tuple[str, int]]:
    """The rows that windows stand for, in order, by the shuffling that `Window` documents."""
    sizes = {shard.path: shard.rows for shard in SHARDS}
    found: list[tuple[str, int]] = []
    for window in windows:
        rows = [(path, i) for path in window.paths for i in range(sizes[path])]
        order = np.random.default_rng(window.seed).permutation(len(rows))
        found += [rows[i] for i in order[window.start : window.stop]]
    return found


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("window", [1, 120, 10_000])
def test_each_worker_gets_exactly_its_steps_and_no_row_twice(world: int, window: int) -> None:
    steps = steps_per_epoch(SHARDS, 8, world)
    for epoch in range(3):
        taken = [rows_of(planned(world=world, rank=rank, epoch=epoch, window=window)) for rank in range(world)]
        assert [len(rows) for rows in taken] == [8 * steps] * world
        together = Counter(row for rows in taken for row in rows)
        assert max(together.values()) == 1


@pytest.mark.parametrize("world", [1, 2, 5, 12])
def test_an_epoch_leaves_out_less_than_one_batch_of_all_workers(world: int) -> None:
    """Workers share windows where there are fewer of these, or of shards, than of them."""
    rows = [row for rank in range(world) for row in rows_of(planned(world=world, rank=rank))]
    assert 0 <= sum(shard.rows for shard in SHARDS) - len(rows) < 8 * world and len(set(rows)) == len(rows)


def test_one_worker_s_order_is_what_it_was() -> None:
    """Demos and checkpoints of one worker go on with the studies they would have seen."""
    shards = [SHARDS[i] for i in np.random.default_rng((3, 0)).permutation(len(SHARDS))]
    first = planned(world=1)[0]
    assert first.seed == (3, 0, 0, 2) and first.paths == tuple(shard.path for shard in shards[:3])


def test_the_plan_is_a_function_of_its_arguments() -> None:
    assert planned() == planned()
    assert planned() != planned(seed=4)
    assert rows_of(planned(epoch=0)) != rows_of(planned(epoch=1))
    assert {path for path, _ in rows_of(planned(epoch=0))} != {path for path, _ in rows_of(planned(epoch=1))}


@pytest.mark.parametrize("skip", [0, 1, 5, 7, 13, 20, 100])
@pytest.mark.parametrize("window", [1, 120, 10_000])
def test_a_plan_that_skips_is_the_tail_of_the_whole(skip: int, window: int) -> None:
    whole = rows_of(planned(window=window))
    assert rows_of(planned(skip=skip, window=window)) == whole[8 * skip :]


def test_rows_are_shuffled_within_their_window() -> None:
    rows = rows_of(planned(world=1, window=10_000))
    same_shard = sum(a[0] == b[0] for a, b in pairwise(rows))
    assert same_shard < len(rows) / 3, "neighbours come from different shards"
    assert rows != sorted(rows)


def test_too_few_studies_for_a_batch_are_refused_with_the_fix() -> None:
    few = SHARDS[:2]
    assert steps_per_epoch(few, 50, 2) == 1
    with pytest.raises(ValueError, match=r"100 studies give 2 worker\(s\) no batch of 51.*batch_size"):
        steps_per_epoch(few, 51, 2)
    assert steps_per_epoch(few, 8, 3) == 4, "though one of three workers has no shard of its own"


def test_windows_are_read_as_planned(studies_root: Path) -> None:
    stage = Root(str(studies_root)).stage("studies")
    shards = list_shards(stage, "train")
    assert [shard.rows for shard in shards] == [32, 32, 32]
    reader = WindowReader(str(studies_root))
    common: dict[str, Any] = {"batch_size": 16, "world": 1, "rank": 0, "seed": 0, "epoch": 0, "window": 64}
    windows = plan_windows(shards, **common, skip=0)
    batches = [reader.read(window) for window in windows]
    ids = [str(i) for batch in batches for i in batch["study_id"]]
    stored = [i for table in read_split(stage, "train", ["study_id"]) for i in table["study_id"].to_pylist()]
    assert sorted(ids) == sorted(stored) and ids != stored
    assert batches[0]["image"].shape == (64, 64, 64) and batches[0]["image"].dtype == np.uint8
    assert batches[0]["labels"].shape == (64, 14) and batches[0]["labels"].dtype == np.float32
    tail = plan_windows(shards, **common, skip=2)
    resumed = [reader({"window": [json.dumps(asdict(window))]}) for window in tail]  # as Ray Data passes them on
    assert [str(i) for batch in resumed for i in batch["study_id"]] == ids[32:]


def test_every_part_of_a_batch_belongs_to_the_same_study(studies_root: Path) -> None:
    stage = Root(str(studies_root)).stage("studies")
    table = pa.concat_tables(read_split(stage, "train"))
    plain = to_batch(table)
    at = {study: i for i, study in enumerate(plain["study_id"])}
    shards = list_shards(stage, "train")
    window = Window(tuple(shard.path for shard in shards), (1, 2), 5, 25)
    batch = WindowReader(str(studies_root)).read(window)
    for row, study in enumerate(batch["study_id"]):
        np.testing.assert_array_equal(batch["image"][row], plain["image"][at[study]])
        np.testing.assert_array_equal(batch["labels"][row], plain["labels"][at[study]])
        assert batch["report"][row] == plain["report"][at[study]]


def test_unknown_labels_are_not_a_number() -> None:
    rows = [
        {"image": encode_png(np.zeros((4, 4), np.uint8)), "labels": labels, "report": "r", "study_id": "s"}
        for labels in (None, [1.0, 0.0, -1.0] + [None] * 11, [0.0] * 14)
    ]
    table = pa.Table.from_pylist([{**dict.fromkeys(STUDY.names), **row} for row in rows], schema=STUDY)
    labels = to_batch(table)["labels"]
    assert np.isnan(labels[0]).all()
    np.testing.assert_array_equal(labels[1], [1, 0, -1] + [np.nan] * 11)
    np.testing.assert_array_equal(labels[2], np.zeros(14))
    np.testing.assert_array_equal(to_batch(table.slice(1, 2))["labels"], labels[1:])


def test_a_split_without_studies_and_an_unfinished_stage_are_refused(studies_root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"run: python jobs/prepare_data\.py"):
        list_shards(Root(str(tmp_path)).stage("studies"), "train")
    with pytest.raises(ValueError, match="has no other studies"):
        list_shards(Root(str(studies_root)).stage("studies"), "other")
