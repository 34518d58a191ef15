"""usage: python jobs/tune_llm.py [convert] [options]

Tune the language model on both directions, X-ray to report and report to X-ray, with DeepSpeed; export it merged.

  convert  make of a checkpoint (--resume PATH) one that any number of workers can continue, and stop
"""

import sys
from collections.abc import Sequence
from typing import Any

from adamatch_ray.cli import parse_command_line, run_as_command
from adamatch_ray.stage import StageRun


def main(arguments: Sequence[str]) -> dict[str, Any] | None:
    """Check the inputs, make the hints, tune on the workers, then commit the best checkpoint's model."""
    command = parse_command_line(arguments, __doc__ or "", choices=("convert",))
    if command.words:
        return _convert(command.resume)
    run = StageRun(command, "llm")
    if (answer := run.begin()) is not None:
        return answer
    from functools import partial

    from adamatch_ray.cluster import device_of, start_ray
    from adamatch_ray.data.loading import steps_per_epoch
    from adamatch_ray.model_config import to_json
    from adamatch_ray.models.llm import INSTRUCTIONS
    from adamatch_ray.pipeline.hints import make_hints
    from adamatch_ray.train.deepspeed_config import deepspeed_config
    from adamatch_ray.train.fit_llm import SCORE, LLMFitter, record_source
    from adamatch_ray.train.launch import fit_stage
    from adamatch_ray.train.llm_checkpoint import check_resume
    from adamatch_ray.train.llm_plan import plan_llm

    stage, workers = run.config.llm, run.config.scale.workers_of("llm")
    deepspeed_config(stage, workers, device_of(run.config.scale))
    if not run.command.overwrite:
        check_resume(run.stage, run.command.run_name, run.command.resume, workers, stage.deepspeed.stage)
    layout = plan_llm(run.root, stage)
    source = record_source(run.root, stage, layout)
    per_epoch = steps_per_epoch(source.shards, source.batch_size, workers)
    start_ray(run.config.scale, dashboard=True)
    files = make_hints(run)
    run.stage.write_bytes(INSTRUCTIONS, to_json(stage.instructions).encode())
    return fit_stage(run, partial(LLMFitter, layout=layout), SCORE, per_epoch=per_epoch, files=files)


def _convert(resume: str) -> dict[str, Any]:
    from pathlib import Path

    from adamatch_ray.train.llm_checkpoint import convert

    if resume in ("auto", "never"):
        raise ValueError("convert needs the checkpoint to be converted: --resume PATH")
    target = convert(Path(resume).resolve())
    print(f"go on with: --resume {target} --run-name NAME", file=sys.stderr)
    return {"stage": "llm", "status": "converted", "output": str(target)}


if __name__ == "__main__":
    run_as_command(main)
