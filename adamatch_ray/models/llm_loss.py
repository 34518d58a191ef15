"""The loss of AdaMatch-Cyclic's language model, eqs. 10 and 11: cross-entropy on the tokens of the response only.

Hidden states are picked at the response's positions before they meet the head, and the head is applied to a part of
them at a time, so the [positions, vocabulary] logits never exist as a whole. Equal to the full computation.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from adamatch_ray.models.image_positions import embed_tokens

IGNORE = -100
"""Label of a position that is not part of a response."""

_CHUNKS = 8
"""Parts the head is applied to. Always as many, if empty: workers that share its weight gather it as often."""


class PackedBatch(NamedTuple):
    """Records laid one after another in rows [R, T], int64 each. `segment_ids` count records from 1; 0 is padding."""

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    segment_ids: Tensor

    def to(self, device: torch.device | str) -> "PackedBatch":
        """The same batch on `device`."""
        return PackedBatch(*(tensor.to(device, non_blocking=True) for tensor in self))


def misread(batch: PackedBatch, share: float, image_start: int, image_codes: int) -> PackedBatch:
    """The batch with a share of the tokens of its answers' images replaced by others in the input, not in the labels.

    A neighbour tells the next token of an image so well that what the report says is hardly learnt; and a model that
    has only seen true images does not recover from a slip of its own. Draws from torch's own stream.
    """
    drawn = (batch.labels >= image_start) & (torch.rand(batch.labels.shape) < share)
    others = torch.randint(image_start, image_start + image_codes, batch.labels.shape)
    return batch._replace(input_ids=torch.where(drawn, others, batch.input_ids))


class ResponseLoss(NamedTuple):
    """`mean` over response tokens is what one worker minimises; `total` and `tokens` let workers average exactly."""

    mean: Tensor
    total: Tensor
    tokens: int


def packed_attention_mask(segment_ids: Tensor) -> Tensor:
    """Which token may look at which, bool [R, 1, T, T]: earlier ones of its own record. Padding sees padding only."""
    length = segment_ids.shape[1]
    same = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
    causal = torch.ones(length, length, dtype=torch.bool, device=segment_ids.device).tril()
    return same & causal


def response_loss(model: PreTrainedModel, batch: PackedBatch, report_weight: float = 1.0) -> ResponseLoss:
    """Cross-entropy on response tokens (eqs. 10-11) for any causal language model of transformers.

    Logits of at most an eighth of the positions exist at a time; the backward pass makes them again. ValueError if no
    token of the batch is a response, or if the model bends its logits after the head. A token of a report counts
    `report_weight` times in the total: an image has several times as many tokens and would drown it.
    """
    head = _plain_head(model)
    hidden_RTH = model.base_model(
        inputs_embeds=embed_tokens(model, batch.input_ids),
        position_ids=batch.position_ids,
        attention_mask=_model_mask(model, batch.segment_ids),
        use_cache=False,
    ).last_hidden_state
    targets = batch.labels[:, 1:]
    keep = targets != IGNORE
    hidden, target = hidden_RTH[:, :-1][keep], targets[keep]
    if target.numel() == 0:
        raise ValueError("no token of this batch is a response token: check the labels of its examples")
    chunks = zip(hidden.tensor_split(_CHUNKS), target.tensor_split(_CHUNKS), strict=True)
    text = int(model.config.vocab_size) - int(getattr(model.config, "image_codes", 0))
    parts = [_chunk_loss(head, h, t, report_weight, text) for h, t in chunks]
    total = torch.stack(parts).sum()
    return ResponseLoss(mean=total / target.numel(), total=total, tokens=target.numel())


class ResponseLossModel(nn.Module):
    """A language model whose forward is its loss, for wrappers (DDP, DeepSpeed) that act on `forward` only.

    Tensors in, one tensor out: wrappers look into tuples and lists, and would take named ones apart.
    """

    def __init__(self, model: PreTrainedModel, report_weight: float = 1.0) -> None:
        """`report_weight` counts in training alone: scores are means over tokens."""
        super().__init__()
        self.model, self.report_weight = model, report_weight

    def forward(self, input_ids: Tensor, labels: Tensor, position_ids: Tensor, segment_ids: Tensor) -> Tensor:
        """The summed loss of a `PackedBatch`'s parts; see `response_loss`."""
        batch = PackedBatch(input_ids, labels, position_ids, segment_ids)
        return response_loss(self.model, batch, self.report_weight if self.training else 1.0).total


def _chunk_loss(head: nn.Module, hidden: Tensor, target: Tensor, report_weight: float, text: int) -> Tensor:
    def summed(h: Tensor, t: Tensor) -> Tensor:
        if report_weight == 1:
            return F.cross_entropy(head(h).float(), t, reduction="sum")
        losses = F.cross_entropy(head(h).float(), t, reduction="none")
        return (losses * torch.where(t < text, report_weight, 1.0)).sum()

    if torch.is_grad_enabled():
        loss = checkpoint(summed, hidden, target, use_reentrant=False)
        assert isinstance(loss, Tensor)
        return loss
    return summed(hidden, target)


def _plain_head(model: PreTrainedModel) -> nn.Module:
    head = model.get_output_embeddings()
    if head is None or model.base_model is model:
        raise ValueError(f"{type(model).__name__} has no language-model head: load it with AutoModelForCausalLM")
    bends = {"final_logit_softcapping": None, "logit_scale": 1, "logits_scaling": 1}
    for name, neutral in bends.items():
        value = getattr(model.config, name, None)
        if value is not None and value != neutral:
            raise ValueError(f"{type(model).__name__} applies {name}={value} after its head: choose another model")
    return head


def _model_mask(model: PreTrainedModel, segment_ids: Tensor) -> Tensor | None:
    """The mask in the form the model's attention wants; None (plain causal, fastest) where each row is one record.

    Padding is always on the right, so without a mask no record sees it either.
    """
    if int(segment_ids.max()) <= 1:
        return None
    kind = model.config._attn_implementation
    mask = packed_attention_mask(segment_ids)
    if kind == "sdpa":
        return mask
    if kind == "eager":
        zero = torch.zeros((), dtype=model.dtype, device=mask.device)
        return torch.where(mask, zero, torch.finfo(model.dtype).min)
    raise ValueError(f"packed records need attention 'sdpa' or 'eager', the model uses {kind!r}")
