"""What a run will take: the hardware it is reckoned for, the studies it is about, and how a stage's plan is shown.

What a finished stage really took stands beside its prediction. The sums themselves are in `stage_plans`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from adamatch_ray.config import RunConfig


@dataclass(frozen=True)
class Hardware:
    """One worker's device: memory in bytes, peak operations and bytes a second, and the shares of them reached."""

    name: str
    memory: float
    bf16: float
    fp32: float
    bandwidth: float
    train_share: float = 0.30
    llm_share: float = 0.45
    encode_share: float = 0.40
    read_share: float = 0.60


HARDWARE = {
    "a100-40gb": Hardware("A100-40GB", 40e9, 312e12, 19.5e12, 1.555e12),
    "h100-80gb": Hardware("H100-80GB", 80e9, 989e12, 67e12, 3.35e12),
    "h200": Hardware("H200", 141e9, 989e12, 67e12, 4.8e12),
    "cpu-core": Hardware("CPU core", 4e9, 80e9, 80e9, 5e9, train_share=0.25, llm_share=0.25, encode_share=0.5),
}
"""Data sheet figures (dense bf16); the shares are goals for GPUs, and for a core near what phantoms took."""


@dataclass(frozen=True)
class Counts:
    """Studies of each split, and how they are known."""

    train: int
    validate: int
    test: int
    source: str

    @property
    def all(self) -> int:
        """Studies of all splits."""
        return self.train + self.validate + self.test


@dataclass(frozen=True)
class Plan:
    """One stage: seconds, bytes a worker, bytes stored, what limits it, and how the figures came about."""

    stage: str
    seconds: float
    worker_bytes: float
    stored_bytes: float
    bottleneck: str
    lines: tuple[str, ...]


def expected_counts(config: RunConfig, rows: Mapping[str, int] | None = None) -> Counts:
    """Studies to plan for: those of a finished `studies/` (its row counts), else what is known of the data set.

    Raises ValueError for a table of the user's own that was not prepared yet.
    """
    if rows:
        return Counts(rows["train"], rows["validate"], rows["test"], "counted in studies/")
    if config.data.source == "phantom":
        count = config.data.phantoms
        return Counts(count, 256, 256, "about; 256 phantoms each to validate and test")
    if config.data.source == "openi":
        return Counts(2_912, 0, 772, "assumed: the paper's split of 3,684 pairs; 7,470 images")
    if config.data.source == "mimic_cxr" and config.data.views == "all":
        return Counts(368_960, 2_991, 5_159, "assumed: the official split of all 377,110 images")
    if config.data.source == "mimic_cxr":
        frontal = 147_173 + 96_161
        validate, test = (round(frontal * part / 377_110) for part in (2_991, 5_159))
        source = "assumed: 147,173 AP + 96,161 PA of 377,110 images, split as all images are (368,960/2,991/5,159)"
        return Counts(frontal - validate - test, validate, test, source)
    raise ValueError("how many studies a table of your own has is known once jobs/prepare_data.py has run")


def default_hardware(config: RunConfig) -> Hardware:
    """The paper's GPU where workers have one, a CPU core where they do not."""
    return HARDWARE["a100-40gb" if config.scale.gpu else "cpu-core"]


def describe_plan(plan: Plan, hardware: Hardware, measured: float | None = None) -> list[str]:
    """The plan as lines of text, the arithmetic first and the sum of it last."""
    fits = "fits" if plan.worker_bytes <= hardware.memory else "DOES NOT FIT"
    took = "" if measured is None else f"; measured {clock(measured)} ({measured / max(plan.seconds, 1e-9):.1f}x)"
    return [
        plan.stage,
        *(f"  {line}" for line in plan.lines),
        f"  = time     {clock(plan.seconds)}{took}",
        f"  = memory   {size(plan.worker_bytes)} a worker of {size(hardware.memory)} ({hardware.name}): {fits}",
        f"  = storage  {size(plan.stored_bytes)}",
        f"  = limit    {plan.bottleneck}",
    ]


def clock(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"


def short(count: float, unit: str = "") -> str:
    """A count to four digits, such as 2.78 G."""
    prefix, scale = next((s for s in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)) if count >= s[1]), ("", 1))
    return f"{count / scale:.4g} {prefix}{unit}".rstrip()


def size(count: float) -> str:
    """Bytes as people say them; 1 GB is 10^9 bytes."""
    return short(count, "B")
