"""usage: python jobs/pipeline.py [options]

Run all stages on one root, each after those it is made from and as many at once as --scale.stages_at_once allows,
skipping what is finished; stop at the first failure with the command to resume.
"""

import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from adamatch_ray.cli import parse_command_line, run_as_command
from adamatch_ray.config import ScaleConfig
from adamatch_ray.specs import STAGES
from adamatch_ray.stage import run_job


def main(arguments: Sequence[str]) -> dict[str, Any]:
    """Run the jobs of all stages; the answer holds each one's answer."""
    command = parse_command_line(arguments, __doc__ or "")
    config, together, began = command.config, command.config.scale.stages_at_once, time.monotonic()
    if command.dry_run:
        together = 1  # plans are read one after another
    else:
        _share_one_ray(config.scale)
    waiting = {name: set(spec.parents_of(config)) for name, spec in STAGES.items()}
    running: dict[Future[dict[str, Any]], str] = {}
    answers: dict[str, Any] = {}
    with ThreadPoolExecutor(together) as pool:
        while waiting or running:
            ready = [name for name, parents in waiting.items() if parents <= answers.keys()]
            for name in ready[: together - len(running)]:
                del waiting[name]
                job = STAGES[name].job
                print(f"[{len(STAGES) - len(waiting)}/{len(STAGES)}] {job}", file=sys.stderr)
                running[pool.submit(run_job, job, list(arguments))] = name
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                answers[running.pop(future)] = future.result()
    stages = {name: answers[name] for name in STAGES}
    seconds = round(time.monotonic() - began, 1)
    return {"stage": "pipeline", "status": "done", "output": command.root, "seconds": seconds, "stages": stages}


def _share_one_ray(scale: ScaleConfig) -> None:
    """Start Ray here once, for the jobs of all stages, unless there is a cluster already."""
    import ray

    from adamatch_ray.cluster import start_ray

    start_ray(scale, dashboard=True)
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address


if __name__ == "__main__":
    run_as_command(main)
