"""A root in S3 is a root like any other: the same files, the same refusals, and nothing lost when requests fail.

The server is moto's, on loopback; endpoint and credentials come from the environment, as everywhere.
"""

import hashlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs as pafs
import pytest
from PIL import Image
from s3_server import LoopbackS3, loopback_s3
from test_cache_tokens import add_vqgan

from adamatch_ray.config import DataConfig, load_config
from adamatch_ray.counting import known_config
from adamatch_ray.data import loading
from adamatch_ray.filesystems import at_hand
from adamatch_ray.pipeline import studies as preparing
from adamatch_ray.pipeline.tokens import TokenCache
from adamatch_ray.specs import Manifest, fingerprint
from adamatch_ray.storage import Root, Stage

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackS3]:
    with loopback_s3() as (server, environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture
def stage(server: LoopbackS3) -> Stage:
    return Root("s3://bucket/some/run/").stage("encoder")


def test_a_model_in_a_bucket_is_fetched_once_and_again_when_it_changes(
    server: LoopbackS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    bucket = Root("s3://bucket").files
    bucket.pipe_file("bucket/models/bert/config.json", b'{"model_type": "bert", "hidden_size": 24}')
    bucket.pipe_file("bucket/models/bert/deep/weights.bin", b"1")
    folder = Path(at_hand("s3://bucket/models/bert/"))
    assert (folder / "deep" / "weights.bin").read_bytes() == b"1" and (folder / "config.json").is_file()
    server.refused = "weights.bin"  # nor is it asked for again
    assert at_hand("s3://bucket/models/bert") == str(folder)
    assert known_config("s3://bucket/models/bert").hidden_size == 24
    server.refused = ""
    bucket.pipe_file("bucket/models/bert/deep/weights.bin", b"2")
    assert (Path(at_hand("s3://bucket/models/bert")) / "deep" / "weights.bin").read_bytes() == b"2"
    file = at_hand("s3://bucket/models/bert/deep/weights.bin")
    assert Path(file).name == "weights.bin" and Path(file).read_bytes() == b"2"
    with pytest.raises(ValueError, match=r"s3://bucket/models/none: there is nothing"):
        at_hand("s3://bucket/models/none")
    assert at_hand("databricks/dolly-v2-3b") == "databricks/dolly-v2-3b"


def objects(root: str) -> dict[str, str]:
    """Name and digest of every file below a root, local or in S3."""
    place = Root(root)
    found = place.filesystem.get_file_info(pafs.FileSelector(place.path, recursive=True, allow_not_found=True))
    names = sorted(info.path.removeprefix(f"{place.path}/") for info in found if info.type == pafs.FileType.File)
    digests = {}
    for name in names:
        with place.filesystem.open_input_stream(f"{place.path}/{name}") as stream:
            digests[name] = hashlib.sha256(stream.read()).hexdigest()
    return digests


def put(local: Path, root: str, *stages: str) -> None:
    """Copy whole stages of a local root into S3, their manifests last."""
    for name in stages:
        target = Root(root).stage(name)
        for file in sorted((local / name).rglob("*"), key=lambda path: path.name == "manifest.json"):
            if file.is_file():
                target.write_bytes(file.relative_to(local / name).as_posix(), file.read_bytes())


def test_a_stage_is_written_read_and_withdrawn_as_on_a_disk(stage: Stage, tmp_path: Path) -> None:
    assert stage.uri == "s3://bucket/some/run/encoder" and stage.manifest() is None
    with pytest.raises(ValueError, match=r"pretrain_encoder\.py --root s3://bucket/some/run"):
        stage.require()
    stage.write_bytes("train/part-00000.parquet", b"rows")
    config = {"data": {"seed": 0}}
    manifest = Manifest("encoder", fingerprint(config, {}), config, {})
    stage.commit(manifest)
    assert stage.manifest() == manifest and stage.is_done(config, {}, overwrite=False)
    with pytest.raises(ValueError, match=r"data\.seed: 0 -> 1"):
        stage.is_done({"data": {"seed": 1}}, {}, overwrite=False)
    assert not stage.is_done(config, {}, overwrite=True) and stage.manifest() is None
    with pytest.raises(FileNotFoundError):
        stage.read_bytes("none.bin")
    with pytest.raises(FileNotFoundError), stage.local("none"):
        pass
    assert stage.create_bytes("once", b"1") and not stage.create_bytes("once", b"2") and stage.read_text("once") == "1"
    stage.keep_only({"train/part-00000.parquet"})
    assert objects(stage.uri).keys() == {"train/part-00000.parquet"}


def test_folders_are_replaced_fetched_and_removed(stage: Stage, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, name in ((first, "old.bin"), (second, "text/new.bin"), (second, "empty.bin")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode() if "empty" not in name else b"")
    stage.upload(first, "model")
    stage.upload(second, "model")
    with stage.local("model") as folder:
        files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert files == {"text/new.bin": b"text/new.bin", "empty.bin": b""}
    assert not folder.exists(), "what was fetched for a block is gone after it"
    stage.delete("model")
    stage.delete("model")
    assert objects(stage.uri) == {}


def test_what_another_machine_wrote_is_seen_at_once(stage: Stage) -> None:
    """Listings are not kept: a second client, as another machine has it, sees and removes what the first wrote."""
    import s3fs

    assert objects(stage.uri) == {}
    other = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
    other.pipe_file(f"{stage.path}/a", b"1")
    assert objects(stage.uri).keys() == {"a"}
    other.rm_file(f"{stage.path}/a")
    assert objects(stage.uri) == {} and stage.read_text("a") is None


def test_the_filesystem_travels_to_workers(stage: Stage) -> None:
    stage.write_bytes("a", b"1")
    filesystem = pickle.loads(pickle.dumps(stage.filesystem))
    assert filesystem.get_file_info(f"{stage.path}/a").type == pafs.FileType.File


def test_an_upload_that_breaks_off_leaves_what_was_there(stage: Stage, server: LoopbackS3, tmp_path: Path) -> None:
    stage.write_bytes("table.bin", b"whole")
    stage.write_bytes("model/table.bin", b"whole")
    server.refused = "partNumber=2"
    large = bytes(101 * 2**20)  # above what goes in one request
    with pytest.raises(OSError):
        stage.write_bytes("table.bin", large)
    (tmp_path / "table.bin").write_bytes(large)
    with pytest.raises(OSError):
        stage.upload_into(tmp_path, "model")
    server.refused = ""
    assert stage.read_bytes("table.bin") == stage.read_bytes("model/table.bin") == b"whole"


def test_no_credentials_is_one_line_that_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment.update(AWS_EC2_METADATA_DISABLED="true", HOME=str(tmp_path))
    job = [sys.executable, str(REPOSITORY / "jobs" / "prepare_data.py"), "--root", "s3://bucket/run"]
    done = subprocess.run(job, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.strip() == "error: s3://bucket/run: Unable to locate credentials"


def write_studies(config: DataConfig, root: str) -> None:
    rows = [row for row in preparing.list_rows(config) if row["split"] == "train"][:24]
    shards, _ = preparing.plan(rows, config)
    files = {shard.file: preparing.StudyShards(config, root).make(shard).rows for shard in shards}
    Root(root).stage("studies").commit(Manifest("studies", "tiny", {}, {}, {"train": sum(files.values())}, files))


@pytest.fixture
def data(tiny_yaml: Path) -> DataConfig:
    return load_config(str(tiny_yaml), {"data.rows_per_shard": "4"}).data


@pytest.mark.parametrize("failing", [0.0, 0.05])
def test_studies_and_tokens_are_the_same_bytes_as_on_a_disk(
    server: LoopbackS3, data: DataConfig, tmp_path: Path, failing: float
) -> None:
    local, remote = str(tmp_path), "s3://bucket/run"
    add_vqgan(tmp_path)
    put(tmp_path, remote, "vqgan")
    server.failing = failing
    for root in (local, remote):
        write_studies(data, root)
        cache = TokenCache(root)
        assert [cache.make(shard).reused for shard in sorted(cache.studies.require().files)] == [False] * 6
        assert cache.make("train/part-00002.parquet").reused
    server.failing = 0.0
    assert objects(local) == objects(remote) and len(objects(remote)) > 15
    if failing:
        assert server.failed > 0
    windows = loading.plan_windows(
        loading.list_shards(Root(remote).stage("studies"), "train"),
        batch_size=4, world=1, rank=0, seed=0, epoch=0, skip=0, window=8,
    )  # fmt: skip
    assert len(loading.WindowReader(remote).read(windows[0])["image"]) == 8


def test_raw_data_may_lie_in_s3(server: LoopbackS3, tmp_path: Path) -> None:
    import s3fs

    for name in ("a.png", "b.png"):
        Image.fromarray(np.full((70, 80), 99, np.uint8)).save(tmp_path / name)
    lines = [{"image": name, "report": "The heart is normal."} for name in ("a.png", "b.png", "missing.png")]
    (tmp_path / "table.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    s3fs.S3FileSystem().put(str(tmp_path), "bucket/raw", recursive=True)
    config = DataConfig(source="manifest", path="s3://bucket/raw/table.jsonl", canvas=32, split_column="")
    shards, rejected = preparing.plan(preparing.list_rows(config), config)
    made = [preparing.StudyShards(config, "s3://bucket/run").make(shard) for shard in shards]
    assert sum(shard.rows for shard in made) == 2 and not rejected
    assert [reason for shard in made for reason in shard.counts] == ["image file is missing"]


@pytest.mark.slow
def test_an_outage_of_twenty_seconds_is_waited_out(server: LoopbackS3, data: DataConfig, tmp_path: Path) -> None:
    write_studies(data, str(tmp_path))
    server.away(20)
    write_studies(data, "s3://bucket/run")
    assert objects("s3://bucket/run") == objects(str(tmp_path))
    assert server.failed > 3


def run_job(name: str, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, str(REPOSITORY / "jobs" / f"{name}.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr[-3000:]
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


REST_OF_THE_PIPELINE = """
vqgan:
  {image_size: 64, in_channels: 1, ch: 8, ch_mult: [1, 1, 2, 2], groups: 4, num_res_blocks: 1, attn_resolutions: [],
   z_channels: 8, codes: 40, code_dim: 4, discriminator: {ch: 8, layers: 1},
   loss: {structure_weight: 0.5, perceptual_weight: 0.2, adversarial_weight: 0.0},
   train: {epochs: 1, batch_size: 4, max_steps: 4}}
codebooks: {backend: lexicon}
llm:
  {name_or_path: "", hidden_size: 48, layers: 1, heads: 3, context: 640, vocab_size: 600, dtype: float32,
   gradient_checkpointing: false, train: {epochs: 1, batch_size: 4, max_steps: 4}}
generate: {report_tokens: 16}
"""
RUN_DEPENDENT = ("metrics", "manifest")
"""Files of `metrics/` that name the run, its root or its time; the figures they hold are in the others as well."""


@pytest.mark.drill
@pytest.mark.ray
@pytest.mark.slow
def test_the_pipeline_gives_the_same_metrics_in_s3_as_on_a_disk(
    server: LoopbackS3, tiny_yaml: Path, tmp_path: Path
) -> None:
    """One command, every stage; then the same again, which finds all of them finished."""
    yaml = tmp_path / "pipeline.yaml"
    yaml.write_text(tiny_yaml.read_text() + REST_OF_THE_PIPELINE)
    found = {}
    for root in (str(tmp_path / "run"), "s3://bucket/run"):
        command = ["--config", str(yaml), "--root", root]
        assert run_job("pipeline", *command)["status"] == "done"
        stages = run_job("pipeline", *command)["stages"]
        assert {stage["status"] for stage in stages.values()} == {"skipped"}
        made = objects(root)
        assert "adamatch/metrics.jsonl" in made
        assert not [name for name in made if "lease" in name or "partial" in name]
        tables = {
            name
            for name in made
            if name.startswith("metrics/") and name.endswith((".json", ".csv")) and Path(name).stem not in RUN_DEPENDENT
        }
        assert len(tables) >= 6
        found[root] = {name: made[name] for name in made if name in tables or name.startswith("adamatch/model/")}
    local, remote = found.values()
    assert local == remote
