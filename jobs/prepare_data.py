"""usage: python jobs/prepare_data.py [options]

Turn a data set (built-in phantoms, MIMIC-CXR-JPG, OpenI, or any CSV/JSONL table) into `studies/` shards.
"""

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
    import ray

    from adamatch_ray.data.preparing import make_shard
    from adamatch_ray.train.launch import start_ray

    start_ray(run.config.scale)
    # Plain tasks: a shard reads and writes its own files, so there are no blocks for Ray Data to pass on, and its
    # import in every worker and its helper actors would be a third of a small run.
    task = ray.remote(make_shard)
    running: list[Any] = []
    for shard in shards:
        # Twice the CPUs there are: none waits for the driver, and a cluster that can grow sees that more are wanted.
        while len(running) >= 2 * max(1.0, ray.cluster_resources().get("CPU", 1.0)):
            done, running = ray.wait(running)
            yield from ray.get(done)
        running.append(task.remote(shard, run.config.data, run.root.uri))
    while running:
        done, running = ray.wait(running)
        yield from ray.get(done)


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
