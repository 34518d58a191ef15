"""The benchmark job and the rows it shows: what a mistake says, what a row holds, how contenders are compared."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import ingest as bench_ingest
from benchmarks import measure
from benchmarks.__main__ import main

Main = Callable[..., Any]
ROOT = Path(__file__).resolve().parents[1]
NAMES = ("late_interaction", "ingest", "vqgan_encode", "metrics", "llm_loss", "generate_image_tokens")
COLUMNS = {"name", "ours", "peer", "ratio", "unit", "hardware", "versions", "date"}


@pytest.fixture(scope="module")
def benchmark() -> Main:
    return main


@pytest.mark.parametrize("arguments", [[], ["--quick"], ["latent_interaction"], ["late_interaction", "extra"]])
def test_a_missing_or_unknown_name_is_answered_with_all_names(benchmark: Main, arguments: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        benchmark(arguments)
    assert all(name in str(caught.value) for name in NAMES)


def test_a_plan_measures_nothing(benchmark: Main, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    answer = benchmark(["ingest", "metrics", "--quick", "--root", str(tmp_path), "--dry-run"])
    assert answer["status"] == "planned" and "rows" not in answer
    assert "ingest, metrics (quick)" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_rows_are_the_last_line_and_a_file_under_the_root(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "late_interaction", "llm_loss", "--quick", "--root", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["status"] == "done" and answer["output"] == str(tmp_path / "benchmarks")
    assert all(set(row) >= COLUMNS for row in answer["rows"])
    stored = [
        json.loads((tmp_path / "benchmarks" / f"{name}.json").read_text()) for name in ("late_interaction", "llm_loss")
    ]
    assert [row for one in stored for row in one["rows"]] == answer["rows"]
    assert all(one["quick"] for one in stored), "figures of small inputs must not pass for real ones"


def test_a_ratio_above_one_always_favours_ours() -> None:
    seconds = measure.row("a", "s", 2.0, 6.0)
    rate = measure.row("b", "studies a second", 6.0, 2.0, more_is_better=True)
    alone = measure.row("c", "s", 2.0, peer_name=None)
    assert seconds["ratio"] == rate["ratio"] == 3.0
    assert alone["peer"] is None and alone["ratio"] is None
    assert set(seconds) == COLUMNS and json.loads(json.dumps(seconds)) == seconds


def test_versions_are_those_of_the_packages_that_are_there() -> None:
    import numpy

    versions = measure.surroundings(("numpy", "no-such-package"))["versions"]
    assert versions["numpy"] == numpy.__version__ and "no-such-package" not in versions


def test_contenders_take_turns_and_the_first_turns_may_not_count() -> None:
    calls: list[str] = []
    finished: list[int] = []
    timings = measure.time_in_turns(
        {"peer": lambda: calls.append("peer"), "ours": lambda: calls.append("ours")},
        repeats=3,
        warm_up=1,
        finish=lambda: finished.append(len(calls)),
    )
    assert calls == ["peer", "ours"] * 4 and finished == list(range(1, 9))
    assert set(timings) == {"peer", "ours"} and all(t.wall_s >= 0 and t.cpu_s >= 0 for t in timings.values())
    assert measure.median_timing([measure.Timing(1, 9), measure.Timing(5, 2), measure.Timing(3, 4)]) == (3, 4)


HUNGRY = """
def prepare(megabytes):
    kept = bytearray(b"x" * 40_000_000)
    return lambda: len(b"y" * (megabytes * 10**6)) and [kept]
"""
"""For a fresh process: inputs of 40 MB, whose making takes 80 MB and must not count, and a call."""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_memory_is_that_of_the_call_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "hungry.py").write_text(HUNGRY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    assert measure.peak_megabytes("hungry:prepare", {"megabytes": 10}) == pytest.approx(10, abs=3)
    assert measure.peak_megabytes("hungry:prepare", {"megabytes": 100}) == pytest.approx(100, abs=3)
    with pytest.raises(RuntimeError, match="no_such_function"):
        measure.peak_megabytes("hungry:no_such_function", {})


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_work_of_a_child_counts_and_that_of_strangers_does_not() -> None:
    child = subprocess.Popen([sys.executable, "-c", "sum(range(6_000_000)); print(flush=True); input()"],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    assert child.stdout is not None
    child.stdout.readline()
    family = measure.family()
    assert {os.getpid(), child.pid} <= family and os.getppid() not in family
    assert measure.cpu_seconds_of([child.pid]) > 0
    child.communicate(b"\n")
    assert child.pid not in measure.family() and measure.cpu_seconds_of([child.pid]) == 0


def test_decoding_is_timed_only_where_the_canvases_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    row = bench_ingest.decode_row(bench_ingest.QUICK)
    assert row["psnr_db"] >= bench_ingest.LEAST_PSNR and row["ratio"] == row["peer"] / row["ours"]
    monkeypatch.setattr(bench_ingest, "LEAST_PSNR", 99.0)
    with pytest.raises(RuntimeError, match="nothing is timed"):
        bench_ingest.decode_row(bench_ingest.QUICK)


@pytest.mark.ray
@pytest.mark.slow
def test_both_loaders_give_the_same_batches(ray_session: None, tmp_path: Path) -> None:
    bench_ingest.write_stage(str(tmp_path), bench_ingest.QUICK, 32)
    rows = bench_ingest.loader_rows(str(tmp_path), bench_ingest.QUICK, 32)
    assert [row["unit"] for row in rows] == ["studies a CPU second", "studies a wall second"]
    assert all(row["ours"] > 0 and set(row) >= COLUMNS for row in rows)


@pytest.mark.slow
def test_the_gpu_s_benchmark_runs_without_ray_pydantic_or_a_network(tmp_path: Path) -> None:
    without = "import runpy, sys; sys.modules |= dict.fromkeys(('ray', 'pydantic', 'pyarrow', 'deepspeed')); "
    command = [sys.executable, "-c", f"{without}runpy.run_module('benchmarks.gpu', run_name='__main__')",
               "--device", "cpu", "--out", str(tmp_path / "gpu.json")]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads((tmp_path / "gpu.json").read_text())
    assert answer == json.loads(done.stdout.splitlines()[-1]) and answer["failed"] == 0
    told = " ".join(row["name"] for row in answer["rows"])
    for part in ("float64", "backward", "PVT", "VQ-GAN", "folded", "decoding, batch 2", "tuning", "retrieval"):
        assert part in told and part in done.stderr
