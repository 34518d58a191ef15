"""Time and memory of the late interaction against naive einsum autograd in the same run.

`rows` answers one JSON-able dict a figure: {name, unit, ours, peer, ratio, agreement, shape, …}. CPU time is
`time.process_time` over all threads, peer and ours interleaved, median of `repeats`; memory is the peak resident size
above the inputs, each contender in a fresh process. Every comparison first asserts equal scores and gradients.

    python -m benchmarks.late_interaction
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from adamatch_ray.ops.late_interaction import Backend, late_interaction
from benchmarks.measure import Row, peak_megabytes, row, time_in_turns

TOLERANCE = 1e-5


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


def peak(case: Case, backend: Backend) -> float:
    """Peak resident MB above the inputs during one step, in a fresh process. Linux with glibc only."""
    settings = {**asdict(case), "backend": backend, "threads": torch.get_num_threads()}
    return peak_megabytes("benchmarks.late_interaction:prepared_step", settings)


def prepared_step(backend: Backend, threads: int, **settings: Any) -> Callable[[], object]:
    """A step on inputs made beforehand, after a small one that loads libraries and starts threads."""
    torch.set_num_threads(threads)
    step(backend, *Case(images=2, texts=2, patches=4, words=4, dim=16).inputs())
    inputs = Case(**settings).inputs()
    return lambda: step(backend, *inputs)


def compare(case: Case, ours: Backend = "native", repeats: int = 5, memory: bool = True) -> list[Row]:
    """Forward and backward of `ours` against naive autograd: CPU seconds, and peak memory if asked for."""
    inputs = case.inputs()
    difference = agreement(case, ours)
    calls = {"ours": lambda: step(ours, *inputs), "peer": lambda: step("naive", *inputs)}
    seconds = {name: timing.cpu_s for name, timing in time_in_turns(calls, repeats).items()}
    kind = "ragged" if case.ragged else "all valid"
    figures = [("CPU time", "s", seconds["ours"], seconds["peer"])]
    if memory:
        figures.append(("peak memory", "MB", peak(case, ours), peak(case, "naive")))
    common: dict[str, Any] = {"peer_name": "einsum and autograd", "agreement": difference, "shape": asdict(case)}
    return [
        row(f"late interaction fwd+bwd, {ours}, {kind}, {what}", unit, mine, other, **common)
        for what, unit, mine, other in figures
    ]


def rows(repeats: int = 5, backends: tuple[Backend, ...] = ("native", "torch")) -> list[Row]:
    """All figures at 112 x 112: each backend on ragged and on full texts, and what dropping the padding is worth."""
    cases = [(ours, Case(ragged=ragged)) for ours in backends for ragged in (True, False)]
    table = [figure for ours, case in cases for figure in compare(case, ours, repeats)]
    for ours in backends:
        time_of = {figure["name"]: figure["ours"] for figure in table if figure["unit"] == "s"}
        ragged, full = (
            time_of[f"late interaction fwd+bwd, {ours}, {kind}, CPU time"] for kind in ("ragged", "all valid")
        )
        name = f"late interaction fwd+bwd, {ours}, padding removed against multiplied"
        table.append(row(name, "s", ragged, full, peer_name="the same kernel on full texts"))
    return table


if __name__ == "__main__":
    for line in rows():
        print(json.dumps(line))
