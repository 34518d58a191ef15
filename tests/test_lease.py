"""One run makes a stage at a time: the second is refused, a dead one's place is taken, and no clock is compared."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_server import loopback_s3

from adamatch_ray.cli import parse_command_line
from adamatch_ray.lease import Lease
from adamatch_ray.stage import StageRun
from adamatch_ray.storage import LEASE, Root, Stage

QUICK, PATIENCE = 0.1, 0.6


@pytest.fixture(params=["local", "s3"])
def stage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    if request.param == "local":
        yield Root(str(tmp_path / "run")).stage("tokens")
        return
    with loopback_s3() as (_, environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield Root("s3://bucket/run").stage("tokens")


def elsewhere(stage: Stage, beat: int) -> None:
    """A lease as a run on another machine, whose clock nobody knows, would write it."""
    holder = {"holder": "x", "run": "first", "host": "node-7", "machine": "node-7 boot pid", "pid": 42, "beat": beat}
    stage.write_bytes(LEASE, json.dumps(holder).encode())


def test_a_lease_is_there_while_it_is_held(stage: Stage) -> None:
    lease = Lease(stage, "mine", QUICK, PATIENCE)
    held = json.loads(stage.read_text(LEASE) or "")
    assert held["run"] == "mine" and held["pid"] == os.getpid()
    time.sleep(4 * QUICK)
    assert json.loads(stage.read_text(LEASE) or "")["beat"] > held["beat"]
    lease.check()
    lease.release()
    lease.release()
    time.sleep(2 * QUICK)
    assert stage.read_text(LEASE) is None


def test_a_second_run_is_refused_by_name_while_the_first_one_lives(stage: Stage) -> None:
    elsewhere(stage, 0)
    waiting = subprocess.Popen(
        [sys.executable, "-c", SECOND, stage.root.uri], stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    for beat in range(1, 200):
        elsewhere(stage, beat)
        time.sleep(QUICK)
        if waiting.poll() is not None:
            break
    assert waiting.returncode == 2
    assert waiting.stderr is not None
    assert "is being made by run 'first' on node-7, process 42" in waiting.stderr.read()


SECOND = """
import sys
from adamatch_ray.storage import Root
from adamatch_ray.cli import run_as_command
from adamatch_ray.lease import Lease
run_as_command(lambda _: Lease(Root(sys.argv[1]).stage("tokens"), "second", 0.3, 20.0))
"""


def test_a_run_that_gives_no_sign_of_life_is_replaced_and_may_not_commit(stage: Stage) -> None:
    first = Lease(stage, "first", interval=60.0)  # as good as dead: no beat for a minute
    text = stage.read_text(LEASE) or ""
    stage.write_bytes(LEASE, text.replace(json.loads(text)["machine"], "another machine").encode())
    began = time.monotonic()
    second = Lease(stage, "second", QUICK, PATIENCE)
    assert time.monotonic() - began >= PATIENCE
    with pytest.raises(RuntimeError, match="another run took this stage over; run 'second'"):
        first.check()
    first.release()
    second.check()


def test_the_place_of_a_process_known_to_be_dead_is_taken_at_once(stage: Stage) -> None:
    left = "import os,sys; from adamatch_ray.storage import Root; from adamatch_ray.lease import Lease; "
    left += "lease = Lease(Root(sys.argv[1]).stage('tokens'), 'killed'); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", left, stage.root.uri], env=dict(os.environ))
    assert json.loads(stage.read_text(LEASE) or "")["run"] == "killed"
    began = time.monotonic()
    Lease(stage, "next", QUICK, patience=60.0).check()
    assert time.monotonic() - began < 5


def test_a_process_that_ends_gives_its_lease_back(stage: Stage) -> None:
    ends = "import sys; from adamatch_ray.storage import Root; from adamatch_ray.lease import Lease; "
    ends += "lease = Lease(Root(sys.argv[1]).stage('tokens'), 'failed'); raise ValueError('a mistake')"
    done = subprocess.run([sys.executable, "-c", ends, stage.root.uri], env=dict(os.environ), capture_output=True)
    assert b"a mistake" in done.stderr and stage.read_text(LEASE) is None


def test_a_half_written_lease_counts_as_one(stage: Stage) -> None:
    stage.write_bytes(LEASE, b"")
    began = time.monotonic()
    Lease(stage, "mine", QUICK, PATIENCE)
    assert time.monotonic() - began >= PATIENCE


def test_a_stage_is_leased_from_begin_to_finish(tmp_path: Path) -> None:
    run = StageRun(parse_command_line(["--root", str(tmp_path), "--run-name", "alpha"], ""), "studies")
    assert run.begin() is None
    assert json.loads(run.stage.read_text(LEASE) or "")["run"] == "alpha"
    run.stage.write_bytes("stray.bin", b"")
    run.stage.keep_only(set())
    assert [path.name for path in (tmp_path / "studies").iterdir()] == [LEASE]
    run.finish({})
    assert [path.name for path in (tmp_path / "studies").iterdir()] == ["manifest.json"]
    assert StageRun(parse_command_line(["--root", str(tmp_path)], ""), "studies").begin()
    assert not (tmp_path / "studies" / LEASE).exists()


def test_a_run_that_was_replaced_does_not_commit(tmp_path: Path) -> None:
    run = StageRun(parse_command_line(["--root", str(tmp_path)], ""), "studies")
    run.begin()
    elsewhere(run.stage, 3)
    with pytest.raises(RuntimeError, match="run 'first' on node-7"):
        run.finish({})
    assert run.stage.manifest() is None
