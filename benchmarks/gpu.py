"""usage: python -m benchmarks.gpu [--device cuda|cpu] [--out gpu.json]

The day a GPU is there: check what no CPU can show, and measure it beside its floor, in about eight minutes of an H100.

Needs torch, triton, transformers, timm and numpy, and no network, data or weights: all weights are random. The table
goes to stderr, the JSON to --out and to the last line of stdout. `ratio` is the share of the floor that was reached:
operations over the data sheet's dense bf16 peak, or bytes over its bandwidth. `--device cpu` runs tiny sizes, to show
that it runs.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GPTNeoXConfig

from adamatch_ray.engines.local_backend import DecodePlan, LocalBackend
from adamatch_ray.metrics.retrieval import recall_full, score_pairs
from adamatch_ray.model_config import PVTConfig, VQGANConfig
from adamatch_ray.models.pvt import PyramidVisionTransformer
from adamatch_ray.models.vqgan import VQGAN
from adamatch_ray.ops.late_interaction import late_interaction, naive
from benchmarks.measure import Row, row, time_in_turns

PEAKS = {"H100": (989e12, 3.35e12), "H200": (989e12, 4.8e12), "A100": (312e12, 1.555e12)}
"""Operations a second in dense bf16 and bytes a second, by what a card's name holds (an A100 of 40 GB)."""
UNKNOWN = 80e9, 5e9  # a CPU core


@dataclass(frozen=True)
class Sizes:
    """What is run; the defaults are the paper's."""

    images: int = 112
    reports: int = 896
    patches: int = 196
    words: int = 102
    dim: int = 256
    pvt: PVTConfig = field(default_factory=lambda: PVTConfig(num_classes=14))
    vqgan: VQGANConfig = field(default_factory=VQGANConfig)
    encoded: int = 64
    hidden: int = 2560
    layers: int = 32
    heads: int = 32
    rows: int = 51_305
    codes: int = 1024
    prompt: int = 450
    steps: int = 64
    decoded: tuple[int, ...] = (1, 16, 64)
    records: int = 8
    record: int = 456
    studies: int = 5159
    repeats: int = 5


TINY = Sizes(
    images=3, reports=4, patches=16, words=12, dim=16, encoded=2, hidden=48, layers=2, heads=3, rows=400, codes=64,
    prompt=12, steps=8, decoded=(1, 2), records=2, record=24, studies=40, repeats=1,
    pvt=PVTConfig(image_size=64, dims=(8, 16, 24, 32), depths=(1, 1, 1, 1), heads=(1, 2, 3, 4), num_classes=14),
    vqgan=VQGANConfig(image_size=64, ch=16, groups=8, codes=64),
)  # fmt: skip


class Bench:
    """One device's checks and measurements; each method yields rows of `benchmarks.measure`."""

    def __init__(self, device: str) -> None:
        self.device, self.gpu = torch.device(device), device != "cpu"
        self.sizes = Sizes() if self.gpu else TINY
        name = torch.cuda.get_device_name() if self.gpu else ""
        self.peak, self.bandwidth = next((figures for card, figures in PEAKS.items() if card in name), UNKNOWN)

    def run(self) -> list[Row]:
        """All rows. What fails is a row that says why: the card may not be there another day."""
        rows: list[Row] = []
        for part in (self.kernel, self.encoder, self.tokens, self.folded, self.decoding, self.tuning, self.retrieval):
            try:
                for found in part():
                    rows.append(found)
                    print(describe(found), file=sys.stderr)
            except Exception as error:
                said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                rows.append({"name": part.__name__, "error": said})
                print(describe(rows[-1]), file=sys.stderr)
            if self.gpu:
                torch.cuda.empty_cache()
        return rows

    def kernel(self) -> Iterator[Row]:
        """Late interaction: its error against float64, then forward and both passes in bf16 and fp32."""
        s, few = self.sizes, slice(0, 6)
        patch, word, mask = self._pairs()
        for dtype in (torch.float32, torch.bfloat16):
            name = str(dtype).removeprefix("torch.")
            sides = patch[few].to(dtype), word[few].to(dtype)
            exact = self._passes(sides[0].double(), sides[1].double(), mask[few], naive)
            found = self._passes(*sides, mask[few], late_interaction)
            errors = [float((one.double() - other).abs().max() / other.abs().max())
                      for one, other in zip(found, exact, strict=True)]  # fmt: skip
            yield self._check(f"late interaction {name}: scores against float64", max(errors[:2]), 1e-5)
            least = 1e-4 if dtype == torch.float32 else 2e-2  # gradients come back in the inputs' precision
            yield self._check(f"late interaction {name}: gradients against float64", max(errors[2:]), least)
            x, e = patch.to(dtype), word.to(dtype)
            operations = 2.0 * s.images * s.patches * s.dim * int(mask.sum())
            yield self._timed(f"late interaction {name}: forward", partial(late_interaction, x, e, mask),
                              operations)  # fmt: skip
            yield self._timed(f"late interaction {name}: forward and backward",
                              partial(self._passes, x, e, mask, late_interaction), 3 * operations)  # fmt: skip

    def encoder(self) -> Iterator[Row]:
        """A training step of the image encoder under bf16 autocast."""
        model = PyramidVisionTransformer(self.sizes.pvt).to(self.device).train()
        side = self.sizes.pvt.image_size
        image = torch.randn(self.sizes.images, self.sizes.pvt.in_channels, side, side, device=self.device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

        def step() -> None:
            optimizer.zero_grad()
            with torch.autocast(self.device.type, torch.bfloat16):
                loss = model(image).float().square().mean()
            loss.backward()
            optimizer.step()

        operations = _operations(lambda: model(image[:1]))
        yield self._timed("PVT-medium: training step", step, 3 * operations * self.sizes.images)

    def tokens(self) -> Iterator[Row]:
        """Encoding to tokens, and how many of them bf16 changes: of random weights, so more than of trained ones."""
        s = self.sizes
        model = VQGAN(s.vqgan).to(self.device).eval()
        image = torch.rand(s.encoded, s.vqgan.in_channels, *[s.vqgan.image_size] * 2, device=self.device) * 2 - 1

        def encode(half: bool) -> Tensor:
            with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=half):
                return model.encode_tokens(image)

        changed = float((encode(True) != encode(False)).float().mean())
        yield row("VQ-GAN: tokens that bf16 changes", "share", changed)
        operations = _operations(lambda: model.encode_tokens(image[:1])) * s.encoded
        for half in (False, True):
            name = f"VQ-GAN: encode {s.encoded} images, {'bf16' if half else 'fp32'}"
            yield self._timed(name, partial(encode, half), operations)

    def folded(self) -> Iterator[Row]:
        """Greedy answers of the folded decoder against transformers, in fp32."""
        s = self.sizes
        model = self._neox(torch.float32, layers=2)
        plan = DecodePlan(s.rows - s.codes, s.rows, None, 0.0, 1.0)
        prompts = self._prompts(4)
        answers = [LocalBackend(model, 4, decoder).complete(prompts, [s.steps] * 4, range(4), plan)
                   for decoder in ("folded", "transformers")]  # fmt: skip
        equal = sum(a == b for pair in zip(*answers, strict=True) for a, b in zip(*pair, strict=True))
        yield self._check("folded decoder: share of tokens other than transformers'", 1 - equal / (4 * s.steps), 0.02)

    def decoding(self) -> Iterator[Row]:
        """Image tokens a second of a dolly-sized model, beside reading weights and cache once a token."""
        s = self.sizes
        model = self._neox(torch.bfloat16)
        plan = DecodePlan(s.rows - s.codes, s.rows, None, 1.0, 0.92)
        weights = 2 * sum(p.numel() for name, p in model.named_parameters() if "embed" not in name)
        backend = LocalBackend(model, max(s.decoded))
        for batch in s.decoded:
            prompts = self._prompts(batch)

            def answer(steps: int, prompts: list[list[int]] = prompts) -> list[list[int]]:
                return backend.complete(prompts, [steps] * len(prompts), range(len(prompts)), plan)

            took = time_in_turns({n: partial(answer, n) for n in (1, s.steps)}, s.repeats, 1, self._finish)
            seconds = took[s.steps].wall_s - took[1].wall_s  # without reading the prompts
            cache = 4 * s.layers * s.hidden * (s.prompt + s.steps / 2) * batch
            yield row(f"decoding, batch {batch}", "tokens a second", batch * (s.steps - 1) / seconds,
                      batch * self.bandwidth / (weights + cache), more_is_better=True)  # fmt: skip

    def tuning(self) -> Iterator[Row]:
        """A step of the language model with gradient checkpointing; the share of the floor is its MFU."""
        s = self.sizes
        model = self._neox(torch.bfloat16).train()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, foreach=False)
        ids = torch.randint(0, s.rows, (s.records, s.record), device=self.device)

        def step() -> None:
            optimizer.zero_grad()
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()

        parameters = sum(p.numel() for p in model.parameters())
        yield self._timed("language model: tuning step", step, 6.0 * parameters * ids.numel())

    def retrieval(self) -> Iterator[Row]:
        """R@K of a whole test split."""
        s = self.sizes
        patch = F.normalize(torch.randn(s.studies, s.patches, s.dim), dim=-1)
        word = F.normalize(torch.randn(s.studies, s.words, s.dim), dim=-1)
        mask = torch.ones(s.studies, s.words, dtype=torch.bool)
        names = [str(number) for number in range(s.studies)]

        def rank() -> dict[str, float]:
            return recall_full(score_pairs([patch], word, mask, self.device), names)

        operations = 2.0 * s.studies**2 * s.patches * s.words * s.dim
        yield self._timed(f"retrieval: {s.studies} x {s.studies}", rank, operations, repeats=1)

    def _timed(self, name: str, call: Callable[[], object], operations: float, repeats: int = 0) -> Row:
        """Wall seconds of a call beside those that its operations take at peak."""
        if self.gpu:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        took = time_in_turns({name: call}, repeats or self.sizes.repeats, warm_up=1, finish=self._finish)[name].wall_s
        more: dict[str, Any] = {"memory_mb": (torch.cuda.max_memory_allocated() - before) / 1e6} if self.gpu else {}
        return row(name, "s", took, operations / self.peak, operations=operations, **more)

    def _check(self, name: str, error: float, most: float) -> Row:
        return row(name, "error", error, None, most=most, holds=error <= most)

    def _finish(self) -> None:
        if self.gpu:
            torch.cuda.synchronize()

    def _pairs(self) -> tuple[Tensor, Tensor, Tensor]:
        s, generator = self.sizes, torch.Generator().manual_seed(0)
        patch = F.normalize(torch.randn(s.images, s.patches, s.dim, generator=generator), dim=-1)
        word = F.normalize(torch.randn(s.reports, s.words, s.dim, generator=generator), dim=-1)
        count = torch.randint(s.words // 2, s.words + 1, (s.reports, 1), generator=generator)
        return patch.to(self.device), word.to(self.device), (torch.arange(s.words) < count).to(self.device)

    def _passes(self, patch: Tensor, word: Tensor, mask: Tensor, match: Callable[..., Any]) -> list[Tensor]:
        """Scores of both directions and the gradients of a fixed weighting of them."""
        patch, word = patch.detach().requires_grad_(), word.detach().requires_grad_()
        scores = match(patch, word, mask)
        loss = sum((score * torch.linspace(-1, 1, score.numel(), device=score.device).view_as(score)).sum()
                   for score in scores)  # fmt: skip
        assert isinstance(loss, Tensor)
        return [*(score.detach() for score in scores), *torch.autograd.grad(loss, (patch, word))]

    def _neox(self, dtype: torch.dtype, layers: int = 0) -> Any:
        s = self.sizes
        torch.manual_seed(0)
        config = GPTNeoXConfig(
            vocab_size=s.rows, hidden_size=s.hidden, num_hidden_layers=layers or s.layers, num_attention_heads=s.heads,
            intermediate_size=4 * s.hidden, max_position_embeddings=2048, eos_token_id=None, use_cache=True,
        )  # fmt: skip
        with self.device:
            model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=dtype)
        return model.eval()

    def _prompts(self, count: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(1)
        return torch.randint(0, self.sizes.rows, (count, self.sizes.prompt), generator=generator).tolist()


def _operations(call: Callable[[], object]) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


def describe(found: Row) -> str:
    """One line of the table."""
    if "error" in found:
        return f"{found['name']:58s} FAILED: {found['error']}"
    if "holds" in found:
        return (
            f"{found['name']:58s} {found['ours']:12.3g}   at most {found['most']:g}: {'ok' if found['holds'] else 'NO'}"
        )
    memory = f", {found['memory_mb']:.0f} MB" if "memory_mb" in found else ""
    floor = f", {found['ratio']:.1%} of the floor" if found["ratio"] else ""
    return f"{found['name']:58s} {found['ours']:12.4g} {found['unit']}{floor}{memory}"


def main() -> None:
    """Run everything on the device and write the answer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--out", default="")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU is seen here; --device cpu shows that the script runs")
    started = time.monotonic()
    rows = Bench(options.device).run()
    failed = sum("error" in found or found.get("holds") is False for found in rows)
    answer = {"device": options.device, "seconds": round(time.monotonic() - started, 1), "failed": failed, "rows": rows}
    if options.out:
        Path(options.out).write_text(json.dumps(answer, indent=2) + "\n")
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
