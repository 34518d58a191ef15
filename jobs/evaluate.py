"""usage: python jobs/evaluate.py [options]

Score AdaMatch on a split: image-report retrieval, R@1/5/10 in both directions under three named protocols.
"""

import json
from collections.abc import Sequence
from typing import Any

from adamatch_ray.cli import parse_command_line, run_as_command
from adamatch_ray.stages import StageRun


def main(arguments: Sequence[str]) -> dict[str, Any] | None:
    """Embed the split, score every pair by blocks, write `metrics/retrieval.json`."""
    run = StageRun(parse_command_line(arguments, __doc__ or ""), "metrics")
    if (answer := run.begin()) is not None:
        return answer
    import tempfile
    from pathlib import Path

    import torch

    from adamatch_ray.engines.embedding import embed_split
    from adamatch_ray.metrics import retrieval
    from adamatch_ray.models import adamatch

    options = run.config.evaluate
    folder = run.root.stage("adamatch").download("model", Path(tempfile.mkdtemp(prefix="adamatch-")))
    model, tokenizer = adamatch.load(folder)
    model.to("cuda" if run.config.scale.gpu else "cpu")
    with torch.inference_mode():
        split = embed_split(model, tokenizer, run.root.stage("studies"), options.split, options.batch_size)
    scores = retrieval.score_pairs(split.heads, split.word_IND, split.mask_IN)
    source = run.root.stage("studies").require().config["data"]["source"]
    full = retrieval.recall_full(scores, split.reports)
    result = {
        "split": options.split,
        "studies": len(split.reports),
        "data": source + (" (synthetic, not clinical)" if source == "phantom" else ""),
        "full": full,
        "chance": retrieval.chance_full(split.reports),
        f"candidates_{min(options.candidates, len(split.reports))}": retrieval.recall_candidates(
            scores, split.reports, options.candidates
        ),
        "released": retrieval.recall_released(scores),
    }
    run.stage.write_bytes("retrieval.json", (json.dumps(result, indent=2) + "\n").encode())
    return run.finish({name: round(value, 2) for name, value in full.items()}, rows={"studies": len(split.reports)})


if __name__ == "__main__":
    run_as_command(main)
