"""usage: python jobs/generate.py [options]

Generate reports from X-rays and X-rays from reports, each carried on to the second half of its cycle, for a split or
for a table of your own; shards that an earlier run finished are kept.
"""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from adamatch_ray.cli import parse_command_line, run_as_command
from adamatch_ray.stage import StageRun

if TYPE_CHECKING:
    from adamatch_ray.pipeline.generations import GenerationShard


def main(arguments: Sequence[str]) -> dict[str, Any] | None:
    """Make the missing shards on a pool of actors, then commit."""
    run = StageRun(parse_command_line(arguments, __doc__ or ""), "generations")
    if (answer := run.begin()) is not None:
        return answer
    from adamatch_ray import __version__
    from adamatch_ray.cluster import device_of
    from adamatch_ray.pipeline.generations import ShardGenerator
    from adamatch_ray.shards import spread

    shards, inputs = _plan(run)
    options, scale = run.config.generate, run.config.scale
    versions = {**run.parents, "adamatch_ray": __version__}
    maker = partial(
        ShardGenerator,
        run.root.uri,
        device_of(scale),
        options,
        cycle=options.cycle,
        seed=options.seed,
        versions=versions,
    )
    statuses: dict[str, Counter[str]] = {shard.direction: Counter() for shard in shards}
    files: dict[str, int] = {}
    reused, busy = 0, 0.0
    for shard in spread(shards, maker, scale, "generations"):
        files[shard.file] = shard.rows
        statuses[shard.file.split("/")[0]].update(shard.counts)
        reused, busy = reused + shard.reused, busy + shard.seconds
    missing = {shard.file: shard.rows for shard in shards}.items() - files.items()
    if missing or len(files) != len(shards):
        raise RuntimeError(f"{len(missing)} of {len(shards)} shards are not as planned, such as {sorted(missing)[:1]}")
    run.stage.keep_only({*files, *inputs})
    rows = {direction: counts.total() for direction, counts in statuses.items()}
    figures: dict[str, Any] = {"shards": len(files), "reused": reused, "busy_seconds": round(busy, 1)}
    figures |= {direction: dict(sorted(counts.items())) for direction, counts in statuses.items()}
    return run.finish(figures, rows, dict(sorted(files.items())))


def _plan(run: StageRun) -> tuple[list["GenerationShard"], list[str]]:
    """All shards of all directions, and the files that a user's table was copied to."""
    from adamatch_ray.pipeline import generation_inputs as inputs
    from adamatch_ray.pipeline.generations import GenerationShard

    options = run.config.generate
    directions = ["cxr_to_report", "report_to_cxr"] if options.direction == "both" else [options.direction]
    copied: list[str] = []
    if options.manifest:
        directions = inputs.table_directions(options.manifest, directions)
        files = list(inputs.copy_table(options.manifest, run.stage, options.limit))
        copied = [file.name.removeprefix("generations/") for file in files]
    else:
        files = inputs.split_files(run.root.stage("studies"), options.split)
    slices = list(inputs.cut(files, options.shard, options.limit))
    if not slices:
        raise ValueError(f"generate.manifest {options.manifest} has no rows")
    shards = [GenerationShard(way, number, part) for way in directions for number, part in enumerate(slices)]
    return shards, copied


if __name__ == "__main__":
    run_as_command(main)
