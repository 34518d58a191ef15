"""usage: python jobs/pipeline.py [options]

Run the stages in order on one root, skipping what is finished; stop at the first failure with the command to resume.
"""

import os
import sys
from collections.abc import Sequence
from typing import Any

from adamatch_ray.cli import parse_command_line, run_as_command
from adamatch_ray.config import ScaleConfig
from adamatch_ray.specs import STAGES
from adamatch_ray.stage import run_job


def main(arguments: Sequence[str]) -> dict[str, Any]:
    """Run the jobs of all stages; the answer holds each one's answer."""
    command = parse_command_line(arguments, __doc__ or "")
    if not command.dry_run:
        _share_one_ray(command.config.scale)
    answers: dict[str, Any] = {}
    for number, (name, spec) in enumerate(STAGES.items(), start=1):
        print(f"[{number}/{len(STAGES)}] {spec.job}", file=sys.stderr)
        answers[name] = run_job(spec.job, list(arguments))
    seconds = round(sum(answer["seconds"] for answer in answers.values()), 1)
    return {"stage": "pipeline", "status": "done", "output": command.root, "seconds": seconds, "stages": answers}


def _share_one_ray(scale: ScaleConfig) -> None:
    """Start Ray here once, for the jobs of all stages, unless there is a cluster already."""
    import ray

    from adamatch_ray.cluster import start_ray

    start_ray(scale, dashboard=True)
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address


if __name__ == "__main__":
    run_as_command(main)
