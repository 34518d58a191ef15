"""What a checkpoint of the language model says of itself, who may continue it, and its conversion for other workers.

DeepSpeed lays a model out over the workers it has: a checkpoint is continued by as many, with the same ZeRO stage. A
converted one (DeepSpeed calls it universal) may be continued by any.
"""

import json
import shutil
import sys
from argparse import Namespace
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from adamatch_ray.config import LLMStage
from adamatch_ray.storage import Stage

TAG = "deepspeed"
"""Folder of DeepSpeed's files within a checkpoint."""

PROGRESS = "progress.json"


def write_progress(folder: Path, progress: dict[str, Any], workers: int, stage: LLMStage) -> None:
    """Say how far a checkpoint is and who wrote it."""
    said = {"workers": workers, "zero_stage": stage.deepspeed.stage, "muon": stage.train.muon_lr > 0}
    (folder / PROGRESS).write_text(json.dumps({**progress, **said}))


def read_progress(folder: Path) -> dict[str, Any]:
    """What a checkpoint says of itself."""
    if not (folder / PROGRESS).is_file():
        raise ValueError(f"{folder} is no checkpoint of tune_llm: it has no {PROGRESS}")
    said: dict[str, Any] = json.loads((folder / PROGRESS).read_text())
    return said


def refuse_other_workers(said: dict[str, Any], workers: int, zero_stage: int, where: str) -> None:
    """ValueError naming both sides and the fix, unless so many workers with this stage can continue a checkpoint."""
    if said.get("universal") or (said["workers"], said["zero_stage"]) == (workers, zero_stage):
        return
    other = f"convert it: python jobs/tune_llm.py convert --resume {where}"
    if _unconvertible(said):
        other = f"begin from its weights: --llm.name_or_path {where}/model --run-name NAME"
    raise ValueError(
        f"{where} was written by {said['workers']} worker(s) with ZeRO stage {said['zero_stage']}, this run has "
        f"{workers} with stage {zero_stage}: go on with --scale.llm_workers {said['workers']} --llm.deepspeed.stage "
        f"{said['zero_stage']}, or {other}"
    )


def check_resume(stage: Stage, run_name: str, resume: str, workers: int, zero_stage: int) -> None:
    """Refuse, before anything runs, a checkpoint that other workers or another ZeRO stage wrote."""
    if resume == "auto":
        for name in _checkpoints(stage, f"training/{run_name}"):
            if (text := stage.read_text(f"{name}/{PROGRESS}")) is not None:
                refuse_other_workers(json.loads(text), workers, zero_stage, f"{stage.uri}/{name}")
    elif resume != "never" and "://" not in resume:
        refuse_other_workers(read_progress(Path(resume)), workers, zero_stage, resume)


def convert(folder: Path) -> Path:
    """Make a checkpoint that any number of workers can continue, beside the one it is made from; its folder.

    Raises ValueError for what is no checkpoint, is converted already, or was written with ZeRO stage 0 or Muon.
    """
    from deepspeed.checkpoint import ds_to_universal

    said = read_progress(folder)
    if reason := _unconvertible(said):
        raise ValueError(f"{folder} {reason}; begin from its weights instead: --llm.name_or_path {folder}/model")
    target = folder.with_name(f"{folder.name}-universal")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    options = Namespace(
        input_folder=str(folder / TAG),
        output_folder=str(target / TAG),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    with redirect_stdout(sys.stderr):
        ds_to_universal.main(options)
    (target / PROGRESS).write_text(json.dumps({**said, "universal": True}))
    return target


def _unconvertible(said: dict[str, Any]) -> str:
    """Why a checkpoint cannot be converted; empty where it can be."""
    reasons = {
        "is converted already": said.get("universal"),
        "has no optimiser states of its own (ZeRO stage 0)": said["zero_stage"] == 0,
        "was tuned with Muon, whose states DeepSpeed does not convert": said.get("muon"),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _checkpoints(stage: Stage, folder: str) -> list[str]:
    selector = pafs.FileSelector(f"{stage.path}/{folder}", allow_not_found=True)
    found: list[Any] = stage.filesystem.get_file_info(selector)
    return sorted(f"{folder}/{info.base_name}" for info in found if info.type == pafs.FileType.Directory)
