"""Several nodes for real: a Ray of a head and two nodes on this machine, one of which is lost while a job runs."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from drill import REPOSITORY, see_through

pytestmark = [pytest.mark.drill, pytest.mark.ray, pytest.mark.slow]

EPOCHS = 30


def on_nodes(folder: Path, lose_when: str, job: str, *arguments: str, gpus: int = 0) -> dict[str, Any]:
    """The job's answer on two nodes, with how many nodes there were and how many died."""
    drill = [str(REPOSITORY / "tests" / "node_drill.py"), "2", "2", str(gpus), lose_when, job, *arguments]
    return see_through(drill, folder / f"{job}.log")


def train(folder: Path, studies: Path, yaml: Path, lose_when: str) -> dict[str, Any]:
    shutil.copytree(studies / "studies", folder / "run" / "studies")
    # 1.5 of a node's 2 CPUs: the two workers cannot be on one node.
    return on_nodes(
        folder, lose_when, "train_adamatch", "--config", str(yaml), "--root", str(folder / "run"), "--adamatch.init",
        "none", "--scale.workers", "2", "--scale.cpus_per_worker", "1.5", "--adamatch.train.epochs", str(EPOCHS),
        "--adamatch.train.validate_epochs", str(EPOCHS),
    )  # fmt: skip


def steps(folder: Path) -> list[int]:
    lines = (folder / "run" / "adamatch" / "metrics.jsonl").read_text().splitlines()
    return [row["step"] for row in map(json.loads, lines) if row["kind"] == "train"]


def test_training_over_two_nodes_that_loses_one_ends_as_if_it_had_not(
    studies_root: Path, tiny_yaml: Path, tmp_path: Path
) -> None:
    calm, hurt = tmp_path / "calm", tmp_path / "hurt"
    answer = train(calm, studies_root, tiny_yaml, "")
    assert answer["status"] == "done" and (answer["nodes"], answer["dead"]) == (3, 0)
    moment = str(hurt / "run" / "adamatch" / "training" / "run" / "checkpoint_*")
    lost = train(hurt, studies_root, tiny_yaml, moment)
    assert lost["status"] == "done" and (lost["nodes"], lost["dead"]) == (4, 1)
    assert steps(hurt) == steps(calm) == list(range(1, 3 * EPOCHS + 1)), "no step lost or doubled"
    weights = [(run / "run" / "adamatch" / "model" / "model.safetensors").read_bytes() for run in (calm, hurt)]
    assert weights[0] == weights[1]
    print(f"node lost while training: finished {lost['after']} s later, 0 steps lost, 0 doubled")


def test_generating_over_two_nodes_that_loses_one_makes_every_row_once(
    cycle_root: Path, tiny_yaml: Path, tmp_path: Path
) -> None:
    tables = {}
    for name in ("calm", "hurt"):
        root = tmp_path / name / "run"
        shutil.copytree(cycle_root, root)
        moment = str(root / "generations" / "*" / "*.parquet") if name == "hurt" else ""
        answer = on_nodes(
            tmp_path / name, moment, "generate", "--config", str(tiny_yaml), "--root", str(root),
            "--scale.workers", "2", "--scale.cpus_per_worker", "1.5", "--generate.split", "train",
            "--generate.limit", "48", "--generate.shard", "1",
            "--generate.report_tokens", "16",
        )  # fmt: skip
        assert answer["status"] == "done" and answer["dead"] == (name == "hurt")
        files = sorted((root / "generations").rglob("*.parquet"))
        tables[name] = {f.relative_to(root).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
        rows = [(row["direction"], row["dicom_id"]) for f in files for row in pq.read_table(f).to_pylist()]
        assert len(rows) == len(set(rows)) == 96
    assert tables["calm"] == tables["hurt"]
    print(f"node lost while generating: finished {answer['after']} s later, 0 rows lost, 0 doubled")


def test_work_for_a_gpu_is_done_on_a_node_that_has_one(cycle_root: Path, tiny_yaml: Path, tmp_path: Path) -> None:
    """This process has none, nor the CPU that stands in for it: a model that it built would be refused by torch."""
    root = Path(shutil.copytree(cycle_root, tmp_path / "run"))
    options = ["--config", str(tiny_yaml), "--root", str(root), "--scale.gpu", "true"]
    drawn = on_nodes(tmp_path, "", "draw_gallery", *options, "--gallery.studies", "2", gpus=1)
    assert drawn["studies"] == 2 and (root / "gallery" / "002-words.png").is_file()
    scored = on_nodes(tmp_path, "", "evaluate", *options, "--evaluate.tables", "retrieval,localization", gpus=1)
    assert scored["status"] == "done" and scored["studies"] == 16
