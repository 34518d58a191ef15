"""usage: python jobs/evaluate.py [options]

Score a split with every table of the paper: retrieval, reports, images, localization and cycle consistency.
Ours, or anyone's: --evaluate.predictions FILE. Writes metrics.json, table.md and report.html into metrics/.
"""

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from adamatch_ray.cli import parse_command_line, run_as_command
from adamatch_ray.stage import StageRun

if TYPE_CHECKING:
    from adamatch_ray.config import ScaleConfig
    from adamatch_ray.data.predictions import Encoded
    from adamatch_ray.evaluation.evaluator import Spread
    from adamatch_ray.evaluation.image_meter import ImageMeter, Measured, MeterSettings
    from adamatch_ray.evaluation.images import Measure

SPREAD_FROM = 2000
"""Images from which actors pay for their start; the figures are the same either way."""


def main(arguments: Sequence[str]) -> dict[str, Any] | None:
    """Score the asked tables and commit the files that hold them."""
    run = StageRun(parse_command_line(arguments, __doc__ or ""), "metrics")
    options = run.config.evaluate
    if (answer := run.begin()) is not None:
        return answer
    from adamatch_ray.evaluation.evaluator import Evaluator

    device = "cuda" if run.config.scale.gpu else "cpu"
    evaluator = Evaluator(run.root, options, device, _spread(run.config.scale))
    summary = evaluator.run()
    for name, data in evaluator.files.items():
        run.stage.write_bytes(name, data)
    run.stage.keep_only(evaluator.files)
    print(f"metrics: {run.stage.uri}/report.html", file=sys.stderr)
    full = evaluator.tables.get("retrieval", {}).get("full", {})
    figures = {name: round(value, 2) for name, value in full.items()}
    figures |= {row["measure"]: round(row["value"], 4) for row in summary["headlines"] if row["table"] != "retrieval"}
    return run.finish(figures, {"studies": len(evaluator.split.studies)})


def _spread(scale: "ScaleConfig") -> "Spread":
    """Measure here what is little, and on actors what is much, in the same batches and the same order."""

    def make(meter: "ImageMeter", settings: "MeterSettings") -> "Measure":
        from adamatch_ray.evaluation import image_meter
        from adamatch_ray.shards import Progress

        def measure(images: "Sequence[Encoded]") -> "Measured":
            batches, parts = list(image_meter.batches(images)), []
            progress = Progress("metrics: images,", len(batches), "batches")
            for part in map(meter, batches) if len(images) < SPREAD_FROM else _on_actors(settings, batches, scale):
                parts.append(part)
                progress.add()
            return image_meter.join(parts)

        return measure

    return make


def _on_actors(settings: "MeterSettings", batches: "list[Sequence[Encoded]]", scale: "ScaleConfig") -> Iterator[Any]:
    import ray
    from ray.util import ActorPool

    from adamatch_ray.cluster import actors, start_ray
    from adamatch_ray.evaluation.image_meter import ImageMeter

    start_ray(scale)
    remote = ray.remote(
        num_cpus=scale.cpus_per_worker, num_gpus=int(scale.gpu), max_restarts=scale.max_failures, max_task_retries=-1
    )(ImageMeter)
    pool: list[Any] = [remote.remote(settings) for _ in range(min(actors(scale), len(batches)))]
    yield from ActorPool(pool).map(lambda actor, batch: actor.__call__.remote(batch), batches)
    for actor in pool:
        ray.kill(actor)


if __name__ == "__main__":
    run_as_command(main)
