"""Numbers of a run: one line with an ETA on stderr, rows of `metrics.jsonl`, TensorBoard. First worker only."""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Protocol

from torch.utils.tensorboard import SummaryWriter

from adamatch_ray.data.images import Pixels, encode_png
from adamatch_ray.storage import Stage


class Tracker(Protocol):
    """What a loop tells of itself."""

    def step(self, step: int, values: dict[str, float]) -> None:
        """After an optimiser step."""

    def score(self, step: int, values: dict[str, float]) -> None:
        """After a validation."""

    def picture(self, step: int, name: str, pixels: Pixels) -> None:
        """A gray picture [H, W], after a validation."""

    def flush(self) -> None:
        """Make everything told so far durable (at a checkpoint, at the end)."""


class SilentTracker:
    """For the workers that do not write."""

    def step(self, step: int, values: dict[str, float]) -> None:
        pass

    def score(self, step: int, values: dict[str, float]) -> None:
        pass

    def picture(self, step: int, name: str, pixels: Pixels) -> None:
        pass

    def flush(self) -> None:
        pass


class RunTracker:
    """Writes to the stage: `metrics.jsonl`, `tensorboard/` and `pictures/`; a line to stderr every few seconds."""

    def __init__(self, stage: Stage, start: int, total: int, interval: float = 5.0) -> None:
        self.stage, self.total, self.interval = stage, total, interval
        self.began: tuple[float, int] | None = None  # when the first step told of ended: it also warmed everything up
        self.shown = 0.0
        rows = (stage.read_text("metrics.jsonl") or "").splitlines() if start else []
        # A resumed run repeats the steps after its checkpoint, so their old rows go.
        self.rows = [row for row in rows if json.loads(row)["step"] <= start]
        self.folder = Path(tempfile.mkdtemp(prefix="tensorboard-"))
        self.board = SummaryWriter(str(self.folder), purge_step=start or None)

    def step(self, step: int, values: dict[str, float]) -> None:
        self._write(step, values, "train")
        now = time.monotonic()
        if now - self.shown >= self.interval or step == self.total:
            self.shown = now
            print(
                f"{self.stage.name} {step}/{self.total} · {_text(values)} · ETA {self._left(now, step)}",
                file=sys.stderr,
            )

    def _left(self, now: float, step: int) -> str:
        if self.began is None:
            self.began = (now, step)
            return "-"
        since, first = self.began
        return _clock((now - since) / max(1, step - first) * (self.total - step))

    def score(self, step: int, values: dict[str, float]) -> None:
        self._write(step, values, "validate")
        print(f"{self.stage.name} {step}/{self.total} · validate: {_text(values)}", file=sys.stderr)

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


def build_tracker(is_first: bool, stage: Stage, start: int, total: int) -> Tracker:
    """The writing tracker for the first worker, a silent one for the others."""
    return RunTracker(stage, start, total) if is_first else SilentTracker()


def _text(values: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.4g}" for name, value in values.items())


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
