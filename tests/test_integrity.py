"""A root that was damaged says so: which file, and the job that makes it again, whatever reads it first."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from s3_server import LoopbackS3, loopback_s3

from adamatch_ray.cli import parse_command_line
from adamatch_ray.data import loading
from adamatch_ray.engines import loader
from adamatch_ray.shards import make_shard
from adamatch_ray.stage import StageRun
from adamatch_ray.storage import Root, Stage

Main = Callable[[list[str]], dict[str, Any] | None]
TABLE = pa.table({"word": ["effusion", "edema", "nodule"] * 50, "count": list(range(150))})


@pytest.fixture
def server() -> Iterator[tuple[LoopbackS3, dict[str, str]]]:
    with loopback_s3() as found:
        yield found


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "local":
        return str(tmp_path / "run")
    _, environment = request.getfixturevalue("server")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return "s3://bucket/run"


def begin(root: str, *arguments: str) -> StageRun:
    run = StageRun(parse_command_line(["--root", root, *arguments], ""), "studies")
    assert run.begin() is None
    return run


def make(root: str, *arguments: str) -> list[bool]:
    """A finished stage of two shards, a text and a folder; which of the shards an earlier run had made."""
    run = begin(root, *arguments)
    shards = [make_shard(run.stage, f"train/part-{n}.parquet", f"identity {n}", lambda: TABLE) for n in range(2)]
    run.stage.write_bytes("notes.txt", b"some words")
    run.stage.write_bytes("model/config.json", b'{"size": 1}')
    run.stage.write_bytes("training/run/checkpoint_1/state.bin", b"checkpoint")
    run.finish({}, {"train": 300}, {shard.file: shard.rows for shard in shards})
    return [shard.reused for shard in shards]


def overwrite_byte(stage: Stage, name: str, place: int = 40) -> None:
    """One bit of a file changes, as on an ageing disk; S3 keeps what was said of the object beside it."""
    path = f"{stage.path}/{name}"
    data = bytearray(stage.files.cat_file(path))
    data[place] ^= 1
    kept = {} if "://" not in stage.uri else {"Metadata": stage.files.metadata(path)}
    stage.files.pipe_file(path, bytes(data), **kept)


def read_shard(stage: Stage) -> None:
    list(loading.read_split(stage, "train", ["word"]))


def read_folder(stage: Stage) -> None:
    with stage.local("model"):
        pass


READERS: dict[str, tuple[str, Callable[[Stage], Any]]] = {
    "shard": ("train/part-0.parquet", read_shard),
    "file": ("notes.txt", lambda stage: stage.read_text("notes.txt")),
    "folder": ("model/config.json", read_folder),
}


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("fault", ["damaged", "lost"])
def test_a_reader_names_the_file_and_the_job_that_mends_it(root: str, kind: str, fault: str) -> None:
    make(root)
    name, read = READERS[kind]
    read(Root(root).stage("studies"))
    stage = Root(root).stage("studies")
    if fault == "lost":
        stage.remove(name)
    else:
        overwrite_byte(stage, name, 9)
    with pytest.raises(ValueError, match=f"studies/{name} is damaged .*prepare_data.py --root {root} --overwrite"):
        read(stage)


def test_a_manifest_names_every_file_that_the_stage_is_made_of(root: str) -> None:
    make(root)
    manifest = Root(root).stage("studies").require()
    assert set(manifest.digests) == {"model/config.json", "notes.txt", "train/part-0.parquet", "train/part-1.parquet"}
    assert manifest.sizes.keys() == manifest.digests.keys() and manifest.sizes["notes.txt"] == 10


def test_what_is_mended_is_made_again_and_the_rest_is_kept(root: str) -> None:
    assert make(root) == [False, False]
    before = Root(root).stage("studies").require()
    overwrite_byte(Root(root).stage("studies"), "train/part-1.parquet")
    reused = make(root, "--overwrite")
    assert reused == [True, "://" in root and reused[1]], "the damaged shard is not taken for whole"
    assert Root(root).stage("studies").require().digests == before.digests


def test_a_damaged_shard_of_an_unfinished_stage_is_not_used_again(root: str) -> None:
    run = begin(root)
    for change in (lambda: None, lambda: overwrite_byte(run.stage, "train/a.parquet")):
        make_shard(run.stage, "train/a.parquet", "identity", lambda: TABLE)
        change()
    assert not make_shard(run.stage, "train/a.parquet", "identity", lambda: TABLE).reused
    assert run.stage.read_table("train/a.parquet").equals(TABLE)


def test_a_stage_of_an_earlier_version_stands(root: str, job: Callable[[str], Main], capsys: Any) -> None:
    make(root)
    stage = Root(root).stage("studies")
    old = dataclasses.asdict(stage.require())
    del old["sizes"], old["digests"]
    stage.write_bytes("manifest.json", json.dumps(old).encode())
    for _, read in READERS.values():
        read(Root(root).stage("studies"))
    assert (StageRun(parse_command_line(["--root", root], ""), "studies").begin() or {})["status"] == "skipped"
    assert (job("verify")(["--root", root]) or {})["files"] == 0
    assert "no digests: made by an earlier version" in capsys.readouterr().out


def test_verify_reads_everything_and_lists_what_is_wrong(
    root: str, job: Callable[[str], Main], capsys: pytest.CaptureFixture[str]
) -> None:
    make(root)
    answer = job("verify")(["--root", root]) or {}
    assert (answer["stages"], answer["files"], answer["status"]) == (1, 4, "done")
    stage = Root(root).stage("studies")
    overwrite_byte(stage, "train/part-0.parquet")
    stage.write_bytes("notes.txt", b"fewer")
    stage.remove("model/config.json")
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        job("verify")(["--root", root])
    told = capsys.readouterr().out
    assert ended.value.code == 1 and "3 damaged" in told
    assert "studies/train/part-0.parquet: other bytes than were written; run: python jobs/prepare_data.py" in told
    assert "studies/notes.txt: 5 bytes instead of 10" in told and "studies/model/config.json: lost" in told


def test_digests_cost_no_download_in_s3(
    server: tuple[LoopbackS3, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in server[1].items():
        monkeypatch.setenv(name, value)
    run = begin("s3://bucket/run")
    make_shard(run.stage, "train/a.parquet", "identity", lambda: TABLE)
    server[0].refused = "GET /bucket/run/studies/train"
    sizes, digests = run.stage.contents()
    assert sizes.keys() == digests.keys() == {"train/a.parquet"}
    server[0].refused = ""
    run.finish({})
    assert not run.stage.damage("train/a.parquet", run.stage.require())


def test_what_a_killed_run_had_half_written_is_swept_by_the_next(tmp_path: Path) -> None:
    left = tmp_path / "studies" / "train" / ".partial-x"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    make(str(tmp_path))
    assert not left.exists()


def test_a_model_whose_weights_changed_is_not_loaded(cycle_root: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    shutil.copytree(cycle_root, root)
    stage = Root(str(root)).stage("vqgan")
    sizes, digests = stage.contents()
    stage.commit(dataclasses.replace(stage.require(), sizes=sizes, digests=digests))
    loader.load_vqgan(Root(str(root)))
    overwrite_byte(stage, "model/model.safetensors", -1)
    with pytest.raises(ValueError, match=r"vqgan/model/model.safetensors is damaged .*train_vqgan.py"):
        loader.load_vqgan(Root(str(root)))
