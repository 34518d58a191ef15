"""Training through Ray, end to end on a few phantoms: it finishes, survives a killed worker, and repeats exactly.

The jobs are called in this process and join the session's Ray; only their workers are processes of their own.
"""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.cloudpickle
from PIL import Image

Main = Callable[[Sequence[str]], "dict[str, Any] | None"]

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_session")]

STEPS = 12  # 96 studies in batches of 16, two epochs


@dataclass(frozen=True)
class Trained:
    """A finished training run: its root and what the job answered."""

    root: Path
    answer: dict[str, Any]

    def rows(self, kind: str) -> list[dict[str, Any]]:
        """Rows of metrics.jsonl of a kind, without the one figure that is a matter of time."""
        lines = (self.root / "adamatch" / "metrics.jsonl").read_text().splitlines()
        found = [json.loads(line) for line in lines]
        return [{k: v for k, v in row.items() if k != "wait"} for row in found if row["kind"] == kind]

    @property
    def weights(self) -> bytes:
        return (self.root / "adamatch" / "model" / "model.safetensors").read_bytes()


def train(job: Callable[[str], Main], yaml: Path, root: Path, *more: str) -> Trained:
    arguments = ["--config", str(yaml), "--root", str(root), "--adamatch.init", "none", *more]
    answer = job("train_adamatch")(arguments)
    assert answer is not None
    return Trained(root, answer)


def fresh(studies_root: Path, folder: Path) -> Path:
    shutil.copytree(studies_root / "studies", folder / "studies")
    return folder


@pytest.fixture(scope="module")
def trained(
    job: Callable[[str], Main],
    tiny_yaml: Path,
    studies_root: Path,
    tmp_path_factory: pytest.TempPathFactory,
    ray_session: None,
) -> Trained:
    """A run that nothing interrupted."""
    return train(job, tiny_yaml, fresh(studies_root, tmp_path_factory.mktemp("whole")))


def test_a_run_writes_its_model_its_metrics_and_its_manifest(trained: Trained) -> None:
    from adamatch_ray.models import adamatch
    from adamatch_ray.storage import Root

    answer = trained.answer
    assert (answer["stage"], answer["status"], answer["steps"]) == ("adamatch", "done", STEPS)
    assert answer["output"] == f"{trained.root}/adamatch"
    assert [row["step"] for row in trained.rows("train")] == list(range(1, STEPS + 1))
    assert [row["step"] for row in trained.rows("validate")] == [STEPS // 2, STEPS]
    assert all(np.isfinite(row["loss"]) for row in trained.rows("train"))
    manifest = Root(str(trained.root)).stage("adamatch").require()
    assert manifest.parents.keys() == {"studies"} and manifest.figures["steps"] == STEPS
    model, tokenizer = adamatch.load(trained.root / "adamatch" / "model")
    assert len(tokenizer) > 50 and model.sizes.adamatch.dim == 16
    assert list((trained.root / "adamatch" / "tensorboard").iterdir())


def test_a_finished_run_is_skipped(trained: Trained, job: Callable[[str], Main], tiny_yaml: Path) -> None:
    before = trained.weights
    assert train(job, tiny_yaml, trained.root).answer["status"] == "skipped"
    assert trained.weights == before
    with pytest.raises(ValueError, match=r"adamatch\.train\.lr.*--overwrite"):
        train(job, tiny_yaml, trained.root, "--adamatch.train.lr", "1e-4")


def _dies_once(settings: Any, worker: Any) -> Any:
    """AdaMatch's fitter, in a worker that is killed during step 9 the first time."""
    from adamatch_ray.train.fit_adamatch import AdaMatchFitter

    marker = Path(settings.root) / "killed"
    fitter = AdaMatchFitter(settings, worker)
    step = fitter.step

    def killed_in_step_nine(batch: Any) -> Any:
        if fitter.schedule.step == 8 and not marker.exists():
            marker.write_text("")
            os.kill(os.getpid(), signal.SIGKILL)
        return step(batch)

    mock.patch.object(fitter, "step", killed_in_step_nine).start()
    return fitter


def test_a_run_whose_worker_is_killed_ends_as_if_nothing_had_happened(
    trained: Trained,
    job: Callable[[str], Main],
    tiny_yaml: Path,
    studies_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from adamatch_ray.train import fit_adamatch as adamatch

    # Workers cannot import this module, so what it defines travels by value.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(adamatch, "AdaMatchFitter", _dies_once)
    root = fresh(studies_root, tmp_path)
    again = train(job, tiny_yaml, root)
    assert (root / "killed").exists(), "the worker was killed on the way"
    assert again.answer["steps"] == STEPS
    assert again.rows("train") == trained.rows("train")
    assert again.rows("validate") == trained.rows("validate")
    assert again.weights == trained.weights
    # Killed after the training and before the commit: nothing is trained again, and the model is the same.
    (root / "adamatch" / "manifest.json").unlink()
    shutil.rmtree(root / "adamatch" / "model")
    with pytest.raises(ValueError, match=r"other settings; use --resume never"):
        train(job, tiny_yaml, root, "--adamatch.train.lr", "1e-4")
    monkeypatch.setattr(adamatch, "AdaMatchFitter", _may_not_step)
    assert train(job, tiny_yaml, root).weights == trained.weights


def _may_not_step(settings: Any, worker: Any) -> Any:
    """AdaMatch's fitter where nothing is left to be done."""
    from adamatch_ray.train.fit_adamatch import AdaMatchFitter

    fitter = AdaMatchFitter(settings, worker)
    mock.patch.object(fitter, "step", None).start()
    return fitter


def test_two_workers_share_the_batch_and_start_from_the_encoder(
    job: Callable[[str], Main], tiny_yaml: Path, studies_root: Path, tmp_path: Path
) -> None:
    root = fresh(studies_root, tmp_path)
    common = ["--config", str(tiny_yaml), "--root", str(root), "--scale.workers", "2", "--scale.cpus_per_worker", "0.5"]
    encoder = job("pretrain_encoder")([*common, "--encoder.train.max_steps", "2"])
    assert encoder is not None and encoder["steps"] == 2 and 0 <= encoder["auroc"] <= 1
    answer = job("train_adamatch")([*common, "--adamatch.train.epochs", "1", "--encoder.train.max_steps", "2"])
    assert answer is not None and answer["status"] == "done"
    # Three shards of 32 for two workers of 16 studies a step.
    assert answer["steps"] == 3
    losses = [row["loss"] for row in Trained(root, answer).rows("train")]
    assert len(losses) == 3 and all(np.isfinite(loss) for loss in losses)
    asked = ["--evaluate.split", "validate", "--evaluate.tables", "retrieval"]
    scores = job("evaluate")(["--config", str(tiny_yaml), "--root", str(root), *asked])
    assert scores is not None and scores["studies"] == 16 and 0 <= scores["image_to_text@1"] <= 100
    report = json.loads((root / "metrics" / "retrieval.json").read_text())
    assert "synthetic" in report["data"] and report["full"].keys() == report["released"].keys()


def test_preparing_again_with_other_shards_leaves_no_row_of_before(job: Callable[[str], Main], tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    lines = []
    for i in range(12):
        noise = np.random.default_rng(i).integers(0, 255, (80, 70), dtype=np.uint8)
        Image.fromarray(noise).save(raw / f"{i}.png")
        if i % 3 == 0:
            (raw / f"{i}.png").write_bytes(b"")
        lines.append({"image": f"{i}.png", "report": f"The heart is normal in study {i}.", "patient": f"p{i}"})
    (raw / "table.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    common = ["--root", str(tmp_path / "run"), "--data.source", "manifest", "--data.path", str(raw / "table.jsonl")]
    common += ["--data.subject_column", "patient", "--data.canvas", "32"]
    studies = tmp_path / "run" / "studies"
    for size in (2, 6):
        answer = job("prepare_data")([*common, "--data.rows_per_shard", str(size), "--overwrite"])
        assert answer is not None and answer["status"] == "done"
        assert (answer["seen"], answer["accepted"], answer["rejected"]) == (12, 8, 4)
        assert answer["reasons"] == {"zero-byte file": 4}
        rejected = [row for path in studies.glob("quarantine/*.parquet") for row in pq.read_table(path).to_pylist()]
        assert sorted(row["dicom_id"] for row in rejected) == ["0", "3", "6", "9"]
        files = {
            p.relative_to(studies).as_posix() for p in studies.glob("*/*.parquet") if p.parent.name != "quarantine"
        }
        assert files == set(json.loads((studies / "manifest.json").read_text())["files"])
    again = job("prepare_data")([*common, "--data.rows_per_shard", "6"])
    assert again is not None and again["status"] == "skipped"


def test_the_place_head_repeats_exactly_whatever_the_boxes(
    trained: Trained, job: Callable[[str], Main], tiny_yaml: Path, tmp_path: Path
) -> None:
    """A second root whose studies have all of their boxes in one corner gives the same head, byte for byte."""
    from adamatch_ray.engines.loader import load_place_head
    from adamatch_ray.storage import Root

    heads = []
    for name in ("true", "false"):
        root = tmp_path / name
        for stage in ("studies", "adamatch"):
            shutil.copytree(trained.root / stage, root / stage)
        for path in (root / "studies").glob("[tv]*/*.parquet") if name == "false" else ():
            table = pq.read_table(path)
            boxes = [[{**box, "x0": 0.0, "y0": 0.0, "x1": 9.0, "y1": 9.0} for box in own] for own in rows_of(table)]
            column = table.schema.get_field_index("boxes")
            pq.write_table(table.set_column(column, "boxes", pa.array(boxes, table.schema.field("boxes").type)), path)
        answer = job("train_place")(
            ["--config", str(tiny_yaml), "--root", str(root), "--adamatch.init", "none", "--place.head", "words",
             "--place.train.epochs", "1"]
        )  # fmt: skip
        assert answer is not None and answer["steps"] == STEPS // 2 and 0 <= answer["auc"] <= 1
        assert load_place_head(Root(str(root))) is not None
        heads.append((root / "place" / "model" / "model.safetensors").read_bytes())
    assert heads[0] == heads[1]


def rows_of(table: pa.Table) -> list[list[dict[str, Any]]]:
    return [boxes or [] for boxes in table["boxes"].to_pylist()]
