"""Offline generation: exactly once, the same bytes however they were made, and bad rows with their reason."""

import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from adamatch_ray.data.images import decode_png
from adamatch_ray.engines.cycle import CycleEngine, ImageAnswer, ReportAnswer, row_seed
from adamatch_ray.geometry import CanvasImage
from adamatch_ray.model_config import GenerationSettings
from adamatch_ray.pipeline.generation_inputs import (
    InputFile,
    Item,
    copy_table,
    cut,
    read_items,
    split_files,
    table_directions,
)
from adamatch_ray.pipeline.generations import GenerationShard, ShardGenerator, generate_rows
from adamatch_ray.schema import GENERATION
from adamatch_ray.storage import Root

SETTINGS = GenerationSettings(report_tokens=16)
VERSIONS = {"llm": "llm-tiny"}
BOTH = ("cxr_to_report", "report_to_cxr")


@pytest.fixture
def root(cycle_root: Path, tmp_path: Path) -> Path:
    """The shared root, under a folder of its own where `generations/` may be written."""
    folder = tmp_path / "root"
    folder.mkdir()
    for stage in cycle_root.iterdir():
        (folder / stage.name).symlink_to(stage)
    return folder


@pytest.fixture(scope="module")
def engine(cycle_root: Path) -> CycleEngine:
    return CycleEngine.load(Root(str(cycle_root)), settings=SETTINGS)


def generator(
    root: Path, engine: CycleEngine, settings: GenerationSettings = SETTINGS, **change: Any
) -> ShardGenerator:
    options: dict[str, Any] = {"cycle": True, "seed": 0, "versions": VERSIONS, **change}
    made = ShardGenerator(str(root), "cpu", settings, **options)
    made.__dict__["engine"] = engine
    return made


def plan(root: Path, size: int = 5, limit: int = 8) -> list[GenerationShard]:
    files = split_files(Root(str(root)).stage("studies"), "test")
    slices = list(cut(files, size, limit))
    return [GenerationShard(way, number, part) for way in BOTH for number, part in enumerate(slices)]


def digests(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root / "generations").as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((root / "generations").glob("*_to_*/*.parquet"))
    }


def test_cutting_takes_every_row_once_in_order() -> None:
    files = [InputFile("a", 3, ""), InputFile("b", 0, ""), InputFile("c", 4, "")]
    for size, limit in ((2, 0), (3, 0), (7, 0), (10, 0), (2, 5), (4, 3), (1, 1)):
        groups = list(cut(files, size, limit))
        rows = [(part.file.name, i) for group in groups for part in group for i in range(part.start, part.stop)]
        wanted = [(file.name, i) for file in files for i in range(file.rows)]
        assert rows == wanted[: limit or None]
        sizes = [sum(part.stop - part.start for part in group) for group in groups]
        assert all(n == size for n in sizes[:-1]) and 0 < sizes[-1] <= size


def test_shards_hold_the_rows_that_the_engine_gives(root: Path, engine: CycleEngine) -> None:
    made = [generator(root, engine).make(shard) for shard in plan(root)]
    assert [(m.file, m.rows, m.reused) for m in made] == [
        ("cxr_to_report/00000.parquet", 5, False),
        ("cxr_to_report/00001.parquet", 3, False),
        ("report_to_cxr/00000.parquet", 5, False),
        ("report_to_cxr/00001.parquet", 3, False),
    ]
    studies = pq.read_table(next((root / "studies" / "test").glob("*.parquet"))).slice(0, 8).to_pylist()
    tables = {way: pq.read_table(root / "generations" / way) for way in BOTH}
    assert all(table.schema.equals(GENERATION) for table in tables.values())
    for study, row in zip(studies, tables["cxr_to_report"].to_pylist(), strict=True):
        seed = row_seed(0, study["study_id"], "cxr_to_report")
        assert (row["study_id"], row["dicom_id"], row["seed"]) == (study["study_id"], study["dicom_id"], seed)
        assert row["report"] is not None and row["image"] is None and row["cycle_report"] is None
        assert decode_png(row["cycle_image"]).shape == (64, 64) and len(row["cycle_image_tokens"]) == 64
        for keyword in row["keywords"]:
            assert 0 <= keyword["x0"] <= keyword["x1"] <= study["width"] and keyword["group"]
    for study, row in zip(studies, tables["report_to_cxr"].to_pylist(), strict=True):
        assert row["study_id"] == study["study_id"] and row["report"] is None
        tokens = np.array([row["image_tokens"]])
        assert np.array_equal(decode_png(row["image"]), engine.tokenizer.decode(tokens)[0])
        assert row["cycle_report"] is not None and {k["entry"] for k in row["keypatches"]} <= set(range(12))
        assert row["phrases"], "every phantom's report names or denies a finding"
        for phrase in row["phrases"]:
            assert phrase["denied"] == (phrase["x0"] is None) == (phrase["outline"] is None)
            if not phrase["denied"]:
                assert 0 <= phrase["x0"] <= phrase["x"] <= phrase["x1"] <= 64 and phrase["outline"]
    assert len({row["report"] for row in tables["cxr_to_report"].to_pylist()}) > 4
    counted = {kind for m in made for kind in m.counts}
    assert counted <= {"ok", "truncated"}


def test_finished_shards_are_kept_and_others_replaced(root: Path, engine: CycleEngine) -> None:
    shards = plan(root, limit=4)
    worker = generator(root, engine)
    first = [worker.make(shard) for shard in shards]
    before = digests(root)
    again = generator(root, engine, GenerationSettings(report_tokens=16, batch_size=2))
    for shard, made in zip(shards, first, strict=True):
        kept = again.make(shard)
        assert kept.reused and (kept.file, kept.counts) == (made.file, made.counts)
    assert digests(root) == before
    for other in (
        generator(root, engine, GenerationSettings(report_tokens=15)),
        generator(root, engine, seed=1),
        generator(root, engine, versions={"llm": "another"}),
        generator(root, engine, cycle=False),
    ):
        assert not other.make(shards[0]).reused
    assert not worker.make(shards[0]).reused
    assert digests(root) == before


def test_batches_and_order_leave_no_trace(root: Path, engine: CycleEngine, cycle_root: Path) -> None:
    shards = plan(root)
    worker = generator(root, engine)
    for shard in shards:
        worker.make(shard)
    before = digests(root)
    shutil.rmtree(root / "generations")
    settings = GenerationSettings(report_tokens=16, batch_size=2)
    other = generator(root, CycleEngine.load(Root(str(cycle_root)), settings=settings), settings)
    for shard in reversed(shards):
        other.make(pickle.loads(pickle.dumps(shard)))
    assert digests(root) == before


def test_rows_without_the_cycle_hold_the_first_half(root: Path, engine: CycleEngine) -> None:
    items = read_items(Root(str(root)), plan(root)[0].slices, "cxr_to_report", 64)
    half = generate_rows(engine, "cxr_to_report", items[:2], 0, cycle=False)
    whole = generate_rows(engine, "cxr_to_report", items[:2], 0, cycle=True)
    for short, long in zip(half, whole, strict=True):
        assert short["report"] == long["report"] and short["cycle_image"] is None is not long["cycle_image"]
        assert short["keypatches"] is None


class Scripted:
    """An engine of prepared answers, to look at the rows made of them."""

    def __init__(self, *statuses: tuple[str, str]) -> None:
        empty = np.zeros(0, np.uint16)
        self.answers = [(ReportAnswer("r", [], empty, a), ImageAnswer(None, empty, [], b)) for a, b in statuses]

    def image_cycle(self, images: list[Any], seeds: list[int]) -> list[Any]:
        return self.answers

    def phrases(self, pairs: list[Any]) -> list[list[Any]]:
        return [[] for _ in pairs]


def test_status_is_the_gravest_and_says_where() -> None:
    engine: Any = Scripted(
        ("ok", "ok"),
        ("truncated: a", "ok"),
        ("ok", "error: b"),
        ("truncated: a", "error: b"),
        ("error: a", "error: b"),
    )
    items = [Item(str(i), "", "given") for i in range(5)]
    items.insert(1, Item("bad", "", None, "zero-byte file"))
    rows = generate_rows(engine, "cxr_to_report", items, 0, cycle=True)
    assert [row["status"] for row in rows] == [
        "ok",
        "error: zero-byte file",
        "truncated: a",
        "error: in the second half, b",
        "error: in the second half, b",
        "error: a",
    ]
    assert [row["study_id"] for row in rows] == ["0", "bad", "1", "2", "3", "4"]
    assert [row["report"] for row in rows] == ["r", None, "r", "r", "r", None]
    assert [row["phrases"] for row in rows] == [[], None, [], [], [], None]


def write_table(folder: Path, kind: str) -> Path:
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (90, 70), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "good.png")
    (folder / "empty.jpg").write_bytes(b"")
    rows = [
        {"id": "a", "image": "good.png", "report": "The heart is enlarged."},
        {"id": "b", "image": "empty.jpg", "report": "effusion " * 3000},
        {"id": "c", "image": "absent.png", "report": ""},
        {"id": "", "image": str(folder / "good.png"), "report": "A nodule___ in the left lung"},
    ]
    path = folder / f"mine.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        lines = [",".join(f'"{value}"' for value in row.values()) for row in rows]
        path.write_text("\n".join(["id,image,report", *lines]) + "\n")
    return path


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_table_of_the_user_is_read_row_by_row(root: Path, engine: CycleEngine, tmp_path: Path, kind: str) -> None:
    table = write_table(tmp_path / "raw", kind)
    stage = Root(str(root)).stage("generations")
    (slices,) = cut(copy_table(str(table), stage), 64)
    assert table_directions(str(table), BOTH) == list(BOTH)
    items = read_items(Root(str(root)), slices, "cxr_to_report", 64)
    assert [(item.study_id, item.problem) for item in items] == [
        ("a", ""),
        ("b", "zero-byte file"),
        ("c", "the image cannot be read: No such file or directory"),
        ("row-4", ""),
    ]
    assert isinstance(items[0].given, CanvasImage)
    assert (items[0].given.height, items[0].given.width, items[0].given.pixels.shape) == (90, 70, (64, 64))
    made = [generator(root, engine).make(GenerationShard(way, 0, slices)) for way in BOTH]
    assert made[0].counts.get("error") == 2 and made[1].counts["error"] == 2
    rows = pq.read_table(root / "generations" / "report_to_cxr").to_pylist()
    assert rows[1]["status"].startswith("error: a prompt of ") and "exceed the context of 640" in rows[1]["status"]
    assert rows[2]["status"] == "error: the row has no report"
    assert all((row["image"] is None) == (row["study_id"] in "bc") for row in rows)
    assert read_items(Root(str(root)), slices, "report_to_cxr", 64)[3].given == "A nodule in the left lung"


def test_a_table_is_copied_in_files_and_limited(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adamatch_ray.pipeline.generation_inputs.TABLE_ROWS", 3)
    path = tmp_path / "reports.csv"
    path.write_text("id,report\n" + "".join(f"{i},report {i} is here\n" for i in range(8)))
    stage = Root(str(root)).stage("generations")
    assert table_directions(str(path), BOTH) == ["report_to_cxr"]
    assert [file.rows for file in copy_table(str(path), stage)] == [3, 3, 2]
    files = list(copy_table(str(path), stage, limit=4))
    assert [(file.name, file.rows) for file in files] == [
        ("generations/inputs/00000.parquet", 3),
        ("generations/inputs/00001.parquet", 1),
    ]
    items = [item for part in cut(files, 2) for item in read_items(Root(str(root)), part, "report_to_cxr", 64)]
    assert [item.study_id for item in items] == ["0", "1", "2", "3"]
    with pytest.raises(ValueError, match="needs a column image; it has id, report"):
        table_directions(str(path), ["cxr_to_report"])


Main = Callable[[list[str]], "dict[str, Any]"]


def arguments(root: Path, yaml: Path, *more: str) -> list[str]:
    common = ["--config", str(yaml), "--root", str(root), "--generate.limit", "10", "--generate.shard", "2"]
    return [*common, "--generate.report_tokens", "16", *more]


@pytest.mark.ray
@pytest.mark.slow
def test_killed_job_and_its_rerun_give_what_an_uninterrupted_one_gives(
    job: Callable[[str], Main], root: Path, tiny_yaml: Path, ray_session: None
) -> None:
    import ray

    answer = job("generate")(arguments(root, tiny_yaml, "--scale.workers", "4"))
    assert answer["status"] == "done" and answer["shards"] == 10 and answer["reused"] == 0
    assert sum(answer["cxr_to_report"].values()) == sum(answer["report_to_cxr"].values()) == 10
    before = digests(root)
    assert len(before) == 10
    assert job("generate")(arguments(root, tiny_yaml, "--scale.workers", "1"))["status"] == "skipped"

    shutil.rmtree(root / "generations")
    command = [sys.executable, "jobs/generate.py", *arguments(root, tiny_yaml)]
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    process = subprocess.Popen(command, cwd=Path(__file__).parents[1], env=environment)
    while len(digests(root)) < 3 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(digests(root)) < 10 and not (root / "generations" / "manifest.json").exists()

    # One worker and smaller batches than before: how the rows are made does not show in them.
    rest = job("generate")(arguments(root, tiny_yaml, "--scale.workers", "1", "--generate.batch_size", "1"))
    assert rest["status"] == "done" and 3 <= rest["reused"] < 10 and rest["cxr_to_report"] == answer["cxr_to_report"]
    assert digests(root) == before
    rows = [row for way in BOTH for row in pq.read_table(root / "generations" / way).to_pylist()]
    ids = [(row["direction"], row["dicom_id"]) for row in rows]
    assert len(ids) == len(set(ids)) == 20


@pytest.mark.ray
@pytest.mark.slow
def test_job_generates_from_a_table_and_notices_when_it_changes(
    job: Callable[[str], Main], root: Path, tiny_yaml: Path, tmp_path: Path, ray_session: None
) -> None:
    table = write_table(tmp_path / "raw", "jsonl")
    own = arguments(root, tiny_yaml, "--generate.manifest", str(table), "--generate.cycle", "false")
    answer = job("generate")(own)
    assert answer["report_to_cxr"] == {"error": 2, "ok": 2} and answer["cxr_to_report"]["error"] == 2
    names = {path.relative_to(root / "generations").as_posix() for path in (root / "generations").rglob("*.parquet")}
    assert "inputs/00000.parquet" in names and len(names) == 5
    table.write_text(table.read_text().splitlines()[0] + "\n")
    with pytest.raises(ValueError, match=r"table: .*--overwrite"):
        job("generate")(own)
    assert job("generate")([*own, "--overwrite"])["shards"] == 2
    names = {path.relative_to(root / "generations").as_posix() for path in (root / "generations").rglob("*.parquet")}
    assert names == {"inputs/00000.parquet", *(f"{way}/00000.parquet" for way in BOTH)}
