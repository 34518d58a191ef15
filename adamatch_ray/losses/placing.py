"""How a place head learns from words alone: a finding is seen somewhere in its own image, and nowhere in another's."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from adamatch_ray.models.place_head import PlaceHead, evidence

EVERYWHERE = 2.0
"""Weight of the mean over the places of an image that lacks the finding: none of them may show it."""


class PlaceLoss(NamedTuple):
    """The loss, and the share of findings that count as shown in their own image, and as not shown in another's."""

    loss: Tensor
    accuracy: Tensor


def place_loss(head: PlaceHead, feature_BDGG: Tensor, own: Sequence[Tensor], others: Sequence[Tensor]) -> PlaceLoss:
    """The loss of a batch: of each image the words of its own findings [J, W], and of some that it lacks [K, W]."""
    ours = torch.cat([head.logits(*pair) for pair in zip(feature_BDGG, own, strict=True)]).float()
    theirs = torch.cat([head.logits(*pair) for pair in zip(feature_BDGG, others, strict=True)]).float()
    shown, lacking = evidence(ours), evidence(theirs)
    loss = _mean(F.softplus(-shown)) + _mean(F.softplus(lacking)) + EVERYWHERE * _mean(F.softplus(theirs))
    return PlaceLoss(loss, _mean(torch.cat([shown > 0, lacking < 0]).float()))


def _mean(values: Tensor) -> Tensor:
    """The mean, 0 of nothing: a batch of normal studies names no finding."""
    return values.sum() / max(1, values.numel())
