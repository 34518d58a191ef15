"""usage: python jobs/generate.py [options]

Generate reports from X-rays and X-rays from reports, each carried on to the second half of its cycle, for a split or
for a table of your own; shards that an earlier run finished are kept.
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from adamatch_ray.cli import parse_command_line, run_as_command
from adamatch_ray.stages import StageRun

if TYPE_CHECKING:
    from adamatch_ray.engines.generation_shards import GenerationShard, MadeShard

BLOCKS = 2000
"""Most blocks that the list of shards travels in."""


def main(arguments: Sequence[str]) -> dict[str, Any] | None:
    """Make the missing shards on a pool of actors, then commit."""
    command = parse_command_line(arguments, __doc__ or "")
    run = StageRun(command, "generations")
    if command.config.generate.manifest and not command.dry_run:
        run.settings["table"] = _digest(command.config.generate.manifest)
    if (answer := run.begin()) is not None:
        return answer
    shards, inputs = _plan(run)
    statuses: dict[str, Counter[str]] = {shard.direction: Counter() for shard in shards}
    files: dict[str, int] = {}
    reused, busy = 0, 0.0
    for made in _progress(_make(shards, run), sum(shard.rows for shard in shards)):
        files[made.file] = made.rows
        statuses[made.direction].update(made.statuses)
        reused, busy = reused + made.reused, busy + made.seconds
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
    from adamatch_ray.engines import generation_inputs as inputs
    from adamatch_ray.engines.generation_shards import GenerationShard

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


def _make(shards: list["GenerationShard"], run: StageRun) -> Iterator["MadeShard"]:
    import ray.data

    from adamatch_ray.data.loading import calm_ray_data
    from adamatch_ray.engines.generation_shards import MadeShard
    from adamatch_ray.train.cluster import actors, start_ray

    scale = run.config.scale
    start_ray(scale)
    calm_ray_data()
    orders = [{"shard": shard.to_json()} for shard in shards]
    made = ray.data.from_items(orders, override_num_blocks=min(len(orders), BLOCKS)).map_batches(
        _Generator,
        fn_constructor_args=(run.root.uri, scale.gpu, run.config.generate, run.parents),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(actors(scale), len(orders))),
        num_cpus=scale.cpus_per_worker,
        num_gpus=1 if scale.gpu else 0,
    )
    for row in made.iter_rows():
        yield MadeShard(**json.loads(row["made"]))


class _Generator:
    """The actor: one cycle engine, one shard after another."""

    def __init__(self, root: str, gpu: bool, options: Any, parents: dict[str, str]) -> None:
        import torch

        from adamatch_ray import __version__
        from adamatch_ray.engines.generation_shards import ShardGenerator

        if not gpu:  # sums must not depend on the machine's cores
            torch.set_num_threads(1)
        self.shards = ShardGenerator(
            root,
            "cuda" if gpu else "cpu",
            options,
            cycle=options.cycle,
            seed=options.seed,
            versions={**parents, "adamatch_ray": __version__},
        )

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        from dataclasses import asdict

        from adamatch_ray.engines.generation_shards import GenerationShard

        made = [self.shards.make(GenerationShard.from_json(str(order))) for order in batch["shard"]]
        return {"made": [json.dumps(asdict(shard)) for shard in made]}


def _progress(made: Iterator["MadeShard"], total: int) -> Iterator["MadeShard"]:
    done = new = 0
    began = shown = time.monotonic()
    for shard in made:
        yield shard
        done, new = done + shard.rows, new + (0 if shard.reused else shard.rows)
        now = time.monotonic()
        if now - shown > 5 or done == total:
            shown = now
            rate = new / max(now - began, 1e-9)
            left = f"{(total - done) / rate:.0f} s" if rate else "?"
            print(f"generations {done}/{total} rows · {rate:.2f} rows/s · ETA {left}", file=sys.stderr)


def _digest(path: str) -> str:
    """What a user's table is known by; it may change while its name stays."""
    import hashlib

    from adamatch_ray.data.sources import open_file

    digest = hashlib.sha256()
    with open_file(path) as stream:
        while part := stream.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


if __name__ == "__main__":
    run_as_command(main)
