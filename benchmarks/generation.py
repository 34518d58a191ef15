"""How fast images are generated, and what the response loss costs: rows for a benchmark table.

    python -m benchmarks.generation [--device cuda] [--dtype bfloat16]

Random weights and prompts of real sizes: speed depends on neither. Every variant is measured in turns, `repeats` times,
and the median counts: CPU seconds on a CPU, because a shared machine spoils wall seconds, and wall seconds on a GPU.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LogitsProcessor, LogitsProcessorList

from adamatch_ray.config import load_config
from adamatch_ray.engines.local_backend import DecodePlan, LocalBackend
from adamatch_ray.models.llm_loss import IGNORE, PackedBatch, response_loss
from benchmarks.measure import Row, Timing, row, time_in_turns


@dataclass(frozen=True)
class Size:
    """A GPT-NeoX to measure: TINY is the one the phantom preset trains, DOLLY the paper's."""

    hidden: int
    layers: int
    heads: int
    text_rows: int
    image_rows: int
    context: int
    rotary: float


def _of_preset(name: str) -> Size:
    config = load_config(name)
    llm = config.llm
    return Size(llm.hidden_size, llm.layers, llm.heads, llm.vocab_size, config.vqgan.codes, llm.context, llm.rotary)


TINY = _of_preset("phantom")
DOLLY = Size(hidden=2560, layers=32, heads=32, text_rows=50_281, image_rows=1024, context=2048, rotary=0.25)


class _ImageRowsOnly(LogitsProcessor):
    """Keeps `generate` to image tokens, as cheaply as it allows: whoever goes without must sample again and again."""

    def __init__(self, text_rows: int) -> None:
        self.text_rows = text_rows

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores[:, : self.text_rows] = -torch.inf
        return scores


def generate_image_tokens(
    size: Size = TINY,
    prompt: int = 80,
    tokens: int = 256,
    batches: Sequence[int] = (1, 16, 64),
    repeats: int = 5,
    device: str = "cpu",
    dtype: str = "float32",
) -> list[Row]:
    """Greedy answers of `tokens` image tokens: both decoders at each batch against plain `generate` one at a time.

    `equal_tokens` is the share of the peer's answer that the first answer repeats. In float32 it must be all of it,
    else RuntimeError.
    """
    model = _model(size, device, dtype)
    plan = DecodePlan(size.text_rows, size.text_rows + size.image_rows, None, temperature=0, top_p=1)
    generator = torch.Generator().manual_seed(0)
    shared = torch.randint(0, size.text_rows, (prompt // 3,), generator=generator).tolist()
    own = torch.randint(0, size.text_rows, (max(batches), prompt - len(shared)), generator=generator).tolist()
    prompts = [shared + rest for rest in own]
    plain_ids = torch.tensor(prompts[:1], device=device)

    def plain() -> list[list[int]]:
        answer = model.generate(
            plain_ids,
            attention_mask=torch.ones_like(plain_ids),
            do_sample=False,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            pad_token_id=0,
            logits_processor=LogitsProcessorList([_ImageRowsOnly(size.text_rows)]),
        )
        return [answer[0, prompt:].tolist()]

    runs: dict[tuple[str, int], Callable[[], list[list[int]]]] = {("peer", 1): plain}
    for decoder in ("transformers", "folded"):
        backend = LocalBackend(model, max(batches), decoder)
        for batch in batches:
            runs[decoder, batch] = _answering(backend, prompts[:batch], tokens, plan)
    answers = {key: run()[0] for key, run in runs.items()}
    timings = time_in_turns(runs, repeats, warm_up=1, finish=_finish(device))
    base = timings.pop(("peer", 1))
    common: dict[str, Any] = {"prompt": prompt, "tokens": tokens, "device": device, "dtype": dtype, **asdict(size)}
    rows = []
    for (decoder, batch), timing in timings.items():
        pairs = zip(answers[decoder, batch], answers["peer", 1], strict=True)
        equal = sum(one == other for one, other in pairs) / tokens
        if dtype == "float32" and equal < 1:
            raise RuntimeError(f"{decoder} at batch {batch} answers otherwise than `generate`: nothing is reported")
        rows.append(
            row(
                f"generate_image_tokens, {decoder}, batch {batch}",
                f"{_clock(device)} an answer",
                _seconds(timing, device) / batch,
                _seconds(base, device),
                packages=("transformers",),
                peer_name="transformers generate, batch 1",
                equal_tokens=equal,
                tokens_per_wall_s=round(batch * tokens / timing.wall_s, 1),
                peer_tokens_per_wall_s=round(tokens / base.wall_s, 1),
                batch=batch,
                **common,
            )
        )
    return rows


def llm_loss(
    size: Size = TINY,
    batch: int = 8,
    length: int = 512,
    response: int = 260,
    repeats: int = 5,
    device: str = "cpu",
    dtype: str = "float32",
) -> list[Row]:
    """Forward and backward of a step: `response_loss` against the model's own loss over all logits.

    Two rows: time, and the largest block of float32 logits alive at once, counted as the head makes it. RuntimeError
    where the losses differ.
    """
    model = _model(size, device, dtype).train()
    rows_total = size.text_rows + size.image_rows
    ids = torch.randint(0, rows_total, (batch, length), generator=torch.Generator().manual_seed(0)).to(device)
    labels = ids.clone()
    labels[:, : length - response] = IGNORE
    positions = torch.arange(length, device=device).expand(batch, length)
    packed = PackedBatch(ids, labels, positions, torch.ones_like(ids))
    losses: dict[str, float] = {}
    largest: dict[str, int] = {"all logits": 0, "response only": 0}
    current = ["all logits"]

    def count(_module: object, _inputs: object, output: Tensor) -> None:
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
    timings = time_in_turns({name: step(name) for name in largest}, repeats, warm_up=1, finish=_finish(device))
    hook.remove()
    ours, peer = "response only", "all logits"
    difference = abs(losses[ours] - losses[peer])
    if difference > (1e-4 if dtype == "float32" else 1e-2):
        raise RuntimeError(f"the losses {losses} differ: nothing is reported")
    seconds = {name: _seconds(timing, device) for name, timing in timings.items()}
    common: dict[str, Any] = {"packages": ("transformers",), "peer_name": "loss over all logits"}
    common |= {"difference": difference, "batch": batch, "length": length, "response": response}
    common |= {"device": device, "dtype": dtype, **asdict(size)}
    return [
        row("llm_loss, step", _clock(device), seconds[ours], seconds[peer], **common),
        row("llm_loss, logits", "MiB", largest[ours] / 2**20, largest[peer] / 2**20, **common),
    ]


def _answering(
    backend: LocalBackend, prompts: list[list[int]], tokens: int, plan: DecodePlan
) -> Callable[[], list[list[int]]]:
    return lambda: backend.complete(prompts, [tokens] * len(prompts), [0] * len(prompts), plan)


def _model(size: Size, device: str, dtype: str) -> Any:
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=size.text_rows + size.image_rows,
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=4 * size.hidden,
        max_position_embeddings=size.context,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": size.rotary},
        eos_token_id=None,
    )
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def _finish(device: str) -> Callable[[], object]:
    return torch.cuda.synchronize if device.startswith("cuda") else lambda: None


def _seconds(timing: Timing, device: str) -> float:
    return timing.wall_s if device.startswith("cuda") else timing.cpu_s


def _clock(device: str) -> str:
    return "wall seconds" if device.startswith("cuda") else "CPU seconds"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one JSON row a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", help="float32 or bfloat16")
    parser.add_argument("--size", choices=("tiny", "dolly"), default="tiny", help="which model")
    parser.add_argument("--tokens", type=int, nargs="+", default=[64, 256], help="image tokens of an answer")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64], help="requests decoded together")
    parser.add_argument("--repeats", type=int, default=5, help="measurements behind each median")
    options = parser.parse_args(arguments)
    size = TINY if options.size == "tiny" else DOLLY
    common = {"device": options.device, "dtype": options.dtype, "repeats": options.repeats}
    for tokens in options.tokens:
        for line in generate_image_tokens(size, tokens=tokens, batches=options.batches, **common):
            print(json.dumps(line), flush=True)
    for line in llm_loss(size, **common):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
