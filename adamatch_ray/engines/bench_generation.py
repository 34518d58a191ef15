"""How fast images are generated, and what the response loss costs: rows for a benchmark table.

    python -m adamatch_ray.engines.bench_generation [--device cuda] [--dtype bfloat16]

Random weights and prompts of real sizes: speed depends on neither. Every variant is measured in turns, `repeats` times,
and the median counts; CPU seconds stand beside wall seconds because a shared machine spoils only the latter.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, GPTNeoXConfig

from adamatch_ray.engines.local_backend import DecodePlan, LocalBackend
from adamatch_ray.models.llm_loss import IGNORE, PackedBatch, response_loss

TEXT_ROWS = 2048
IMAGE_ROWS = 1024


@dataclass(frozen=True)
class Size:
    """A GPT-NeoX to measure; the default is the phantoms' (TINY), DOLLY is the paper's."""

    hidden: int = 192
    layers: int = 4
    heads: int = 3
    text_rows: int = TEXT_ROWS
    context: int = 1024


TINY = Size()
DOLLY = Size(hidden=2560, layers=32, heads=32, text_rows=50_281, context=2048)


class Timing(NamedTuple):
    """Medians over the repeats."""

    wall_s: float
    cpu_s: float


def generate_image_tokens(
    size: Size = TINY,
    prompt: int = 120,
    tokens: int = 256,
    batches: Sequence[int] = (1, 16, 64),
    repeats: int = 3,
    device: str = "cpu",
    dtype: str = "float32",
) -> list[dict[str, Any]]:
    """Greedy answers of `tokens` image tokens: plain `generate` one at a time, then both decoders at each batch.

    `speedup` is tokens per wall second over plain `generate` at batch 1; `cpu_speedup` the same in CPU seconds.
    """
    model = _model(size, device, dtype)
    plan = DecodePlan(size.text_rows, size.text_rows + IMAGE_ROWS, None, temperature=0, top_p=1)
    generator = torch.Generator().manual_seed(0)
    shared = torch.randint(0, size.text_rows, (prompt // 3,), generator=generator).tolist()
    own = torch.randint(0, size.text_rows, (max(batches), prompt - len(shared)), generator=generator).tolist()
    prompts = [shared + rest for rest in own]
    plain_ids = torch.tensor(prompts[:1], device=device)

    def plain() -> None:
        model.generate(
            plain_ids,
            attention_mask=torch.ones_like(plain_ids),
            do_sample=False,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            pad_token_id=0,
        )

    runs: dict[tuple[str, int], Callable[[], object]] = {("transformers.generate", 1): plain}
    for decoder in ("transformers", "folded"):
        backend = LocalBackend(model, max(batches), decoder)
        for batch in batches:
            runs[decoder, batch] = _answering(backend, prompts[:batch], tokens, plan)
    timings = _measure(runs, repeats, device)
    base = timings["transformers.generate", 1]
    rows = []
    for (variant, batch), timing in timings.items():
        row = _row("generate_image_tokens", variant, timing, device, dtype, size)
        rate = batch * tokens / timing.wall_s
        row |= {"batch": batch, "prompt": prompt, "tokens": tokens, "tokens_per_s": round(rate, 1)}
        row["speedup"] = round(base.wall_s * batch / timing.wall_s, 2)
        row["cpu_speedup"] = round(base.cpu_s * batch / timing.cpu_s, 2)
        rows.append(row)
    return rows


def llm_loss(
    size: Size = TINY,
    batch: int = 8,
    length: int = 512,
    response: int = 260,
    repeats: int = 3,
    device: str = "cpu",
    dtype: str = "float32",
) -> list[dict[str, Any]]:
    """Forward and backward of a step: the model's own loss over all logits, and `response_loss`.

    `logits_mib` is the largest block of float32 logits alive at once, counted as the head makes it.
    """
    model = _model(size, device, dtype).train()
    rows_total = size.text_rows + IMAGE_ROWS
    ids = torch.randint(0, rows_total, (batch, length), generator=torch.Generator().manual_seed(0)).to(device)
    labels = ids.clone()
    labels[:, : length - response] = IGNORE
    positions = torch.arange(length, device=device).expand(batch, length)
    packed = PackedBatch(ids, labels, positions, torch.ones_like(ids))
    losses: dict[str, float] = {}
    largest: dict[str, int] = {"all logits": 0, "response only": 0}
    current = ["all logits"]

    def count(_module: object, _inputs: object, output: torch.Tensor) -> None:
        largest[current[0]] = max(largest[current[0]], output.numel() * 4)

    def step(name: str) -> Callable[[], None]:
        def run() -> None:
            current[0] = name
            model.zero_grad(set_to_none=True)
            if name == "all logits":
                logits = model(input_ids=ids).logits.float()
                loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE)
            else:
                loss = response_loss(model, packed).mean
            loss.backward()
            losses[name] = loss.item()

        return run

    hook = model.get_output_embeddings().register_forward_hook(count)
    timings = _measure({(name, batch): step(name) for name in largest}, repeats, device)
    hook.remove()
    rows = []
    for (name, _), timing in timings.items():
        row = _row("llm_loss", name, timing, device, dtype, size)
        row |= {"batch": batch, "length": length, "response": response, "loss": losses[name]}
        row |= {"logits_mib": round(largest[name] / 2**20, 1), "tokens_per_s": round(batch * length / timing.wall_s, 1)}
        row["logits_ratio"] = round(largest["all logits"] / largest[name], 1)
        rows.append(row)
    return rows


def _answering(
    backend: LocalBackend, prompts: list[list[int]], tokens: int, plan: DecodePlan
) -> Callable[[], list[list[int]]]:
    return lambda: backend.complete(prompts, [tokens] * len(prompts), [0] * len(prompts), plan)


def _model(size: Size, device: str, dtype: str) -> Any:
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=size.text_rows + IMAGE_ROWS,
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=4 * size.hidden,
        max_position_embeddings=size.context,
        eos_token_id=None,
    )
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def _measure(
    runs: dict[tuple[str, int], Callable[[], object]], repeats: int, device: str
) -> dict[tuple[str, int], Timing]:
    seen: dict[tuple[str, int], list[Timing]] = {key: [] for key in runs}
    for turn in range(repeats + 1):
        for key, run in runs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            # The first turn pays for allocation and kernel selection.
            if turn:
                seen[key].append(Timing(time.perf_counter() - wall, time.process_time() - cpu))
    return {
        key: Timing(statistics.median(t.wall_s for t in values), statistics.median(t.cpu_s for t in values))
        for key, values in seen.items()
    }


def _row(benchmark: str, variant: str, timing: Timing, device: str, dtype: str, size: Size) -> dict[str, Any]:
    return {
        "benchmark": benchmark,
        "variant": variant,
        "wall_s": round(timing.wall_s, 4),
        "cpu_s": round(timing.cpu_s, 4),
        "device": device,
        "threads": torch.get_num_threads(),
        "dtype": dtype,
        **asdict(size),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one JSON row a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", help="float32 or bfloat16")
    parser.add_argument("--size", choices=("tiny", "dolly"), default="tiny", help="which model")
    parser.add_argument("--tokens", type=int, nargs="+", default=[64, 256], help="image tokens of an answer")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64], help="requests decoded together")
    parser.add_argument("--repeats", type=int, default=3, help="measurements behind each median")
    options = parser.parse_args(arguments)
    size = TINY if options.size == "tiny" else DOLLY
    common = {"device": options.device, "dtype": options.dtype, "repeats": options.repeats}
    for tokens in options.tokens:
        for row in generate_image_tokens(size, tokens=tokens, batches=options.batches, **common):
            print(json.dumps(row), flush=True)
    for row in llm_loss(size, **common):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
