"""The language model of AdaMatch-Cyclic: any causal LM whose vocabulary also has one row per VQ-GAN code (section 3.2).

Rows are tokenizer length + codes, always: 50,281 + 1,024 = 51,305 for dolly-v2-3b. A checkpoint often has more rows
than its tokenizer has entries (padding to a round number); those rows were never trained, the first image codes take
their place, and every image row starts from the same distribution, whether it was padding before or is new.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GPTNeoXConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from adamatch_ray.filesystems import at_hand
from adamatch_ray.model_config import LLMConfig
from adamatch_ray.models.hub import write_card
from adamatch_ray.models.image_positions import ImagePositions, positions_of
from adamatch_ray.models.llm_tokens import KEYS, TokenLayout, make_layout

POSITIONS = "image_positions.safetensors"
"""File beside the model that holds where image tokens lie; transformers does not read it."""

INSTRUCTIONS = "instructions.json"
"""File beside the model that says what its prompts held when it was tuned."""

MOST_PADDED_ROWS = 1024
"""Rows beyond the tokenizer that can pass for padding; with more, model and tokenizer were not made for each other."""


class LoadedLLM(NamedTuple):
    """What `save_llm` wrote: model, its tokenizer, and which id means what."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    layout: TokenLayout


def build_llm(
    config: LLMConfig, tokenizer: PreTrainedTokenizerBase, codes: int, grid: tuple[int, int], quantizer: str = ""
) -> PreTrainedModel:
    """A causal LM of len(tokenizer) + codes rows; codes, grid and `quantizer` (fingerprint) are those of the VQ-GAN.

    ValueError, naming both sides, if the checkpoint was tuned on another VQ-GAN or the tokenizer does not fit it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        build = _pretrained if config.name_or_path else _from_scratch
        model = build(config, tokenizer, codes)
    known = getattr(model.config, "quantizer", "")
    if known and quantizer and known != quantizer:
        raise ValueError(f"{config.name_or_path} was tuned on VQ-GAN {known}, the token cache is of {quantizer}")
    model.config.image_codes = codes
    model.config.image_grid = list(grid)
    model.config.quantizer = quantizer or known
    layout = layout_of(model, tokenizer)
    if config.image_positions:
        _add_positions(model, layout, at_hand(config.name_or_path))
    model.config.eos_token_id, model.config.pad_token_id = layout.end_id, layout.pad_id
    model.generation_config = GenerationConfig(
        eos_token_id=layout.end_id, pad_token_id=layout.pad_id, do_sample=True, top_p=0.92, max_new_tokens=512
    )
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.eval()


def layout_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> TokenLayout:
    """Layout of a model that `build_llm` made. ValueError if its rows are not tokenizer length + image codes."""
    codes = getattr(model.config, "image_codes", None)
    if codes is None:
        raise ValueError("this language model has no image tokens: make it with build_llm, or point to a tuned one")
    rows = model.get_input_embeddings().num_embeddings  # the weight itself may be spread over workers
    if rows != len(tokenizer) + codes:
        raise ValueError(f"the model has {rows} rows, its tokenizer {len(tokenizer)} entries and the VQ-GAN {codes}")
    rows_columns = model.config.image_grid
    grid = (int(rows_columns[0]), int(rows_columns[1]))
    context = int(model.config.max_position_embeddings)
    return make_layout(tokenizer, codes, grid, context, quantizer=getattr(model.config, "quantizer", ""))


def save_llm(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    weights: dict[str, Tensor] | None = None,
) -> None:
    """Write safetensors, configuration, generation settings, tokenizer and model card, the Hugging Face way.

    `AutoModelForCausalLM` and `AutoTokenizer` load the folder without this package. `weights` stand for the model's
    own where those are spread over workers or split into adapters.
    """
    layout = layout_of(model, tokenizer)
    whole = model.state_dict() if weights is None else weights
    placed = {name: whole[name] for name in whole if name.startswith("image_positions.")}
    if placed:
        Path(folder).mkdir(parents=True, exist_ok=True)
        bare = {name.removeprefix("image_positions."): value.contiguous() for name, value in placed.items()}
        save_file(bare, Path(folder) / POSITIONS)
        weights = {name: value for name, value in whole.items() if name not in placed}
    model.save_pretrained(str(folder), state_dict=weights)
    tokenizer.save_pretrained(str(folder))
    title = "Chest X-ray and report language model (AdaMatch-Cyclic)"
    write_card(Path(folder), title, _facts(model, layout), "transformers", "text-generation")


def load_llm(folder: str | Path, dtype: str = "auto", attention: str = "sdpa") -> LoadedLLM:
    """Read what `save_llm` wrote, in evaluation mode. `dtype` "auto" keeps the file's; CPUs want "float32"."""
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype, attn_implementation=attention).eval()
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    layout = layout_of(model, tokenizer)
    if getattr(model.config, "image_positions", False):
        _add_positions(model, layout, str(folder))
    return LoadedLLM(model, tokenizer, layout)


def _add_positions(model: PreTrainedModel, layout: TokenLayout, folder: str) -> None:
    """Let a model learn where image tokens lie, from what `folder` holds of it or from zero."""
    positions = ImagePositions(layout.image_grid, model.config.hidden_size, layout.image_start)
    file = Path(folder) / POSITIONS
    if getattr(model.config, "image_positions", False):
        if not file.is_file():
            raise ValueError(f"{folder} was tuned with image positions, and {POSITIONS} is missing: copy it there too")
        positions.load_state_dict(load_file(file))
    model.image_positions = positions.to(device=model.device, dtype=model.dtype).train(model.training)
    model.config.image_positions = True


def scratch_config(config: LLMConfig, rows: int) -> GPTNeoXConfig:
    """The shape of a language model that is made from scratch, with so many rows."""
    return GPTNeoXConfig(
        vocab_size=rows,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=4 * config.hidden_size,
        max_position_embeddings=config.context,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": config.rotary},
        tie_word_embeddings=config.tied,
    )


def _from_scratch(config: LLMConfig, tokenizer: PreTrainedTokenizerBase, codes: int) -> PreTrainedModel:
    shape = scratch_config(config, len(tokenizer) + codes)
    shape.bos_token_id = tokenizer.bos_token_id
    return AutoModelForCausalLM.from_config(shape, dtype=config.dtype, attn_implementation=config.attention)


def _pretrained(config: LLMConfig, tokenizer: PreTrainedTokenizerBase, codes: int) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(
        at_hand(config.name_or_path), dtype=config.dtype, attn_implementation=config.attention
    )
    tuned_on = getattr(model.config, "image_codes", None)
    if tuned_on is None:
        extend_vocabulary(model, tokenizer, codes)
    elif tuned_on != codes:
        raise ValueError(f"{config.name_or_path} was tuned on {tuned_on} image codes, the VQ-GAN has {codes}")
    return model


def extend_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, codes: int) -> None:
    """Give a text-only model exactly len(tokenizer) + codes rows, in place; rows from len(tokenizer) on start afresh.

    Draws from the global generator. ValueError if the tokenizer does not fit the checkpoint. A key that
    `prepare_tokenizer` added may take one of the checkpoint's padded rows, or be a new row; it is trained either way.
    """
    text = len(tokenizer)
    check_fit(tokenizer, _weight(model.get_input_embeddings()).shape[0])
    model.resize_token_embeddings(text + codes, mean_resizing=False)
    spread = float(getattr(model.config, "initializer_range", 0.02))
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    with torch.no_grad():
        for weight in {_weight(end) for end in ends}:
            weight[text:].normal_(mean=0.0, std=spread)


def check_fit(tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """Refuse a tokenizer that was not made for a text-only checkpoint of so many rows: ValueError naming both."""
    strangers = [token for token, index in tokenizer.get_vocab().items() if index >= rows and token not in KEYS]
    if strangers or rows - len(tokenizer) > MOST_PADDED_ROWS:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} entries, the checkpoint {rows} rows: they do not belong together; "
            "load both from the same name or folder"
        )


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


def _positions_note(model: PreTrainedModel) -> str:
    if positions_of(model) is None:
        return ""
    return f"- Where an image token lies is added to its embedding from `{POSITIONS}`; without it images melt.\n"


def _facts(model: PreTrainedModel, layout: TokenLayout) -> str:
    rows, columns = layout.image_grid
    return f"""
- Architecture: `{type(model).__name__}`, {sum(p.numel() for p in model.parameters()):,} parameters.
- Vocabulary: ids 0-{layout.text_size - 1} are the tokenizer's; id {layout.image_start} + c is code c of a VQ-GAN with
  {layout.image_codes} codes (fingerprint `{layout.quantizer or "unknown"}`). Image ids have no spelling.
- An image is {rows} x {columns} = {layout.image_tokens} codes in raster order.
{_positions_note(model)}- X-ray to report: give the image ids and keywords; sample (top-p 0.92) text until `### End`.
- Report to X-ray: restrict the logits to ids {layout.image_start}-{layout.vocab_size - 1} for exactly
  {layout.image_tokens} steps, subtract {layout.image_start}, decode with that VQ-GAN.
- All of this: `adamatch_ray.engines.generation.GenerationEngine.from_pretrained(this folder)`, which also needs the
  `instructions.json` that prompts were made with.

Generated reports and images can be wrong in ways that look right.
"""
