"""The fault drill: what is killed, refused or full on the way must not show in what comes out.

`pytest -s tests/test_faults.py` prints a table of what was injected and what it cost.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from drill import REPOSITORY, answer, find_part, job, kill_part, running, see_through, wait_until
from s3_server import LoopbackS3, loopback_s3
from test_s3 import objects, put

from adamatch_ray.storage import Root

pytestmark = [pytest.mark.slow]

DATA_ACTOR = "ray::MapWorker(MapBatches(WindowReader))"
EPOCHS = 8
STEPS = 6 * EPOCHS


@dataclass
class Table:
    """Rows of the drill's table."""

    rows: list[str] = field(default_factory=list)

    def add(self, fault: str, times: int, seconds: float, lost: int, doubled: int) -> None:
        self.rows.append(f"{fault:<44} {times:>8} {seconds:>12.1f} {lost:>5} {doubled:>8}")


@pytest.fixture(scope="module")
def table() -> Iterator[Table]:
    table = Table()
    yield table
    print(f"\n{'fault':<44} {'injected':>8} {'seconds more':>12} {'lost':>5} {'doubled':>8}")
    print("\n".join(table.rows))


def arguments(root: str, yaml: Path) -> list[str]:
    return ["--config", str(yaml), "--root", root, "--adamatch.init", "none", "--adamatch.train.epochs", str(EPOCHS),
            "--adamatch.train.validate_epochs", str(EPOCHS)]  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What a training left behind: the digests of its model, and the steps it told of."""

    model: dict[str, str]
    steps: list[int]

    @property
    def lost(self) -> int:
        return len(set(range(1, STEPS + 1)) - set(self.steps))

    @property
    def doubled(self) -> int:
        return len(self.steps) - len(set(self.steps))


def outcome(root: str) -> Outcome:
    stage = Root(root).stage("adamatch")
    stage.require()
    rows = [json.loads(line) for line in (stage.read_text("metrics.jsonl") or "").splitlines()]
    model = {name: digest for name, digest in objects(stage.uri).items() if name.startswith("model/")}
    return Outcome(model, [row["step"] for row in rows if row["kind"] == "train"])


@pytest.fixture(scope="module")
def calm(studies_root: Path, tiny_yaml: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, float]:
    """A training that nothing happens to, and its seconds."""
    folder = tmp_path_factory.mktemp("calm")
    shutil.copytree(studies_root / "studies", folder / "run" / "studies")
    began = time.monotonic()
    see_through(job("train_adamatch", *arguments(f"{folder}/run", tiny_yaml)), folder / "log")
    return outcome(f"{folder}/run"), time.monotonic() - began


@pytest.mark.drill
@pytest.mark.ray
@pytest.mark.parametrize("victim", ["driver", "ray::RayTrainWorker", DATA_ACTOR])
def test_training_ends_the_same_whoever_is_killed(
    victim: str, calm: tuple[Outcome, float], studies_root: Path, tiny_yaml: Path, tmp_path: Path, table: Table
) -> None:
    root, log = tmp_path / "run", tmp_path / "log"
    shutil.copytree(studies_root / "studies", root / "studies")
    command = job("train_adamatch", *arguments(str(root), tiny_yaml))
    began = time.monotonic()
    with running(command, log) as process:
        if victim == DATA_ACTOR:  # it has read all that so short a training needs before the first checkpoint
            wait_until(lambda: find_part(process.pid, victim), process, log)
        else:
            wait_until(lambda: list((root / "adamatch" / "training").glob("*/checkpoint_*")), process, log)
        if victim != "driver":
            kill_part(process.pid, victim)
            assert answer(process, log)["status"] == "done"
    if victim == "driver":  # leaving `running` has killed it and all that it had started
        assert Root(str(root)).stage("adamatch").manifest() is None
        assert see_through(command, log)["status"] == "done"
    found, seconds = outcome(str(root)), time.monotonic() - began
    table.add(f"kill -9 {victim.removeprefix('ray::')}", 1, seconds - calm[1], found.lost, found.doubled)
    assert found == calm[0]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackS3]:
    with loopback_s3() as (server, environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.mark.drill
@pytest.mark.ray
def test_training_in_s3_ends_the_same_when_requests_fail_and_the_server_goes_away(
    server: LoopbackS3, calm: tuple[Outcome, float], studies_root: Path, tiny_yaml: Path, tmp_path: Path, table: Table
) -> None:
    root, log = "s3://bucket/run", tmp_path / "log"
    shutil.copytree(studies_root / "studies", tmp_path / "studies")
    put(tmp_path, root, "studies")
    server.failing = 0.05
    began = time.monotonic()
    with running(job("train_adamatch", *arguments(root, tiny_yaml)), log) as process:
        wait_until(lambda: any("checkpoint_" in name for name in stored(root)), process, log)
        before = server.failed
        server.away(20)
        assert answer(process, log)["status"] == "done"
    seconds, server.failing = time.monotonic() - began, 0.0
    found = outcome(root)
    table.add("S3: 5 % of requests fail", before, 0.0, found.lost, found.doubled)
    table.add("S3: away for 20 s", server.failed - before, seconds - calm[1], found.lost, found.doubled)
    assert found == calm[0] and before > 0


def stored(root: str) -> dict[str, str]:
    """Names below a root that is being written; none while S3 does not answer."""
    place = Root(root)
    return {str(name): "" for name in place.files.find(place.path)}


FULL = """
import errno, hashlib, subprocess, sys
from pathlib import Path
from adamatch_ray.config import load_config
from adamatch_ray.pipeline import studies as preparing

disk, yaml = Path(sys.argv[1]), sys.argv[2]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", disk], check=True)
config = load_config(yaml, {"data.rows_per_shard": "8"}).data
shards, _ = preparing.plan(preparing.list_rows(config), config)
written = []
try:
    for shard in shards:
        written.append(preparing.StudyShards(config, str(disk)).make(shard).file)
    raise SystemExit("the disk was never full")
except OSError as error:
    assert error.errno == errno.ENOSPC, error
files = {p.relative_to(disk / "studies").as_posix() for p in disk.rglob("*") if p.is_file()}
whole = {name for name in files if not name.startswith("quarantine/")}
assert whole == set(written) and not [name for name in files if "partial" in name], (files, written)
subprocess.run(["mount", "-o", "remount,size=50m", disk], check=True)
for shard in shards:
    preparing.StudyShards(config, str(disk)).make(shard)
for path in sorted(disk.rglob("*.parquet")):
    print(path.relative_to(disk).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest())
"""


def test_a_full_disk_leaves_whole_shards_and_a_rerun_makes_the_rest(
    tiny_yaml: Path, tmp_path: Path, table: Table
) -> None:
    (tmp_path / "disk").mkdir()
    own_mounts = ["unshare", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*own_mounts, "true"]).returncode:
        pytest.skip("no file system of its own can be mounted here")
    command = [*own_mounts, sys.executable, "-c", FULL, str(tmp_path / "disk"), str(tiny_yaml)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    from adamatch_ray.config import load_config
    from adamatch_ray.pipeline import studies as preparing

    config = load_config(str(tiny_yaml), {"data.rows_per_shard": "8"}).data
    shards, _ = preparing.plan(preparing.list_rows(config), config)
    rows = sum(preparing.StudyShards(config, str(tmp_path / "calm")).make(shard).rows for shard in shards)
    found = dict(line.split() for line in done.stdout.splitlines())
    assert found == objects(str(tmp_path / "calm")) and rows == 96 + 512
    table.add("full disk", 1, 0.0, 0, 0)


FIRST = """
import sys, time
from adamatch_ray.cli import parse_command_line
from adamatch_ray.stage import StageRun
run = StageRun(parse_command_line(sys.argv[1:], ""), "studies")
run.begin()
time.sleep(25)
run.finish({})
"""


def test_the_second_run_on_a_root_is_refused_and_the_first_is_not_disturbed(
    tiny_yaml: Path, tmp_path: Path, table: Table
) -> None:
    root = str(tmp_path / "run")
    common = ["--config", str(tiny_yaml), "--root", root]
    lease = tmp_path / "run" / "studies" / "lease.json"
    with running(["-c", FIRST, *common, "--run-name", "first"], tmp_path / "first") as process:
        wait_until(lease.exists, process, tmp_path / "first")
        began = time.monotonic()
        second = subprocess.run([sys.executable, *job("prepare_data", *common)], capture_output=True, text=True,
                                env={**os.environ})  # fmt: skip
        waited = time.monotonic() - began
        assert second.returncode == 2
        assert f"is being made by run 'first' on {os.uname().nodename}, process {process.pid}" in second.stderr
        assert process.wait(60) == 0
    assert Root(root).stage("studies").manifest() is not None and not lease.exists()
    table.add("two runs on one root: the second is refused", 1, waited, 0, 0)
