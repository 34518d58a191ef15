"""One token after another, for a batch of prompts: the forward passes under generation (section 3.2).

`prefill` reads the prompts: what all of them share once, the rest left-padded with true positions. Then either session
gives the hidden state after each new token. `TransformersSession` works for any causal LM. `NeoXSession` is for
GPT-NeoX: its `FoldedNeoX` weights need two matrix products a layer, and a step allocates little and computes no row
of the vocabulary, so a small model is not held back by the interpreter. Both see the same cache slots.
"""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, GPTNeoXForCausalLM, PreTrainedModel
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXLayer

from adamatch_ray.ops.compile import CompilerUnavailable
from adamatch_ray.ops.decode_mix import decode_mix, takes

logger = logging.getLogger(__name__)


class Prefilled(NamedTuple):
    """Prompts once read. `hidden_BH` is the state after each last token, `positions_B` where the next token goes.

    `visible_BS` marks the cache slots that hold a row's own prompt; None where no row is padded.
    """

    cache: DynamicCache
    hidden_BH: Tensor
    positions_B: Tensor
    visible_BS: Tensor | None


class DecodingSession(Protocol):
    """A batch of prompts being answered."""

    def step(self, ids_B: Tensor) -> Tensor:
        """Take each row's newest token, give each row's final hidden state [B, H]."""

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only (indices into the current batch)."""


def prefill(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> Prefilled:
    """Read a batch of non-empty prompts (token ids) into a fresh cache; their common beginning is read once."""
    assert prompts and all(prompts), "prompts must not be empty"
    device, rows = model.device, len(prompts)
    shared = _common_prefix(prompts) if rows > 1 else 0
    cache = DynamicCache(config=model.config)
    if shared:
        head = torch.tensor([prompts[0][:shared]], device=device)
        model.base_model(input_ids=head, past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(rows)
    width = max(map(len, prompts)) - shared
    padding = torch.tensor([shared + width - len(prompt) for prompt in prompts], device=device)
    ids = torch.tensor([[0] * (shared + width - len(p)) + list(p[shared:]) for p in prompts], device=device)
    slots = torch.arange(width, device=device)
    visible = None
    if int(padding.max()):
        own = slots >= padding[:, None]
        visible = torch.cat([own.new_ones(rows, shared), own], dim=1)
    output = model.base_model(
        input_ids=ids,
        attention_mask=None if visible is None else visible.long(),
        position_ids=shared + (slots - padding[:, None]).clamp_min(0),
        past_key_values=cache,
        use_cache=True,
    )
    return Prefilled(cache, output.last_hidden_state[:, -1], shared + width - padding, visible)


class TransformersSession:
    """Decoding through the model's own forward, for any causal LM of transformers."""

    def __init__(self, model: PreTrainedModel, start: Prefilled, steps: int) -> None:
        self._base = model.base_model
        self._cache = start.cache
        self._positions = start.positions_B
        self._slots = start.cache.get_seq_length()
        self._visible = None
        if start.visible_BS is not None:
            answer = start.visible_BS.new_ones(len(start.visible_BS), steps)
            self._visible = torch.cat([start.visible_BS, answer], dim=1).long()

    def step(self, ids_B: Tensor) -> Tensor:
        """See `DecodingSession`."""
        self._slots += 1
        output = self._base(
            input_ids=ids_B[:, None],
            attention_mask=None if self._visible is None else self._visible[:, : self._slots],
            position_ids=self._positions[:, None],
            past_key_values=self._cache,
            use_cache=True,
        )
        self._positions = self._positions + 1
        return output.last_hidden_state[:, -1]

    def keep(self, rows: Tensor) -> None:
        """See `DecodingSession`."""
        self._cache.batch_select_indices(rows)
        self._positions = self._positions[rows]
        self._visible = None if self._visible is None else self._visible[rows]


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
        self.compiled = _can_compile(self.head_size, self.inner, model)
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


class NeoXSession:
    """Decoding with folded weights over a static cache of prompt + steps slots."""

    def __init__(self, folded: FoldedNeoX, start: Prefilled, steps: int) -> None:
        self._folded = folded
        self._slot = start.cache.get_seq_length()
        cached: list[Any] = list(start.cache.layers)
        first = cached[0].keys
        size = (len(folded.layers), 2, len(first), folded.heads, self._slot + steps, folded.head_size)
        self._kv = first.new_empty(size)
        for kv, layer in zip(self._kv, cached, strict=True):
            kv[0, :, :, : self._slot], kv[1, :, :, : self._slot] = layer.keys, layer.values
        positions = start.positions_B[:, None] + torch.arange(steps, device=first.device)
        self._angles = folded.rotary_embedding(first, positions)
        self._step = 0
        self._mask = None
        if start.visible_BS is not None:
            hidden = torch.zeros_like(self._kv[0, 0, :, :1, :, 0])
            hidden[..., : self._slot].masked_fill_(~start.visible_BS[:, None], float("-inf"))
            self._mask = hidden[:, :, None]
        self._bind()

    def _bind(self) -> None:
        """Working memory for the current rows, and the views that a step needs of it."""
        f, rows = self._folded, self._kv.shape[2]
        hidden, swapped = f.hidden, 2 * f.heads * f.rotary
        self._wide = self._kv.new_empty(rows, 3 * hidden + swapped + f.inner)
        self._joined = self._kv.new_empty(rows, hidden + f.inner)
        wide = self._wide
        self._query = wide[:, :hidden].view(rows, f.heads, 1, f.head_size)
        self._key_value = wide[:, hidden : 3 * hidden].view(rows, 2, f.heads, f.head_size).transpose(0, 1)
        self._turning = wide[:, : 2 * hidden].view(rows, 2 * f.heads, f.head_size)[..., : f.rotary]
        self._swapped = wide[:, 3 * hidden : 3 * hidden + swapped].view(rows, 2 * f.heads, f.rotary)
        self._up = wide[:, 3 * hidden + swapped :]
        self._attended = self._joined[:, :hidden].view(rows, f.heads, 1, f.head_size)
        self._activated = self._joined[:, hidden:]
        # [steps, B, 1, rotary]: one slice a step turns every query and key of a layer.
        self._cos, self._sin = (angle.transpose(0, 1)[:, :, None].contiguous() for angle in self._angles)

    def step(self, ids_B: Tensor) -> Tensor:
        """See `DecodingSession`."""
        f = self._folded
        cos, sin = self._cos[self._step], self._sin[self._step]
        state = f.embedding(ids_B)
        for layer, kv in zip(f.layers, self._kv, strict=True):
            normal = F.layer_norm(state, (f.hidden,), eps=f.eps)
            torch.addmm(layer.in_bias, normal, layer.in_weight, out=self._wide)
            if f.compiled:
                decode_mix(self._wide, kv, cos, sin, self._mask, self._joined, self._slot)
            else:
                self._mix(kv, cos, sin)
            state = torch.addmm(state.add_(layer.out_bias), self._joined, layer.out_weight)
        self._slot, self._step = self._slot + 1, self._step + 1
        return f.final_norm(state)

    def _mix(self, kv: Tensor, cos: Tensor, sin: Tensor) -> None:
        """What `decode_mix` does, with torch: for GPUs, other dtypes, and machines without a compiler."""
        slot, stop = self._slot, self._slot + 1
        self._turning.mul_(cos).addcmul_(self._swapped, sin)
        kv[:, :, :, slot].copy_(self._key_value)
        keys, values = kv[0, :, :, :stop], kv[1, :, :, :stop]
        mask = None if self._mask is None else self._mask[..., :stop]
        self._attended.copy_(F.scaled_dot_product_attention(self._query, keys, values, attn_mask=mask))
        self._activated.copy_(F.gelu(self._up))

    def keep(self, rows: Tensor) -> None:
        """See `DecodingSession`."""
        self._kv = self._kv[:, :, rows]
        self._angles = tuple(angle[rows] for angle in self._angles)
        self._mask = None if self._mask is None else self._mask[rows]
        self._bind()


def _can_compile(head_size: int, inner: int, model: PreTrainedModel) -> bool:
    if model.device.type != "cpu" or model.dtype != torch.float32:
        return False
    try:
        return takes(head_size, inner)
    except CompilerUnavailable as error:
        logger.warning("decoding without the compiled kernel, slower: %s", error)
        return False


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


def _common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that all prompts begin with, leaving at least one of each."""
    limit = min(map(len, prompts)) - 1
    lowest, highest = min(map(list, prompts)), max(map(list, prompts))
    return next((i for i in range(limit) if lowest[i] != highest[i]), limit)
