"""Low-rank adapters for a language model with image tokens, and the plain weights they merge into."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from adamatch_ray.models.image_positions import positions_of

ADAPTER = "default"


def add_adapters(model: PreTrainedModel, rank: int, alpha: float, dropout: float, first_row: int) -> None:
    """Freeze a model but for adapters on its attention and MLP, and rows `first_row` on of embedding and head.

    In place. ValueError where peft is missing.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ValueError("--llm.lora.rank above 0 needs peft: pip install 'adamatch-ray[lora]'") from None
    options = LoraConfig(r=rank, lora_dropout=dropout, target_modules="all-linear")
    options.lora_alpha = alpha  # type: ignore[assignment]  # a factor, whatever its annotation says
    inject_adapter_in_model(options, model, adapter_name=ADAPTER)
    if (positions := positions_of(model)) is not None:
        positions.requires_grad_(True)
    ends = {end.weight for end in (model.get_input_embeddings(), model.get_output_embeddings())}
    for weight in ends:
        assert isinstance(weight, Tensor)
        weight.requires_grad_(True)
        weight.register_hook(lambda gradient: _only_rows_from(gradient, first_row))


def merge_adapters(model: PreTrainedModel, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Plain weights of a model, by name, from its weights with adapters; those of a model without any stay as they are.

    `weights` hold whole tensors on one device, also where the model's own are spread over workers.
    """
    merged = dict(weights)
    for name, module in model.named_modules():
        scaling = getattr(module, "scaling", None)
        if f"{name}.lora_A.{ADAPTER}.weight" not in weights or scaling is None:
            continue
        down, up = (merged.pop(f"{name}.lora_{part}.{ADAPTER}.weight").float() for part in "AB")
        base = merged.pop(f"{name}.base_layer.weight")
        merged[f"{name}.weight"] = (base.float() + scaling[ADAPTER] * (up @ down)).to(base.dtype)
        if f"{name}.base_layer.bias" in merged:
            merged[f"{name}.bias"] = merged.pop(f"{name}.base_layer.bias")
    return merged


def _only_rows_from(gradient: Tensor, first_row: int) -> Tensor:
    rows = torch.arange(len(gradient), device=gradient.device)
    return gradient * (rows >= first_row)[:, None]
