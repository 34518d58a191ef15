"""usage: python -m benchmarks NAME... [--quick] [options]

Measure parts of the project against named peers in the same run: late_interaction, ingest, vqgan_encode, metrics,
llm_loss, generate_image_tokens, scaling. Each row is {name, ours, peer, ratio, unit, hardware, versions, date}; with
--root the rows are also written to <root>/benchmarks/<NAME>.json. --quick takes smaller inputs and fewer repeats: it
shows that a benchmark runs, its figures mean little.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from adamatch_ray.cli import parse_command_line, run_as_command
from adamatch_ray.storage import Root, Stage

Rows = list[dict[str, Any]]


def main(arguments: Sequence[str]) -> dict[str, Any] | None:
    """Run the named benchmarks one after another; raises ValueError where none is named."""
    command = parse_command_line([a for a in arguments if a != "--quick"], __doc__ or "", tuple(BENCHMARKS))
    if not command.words:
        raise ValueError(f"name a benchmark: {', '.join(BENCHMARKS)}")
    quick = "--quick" in arguments
    stored = any(argument.split("=")[0] == "--root" for argument in arguments)
    answer = {"stage": "benchmark", "output": f"{command.root}/benchmarks" if stored else ""}
    if command.dry_run:
        print(
            f"# benchmarks: {', '.join(command.words)}{' (quick)' if quick else ''} -> {answer['output'] or 'stdout'}"
        )
        return {**answer, "status": "planned", "seconds": 0.0}
    started, rows = time.monotonic(), []
    for name in dict.fromkeys(command.words):
        print(f"benchmark {name} …", file=sys.stderr)
        measured = BENCHMARKS[name](quick)
        for row in measured:
            print(f"  {_line(row)}", file=sys.stderr)
        if stored:
            text = json.dumps({"quick": quick, "rows": measured}, indent=2)
            Stage(Root(command.root), "benchmarks").write_bytes(f"{name}.json", f"{text}\n".encode())
        rows += measured
    return {**answer, "status": "done", "seconds": round(time.monotonic() - started, 1), "rows": rows}


def _line(row: dict[str, Any]) -> str:
    beside = "" if row["peer"] is None else f", peer {row['peer']:.4g}: {row['ratio']:.3g} times"
    return f"{row['name']}: {row['ours']:.4g} {row['unit']}{beside}"


def _late_interaction(quick: bool) -> Rows:
    from benchmarks import late_interaction as bench

    if quick:
        return bench.compare(bench.Case(images=8, texts=8, patches=49, words=32, dim=64), repeats=1)
    return bench.rows()


def _ingest(quick: bool) -> Rows:
    from adamatch_ray.cluster import start_ray
    from adamatch_ray.config import ScaleConfig
    from benchmarks import ingest as bench

    start_ray(ScaleConfig())
    return bench.rows(bench.QUICK if quick else bench.FULL)


def _vqgan_encode(quick: bool) -> Rows:
    from adamatch_ray.model_config import VQGANConfig
    from benchmarks.image_tokens import measure_vqgan_encode

    if quick:
        small = VQGANConfig(image_size=64, codes=64)
        return measure_vqgan_encode(small, images=4, repeats=1)
    return measure_vqgan_encode()


def _metrics(quick: bool) -> Rows:
    from benchmarks.metrics import metric_rows
    from benchmarks.retrieval import STUDIES, retrieval_rows

    rows = metric_rows(studies=100, dimensions=64) if quick else metric_rows()
    return rows + retrieval_rows(64 if quick else STUDIES)


def _llm_loss(quick: bool) -> Rows:
    from benchmarks.generation import llm_loss

    return llm_loss(batch=2, length=128, response=64, repeats=1) if quick else llm_loss()


def _generate_image_tokens(quick: bool) -> Rows:
    from benchmarks.generation import generate_image_tokens

    if quick:
        return generate_image_tokens(prompt=24, tokens=8, batches=(1, 2), repeats=1)
    return generate_image_tokens()


def _scaling(quick: bool) -> Rows:
    from benchmarks import scaling as bench_scaling

    return bench_scaling.rows(16, 2) if quick else bench_scaling.rows()


BENCHMARKS: dict[str, Callable[[bool], Rows]] = {
    "late_interaction": _late_interaction,
    "ingest": _ingest,
    "vqgan_encode": _vqgan_encode,
    "metrics": _metrics,
    "llm_loss": _llm_loss,
    "generate_image_tokens": _generate_image_tokens,
    "scaling": _scaling,
}


if __name__ == "__main__":
    run_as_command(main)
