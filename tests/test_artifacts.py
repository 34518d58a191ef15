"""A stage stands when its manifest does: whole files only, skipped, refused or withdrawn as asked."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from adamatch_ray.cli import one_line
from adamatch_ray.specs import STAGES, Manifest, fingerprint, flatten
from adamatch_ray.storage import Root, Stage

CONFIG = {"data": {"seed": 0, "canvas": 64}}
PARENTS = {"studies": "abc"}


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Root(str(tmp_path / "run")).stage("encoder")


def commit(stage: Stage) -> Manifest:
    manifest = Manifest("encoder", fingerprint(CONFIG, PARENTS), CONFIG, PARENTS, {"train": 3}, {"a": 3}, {"auroc": 1})
    stage.commit(manifest)
    return manifest


def test_a_manifest_comes_back_as_it_was_committed(stage: Stage) -> None:
    assert stage.manifest() is None
    manifest = commit(stage)
    assert stage.manifest() == manifest == stage.require()
    assert manifest.version


def test_files_without_a_manifest_are_no_stage(stage: Stage) -> None:
    stage.write_bytes("model/model.safetensors", b"weights")
    stage.write_bytes("train/part-00000.parquet", b"rows")
    assert stage.manifest() is None
    assert not stage.is_done(CONFIG, PARENTS, overwrite=False)
    with pytest.raises(ValueError, match=r"encoder is not finished; run: python jobs/pretrain_encoder\.py --root"):
        stage.require()


@pytest.mark.parametrize("name", STAGES)
def test_the_job_that_makes_a_stage_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"python jobs/{STAGES[name].job}\.py --root {tmp_path}"):
        Root(str(tmp_path)).stage(name).require()


def test_a_finished_stage_is_done_while_its_inputs_hold(stage: Stage) -> None:
    commit(stage)
    assert stage.is_done(CONFIG, PARENTS, overwrite=False)
    assert stage.manifest() is not None


def test_a_stale_stage_is_refused_naming_the_change(stage: Stage) -> None:
    commit(stage)
    config = {"data": {"seed": 1, "canvas": 64}}
    with pytest.raises(ValueError, match=r"data\.seed: 0 -> 1\).*--overwrite") as caught:
        stage.is_done(config, PARENTS, overwrite=False)
    assert "canvas" not in str(caught.value)
    parents = {"studies": "abd"}
    with pytest.raises(ValueError, match="parent studies"):
        stage.is_done(CONFIG, parents, overwrite=False)
    assert stage.manifest() is not None, "a refused stage still stands"


def test_a_stage_of_a_version_with_further_settings_still_stands(stage: Stage) -> None:
    """Settings that went away made no difference at their defaults; at another value, or beside a change, they do."""
    now = {"llm": {"train": {"lr": 0.1}}}
    before = {"llm": {"train": {"lr": 0.1, "crop": 0.8, "box_lr": 1.0, "released_lamb": False}}}
    stage.commit(Manifest("encoder", fingerprint(before, PARENTS), before, PARENTS))
    assert stage.is_done(now, PARENTS, overwrite=False)
    with pytest.raises(ValueError, match=r"\(llm\.train\.lr: 0\.1 -> 0\.2\)"):
        stage.is_done({"llm": {"train": {"lr": 0.2}}}, PARENTS, overwrite=False)
    with pytest.raises(ValueError, match="parent studies"):
        stage.is_done(now, {"studies": "abd"}, overwrite=False)
    before["llm"]["train"]["crop"] = 0.5
    stage.commit(Manifest("encoder", fingerprint(before, PARENTS), before, PARENTS))
    with pytest.raises(ValueError, match=r"llm\.train\.crop: 0\.5 -> None"):
        stage.is_done(now, PARENTS, overwrite=False)


def test_overwriting_withdraws_the_stage_before_the_work(stage: Stage) -> None:
    commit(stage)
    assert not stage.is_done(CONFIG, PARENTS, overwrite=True)
    assert stage.manifest() is None


def test_a_fingerprint_follows_every_value_and_parent_but_not_their_order() -> None:
    base = fingerprint(CONFIG, PARENTS)
    assert fingerprint({"data": {"canvas": 64, "seed": 0}}, PARENTS) == base
    assert fingerprint({"data": {"canvas": 64, "seed": 1}}, PARENTS) != base
    assert fingerprint(CONFIG, {"studies": "x"}) != base
    assert fingerprint(CONFIG, {}) != base
    assert flatten(CONFIG) == [("data.seed", 0), ("data.canvas", 64)]


def _write_forever(root: str) -> None:
    stage = Root(root).stage("encoder")
    number = 0
    while True:
        number += 1
        stage.write_bytes("table.bin", bytes([number % 256]) * 3_000_000)


def test_a_killed_writer_leaves_no_half_file(stage: Stage) -> None:
    writer = multiprocessing.get_context("fork").Process(target=_write_forever, args=(stage.root.uri,))
    writer.start()
    target = Path(stage.path) / "table.bin"
    for _ in range(500):  # until the first whole file is there
        if target.exists():
            break
        time.sleep(0.01)
    assert writer.pid is not None
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    data = stage.read_bytes("table.bin")
    assert len(data) == 3_000_000 and len(set(data)) == 1


def test_files_are_replaced_read_and_missing_as_such(stage: Stage) -> None:
    assert stage.read_text("notes.txt") is None
    stage.write_bytes("notes.txt", b"one")
    stage.write_bytes("notes.txt", "zwölf".encode())
    assert stage.read_text("notes.txt") == "zwölf"
    assert [path.name for path in Path(stage.path).iterdir()] == ["notes.txt"], "no temporary file stays"
    assert (Path(stage.path) / "notes.txt").stat().st_mode & 0o777 == 0o644, "others may read a stage"
    with pytest.raises(FileNotFoundError):
        stage.read_bytes("none.bin")


def test_an_uploaded_folder_replaces_the_one_before(stage: Stage, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, name in ((first, "old.bin"), (second, "text/new.bin")):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(name.encode())
    stage.upload(first, "model")
    stage.upload(second, "model")
    with stage.local("model") as found:
        assert found == Path(stage.path) / "model", "what is on this disk is read in place"
    assert [p.relative_to(found).as_posix() for p in found.rglob("*") if p.is_file()] == ["text/new.bin"]
    stage.upload_into(first, "model")
    assert (found / "old.bin").is_file() and (found / "text" / "new.bin").is_file()
    stage.delete("model")
    stage.delete("model")
    assert not found.exists()


def test_files_of_an_earlier_plan_can_be_cleared(stage: Stage) -> None:
    for name in ("train/part-00000.parquet", "train/part-00001.parquet", "quarantine/train-00001.parquet"):
        stage.write_bytes(name, name.encode())
    stage.keep_only({"train/part-00000.parquet", "quarantine/listing.parquet"})
    left = [p.relative_to(stage.path).as_posix() for p in Path(stage.path).rglob("*") if p.is_file()]
    assert left == ["train/part-00000.parquet"]
    Root(stage.root.uri).stage("llm").keep_only(set())  # nothing there yet


def test_a_root_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    stage = Root(str(tmp_path / "file" / "run")).stage("studies")
    with pytest.raises(OSError) as caught:
        stage.write_bytes("config.yaml", b"")
    assert str(tmp_path / "file") in one_line(caught.value) and "\n" not in one_line(caught.value)


def test_roots_are_local_folders_or_s3(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gs://x: only local folders and s3:// are supported"):
        Root("gs://x")
    assert Root(f"{tmp_path}/run/").stage("llm").uri == f"{tmp_path}/run/llm"


def test_a_manifest_is_readable_by_people(stage: Stage) -> None:
    commit(stage)
    text = (Path(stage.path) / "manifest.json").read_text()
    assert json.loads(text)["rows"] == {"train": 3} and text.count("\n") > 10
