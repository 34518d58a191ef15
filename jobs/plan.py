"""usage: python jobs/plan.py [a100-40gb|h100-80gb|h200|cpu-core] [options]

Predict time, memory a worker, storage and bottleneck of every stage, its arithmetic shown line by line; nothing is run.
"""

from collections.abc import Sequence
from typing import Any

from adamatch_ray.cli import parse_command_line, run_as_command
from adamatch_ray.specs import STAGES
from adamatch_ray.storage import Root


def main(arguments: Sequence[str]) -> dict[str, Any]:
    """Print the plan of all stages; the answer holds the sums."""
    from adamatch_ray import plan as planning

    command = parse_command_line(arguments, __doc__ or "", choices=tuple(planning.HARDWARE))
    from adamatch_ray.stage_plans import plan_stage

    config, root = command.config, Root(command.root)
    hardware = planning.HARDWARE[command.words[0]] if command.words else planning.default_hardware(config)
    manifests = {name: root.stage(name).manifest() for name in STAGES}
    studies = manifests["studies"]
    counts = planning.expected_counts(config, studies.rows if studies else None)
    print(f"{config.scale.workers} worker(s), one {hardware.name} each; 'measured' is what a finished stage here took")
    seconds = stored = 0.0
    fits = True
    for name in STAGES:
        plan = plan_stage(name, config, counts, hardware)
        done = manifests[name]
        print("\n".join(planning.describe_plan(plan, hardware, done.seconds if done else None)))
        seconds, stored = seconds + plan.seconds, stored + plan.stored_bytes
        fits &= plan.worker_bytes <= hardware.memory
    print(f"all stages: {planning.clock(seconds)}, {planning.size(stored)} stored")
    return {"stage": "plan", "status": "planned", "output": command.root, "seconds": 0.0, "fits": fits,
            "predicted_hours": round(seconds / 3600, 2), "stored_gb": round(stored / 1e9, 2)}  # fmt: skip


if __name__ == "__main__":
    run_as_command(main)
