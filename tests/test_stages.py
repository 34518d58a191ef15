"""What a job does around its work: skip, refuse, make what is missing, plan, commit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from adamatch_ray import stage as stages
from adamatch_ray.cli import parse_command_line
from adamatch_ray.config import RunConfig
from adamatch_ray.specs import STAGES
from adamatch_ray.stage import StageRun
from adamatch_ray.storage import Root


def run(name: str, root: Path, *arguments: str) -> StageRun:
    return StageRun(parse_command_line(["--root", str(root), *arguments], "usage"), name)


def finish(name: str, root: Path, *arguments: str) -> dict[str, Any]:
    stage_run = run(name, root, *arguments)
    assert stage_run.begin() is None
    return stage_run.finish({"score": 0.5}, {"studies": 3}, {"train/a": 3})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with every stage finished, as far as manifests say."""
    for name in STAGES:
        finish(name, tmp_path)
    return tmp_path


def test_a_finished_job_answers_with_its_figures_and_commits_its_settings(tmp_path: Path) -> None:
    answer = finish("studies", tmp_path, "--data.seed", "5")
    assert (answer["stage"], answer["status"], answer["output"]) == ("studies", "done", f"{tmp_path}/studies")
    assert answer["studies"] == 3 and answer["score"] == 0.5 and answer["seconds"] >= 0
    json.dumps(answer)
    manifest = Root(str(tmp_path)).stage("studies").require()
    assert manifest.config["data"]["seed"] == 5 and manifest.files == {"train/a": 3}


def test_finished_stages_are_skipped_and_say_so(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in STAGES:
        answer = run(name, root).begin()
        assert answer is not None and answer["status"] == "skipped"
        assert f"{name}: finished before with these inputs, skipped" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "key", "value", "named"),
    [
        ("studies", "data.seed", "3", "data.seed: 0 -> 3"),
        ("encoder", "encoder.train.epochs", "99", "encoder.train.epochs"),
        ("encoder", "adamatch.adapatch", "false", "adapatch: True -> False"),
        ("encoder", "scale.workers", "5", r"workers: \d -> 5"),
        ("adamatch", "text.max_tokens", "50", "text.max_tokens"),
        ("metrics", "evaluate.split", "train", "evaluate.split: 'test' -> 'train'"),
    ],
)
def test_other_settings_make_a_stage_stale(name: str, key: str, value: str, named: str, root: Path) -> None:
    with pytest.raises(ValueError, match=named) as caught:
        run(name, root, f"--{key}", value).begin()
    assert "--overwrite" in str(caught.value)


@pytest.mark.parametrize("key", ["scale.loaders", "scale.max_failures", "scale.local_cpus"])
def test_where_a_stage_runs_does_not_decide_what_it_is(key: str, root: Path) -> None:
    for name in STAGES:
        answer = run(name, root, f"--{key}", "7").begin()
        assert answer is not None and answer["status"] == "skipped"


def test_remaking_a_parent_makes_its_children_stale(root: Path) -> None:
    finish("studies", root, "--data.seed", "1", "--overwrite")
    for child in ("encoder", "adamatch"):
        with pytest.raises(ValueError, match="parent studies"):
            run(child, root).begin()


def test_what_a_command_says_of_a_parent_must_hold(root: Path) -> None:
    with pytest.raises(ValueError, match=r"studies was made with data\.seed 0, not 4; run jobs/prepare_data\.py"):
        run("encoder", root, "--data.seed", "4").begin()
    answer = run("encoder", root, "--data.seed", "0").begin()
    assert answer is not None and answer["status"] == "skipped"


def test_a_missing_parent_is_made_first_with_the_same_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def run_job(job: str, arguments: list[str]) -> dict[str, Any]:
        asked.append((job, arguments))
        return finish("studies", tmp_path, "--data.seed", "9")

    monkeypatch.setattr(stages, "run_job", run_job)
    assert run("encoder", tmp_path, "--data.seed", "9").begin() is None
    assert asked == [("prepare_data", ["--config", "phantom", "--root", str(tmp_path), "--data.seed", "9"])]
    assert "studies is missing, making it first" in capsys.readouterr().err


def test_a_stage_made_otherwise_is_refused_before_its_missing_parents_are_made(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "encoder" / "manifest.json").unlink()
    monkeypatch.setattr(stages, "run_job", lambda job, arguments: pytest.fail(f"{job} was begun"))
    with pytest.raises(ValueError, match=r"adamatch was made from other inputs \(adamatch\.dim: 64 -> 32\)"):
        run("adamatch", root, "--adamatch.dim", "32").begin()


@pytest.mark.parametrize("name", ["encoder", "adamatch", "vqgan"])
def test_weights_that_are_not_there_are_told_before_anything_is_withdrawn(name: str, root: Path) -> None:
    with pytest.raises(ValueError, match=rf"--{name}\.init none\.pth: no such file"):
        run(name, root, f"--{name}.init", "none.pth", "--overwrite").begin()
    assert Root(str(root)).stage(name).manifest()


def test_weights_are_given_to_workers_by_their_whole_path(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    (root / "mine.pth").touch()
    begun = run("encoder", root, "--encoder.init", "mine.pth", "--overwrite")
    assert begun.begin() is None and begun.init == str(root / "mine.pth")
    assert begun.settings["encoder"]["init"] == "mine.pth"


@pytest.mark.parametrize("name", ["pretrain_encoder", "train_adamatch"])
def test_weights_that_do_not_fit_are_told_before_parents_are_made(
    name: str, root: Path, job: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "studies" / "manifest.json").unlink()
    monkeypatch.setattr(stages, "run_job", lambda job, arguments: pytest.fail(f"{job} was begun"))
    save_file({"pos_embed1": torch.zeros(1, 3, 4)}, root / "other.safetensors")
    section = name.split("_")[1]
    with pytest.raises(ValueError, match=r"other\.safetensors: the weights do not fit this encoder"):
        job(name)(["--config", "phantom", "--root", str(root), f"--{section}.init", str(root / "other.safetensors")])


def test_other_workers_may_go_on_with_a_training_whose_global_batch_they_keep(tmp_path: Path) -> None:
    from adamatch_ray.train.launch import _claim_run

    def claim(*arguments: str) -> None:
        again = run("encoder", tmp_path, "--encoder.train.batch_size", "16", *arguments)
        again.settings = again._settings()
        _claim_run(again, "auto")

    for _ in range(2):
        claim("--scale.workers", "2")
    claim("--scale.workers", "4", "--encoder.train.batch_size", "8")
    with pytest.raises(ValueError, match=r"begun with batches of 32, these workers together take 64: set --encoder"):
        claim("--scale.workers", "4")
    with pytest.raises(ValueError, match=r"other settings; use --resume never"):
        claim("--scale.workers", "2", "--encoder.train.lr", "1e-4")


def test_a_parent_that_cannot_be_made_names_the_command_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", [str(tmp_path / "jobs" / "train_adamatch.py")])  # no such job beside this one
    with pytest.raises(ValueError, match=r"prepare_data failed \(exit 2\); go on with: python jobs/prepare_data\.py"):
        run("encoder", tmp_path).begin()


def test_other_jobs_run_in_their_own_process_and_answer_on_their_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "prepare_data.py"
    script.write_text("import json, sys\nprint('chatter')\nprint(json.dumps({'said': sys.argv[1:]}))\n")
    monkeypatch.setattr("sys.argv", [str(tmp_path / "train_adamatch.py")])
    assert stages.run_job("prepare_data", ["--root", "x y"]) == {"said": ["--root", "x y"]}


def test_adamatch_needs_no_encoder_when_it_starts_from_elsewhere(root: Path) -> None:
    (root / "encoder" / "manifest.json").unlink()
    begun = run("adamatch", root, "--adamatch.init", "none", "--overwrite")
    assert begun.begin() is None and set(begun.parents) == {"studies"}


def test_a_dry_run_shows_the_plan_and_touches_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = run("adamatch", tmp_path / "run", "--dry-run", "--adamatch.dim", "64").begin()
    assert answer is not None and answer["status"] == "planned"
    out = capsys.readouterr().out
    assert "dim: 64" in out and "# parent studies: missing: python jobs/prepare_data.py" in out
    assert not (tmp_path / "run").exists()


def test_every_stage_is_made_from_earlier_ones_by_a_job_that_is_there() -> None:
    jobs = Path(__file__).resolve().parents[1] / "jobs"
    order = list(STAGES)
    for name, spec in STAGES.items():
        assert spec.name == name and (jobs / f"{spec.job}.py").is_file()
        assert all(order.index(parent) < order.index(name) for parent in spec.parents)
        assert spec.sections and all(hasattr(RunConfig(), key) for key in spec.sections)


@pytest.mark.parametrize(
    ("name", "option", "key", "length"),
    [
        ("metrics", "evaluate.predictions", "predictions", 16),
        ("metrics", "evaluate.phrases", "phrases", 16),
        ("generations", "generate.manifest", "table", 64),
    ],
)
def test_other_rows_under_the_same_name_are_another_input(
    name: str, option: str, key: str, length: int, root: Path
) -> None:
    table = root / "table.csv"
    table.write_text("study_id,report\n1,clear\n")
    asked = (f"--{option}", str(table))
    finish(name, root, *asked, "--overwrite")
    assert len(Root(str(root)).stage(name).require().config[key]) == length
    assert (run(name, root, *asked).begin() or {})["status"] == "skipped"
    table.write_text("study_id,report\n1,effusion\n")
    with pytest.raises(ValueError, match=f"{key}: '"):
        run(name, root, *asked).begin()
    table.unlink()
    with pytest.raises(ValueError, match=rf"--{option} {table}: no such file"):
        run(name, root, *asked).begin()
    answer = run(name, root / "other", *asked, "--dry-run").begin()
    assert answer is not None and answer["status"] == "planned"
