"""usage: python jobs/prepare_data.py [options]

Turn a data set (built-in phantoms, MIMIC-CXR-JPG, OpenI, or any CSV/JSONL table) into `studies/` shards.
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from adamatch_ray.cli import parse_command_line, run_as_command
from adamatch_ray.stages import StageRun


def main(arguments: Sequence[str]) -> dict[str, Any] | None:
    """List, decode and write; every row seen is either accepted or in quarantine with its reason."""
    run = StageRun(parse_command_line(arguments, __doc__ or ""), "studies")
    if (answer := run.begin()) is not None:
        return answer
    from adamatch_ray.data import preparing

    config = run.config.data
    shards, rejected = preparing.plan(preparing.list_rows(config), config)
    listing = "quarantine/listing.parquet"
    run.stage.keep_only({listing, *(shard.file for shard in shards), *(shard.quarantine for shard in shards)})
    preparing.write_quarantine(run.stage, listing, rejected)
    seen = sum(shard.rows.count("\n") + 1 for shard in shards) + len(rejected)
    reasons = Counter(row["reason"] for row in rejected)
    files: dict[str, int] = {}
    accepted: Counter[str] = Counter()
    for summary in _progress(_run(shards, run), len(shards)):
        files[summary["file"]] = summary["accepted"]
        accepted[summary["file"].split("/")[0]] += summary["accepted"]
        reasons.update(summary["reasons"])
    if not accepted.total():
        raise ValueError(f"no study could be used; reasons: {dict(reasons.most_common(5))}")
    assert accepted.total() + reasons.total() == seen, (accepted, reasons, seen)
    rows = {**{split: accepted[split] for split in ("train", "validate", "test")},
            "accepted": accepted.total(), "rejected": reasons.total(), "seen": seen}  # fmt: skip
    return run.finish({"reasons": dict(reasons.most_common())}, rows, dict(sorted(files.items())))


def _run(shards: list[Any], run: StageRun) -> Iterator[dict[str, Any]]:
    import pickle

    import ray.data

    from adamatch_ray.data.loading import calm_ray_data
    from adamatch_ray.data.preparing import make_shard
    from adamatch_ray.train.cluster import start_ray

    start_ray(run.config.scale)
    calm_ray_data()
    data, root = run.config.data, run.root.uri
    tasks = ray.data.from_items([pickle.dumps(shard) for shard in shards], override_num_blocks=len(shards))
    done = tasks.map(lambda row: {"summary": json.dumps(make_shard(pickle.loads(row["item"]), data, root))})
    for row in done.iter_rows():
        yield json.loads(row["summary"])


def _progress(summaries: Iterator[dict[str, Any]], total: int) -> Iterator[dict[str, Any]]:
    started = shown = time.monotonic()
    for number, summary in enumerate(summaries, start=1):
        now = time.monotonic()
        if now - shown > 5 or number == total:
            shown = now
            left = (now - started) / number * (total - number)
            print(f"studies {number}/{total} shards · ETA {left:.0f} s", file=sys.stderr)
        yield summary


if __name__ == "__main__":
    run_as_command(main)
