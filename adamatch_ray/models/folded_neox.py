"""A GPT-NeoX model's layers rearranged for decoding: two matrix products a layer (section 3.2)."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import GPTNeoXForCausalLM, PreTrainedModel
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXLayer


class _Layer(NamedTuple):
    """Folded weights: from the normalised state to query, key, value, turned halves and MLP; then back."""

    in_weight: Tensor
    in_bias: Tensor
    out_weight: Tensor
    out_bias: Tensor


class FoldedNeoX:
    """A GPT-NeoX model's layers, rearranged for decoding. Costs a second copy of them; the rest is shared.

    With a parallel residual both norms of a layer normalise the same state, so their scales and shifts move into the
    matrices behind them, and attention and MLP share one product on the way in and one on the way out.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        reason = why_not_folded(model)
        if reason:
            raise ValueError(f"no folded decoding for this model: {reason}; use the transformers decoder")
        assert isinstance(model, GPTNeoXForCausalLM)
        config = model.config
        self.hidden, self.heads = config.hidden_size, config.num_attention_heads
        self.head_size = self.hidden // self.heads
        self.rotary = int(self.head_size * _rope(model).get("partial_rotary_factor", 1.0))
        self.inner, self.eps, self.dtype = config.intermediate_size, config.layer_norm_eps, model.dtype
        self.embedding, self.final_norm = model.gpt_neox.embed_in, model.gpt_neox.final_layer_norm
        self.rotary_embedding = model.gpt_neox.rotary_emb
        with torch.no_grad():
            self.layers = [self._fold(layer) for layer in model.gpt_neox.layers if isinstance(layer, GPTNeoXLayer)]

    def _fold(self, layer: GPTNeoXLayer) -> _Layer:
        attention, mlp = layer.attention, layer.mlp
        qkv, qkv_bias = _absorb(layer.input_layernorm, attention.query_key_value)
        up, up_bias = _absorb(layer.post_attention_layernorm, mlp.dense_h_to_4h)
        shape = (self.heads, 3, self.head_size)
        weights = [w.flatten(0, 1) for w in qkv.view(*shape, self.hidden).unbind(1)]
        biases = [b.flatten() for b in qkv_bias.view(shape).unbind(1)]
        swapped = [self._swap(w) for w in weights[:2]], [self._swap(b) for b in biases[:2]]
        out = torch.cat([attention.dense.weight, mlp.dense_4h_to_h.weight], dim=1)
        out_bias = (
            mlp.dense_4h_to_h.bias
            if attention.dense.bias is None
            else (attention.dense.bias.float() + mlp.dense_4h_to_h.bias.float())
        )
        return _Layer(
            torch.cat([*weights, *swapped[0], up]).t().contiguous().to(self.dtype),
            torch.cat([*biases, *swapped[1], up_bias]).to(self.dtype),
            out.t().contiguous(),
            out_bias.to(self.dtype),
        )

    def _swap(self, rows: Tensor) -> Tensor:
        """Rows that yield rotate_half of the rotary part of each head."""
        heads = rows.view(self.heads, self.head_size, *rows.shape[1:])
        first, second = heads[:, : self.rotary].chunk(2, dim=1)
        return torch.cat([-second, first], dim=1).flatten(0, 1)


def why_not_folded(model: PreTrainedModel) -> str:
    """Empty if `FoldedNeoX` can run this model, else what stands in the way."""
    config = model.config
    if not isinstance(model, GPTNeoXForCausalLM):
        return f"{type(model).__name__} is not GPT-NeoX"
    if not config.use_parallel_residual:
        return "its residual is not parallel"
    if config.hidden_act != "gelu":
        return f"its activation is {config.hidden_act}"
    rope = _rope(model).get("rope_type", "default")
    if rope != "default":
        return f"its rotary embedding is of type {rope}"
    return ""


def _rope(model: GPTNeoXForCausalLM) -> dict[str, Any]:
    return dict(model.config.rope_parameters or {})


def _absorb(norm: torch.nn.Module, linear: torch.nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias, float32, of linear(norm(x)) as a map of the plainly normalised x."""
    assert isinstance(norm, torch.nn.LayerNorm) and isinstance(linear, torch.nn.Linear)
    weight = linear.weight.float()
    bias = weight @ norm.bias.float()
    return weight * norm.weight.float(), bias if linear.bias is None else bias + linear.bias.float()
