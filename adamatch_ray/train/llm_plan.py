"""What is settled before the language model is tuned: its tokenizer, its layout, and that all inputs fit."""

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from transformers import AutoConfig, PreTrainedTokenizerBase

from adamatch_ray.codebooks import TextualCodebook, keyword_groups
from adamatch_ray.config import LLMStage
from adamatch_ray.data import loading
from adamatch_ray.data.facts import FINDINGS
from adamatch_ray.engines.image_tokens import fingerprint
from adamatch_ray.engines.loader import load_vqgan
from adamatch_ray.filesystems import at_hand
from adamatch_ray.geometry import SIDES
from adamatch_ray.instructions import InstructionBuilder, prompt_phrases
from adamatch_ray.models.llm import check_fit
from adamatch_ray.models.llm_tokens import TokenLayout, make_layout, prepare_tokenizer, train_bpe_tokenizer
from adamatch_ray.shards import read_footer
from adamatch_ray.storage import Root


def plan_llm(root: Root, stage: LLMStage) -> TokenLayout:
    """Lay the tokenizer down under `llm/tokenizer` for all workers; the layout of the vocabulary.

    Raises ValueError naming both sides: the token cache is of another VQ-GAN, the tokenizer does not fit the
    checkpoint, or its context is too short for one image.
    """
    model = load_vqgan(root)
    quantizer, codes, grid = fingerprint(model), model.config.codes, (model.config.grid, model.config.grid)
    _check_cache(root, quantizer)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = _tokenizer(root, stage, folder)
        context = stage.context
        if stage.name_or_path:
            checkpoint = AutoConfig.from_pretrained(at_hand(stage.name_or_path))
            context = int(checkpoint.max_position_embeddings)
            if getattr(checkpoint, "image_codes", None) is None:
                check_fit(tokenizer, int(checkpoint.vocab_size))
        layout = make_layout(tokenizer, codes, grid, context, quantizer)
        _check_context(tokenizer, layout, stage)
        tokenizer.save_pretrained(folder)
        root.stage("llm").upload(Path(folder), "tokenizer")
    return layout


def _tokenizer(root: Root, stage: LLMStage, folder: str) -> PreTrainedTokenizerBase:
    """That of the checkpoint, or one trained on what prompts and reports of the train split say."""
    if stage.name_or_path:
        return prepare_tokenizer(stage.name_or_path)
    keywords = TextualCodebook.load(root.stage("codebooks"))
    prompt, phrases = stage.instructions, prompt_phrases()
    if prompt.keyword_places:
        groups = keyword_groups(prompt)
        phrases += _sided(entity.text for entity in keywords.entities if entity.group in groups)
    if prompt.image_facts:
        phrases += [phrase for phrase in _sided(FINDINGS) if phrase not in phrases]
    return train_bpe_tokenizer(_texts(root, keywords), stage.vocab_size, folder, phrases)


def _sided(findings: Iterable[str]) -> list[str]:
    """Findings with their sides, as a prompt lists them, each to be one token.

    A report mostly names the side before the finding. Where both are one token, a small model need not first find the
    finding in its prompt and then the word behind it.
    """
    return [f"{space}{word} {side}" for word in findings for side in SIDES for space in ("", " ")]


def _texts(root: Root, keywords: TextualCodebook) -> Iterator[str]:
    for table in loading.read_split(root.stage("studies"), "train", ["report"]):
        yield from table["report"].to_pylist()
    # As a prompt lists them: the first without a space before it, the others with one.
    for entity in keywords.entities:
        yield f"{entity.text}, {entity.text}"


def _check_cache(root: Root, quantizer: str) -> None:
    tokens = root.stage("tokens")
    for name in tokens.require().files:
        if not name.startswith(("train/", "validate/")):
            continue
        shard = read_footer(tokens, name)
        found = shard[1].get("model", "unknown") if shard else "missing"
        if found != quantizer:
            raise ValueError(
                f"{tokens.uri}/{name} holds tokens of VQ-GAN {found}, {root.uri}/vqgan is {quantizer}: "
                f"run python jobs/cache_tokens.py --root {root.uri} --overwrite"
            )


def _check_context(tokenizer: PreTrainedTokenizerBase, layout: TokenLayout, stage: LLMStage) -> None:
    builder = InstructionBuilder(tokenizer, layout, stage.instructions)
    blank = np.zeros(layout.image_tokens, dtype=np.uint16)
    needed = max(len(builder.report_prompt(blank, [])), len(builder.image_prompt("", [])) + layout.image_tokens)
    if needed >= layout.context:
        name = stage.name_or_path or "--llm.context"
        raise ValueError(
            f"a prompt with one image of {layout.image_tokens} tokens takes {needed}, the context of {name} is "
            f"{layout.context}: use a longer one, or a VQ-GAN with fewer tokens"
        )
