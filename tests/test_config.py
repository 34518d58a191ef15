"""The run configuration and the command line: what users may say, and the one line they get when it is wrong."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from reach import attributes
from reach import parse as parse_module

from adamatch_ray.cli import help_text, one_line, parse_command_line, run_as_command
from adamatch_ray.config import PRESETS, RunConfig, describe, load_config, meaning_of, section, to_yaml
from adamatch_ray.specs import STAGES

JOBS = Path(__file__).resolve().parents[1] / "jobs"


def parse(*arguments: str) -> Any:
    return parse_command_line(arguments, "usage: a job")


# ---- presets and files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_loads_and_survives_its_own_yaml(name: str, tmp_path: Path) -> None:
    config = load_config(name)
    sources = {"phantom": "phantom", "phantom_long": "phantom", "openi": "openi"}
    assert config.data.source == sources.get(name, "mimic_cxr")
    file = tmp_path / "resolved.yaml"
    file.write_text(to_yaml(config))
    assert load_config(str(file)) == config


def test_the_defaults_are_the_papers() -> None:
    config = RunConfig()
    train = config.adamatch.train
    assert (train.epochs, train.batch_size, train.lr, train.weight_decay, train.warmup) == (15, 112, 6e-3, 3e-2, 0.25)
    assert (config.adamatch.stage, config.adamatch.dim, config.adamatch.temperature) == (3, 256, 0.07)
    assert (config.adamatch.negatives, config.adamatch.projection, config.text.unit) == (
        "global",
        "linear",
        "wordpiece",
    )
    assert (config.text.layers, config.text.max_tokens, config.image.image_size) == (12, 112, 224)
    assert config.image.dims == (64, 128, 320, 512) and config.image.depths == (3, 4, 18, 3)
    released = load_config("released")
    assert released.data.source == "mimic_cxr" and released.scale.workers == 8
    assert (released.text.unit, released.text.layers, released.adamatch.projection) == ("word", 6, "conv")


def test_a_file_builds_on_its_base_section_by_section(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("base: phantom\nadamatch: {dim: 64, train: {epochs: 3}}\n")
    mine, base = load_config(str(file)), load_config("phantom")
    assert (mine.adamatch.dim, mine.adamatch.train.epochs) == (64, 3)
    assert mine.adamatch.train.batch_size == base.adamatch.train.batch_size
    assert mine.data == base.data and mine.image == base.image
    second = tmp_path / "second.yaml"
    second.write_text(f"base: {file}\nadamatch: {{dim: 32}}\n")
    assert load_config(str(second)).adamatch.train.epochs == 3


# ---- overrides ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("adamatch.stage", "2", 2),
        ("adamatch.adapatch", "false", False),
        ("adamatch.adapatch", "true", True),
        ("adamatch.train.lr", "1e-3", 1e-3),
        ("adamatch.train.epochs", "7", 7),
        ("adamatch.image_heads", "mixed", "mixed"),
        ("image.depths", "1,2,3,1", (1, 2, 3, 1)),
        ("image.depths", "[1, 2, 3, 1]", (1, 2, 3, 1)),
        ("image.adapatch_stages", "3", (3,)),
        ("image.adapatch_stages", "", ()),
        ("image.mlp_ratios", "2,2.5,2,2", (2.0, 2.5, 2.0, 2.0)),
        ("text.name_or_path", "", ""),
        ("text.name_or_path", "12", "12"),
        ("data.path", "s3://bucket/a=b,c", "s3://bucket/a=b,c"),
    ],
)
def test_any_field_is_set_from_text(key: str, text: str, value: Any) -> None:
    found: Any = load_config("phantom", {key: text})
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("adamatch.stge", "3", "did you mean 'adamatch.stage'"),
        ("adamatch.train.learning_rate", "1", "adamatch.train"),
        ("qqq.zzz", "1", "--help lists them all"),
        ("adamatch", "1", "unknown option --adamatch"),
        ("adamatch.stage", "5", r"adamatch\.stage: .*5"),
        ("adamatch.stage", "three", r"adamatch\.stage: .*'three'"),
        ("adamatch.train.epochs", "many", r"adamatch\.train\.epochs: .*'many'"),
        ("adamatch.train.epochs", "1.5", r"adamatch\.train\.epochs"),
        ("adamatch.adapatch", "perhaps", r"adamatch\.adapatch: .*'perhaps'"),
        ("adamatch.negatives", "some", r"'global' or 'local'"),
        ("image.depths", "1,2,x,1", r"image\.depths\.2: .*'x'"),
        ("image.depths", "1,2,1", "depths needs 4"),
        ("image.image_size", "100", "image_size 100 must be a multiple of 32"),
    ],
)
def test_a_wrong_key_or_value_is_one_line_that_names_it(key: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_config("phantom", {key: text})
    assert "\n" not in one_line(caught.value) and len(one_line(caught.value)) < 300


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("adamatch: {stge: 3}", "'adamatch.stge'; did you mean 'adamatch.stage'"),
        ("adamtch: {stage: 3}", "'adamtch'; did you mean 'adamatch'"),
        ("adamatch: {train: {epoch: 3}}", "'adamatch.train.epoch'; did you mean 'adamatch.train.epochs'"),
        ("adamatch: 3", "adamatch: expected a section with fields"),
        ("adamatch:", "adamatch: expected a section with fields"),
        ("adamatch: {train: {epochs: many}}", r"adamatch\.train\.epochs"),
        ("- 1", "expected sections"),
        ("a: [", "not YAML"),
        ("base: nothing", "neither a preset"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_it(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        load_config(str(file))


@pytest.mark.parametrize("content", ["data:\n", "data: 3\n"])
def test_an_override_into_a_broken_section_is_a_users_mistake_too(content: str, tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(content)
    with pytest.raises(ValueError, match="data: expected a section"):
        load_config(str(file), {"data.seed": "1"})


def test_unknown_presets_and_missing_files_are_named() -> None:
    with pytest.raises(
        ValueError, match=r"phantm: neither a preset \(phantom, phantom_long, openi, mimic_cxr, released\) nor"
    ):
        load_config("phantm")
    with pytest.raises(ValueError, match=r"none\.yaml: no such file"):
        load_config("none.yaml")


def test_saying_what_the_default_says_is_no_other_run() -> None:
    """Stages are skipped by a fingerprint over these values, so a spelled-out default may not change them."""
    plain = load_config("mimic_cxr")
    for name, _, default, _ in describe():
        text = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
        part = name.split(".")[0]
        said = load_config("mimic_cxr", {name: text}) if name not in _PRESET else plain
        assert json.dumps(section(said, part)) == json.dumps(section(plain, part)), name


_PRESET = {"scale.workers", "scale.gpu", "scale.cpus_per_worker", "scale.loaders", "encoder.train.epochs"}
"""What the mimic_cxr preset changes."""


# ---- command line ---------------------------------------------------------------------------------------------------


def test_the_command_line_without_arguments_is_the_laptops() -> None:
    command = parse()
    assert command.config == load_config("phantom")
    assert command.root == str(Path("runs/phantom").resolve())
    assert (command.resume, command.overwrite, command.dry_run, command.words) == ("auto", False, False, ())


def test_values_follow_a_space_or_an_equals_sign() -> None:
    spaced = parse("--root", "s3://bucket/x", "--adamatch.stage", "2", "--overwrite")
    joined = parse("--root=s3://bucket/x", "--adamatch.stage=2", "--overwrite")
    assert spaced == joined
    assert spaced.root == "s3://bucket/x" and spaced.overwrite and spaced.config.adamatch.stage == 2
    assert parse("--data.path=a=b").config.data.path == "a=b"
    assert parse("--encoder.train.lr", "-1").config.encoder.train.lr == -1


def test_an_empty_value_is_a_value_and_does_not_swallow_the_next_argument() -> None:
    command = parse("--text.name_or_path=", "--dry-run")
    assert command.config.text.name_or_path == "" and command.dry_run


@pytest.mark.parametrize("arguments", [["--root"], ["--adamatch.stage"], ["--root", "--dry-run"]])
def test_an_option_without_a_value_says_so(arguments: list[str]) -> None:
    with pytest.raises(ValueError, match=f"{arguments[0]} needs a value"):
        parse(*arguments)


@pytest.mark.parametrize("given", ["--overwrite=no", "--dry-run=false"])
def test_a_switch_takes_no_value_that_it_would_not_heed(given: str) -> None:
    with pytest.raises(ValueError, match=r"takes no value"):
        parse_command_line([given], "")


def test_a_checkpoint_is_a_folder_that_workers_elsewhere_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoint").mkdir()
    assert parse_command_line(["--resume", "checkpoint"], "").resume == str(tmp_path / "checkpoint")
    assert parse_command_line(["--resume", "s3://b/checkpoint"], "").resume == "s3://b/checkpoint"
    with pytest.raises(ValueError, match=r"--resume perhaps: neither auto, never nor the folder"):
        parse_command_line(["--resume", "perhaps"], "")


def test_positional_words_are_taken_where_a_job_has_some() -> None:
    command = parse_command_line(["text", "--root", "r"], "usage", choices=("text", "image"))
    assert command.words == ("text",)
    with pytest.raises(ValueError, match="unexpected argument 'txt'; expected one of text, image"):
        parse_command_line(["txt"], "usage", choices=("text", "image"))
    with pytest.raises(ValueError, match="options that start with --"):
        parse("adamatch.stage", "2")


def test_a_job_that_makes_a_missing_parent_passes_on_what_it_was_told() -> None:
    command = parse("--config", "openi", "--root", "s3://b/x", "--data.path", "/raw", "--overwrite")
    again = parse(*command.for_parent())
    assert (again.config, again.root) == (command.config, command.root)
    assert not again.overwrite, "a finished parent is not made again"


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, outcome: Any) -> Ran:
    def main(arguments: Any) -> Any:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr(sys, "argv", ["job.py"])
    monkeypatch.delenv("ADAMATCH_TRACEBACK", raising=False)
    code = 0
    try:
        run_as_command(main)
    except SystemExit as stop:
        code = int(str(stop.code))
    captured = capsys.readouterr()
    return Ran(code, captured.out, captured.err)


def test_the_answer_is_the_last_line_of_stdout(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = command(capsys, monkeypatch, {"stage": "studies", "status": "done"})
    assert ran.code == 0 and json.loads(ran.out.splitlines()[-1]) == {"stage": "studies", "status": "done"}


class _FromWorker(ValueError):
    """How an error of a remote task arrives: long, with the original as `cause`."""

    cause = ValueError("the table has\nno column x")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two\nlines  of it"), "error: two lines of it\n"),
        (FileNotFoundError(2, "No such file or directory", "/a/b"), "error: /a/b: No such file or directory\n"),
        (_FromWorker("a long\ntraceback"), "error: the table has no column x\n"),
        (OSError(), "error: OSError\n"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_2(
    error: Exception, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = command(capsys, monkeypatch, error)
    assert (ran.code, ran.err, ran.out) == (2, line, "")


def test_a_defect_keeps_its_traceback(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyError):
        command(capsys, monkeypatch, KeyError("defect"))


def test_help_lists_every_field_and_loads_nothing_heavy() -> None:
    code = (
        "import runpy, sys\n"
        "script = sys.argv[1]\n"
        "sys.argv = [script, '--help']\n"
        "try:\n"
        "    runpy.run_path(script, run_name='__main__')\n"
        "finally:\n"
        "    heavy = {'torch', 'ray', 'transformers', 'deepspeed'} & set(sys.modules)\n"
        "    print('heavy:', sorted(heavy), file=sys.stderr)\n"
    )
    script = str(JOBS / "train_adamatch.py")
    done = subprocess.run([sys.executable, "-c", code, script], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.strip() == "heavy: []", done.stderr
    for name, kind, default, meaning in describe():
        assert f"  --{name} <{kind}> [{default}]\n        {meaning}" in done.stdout and meaning, name
    assert done.stdout.startswith("usage: python jobs/train_adamatch.py")


def test_every_option_says_in_words_what_it_does() -> None:
    """In a few words that are not its own name, under a section that says what it is about."""
    told = {name: set(re.findall(r"[a-z]+", meaning.lower())) for name, _, _, meaning in describe()}
    assert not [name for name, words in told.items() if len(words) < 3 or len(words - set(re.split("[._]", name))) < 2]
    for group in {name.split(".")[0] for name in told}:
        assert f"\n{group}: " in help_text("") and len(meaning_of(group).split()) > 3, group


@pytest.mark.parametrize("script", sorted(JOBS.glob("*.py")), ids=lambda path: path.stem)
def test_every_job_has_a_usage_line(script: Path) -> None:
    assert script.read_text().startswith(f'"""usage: python jobs/{script.name}')


def test_presets_hold_nothing_that_is_already_the_default() -> None:
    """A preset that repeats a default hides what it is about."""
    default = {name: value for name, _, value, _ in describe()}
    folder = Path(__file__).resolve().parents[1] / "adamatch_ray" / "presets"
    for name in ("openi", "mimic_cxr"):
        values = yaml.safe_load((folder / f"{name}.yaml").read_text())
        for key, value in _leaves(values):
            if key not in ("base", "data.source"):
                assert default[key] != value, f"{name}: {key}"


def _leaves(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        found += _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return found


PLANNING = ("adamatch_ray.stage_plans", "adamatch_ray.plan", "adamatch_ray.counting", "adamatch_ray.config")
"""Modules that look at an option without doing what it says."""


def readers(name: str) -> list[str]:
    """Jobs that a section of the configuration is for."""
    jobs = [spec.job for spec in STAGES.values() if name in spec.sections]
    return (
        jobs
        or {
            "gallery": ["draw_gallery"],
            "pacs": ["read_pacs"],
            "scale": ["pipeline", *(spec.job for spec in STAGES.values())],
        }[name]
    )


def summed_up(names: set[str]) -> set[str]:
    """Options behind these names, where a name is a method or property of a section."""
    parsed = [parse_module("adamatch_ray.config"), parse_module("adamatch_ray.model_config")]
    classes = [node for module in parsed if module for node in module.definitions.values()]
    methods = [m for node in classes for m in ast.walk(node) if isinstance(m, ast.FunctionDef) and m.name in names]
    return {part.attr for method in methods for part in ast.walk(method) if isinstance(part, ast.Attribute)}


def unread(leaves: Iterable[str]) -> list[str]:
    """Options, as `section.field`, that no code reads which the section's own jobs reach."""
    read: dict[str, set[str]] = {}
    for name in {leaf.split(".")[0] for leaf in leaves}:
        read[name] = set().union(*(attributes(f"jobs.{job}", ["main"], PLANNING) for job in readers(name)))
        read[name] |= summed_up(read[name])
    return [leaf for leaf in leaves if leaf.split(".")[-1] not in read[leaf.split(".")[0]]]


def test_every_option_is_read_by_a_job_that_it_is_for() -> None:
    assert not unread([name for name, *_ in describe()])


@pytest.mark.parametrize("planted", ["data.planted", "llm.train.crop", "llm.train.box_lr", "vqgan.train.beams"])
def test_an_option_that_nothing_reads_is_found(planted: str) -> None:
    """Even one that another section has and reads."""
    assert unread([planted, "llm.train.lr"]) == [planted]
