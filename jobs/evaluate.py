"""usage: python jobs/evaluate.py [options]

Score a split with every table of the paper: retrieval, reports, images, localization and cycle consistency.
Ours, or anyone's: --evaluate.predictions FILE. Writes metrics.json, table.md and report.html into metrics/.
"""

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from adamatch_ray.cli import parse_command_line, run_as_command
from adamatch_ray.stage import StageRun


def main(arguments: Sequence[str]) -> dict[str, Any] | None:
    """Score the asked tables and commit the files that hold them."""
    run = StageRun(parse_command_line(arguments, __doc__ or ""), "metrics")
    if (answer := run.begin()) is not None:
        return answer
    from adamatch_ray.cluster import on_device
    from adamatch_ray.evaluation.evaluator import evaluate

    summary, files = on_device(run.config.scale, partial(evaluate, run.root.uri, run.config.evaluate))
    for name, data in files.items():
        run.stage.write_bytes(name, data)
    run.stage.keep_only(files)
    print(f"metrics: {run.stage.uri}/report.html", file=sys.stderr)
    full = summary["tables"].get("retrieval", {}).get("full", {})
    figures = {name: round(value, 2) for name, value in full.items()}
    figures |= {row["measure"]: round(row["value"], 4) for row in summary["headlines"] if row["table"] != "retrieval"}
    return run.finish(figures, {"studies": summary["studies"]})


if __name__ == "__main__":
    run_as_command(main)
