"""usage: python jobs/train_place.py [options]

Train the place head on the frozen AdaMatch of `adamatch/`, by the words of reports alone; that stage is made first when
it is missing. With --place.head none there is nothing to do: the patches alone tell where a word is.
"""

from collections.abc import Sequence
from typing import Any

from adamatch_ray.cli import parse_command_line, run_as_command
from adamatch_ray.stage import StageRun


def main(arguments: Sequence[str]) -> dict[str, Any] | None:
    """Train on the workers, then commit the best checkpoint's head."""
    run = StageRun(parse_command_line(arguments, __doc__ or ""), "place")
    if run.config.place.head == "none" and not run.command.dry_run:
        return {"stage": "place", "status": "skipped", "output": run.stage.uri, "seconds": 0.0}
    if (answer := run.begin()) is not None:
        return answer
    from adamatch_ray.train.fit_place import PlaceFitter
    from adamatch_ray.train.launch import fit_stage

    return fit_stage(run, PlaceFitter, "auc")


if __name__ == "__main__":
    run_as_command(main)
