"""usage: python jobs/build_codebooks.py [options]

Build the textual codebook (the entities of the train reports) and the visual one (the patches their words match best).
"""

import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from adamatch_ray.cli import parse_command_line, run_as_command
from adamatch_ray.stage import StageRun

if TYPE_CHECKING:
    from adamatch_ray.codebooks import TextualCodebook, VisualCodebook
    from adamatch_ray.shards import MadeShard

SHOWN = 20
"""Most frequent entities of each group that are shown."""


def main(arguments: Sequence[str]) -> dict[str, Any] | None:
    """Count entities, then find keypatches, shard by shard on actors; rank both, and commit."""
    run = StageRun(parse_command_line(arguments, __doc__ or ""), "codebooks")
    if (answer := run.begin()) is not None:
        return answer
    from adamatch_ray.cluster import device_of
    from adamatch_ray.data.loading import list_shards
    from adamatch_ray.pipeline.codebooks import EntityCounts, KeypatchCandidates
    from adamatch_ray.shards import spread

    studies, options, scale = run.root.stage("studies"), run.config.codebooks, run.config.scale
    files = [shard.path.removeprefix(f"{studies.path}/") for shard in list_shards(studies, "train")]
    device = device_of(scale)
    entities = partial(EntityCounts, run.root.uri, options.backend, options.ner, options.min_score, device)
    counted = list(spread(files, entities, scale, "entities"))
    textual = _textual(run, counted)
    textual = _with_probabilities(run, textual, device)
    words = textual.provenance["words"]
    sizes = options.keypatches, options.per_word, options.batch_size
    patches = partial(KeypatchCandidates, run.root.uri, words, *sizes, device)
    ranked = list(spread(files, patches, scale, "keypatches"))
    visual = _visual(run, ranked, textual)
    run.stage.keep_only({"textual.json", "textual.safetensors", "visual.parquet"})
    figures = {
        "top": _show(textual),
        "groups": dict(Counter(entity.group for entity in textual.entities)),
        "words": len(set(visual.table["word"].to_pylist())),
        "reused": sum(shard.reused for shard in (*counted, *ranked)),
    }
    return run.finish(figures, {"keywords": len(textual), "keypatches": len(visual)})


def _textual(run: StageRun, counted: Sequence["MadeShard"]) -> "TextualCodebook":
    import torch

    from adamatch_ray.engines.entities import finder_identity
    from adamatch_ray.engines.loader import load_embedder
    from adamatch_ray.pipeline import codebooks as building

    torch.set_num_threads(1)  # sums must not depend on the machine's cores
    options = run.config.codebooks
    codebook = building.build_textual(
        load_embedder(run.root),
        run.parents["adamatch"],
        building.merge_counts(run.stage, sorted(shard.file for shard in counted)),
        per_group=options.per_group,
        min_count=options.min_count,
        provenance={
            **finder_identity(options.backend, options.ner, options.min_score),
            "studies": run.parents["studies"],
            "reports": run.root.stage("studies").require().rows["train"],
        },
    )
    codebook.save(run.stage)
    return codebook


def _with_probabilities(run: StageRun, textual: "TextualCodebook", device: str) -> "TextualCodebook":
    """The codebook with what the validate split says of its similarities: how probable they make a keyword."""
    from dataclasses import replace

    from adamatch_ray.codebooks import fit_logistic
    from adamatch_ray.pipeline.codebooks import KeywordStatements, merge_statements
    from adamatch_ray.shards import spread

    options, scale = run.config.codebooks, run.config.scale
    files = [name for name, rows in run.root.stage("studies").require().files.items() if rows]
    held_out = sorted(name for name in files if name.startswith("validate/"))
    if not held_out:
        return textual
    finder = (options.backend, options.ner, options.min_score)
    maker = partial(KeywordStatements, run.root.uri, textual, finder, options.batch_size, device)
    made = list(spread(held_out, maker, scale, "probabilities"))
    similarity_IK, stated_IK = merge_statements(run.stage, sorted(shard.file for shard in made), len(textual))
    textual = replace(textual, logistic_K2=fit_logistic(similarity_IK, stated_IK))
    textual.save(run.stage)
    return textual


def _visual(run: StageRun, ranked: Sequence["MadeShard"], textual: "TextualCodebook") -> "VisualCodebook":
    from adamatch_ray.pipeline.codebooks import merge_candidates

    options = run.config.codebooks
    codebook = merge_candidates(
        run.stage,
        sorted(shard.file for shard in ranked),
        textual.model,
        textual.feature_KD.shape[1],
        keypatches=options.keypatches,
        per_word=options.per_word,
    )
    codebook.save(run.stage)
    return codebook


def _show(textual: "TextualCodebook") -> dict[str, list[str]]:
    """The most frequent entities of each group, printed with their counts."""
    from adamatch_ray.codebooks import GROUPS

    top = {group: [entity for entity in textual.entities if entity.group == group][:SHOWN] for group in GROUPS}
    for group, entities in top.items():
        print(f"{group}: " + ", ".join(f"{entity.text} {entity.count}" for entity in entities), file=sys.stderr)
    return {group: [entity.text for entity in entities] for group, entities in top.items()}


if __name__ == "__main__":
    run_as_command(main)
