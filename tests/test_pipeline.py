"""The whole pipeline: each stage after its parents, others beside it where that is allowed, and a stop at a failure."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adamatch_ray.config import load_config
from adamatch_ray.specs import STAGES

JOBS = {spec.job: name for name, spec in STAGES.items()}


class Recorder:
    """Stands for the jobs' processes: notes which stages were finished when each began, and how many ran at once."""

    def __init__(self, fails: str = "") -> None:
        self.fails, self.finished, self.running, self.most = fails, list[str](), 0, 0
        self.seen: dict[str, set[str]] = {}
        self.lock = threading.Lock()

    def __call__(self, job: str, arguments: list[str]) -> dict[str, Any]:
        name = JOBS[job]
        with self.lock:
            self.seen[name] = set(self.finished)
            self.running += 1
            self.most = max(self.most, self.running)
        time.sleep(0.02)
        with self.lock:
            self.running -= 1
            if name == self.fails:
                raise ValueError(f"{job} failed")
            self.finished.append(name)
        return {"stage": name, "seconds": 1.0}


@pytest.fixture
def run(job: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    main = job("pipeline")

    def start(recorder: Recorder, *options: str) -> Any:
        monkeypatch.setitem(main.__globals__, "run_job", recorder)
        monkeypatch.setitem(main.__globals__, "_share_one_ray", lambda scale: None)
        return main(["--root", str(tmp_path), *options])

    return start


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_every_stage_begins_after_all_that_it_is_made_from(run: Callable[..., Any], at_once: int) -> None:
    recorder = Recorder()
    answer = run(recorder, "--scale.stages_at_once", str(at_once))
    assert list(answer["stages"]) == list(STAGES)
    assert (recorder.most > 1) == (at_once > 1) and recorder.most <= at_once
    config = load_config("phantom")
    for name, finished in recorder.seen.items():
        assert set(STAGES[name].parents_of(config)) <= finished


def test_one_at_a_time_they_run_in_the_order_of_the_table(run: Callable[..., Any]) -> None:
    recorder = Recorder()
    run(recorder, "--scale.stages_at_once", "1")
    assert recorder.finished == list(STAGES)


def test_nothing_begins_after_a_failure(run: Callable[..., Any]) -> None:
    recorder = Recorder(fails="adamatch")
    with pytest.raises(ValueError, match="train_adamatch failed"):
        run(recorder, "--scale.stages_at_once", "2")
    assert {"codebooks", "tokens", "llm", "generations", "metrics"}.isdisjoint(recorder.seen)
