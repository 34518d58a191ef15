"""Time and memory of the late interaction against naive einsum autograd in the same run (PERFORMANCE 1).

`rows` answers one JSON-able dict a figure: {name, unit, ours, peer, ratio, agreement, shape, ...hardware}. CPU time is
`time.process_time` over all threads, peer and ours interleaved, median of `repeats`; memory is the peak resident size
above the inputs, each contender in a fresh process. Every comparison first asserts equal scores and gradients.

    python -m adamatch_ray.ops.bench_late_interaction
"""

import ctypes
import datetime
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adamatch_ray.ops.late_interaction import Backend, late_interaction

TOLERANCE = 1e-5
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One batch: I images of P patches, J texts of up to N words, D dimensions. Ragged texts have 40 to 112 words."""

    images: int = 112
    texts: int = 112
    patches: int = 196
    words: int = 128
    dim: int = 256
    ragged: bool = True

    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Patches [I, P, D] and words [J, N, D] that want gradients, and the word mask [J, N]. Seeded.

        Unit vectors rounded to multiples of 2**-10: fp32 then sums every product exactly in any order. Otherwise two
        scores closer than rounding trade places between contenders and a correct gradient looks like a wrong one.
        """
        generator = torch.Generator().manual_seed(0)
        patch = torch.randn(self.images, self.patches, self.dim, generator=generator)
        word = torch.randn(self.texts, self.words, self.dim, generator=generator)
        low, high = min(40, self.words), min(112, self.words)
        count = torch.randint(low, high + 1, (self.texts, 1), generator=generator)
        mask = torch.arange(self.words) < (count if self.ragged else torch.full_like(count, self.words))
        patch, word = ((torch.nn.functional.normalize(x, dim=-1) * 1024).round() / 1024 for x in (patch, word))
        return patch.requires_grad_(), word.requires_grad_(), mask


def step(backend: Backend, patch: Tensor, word: Tensor, mask: Tensor) -> list[Tensor]:
    """One forward and backward pass through a fixed loss; scores of both directions, then both gradients."""
    scores = late_interaction(patch, word, mask, backend=backend)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(score.shape, generator=generator) for score in scores]
    loss = sum((score * weight).sum() for score, weight in zip(scores, weights, strict=True))
    assert isinstance(loss, Tensor)
    return [*(score.detach() for score in scores), *torch.autograd.grad(loss, (patch, word))]


def agreement(case: Case, ours: Backend, peer: Backend = "naive") -> float:
    """Largest absolute difference of scores and gradients. Above 1e-5 there is no figure to report: an error."""
    inputs = case.inputs()
    pairs = zip(step(ours, *inputs), step(peer, *inputs), strict=True)
    difference = max(float((one - other).abs().max()) for one, other in pairs)
    if difference > TOLERANCE:
        raise RuntimeError(f"{ours} and {peer} differ by {difference:.2e} at {case}: nothing is timed")
    return difference


def cpu_seconds(calls: dict[str, Callable[[], object]], repeats: int = 5) -> dict[str, float]:
    """Median CPU seconds of each call, interleaved so that a busy machine disturbs all of them alike."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            begin = time.process_time()
            call()
            taken[name].append(time.process_time() - begin)
    return {name: statistics.median(each) for name, each in taken.items()}


def peak_megabytes(case: Case, backend: Backend) -> float:
    """Peak resident MB above the inputs during one step, in a fresh process. Linux with glibc only."""
    command = [sys.executable, "-m", __name__ if __name__ != "__main__" else __spec__.name, backend]
    command.append(json.dumps({**asdict(case), "threads": torch.get_num_threads()}))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"measuring memory of {backend} failed:\n{done.stderr[-2000:]}")
    return float(json.loads(done.stdout.splitlines()[-1]))


def _measure_peak(backend: Backend, settings: dict[str, Any]) -> float:
    torch.set_num_threads(settings.pop("threads"))
    step(backend, *Case(images=2, texts=2, patches=4, words=4, dim=16).inputs())  # loads libraries, starts threads
    inputs = Case(**settings).inputs()
    ctypes.CDLL(None).malloc_trim(0)  # what making the inputs freed must not serve the step for nothing
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = _resident("VmRSS")
    step(backend, *inputs)
    return (_resident("VmHWM") - before) / 1e3


def _resident(field: str) -> float:
    """Kilobytes of one field of this process's status, in units of 1000 bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1.024 for line in lines if line.startswith(field + ":"))


def hardware() -> Row:
    """What a figure depends on besides the code."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), platform.processor())
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {"hardware": f"{model}, {torch.get_num_threads()} threads", "versions": versions, "date": date}


def compare(case: Case, ours: Backend = "native", repeats: int = 5, memory: bool = True) -> list[Row]:
    """Forward and backward of `ours` against naive autograd: CPU seconds, and peak memory if asked for."""
    inputs = case.inputs()
    difference = agreement(case, ours)
    seconds = cpu_seconds({"ours": lambda: step(ours, *inputs), "peer": lambda: step("naive", *inputs)}, repeats)
    kind = "ragged" if case.ragged else "all valid"
    common = {"agreement": difference, "shape": asdict(case), **hardware()}
    figures = [("CPU time", "s", seconds["ours"], seconds["peer"])]
    if memory:
        figures.append(("peak memory", "MB", peak_megabytes(case, ours), peak_megabytes(case, "naive")))
    return [
        {
            "name": f"late interaction fwd+bwd, {ours}, {kind}, {what}",
            **{"unit": unit, "ours": mine, "peer": other, "ratio": other / mine},
            **common,
        }
        for what, unit, mine, other in figures
    ]


def rows(repeats: int = 5, backends: tuple[Backend, ...] = ("native", "torch")) -> list[Row]:
    """All figures at 112 x 112: each backend on ragged and on full texts, and what dropping the padding is worth."""
    table = [
        row for ours in backends for full in (False, True) for row in compare(Case(ragged=not full), ours, repeats)
    ]
    for ours in backends:
        time_of = {row["name"]: row["ours"] for row in table if row["unit"] == "s"}
        ragged, full = (
            time_of[f"late interaction fwd+bwd, {ours}, {kind}, CPU time"] for kind in ("ragged", "all valid")
        )
        name = f"late interaction fwd+bwd, {ours}, padding removed against multiplied"
        table.append({"name": name, "unit": "s", "ours": ragged, "peer": full, "ratio": full / ragged, **hardware()})
    return table


if __name__ == "__main__":
    if len(sys.argv) == 3:
        contender: Any = sys.argv[1]
        print(json.dumps(_measure_peak(contender, json.loads(sys.argv[2]))))
    else:
        for row in rows():
            print(json.dumps(row))
