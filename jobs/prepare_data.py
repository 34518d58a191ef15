"""usage: python jobs/prepare_data.py [options]

Turn a data set (built-in phantoms, MIMIC-CXR-JPG, OpenI, or any CSV/JSONL table) into `studies/` shards.
"""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

from adamatch_ray.cli import parse_command_line, run_as_command
from adamatch_ray.stage import StageRun


def main(arguments: Sequence[str]) -> dict[str, Any] | None:
    """List, decode and write; every row seen is either accepted or in quarantine with its reason."""
    run = StageRun(parse_command_line(arguments, __doc__ or ""), "studies")
    if (answer := run.begin()) is not None:
        return answer
    from adamatch_ray.pipeline import studies as preparing
    from adamatch_ray.shards import spread

    config = run.config.data
    shards, rejected = preparing.plan(preparing.list_rows(config), config)
    listing = "quarantine/listing.parquet"
    run.stage.keep_only({listing, *(shard.file for shard in shards), *(shard.quarantine for shard in shards)})
    preparing.write_quarantine(run.stage, listing, rejected)
    seen = sum(shard.rows.count("\n") + 1 for shard in shards) + len(rejected)
    reasons = Counter(row["reason"] for row in rejected)
    files: dict[str, int] = {}
    accepted: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    maker = partial(preparing.StudyShards, config, run.root.uri)
    for shard in spread(shards, maker, run.config.scale, "studies", models=False):
        files[shard.file] = shard.rows
        accepted[shard.file.split("/")[0]] += shard.rows
        reasons.update(shard.counts)
        notes.update(shard.notes)
    if not accepted.total():
        named = config.path or config.source
        told = ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common(5))
        raise ValueError(f"no study of {named} could be used: {told}; row by row in {run.stage.uri}/quarantine")
    assert accepted.total() + reasons.total() == seen, (accepted, reasons, seen)
    rows = {**{split: accepted[split] for split in ("train", "validate", "test")},
            "accepted": accepted.total(), "rejected": reasons.total(), "seen": seen}  # fmt: skip
    return run.finish({"reasons": dict(reasons.most_common()), "notes": dict(notes)}, rows, dict(sorted(files.items())))


if __name__ == "__main__":
    run_as_command(main)
