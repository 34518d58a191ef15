"""Numbers of a run: one line with an ETA on stderr, rows of `metrics.jsonl`, TensorBoard. First worker only."""

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from torch.utils.tensorboard import SummaryWriter

from adamatch_ray.data.images import Pixels, encode_png
from adamatch_ray.shards import Progress
from adamatch_ray.storage import Stage
from adamatch_ray.train.optim import Schedule


class Tracker(Protocol):
    """What a loop tells of itself."""

    def steps(self, rows: Sequence[tuple[int, dict[str, float]]]) -> None:
        """After optimiser steps: the number of each and its values."""

    def score(self, step: int, values: dict[str, float]) -> None:
        """After a validation."""

    def picture(self, step: int, name: str, pixels: Pixels) -> None:
        """A gray picture [H, W], after a validation."""

    def flush(self) -> None:
        """Make everything told so far durable (at a checkpoint, at the end)."""


class SilentTracker:
    """For the workers that do not write."""

    def steps(self, rows: Sequence[tuple[int, dict[str, float]]]) -> None:
        pass

    def score(self, step: int, values: dict[str, float]) -> None:
        pass

    def picture(self, step: int, name: str, pixels: Pixels) -> None:
        pass

    def flush(self) -> None:
        pass


class RunTracker:
    """Writes to the stage: `metrics.jsonl`, `tensorboard/` and `pictures/`; a line to stderr every few seconds."""

    def __init__(self, stage: Stage, schedule: Schedule, folder: Path) -> None:
        """`folder` is a local one of the tracker's own, for as long as it is used."""
        self.stage, self.schedule, self.folder = stage, schedule, folder
        start = schedule.step
        self.progress = Progress(stage.name, schedule.total, "steps", done=start)
        rows = (stage.read_text("metrics.jsonl") or "").splitlines() if start else []
        # A resumed run repeats the steps after its checkpoint, so their old rows go.
        self.rows = [row for row in rows if json.loads(row)["step"] <= start]
        self.board = SummaryWriter(str(folder), purge_step=start or None)

    def steps(self, rows: Sequence[tuple[int, dict[str, float]]]) -> None:
        for step, values in rows:
            self._write(step, values, "train")
        self.progress.add(len(rows), _text(rows[-1][1]), self.schedule.seconds_left)

    def score(self, step: int, values: dict[str, float]) -> None:
        self._write(step, values, "validate")
        print(f"{self.stage.name} {step}/{self.schedule.total} · validate: {_text(values)}", file=sys.stderr)

    def picture(self, step: int, name: str, pixels: Pixels) -> None:
        self.board.add_image(name, pixels, step, dataformats="HW")
        self.stage.write_bytes(f"pictures/{name}-{step:07d}.png", encode_png(pixels))

    def flush(self) -> None:
        self.board.flush()
        self.stage.write_bytes("metrics.jsonl", "".join(f"{row}\n" for row in self.rows).encode())
        self.stage.upload_into(self.folder, "tensorboard")

    def _write(self, step: int, values: dict[str, float], kind: str) -> None:
        rounded = {name: float(f"{value:.6g}") for name, value in values.items()}
        self.rows.append(json.dumps({"step": step, "kind": kind, **rounded}))
        for name, value in values.items():
            self.board.add_scalar(f"{kind}/{name}", value, step)


@contextmanager
def open_tracker(is_first: bool, stage: Stage, schedule: Schedule) -> Iterator[Tracker]:
    """The writing tracker for the first worker, a silent one for the others."""
    if not is_first:
        yield SilentTracker()
        return
    with tempfile.TemporaryDirectory(prefix="tensorboard-") as folder:
        tracker = RunTracker(stage, schedule, Path(folder))
        try:
            yield tracker
        finally:
            tracker.board.close()


def _text(values: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.4g}" for name, value in values.items())
