"""usage: python jobs/cache_tokens.py [options]

Encode the images of all splits to VQ-GAN tokens, shard by shard; shards that an earlier run finished are kept.
"""

import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from adamatch_ray.cli import parse_command_line, run_as_command
from adamatch_ray.stages import StageRun

if TYPE_CHECKING:
    from adamatch_ray.engines.token_cache import CachedShard


def main(arguments: Sequence[str]) -> dict[str, Any] | None:
    """Make the missing token shards on a pool of actors, then commit."""
    run = StageRun(parse_command_line(arguments, __doc__ or ""), "tokens")
    if (answer := run.begin()) is not None:
        return answer
    wanted = {name: rows for name, rows in run.root.stage("studies").require().files.items() if rows}
    files: dict[str, int] = {}
    reused = 0
    began = shown = time.monotonic()
    for shard in _make(sorted(wanted), run):
        files[shard.file] = shard.rows
        reused += shard.reused
        now = time.monotonic()
        if now - shown > 5 or len(files) == len(wanted):
            shown = now
            left = (now - began) / len(files) * (len(wanted) - len(files))
            print(f"tokens {len(files)}/{len(wanted)} shards · ETA {left:.0f} s", file=sys.stderr)
    if files != wanted:
        raise RuntimeError(f"tokens have {sum(files.values())} rows where the studies have {sum(wanted.values())}")
    keypatches = _keypatches(run) if run.config.tokens.keypatches else 0
    splits: Counter[str] = Counter()
    for name, rows in files.items():
        splits[name.split("/")[0]] += rows
    counts = {**{split: splits[split] for split in ("train", "validate", "test")}, "images": splits.total()}
    figures = {"shards": len(files), "reused": reused, "keypatches": keypatches}
    return run.finish(figures, counts, dict(sorted(files.items())))


def _keypatches(run: StageRun) -> int:
    """Look up the codes under each entry of the visual codebook; how many entries there are."""
    import io
    import json

    import pyarrow.parquet as pq

    from adamatch_ray.codebooks import VisualCodebook
    from adamatch_ray.engines.keypatch_tokens import FILE, keypatch_tokens
    from adamatch_ray.model_config import VQGANConfig, from_dict

    visual = VisualCodebook.load(run.root.stage("codebooks")).table
    size = from_dict(VQGANConfig, json.loads(run.root.stage("vqgan").read_bytes("model/config.json")))
    names = [name for name in run.root.stage("studies").require().files if name.startswith("train/")]
    shards = (pq.read_table(f"{run.stage.path}/{name}", filesystem=run.stage.filesystem) for name in sorted(names))
    buffer = io.BytesIO()
    pq.write_table(keypatch_tokens(visual, shards, size.grid, size.image_size), buffer, compression="zstd")
    run.stage.write_bytes(FILE, buffer.getvalue())
    return len(visual)


def _make(files: list[str], run: StageRun) -> Iterator["CachedShard"]:
    import ray.data

    from adamatch_ray.engines.token_cache import CachedShard
    from adamatch_ray.train.cluster import start_ray

    scale, options = run.config.scale, run.config.tokens
    start_ray(scale)
    # On a CPU an actor computes with one thread, so that its sums do not depend on the machine's cores.
    actors = scale.workers if scale.gpu else max(scale.workers, os.cpu_count() or 1)
    shards = ray.data.from_items([{"file": file} for file in files], override_num_blocks=len(files))
    made = shards.map_batches(
        _Encoder,
        fn_constructor_args=(run.root.uri, scale.gpu, options),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(actors, len(files))),
        num_cpus=scale.cpus_per_worker,
        num_gpus=1 if scale.gpu else 0,
    )
    for row in made.iter_rows():
        yield CachedShard(**row)


class _Encoder:
    """The actor: one model, one shard after another."""

    def __init__(self, root: str, gpu: bool, options: Any) -> None:
        import torch

        from adamatch_ray.engines.token_cache import TokenCache

        if not gpu:
            torch.set_num_threads(1)
        self.cache = TokenCache(
            root,
            "cuda" if gpu else "cpu",
            precision=options.precision,
            kernel=options.kernel,
            batch_size=options.batch_size,
        )

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        made = asdict(self.cache.make(str(batch["file"][0])))
        return {name: [value] for name, value in made.items()}


if __name__ == "__main__":
    run_as_command(main)
