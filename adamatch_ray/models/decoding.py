"""One token after another, for a batch of prompts: the forward passes under generation (section 3.2).

`prefill` reads the prompts: what all of them share once, the rest left-padded with true positions. Then either session
gives the hidden state after each new token. `TransformersSession` works for any causal LM. `NeoXSession` is for
GPT-NeoX: its `FoldedNeoX` weights need two matrix products a layer, and a step allocates little and computes no row
of the vocabulary, so a small model is not held back by the interpreter. Both see the same cache slots.

A session takes the prompts' cache over. Whatever then moves the cache moves a layer at a time, so that only one layer
is ever held twice; `plan` reckons a worker's memory with that.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from adamatch_ray.models.folded_neox import FoldedNeoX
from adamatch_ray.models.image_positions import embed_tokens

GROWTH = 64
"""Cache slots for answers that `NeoXSession` adds at a time: most answers end long before their limit."""


class Prefilled(NamedTuple):
    """Prompts once read. `hidden_BH` is the state after each last token, `positions_B` where the next token goes.

    `cache` belongs to the session that is made from it, and serves one session only.
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
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    embedded = embed_tokens(model, ids)
    if shared:
        start = longest - len(prompts[0])
        head = embedded[:1, start : start + shared]
        model.base_model(inputs_embeds=head, past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(rows)
    width = longest - shared
    padding = torch.tensor([shared + width - len(prompt) for prompt in prompts], device=device)
    slots = torch.arange(width, device=device)
    visible = None
    if int(padding.max()):
        own = slots >= padding[:, None]
        visible = torch.cat([own.new_ones(rows, shared), own], dim=1)
    output = model.base_model(
        inputs_embeds=embedded[:, shared:],
        attention_mask=None if visible is None else visible.long(),
        position_ids=shared + (slots - padding[:, None]).clamp_min(0),
        past_key_values=cache,
        use_cache=True,
    )
    # A copy: a view would keep the states of all tokens alive.
    return Prefilled(cache, output.last_hidden_state[:, -1].clone(), shared + width - padding, visible)


class TransformersSession:
    """Decoding through the model's own forward, for any causal LM of transformers.

    `placed_SH`: what is added to the embedding of each step's token, which says where an image token lies.
    """

    def __init__(self, model: PreTrainedModel, start: Prefilled, steps: int, placed_SH: Tensor | None = None) -> None:
        self._base, self._embedding = model.base_model, model.get_input_embeddings()
        self._placed = placed_SH
        self._step = 0
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
        embedded = self._embedding(ids_B[:, None])
        output = self._base(
            inputs_embeds=embedded if self._placed is None else embedded + self._placed[self._step],
            attention_mask=None if self._visible is None else self._visible[:, : self._slots],
            position_ids=self._positions[:, None],
            past_key_values=self._cache,
            use_cache=True,
        )
        self._positions, self._step = self._positions + 1, self._step + 1
        return output.last_hidden_state[:, -1]

    def keep(self, rows: Tensor) -> None:
        """See `DecodingSession`."""
        self._cache.batch_select_indices(rows)
        self._positions = self._positions[rows]
        self._visible = None if self._visible is None else self._visible[rows]


class NeoXSession:
    """Decoding with folded weights over a cache of its own: prompt and answer slots, `GROWTH` more where they end.

    `placed_SH` as above.
    """

    def __init__(self, folded: FoldedNeoX, start: Prefilled, steps: int, placed_SH: Tensor | None = None) -> None:
        self._folded, self._placed = folded, placed_SH
        self._slot = start.cache.get_seq_length()
        self._most = self._slot + steps
        self._room = min(self._most, self._slot + GROWTH)
        layers: list[Any] = start.cache.layers
        # Taken out of the prompts' cache one after another, each is given free once it is copied.
        self._kv = [self._with_room([layer.keys, layer.values]) for layer in _taken(layers)]
        first = self._kv[0]
        positions = start.positions_B[:, None] + torch.arange(steps, device=first.device)
        self._angles = folded.rotary_embedding(first, positions)
        self._step = 0
        self._mask = None
        if start.visible_BS is not None:
            hidden = first.new_zeros(first.shape[1], 1, 1, self._most)
            hidden[..., : self._slot].masked_fill_(~start.visible_BS[:, None, None], float("-inf"))
            self._mask = hidden
        self._bind()

    def _with_room(self, kv: Sequence[Tensor] | Tensor) -> Tensor:
        """Keys and values [2, B, heads, room, head size] from those of the slots so far."""
        grown = kv[0].new_empty(2, *kv[0].shape[:2], self._room, self._folded.head_size)
        grown[0, :, :, : self._slot], grown[1, :, :, : self._slot] = kv[0], kv[1]
        return grown

    def _grow(self) -> None:
        self._room = min(self._most, self._room + GROWTH)
        for index in range(len(self._kv)):
            self._kv[index] = self._with_room(self._kv[index])

    def _bind(self) -> None:
        """Working memory for the current rows, and the views that a step needs of it."""
        f, rows, first = self._folded, self._kv[0].shape[1], self._kv[0]
        hidden, swapped = f.hidden, 2 * f.heads * f.rotary
        self._wide = first.new_empty(rows, 3 * hidden + swapped + f.inner)
        self._joined = first.new_empty(rows, hidden + f.inner)
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
        if self._slot == self._room:
            self._grow()
        cos, sin = self._cos[self._step], self._sin[self._step]
        state = f.embedding(ids_B)
        if self._placed is not None:
            state = state + self._placed[self._step]
        for layer, kv in zip(f.layers, self._kv, strict=True):
            normal = F.layer_norm(state, (f.hidden,), eps=f.eps)
            torch.addmm(layer.in_bias, normal, layer.in_weight, out=self._wide)
            self._mix(kv, cos, sin)
            state = torch.addmm(state.add_(layer.out_bias), self._joined, layer.out_weight)
        self._slot, self._step = self._slot + 1, self._step + 1
        return f.final_norm(state)

    def _mix(self, kv: Tensor, cos: Tensor, sin: Tensor) -> None:
        """Turn queries and keys, attend, and activate the MLP: `_wide` in, `_joined` out."""
        slot, stop = self._slot, self._slot + 1
        self._turning.mul_(cos).addcmul_(self._swapped, sin)
        kv[:, :, :, slot].copy_(self._key_value)
        keys, values = kv[0, :, :, :stop], kv[1, :, :, :stop]
        mask = None if self._mask is None else self._mask[..., :stop]
        self._attended.copy_(F.scaled_dot_product_attention(self._query, keys, values, attn_mask=mask))
        self._activated.copy_(F.gelu(self._up))

    def keep(self, rows: Tensor) -> None:
        """See `DecodingSession`."""
        for index in range(len(self._kv)):
            self._kv[index] = self._kv[index][:, rows]
        self._angles = tuple(angle[rows] for angle in self._angles)
        self._mask = None if self._mask is None else self._mask[rows]
        self._bind()


def _taken(layers: list[Any]) -> Iterator[Any]:
    """The layers of a cache, which is empty afterwards."""
    while layers:
        yield layers.pop(0)


def _common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that all prompts begin with, leaving at least one of each."""
    limit = min(map(len, prompts)) - 1
    lowest, highest = min(map(list, prompts)), max(map(list, prompts))
    return next((i for i in range(limit) if lowest[i] != highest[i]), limit)
