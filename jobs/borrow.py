"""usage: python jobs/borrow.py --from ROOT [options]

Let this root stand on another root's models: its studies are generated from and scored with those, zero-shot, and
nothing of the other root is written. Afterwards run prepare_data, generate and evaluate on this root.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adamatch_ray.cli import parse_command_line, run_as_command
from adamatch_ray.specs import STAGES
from adamatch_ray.storage import Root

OWN = ("studies", "generations", "metrics")
"""Stages of the studies at hand; all others hold models."""


def main(arguments: Sequence[str]) -> dict[str, Any]:
    """Name the other root's finished stages of models in `borrowed.json`. ValueError where this root has its own."""
    lender, rest = _lender(arguments)
    root = Root(parse_command_line(rest, __doc__ or "").root)
    found = {name: lender.stage(name) for name in STAGES if name not in OWN}
    lent = {name: stage.root.uri for name, stage in found.items() if stage.manifest()}
    if "adamatch" not in lent:
        raise ValueError(f"--from {lender.uri}: there is no finished adamatch/, so nothing to borrow")
    if own := [name for name in lent if name not in root.borrowed and root.stage(name).manifest()]:
        raise ValueError(f"{root.uri} has {', '.join(own)} of its own; borrow for another --root")
    root.borrow(lent)
    return {"stage": "borrow", "status": "done", "output": root.uri, "seconds": 0.0, "stages": sorted(lent)}


def _lender(arguments: Sequence[str]) -> tuple[Root, list[str]]:
    """The root after `--from`, and the other arguments."""
    queue = [part for argument in arguments for part in (argument.split("=", 1) if argument.startswith("--from=")
                                                         else [argument])]  # fmt: skip
    if "--from" not in queue:
        if not {"-h", "--help"} & set(queue):
            raise ValueError("--from ROOT: name the root whose models are borrowed")
        return Root("."), queue
    at = queue.index("--from")
    uri = next(iter(queue[at + 1 : at + 2]), "")
    return Root(uri if "://" in uri else str(Path(uri).resolve())), queue[:at] + queue[at + 2 :]


if __name__ == "__main__":
    run_as_command(main)
