"""Prompts in, answers out: batches of token ids decoded on this process's device (section 3.2).

An answer depends on its own prompt and seed, not on the prompts beside it: each draws from its own stream and padding
is never seen. (Sums of another batch shape may round differently; only a near-exact tie could notice.)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from adamatch_ray.models.decoding import DecodingSession, NeoXSession, Prefilled, TransformersSession, prefill
from adamatch_ray.models.folded_neox import FoldedNeoX, why_not_folded
from adamatch_ray.models.image_positions import embed_tokens, positions_of

NUCLEUS = 4096
"""Most entries that a nucleus is looked for among: of a larger vocabulary, only so many likeliest ones are sorted."""

READ_EVERY = {"cpu": 1, "cuda": 8}
"""Steps between two looks at which answers have ended: a GPU that is asked must first finish what it was given."""


@dataclass(frozen=True)
class DecodePlan:
    """What answers may look like: ids in [first_id, end_id), until `stop_id` (None: until the limit).

    `guidance` other than 1 draws from log p = u + guidance (c - u), c given the prompt and u given `null_prompt`.
    `no_repeat`: no sequence of so many tokens comes twice in an answer (0: any may). `image`: the answer is one image.
    """

    first_id: int
    end_id: int
    stop_id: int | None
    temperature: float
    top_p: float
    beams: int = 1
    guidance: float = 1.0
    null_prompt: tuple[int, ...] = ()
    no_repeat: int = 0
    image: bool = False


Watch = Callable[[int, int], bool]
"""Told of each new id: the number of its prompt, and the id. False where nobody waits for the answer any more."""


class GenerationBackend(Protocol):
    """Whatever turns prompts into answers: `LocalBackend` here, or a server with continuous batching."""

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int],
        seeds: Sequence[int],
        plan: DecodePlan,
        watch: Watch | None = None,
    ) -> list[list[int]]:
        """Answer each prompt with at most its limit of ids, `stop_id` included; same order, one answer a prompt.

        `watch` is called as ids come, in this thread; an answer that nobody waits for may end anywhere.
        """


class LocalBackend:
    """Decodes on this process's device in batches of similar length.

    Where the choice is `auto`, weights are folded on a CPU only: on a GPU memory is short, a second copy of dolly's
    takes 5 GB of it, and reading weights and cache, not the interpreter, takes the time.
    """

    def __init__(self, model: PreTrainedModel, batch_size: int = 64, decoder: str = "auto") -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        reason = why_not_folded(model)
        if decoder == "folded" and reason:
            raise ValueError(f"decoder 'folded' cannot run this model: {reason}; use 'auto' or 'transformers'")
        self._model, self._batch_size = model.eval(), batch_size
        folds = decoder == "folded" or (decoder == "auto" and not reason and model.device.type == "cpu")
        self._folded = FoldedNeoX(model) if folds else None

    @torch.inference_mode()
    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int],
        seeds: Sequence[int],
        plan: DecodePlan,
        watch: Watch | None = None,
    ) -> list[list[int]]:
        """See `GenerationBackend`. Beams are not watched: which one wins is known at the end."""
        answers: list[list[int]] = [[] for _ in prompts]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        size = 1 if plan.beams > 1 else self._batch_size
        for start in range(0, len(order), size):
            group = order[start : start + size]
            picked = [prompts[i] for i in group], [limits[i] for i in group], [seeds[i] for i in group]
            own = None if watch is None else _renumbered(watch, group)
            batch = self._beam(*picked, plan) if plan.beams > 1 else self._sample(*picked, plan, own)
            for index, answer in zip(group, batch, strict=True):
                answers[index] = answer
        return answers

    def _sample(
        self,
        prompts: list[Sequence[int]],
        limits: list[int],
        seeds: list[int],
        plan: DecodePlan,
        watch: Watch | None,
    ) -> list[list[int]]:
        device, steps = self._model.device, max(limits)
        every = READ_EVERY.get(device.type, 1)
        draws = (
            _uniforms(seeds, steps).to(device)
            if plan.temperature > 0
            else torch.zeros(steps, len(seeds), device=device)
        )
        weight, bias = _head_rows(self._model, plan)
        guided = plan.guidance != 1
        start = prefill(self._model, [*prompts, *[plan.null_prompt] * len(prompts)] if guided else prompts)
        session = self._session(start, steps, plan)
        hidden = start.hidden_BH
        rows = torch.arange(len(prompts), device=device)
        answers = torch.full((steps, len(prompts)), -1, dtype=torch.long, device=device)
        ends = torch.tensor(limits, device=device)
        going = torch.ones_like(rows, dtype=torch.bool)
        for step in range(steps):
            logits = F.linear(hidden, weight, bias)
            if guided:
                told, untold = logits.float().log_softmax(-1).chunk(2)
                logits = untold + plan.guidance * (told - untold)
            if plan.no_repeat:
                _forbid_repeats(logits, answers[:step, rows].t(), plan)
            ids = choose(logits, plan.temperature, plan.top_p, draws[step, : len(rows)]) + plan.first_id
            answers[step, rows] = ids
            if watch:
                seen = zip(rows.tolist(), ids.tolist(), going.tolist(), strict=True)
                going &= torch.tensor([goes and watch(row, id_) for row, id_, goes in seen], device=device)
            if step + 1 == steps:
                break
            if plan.stop_id is not None:
                going &= (ids != plan.stop_id) & (ends[rows] > step + 1)
            if plan.stop_id is not None or watch:
                left = int(going.sum()) if watch or step % every == 0 else len(rows)
                if left == 0:
                    break
                # Copying the cache costs about one step, so rows leave in halves, not one by one.
                if left <= len(rows) // 2:
                    alive = going.nonzero().flatten()
                    session.keep(torch.cat([alive, alive + len(rows)]) if guided else alive)
                    rows, ids, draws, going = rows[alive], ids[alive], draws[:, alive], going[alive]
            hidden = session.step(ids.repeat(2) if guided else ids)
        return [_cut(answer, limit, plan.stop_id) for answer, limit in zip(answers.t().tolist(), limits, strict=True)]

    def _session(self, start: Prefilled, steps: int, plan: DecodePlan) -> DecodingSession:
        positions = positions_of(self._model) if plan.image else None
        placed = None if positions is None else positions.at(torch.arange(steps, device=self._model.device))
        if self._folded:
            return NeoXSession(self._folded, start, steps, placed)
        return TransformersSession(self._model, start, steps, placed)

    def _beam(
        self, prompts: list[Sequence[int]], limits: list[int], seeds: list[int], plan: DecodePlan
    ) -> list[list[int]]:
        rows = self._model.get_input_embeddings().num_embeddings
        ids = torch.tensor([list(prompts[0])], device=self._model.device)
        output = self._model.generate(
            inputs_embeds=embed_tokens(self._model, ids),
            attention_mask=torch.ones_like(ids),
            num_beams=plan.beams,
            do_sample=False,
            max_new_tokens=limits[0],
            eos_token_id=plan.stop_id,
            pad_token_id=plan.stop_id,
            suppress_tokens=[i for i in range(rows) if not plan.first_id <= i < plan.end_id] or None,
        )
        return [_cut(output[0].tolist(), limits[0], plan.stop_id)]


def _renumbered(watch: Watch, group: list[int]) -> Watch:
    return lambda row, token: watch(group[row], token)


def choose(logits_BV: Tensor, temperature: float, top_p: float, draws_B: Tensor) -> Tensor:
    """Indices [B]: the largest logit at temperature 0, else where a draw in [0, 1) falls in the distribution.

    With `top_p` < 1 only the likeliest entries count that together reach it, at most `NUCLEUS`; the likeliest one
    always does. Of equal ones the first comes first.
    """
    if temperature == 0:
        return logits_BV.argmax(dim=-1)
    probability = (logits_BV.float() / temperature).softmax(dim=-1)
    if top_p >= 1:
        return _invert(probability, draws_B)
    likeliest = None
    if probability.shape[-1] > NUCLEUS:
        likeliest = probability.topk(NUCLEUS, sorted=False).indices.sort().values
        probability = probability.gather(-1, likeliest)
    ranked, order = probability.sort(dim=-1, descending=True, stable=True)
    kept = ranked.where(ranked.cumsum(dim=-1) - ranked < top_p, 0.0)
    chosen = order.gather(-1, _invert(kept, draws_B)[:, None])
    return (chosen if likeliest is None else likeliest.gather(-1, chosen)).squeeze(-1)


def _forbid_repeats(logits_BV: Tensor, answer_BT: Tensor, plan: DecodePlan) -> None:
    """Take away, in place, every token that would end a sequence of `no_repeat` tokens that an answer has already."""
    size = plan.no_repeat
    if answer_BT.shape[1] < size:
        return
    before_BWS = answer_BT.unfold(1, size, 1)
    last_BS = answer_BT[:, answer_BT.shape[1] - size + 1 :]
    token_BW = before_BWS[..., -1]
    again_BW = (before_BWS[..., :-1] == last_BS[:, None]).all(-1)
    if plan.stop_id is not None:
        again_BW &= token_BW != plan.stop_id
    taken_BW = torch.zeros_like(token_BW, dtype=logits_BV.dtype).masked_fill(again_BW, -torch.inf)
    logits_BV += torch.zeros_like(logits_BV).scatter_reduce(1, token_BW - plan.first_id, taken_BW, "amin")


def _invert(weight_BV: Tensor, draws_B: Tensor) -> Tensor:
    cumulative = weight_BV.cumsum(dim=-1)
    # Draws are at most 1 - 2^-24, which float32 never rounds back up to the total: an entry without weight cannot win.
    return torch.searchsorted(cumulative, draws_B[:, None] * cumulative[:, -1:], right=True).squeeze(-1)


def _uniforms(seeds: Sequence[int], steps: int) -> Tensor:
    """Draws [steps, B]; column b depends on seeds[b] alone, its first entries not even on `steps`."""
    columns = [torch.rand(steps, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(columns, dim=1)


def _head_rows(model: PreTrainedModel, plan: DecodePlan) -> tuple[Tensor, Tensor | None]:
    head = model.get_output_embeddings()
    assert isinstance(head, torch.nn.Linear)
    rows = slice(plan.first_id, plan.end_id)
    return head.weight[rows], None if head.bias is None else head.bias[rows]


def _cut(answer: list[int], limit: int, stop_id: int | None) -> list[int]:
    """What counts of an answer: up to its limit, up to and with `stop_id`; -1 was never written."""
    answer = [token for token in answer[:limit] if token >= 0]
    return answer[: answer.index(stop_id) + 1] if stop_id in answer else answer
