"""What a training tells of itself: rows that a resumed run goes on with, the time left, and nothing left behind."""

import json
from pathlib import Path

import pytest

from adamatch_ray.shards import Progress
from adamatch_ray.storage import Root, Stage
from adamatch_ray.train.fit_llm import TimedSchedule
from adamatch_ray.train.optim import Schedule
from adamatch_ray.train.tracking import RunTracker, open_tracker


def rows(stage: Stage) -> list[dict[str, float]]:
    return [json.loads(line) for line in (stage.read_text("metrics.jsonl") or "").splitlines()]


def test_a_resumed_run_replaces_the_rows_that_it_repeats_and_leaves_no_folder_behind(tmp_path: Path) -> None:
    stage = Root(str(tmp_path)).stage("adamatch")
    with open_tracker(True, stage, Schedule(4, 0.25)) as tracker:
        tracker.steps([(1, {"loss": 3.0}), (2, {"loss": 2.0}), (3, {"loss": 1.0})])
        tracker.score(3, {"recall": 0.5})
        tracker.flush()
    with open_tracker(True, stage, Schedule(4, 0.25, step=2)) as tracker:
        assert isinstance(tracker, RunTracker)
        folder = tracker.folder
        tracker.steps([(3, {"loss": 1.5})])
        tracker.flush()
    assert [(row["step"], row["loss"]) for row in rows(stage)] == [(1, 3.0), (2, 2.0), (3, 1.5)]
    assert list((tmp_path / "adamatch" / "tensorboard").iterdir()) and not folder.exists()


def test_workers_beside_the_first_write_nothing(tmp_path: Path) -> None:
    stage = Root(str(tmp_path)).stage("adamatch")
    with open_tracker(False, stage, Schedule(4, 0.25)) as tracker:
        tracker.steps([(1, {"loss": 3.0})])
        tracker.flush()
    assert not list(tmp_path.iterdir())


def test_the_time_left_is_that_of_the_steps_or_of_the_minutes_whichever_ends_first(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert Schedule(10, 0.25).seconds_left == float("inf")
    schedule = TimedSchedule(10, 0.25, max_minutes=90.0, minutes=30.0)
    Progress("llm", 10, "steps").add(1, "loss 2", schedule.seconds_left)
    assert capsys.readouterr().err == "llm 1/10 steps · loss 2 · ETA 1:00:00\n"
    progress = Progress("llm", 10, "steps", done=4)
    progress.add(2)
    progress.began, progress.shown = progress.began - 8.0, 0.0  # two more took eight seconds
    progress.add(2, "loss 1", schedule.seconds_left)
    assert capsys.readouterr().err.splitlines() == ["llm 6/10 steps", "llm 8/10 steps · loss 1 · ETA 0:00:08"]
    schedule.minutes = 91.0
    assert schedule.done and schedule.seconds_left == 0.0
