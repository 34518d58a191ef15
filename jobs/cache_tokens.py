"""usage: python jobs/cache_tokens.py [options]

Encode the images of all splits to VQ-GAN tokens, shard by shard; shards that an earlier run finished are kept.
"""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

from adamatch_ray.cli import parse_command_line, run_as_command
from adamatch_ray.stage import StageRun


def main(arguments: Sequence[str]) -> dict[str, Any] | None:
    """Make the missing token shards on a pool of actors, then commit."""
    run = StageRun(parse_command_line(arguments, __doc__ or ""), "tokens")
    if (answer := run.begin()) is not None:
        return answer
    from adamatch_ray.cluster import device_of
    from adamatch_ray.pipeline.tokens import TokenCache
    from adamatch_ray.shards import spread

    wanted = {name: rows for name, rows in run.root.stage("studies").require().files.items() if rows}
    scale, options = run.config.scale, run.config.tokens
    device = device_of(scale)
    maker = partial(TokenCache, run.root.uri, device, precision=options.precision, batch_size=options.batch_size)
    shards = list(spread(sorted(wanted), maker, scale, "tokens"))
    files = {shard.file: shard.rows for shard in shards}
    if files != wanted:
        raise RuntimeError(f"tokens have {sum(files.values())} rows where the studies have {sum(wanted.values())}")
    keypatches = _keypatches(run) if run.config.tokens.keypatches else 0
    splits: Counter[str] = Counter()
    for name, rows in files.items():
        splits[name.split("/")[0]] += rows
    counts = {**{split: splits[split] for split in ("train", "validate", "test")}, "images": splits.total()}
    figures = {"shards": len(files), "reused": sum(shard.reused for shard in shards), "keypatches": keypatches}
    return run.finish(figures, counts, dict(sorted(files.items())))


def _keypatches(run: StageRun) -> int:
    """Look up the codes under each entry of the visual codebook; how many entries there are."""
    import json

    from adamatch_ray.codebooks import VisualCodebook
    from adamatch_ray.engines.keypatch_tokens import FILE, keypatch_tokens
    from adamatch_ray.model_config import VQGANConfig, from_dict

    visual = VisualCodebook.load(run.root.stage("codebooks")).table
    size = from_dict(VQGANConfig, json.loads(run.root.stage("vqgan").read_bytes("model/config.json")))
    names = [name for name in run.root.stage("studies").require().files if name.startswith("train/")]
    shards = (run.stage.read_table(name) for name in sorted(names))
    run.stage.write_table(FILE, keypatch_tokens(visual, shards, size.grid, size.image_size))
    return len(visual)


if __name__ == "__main__":
    run_as_command(main)
