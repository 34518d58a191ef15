"""The patch-word contrastive loss, eqs. 7-9, over one worker's or all workers' batch (docs/method.md 1.4).

Each worker holds its own images as rows and everyone's reports as columns. Image-to-report softmaxes run along a row,
which the worker has in full; report-to-image softmaxes run along a column, whose log-sum-exp is put together from the
workers' parts. `gather` is the identity for one worker and a differentiable all-gather for several.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from adamatch_ray.models.adamatch import Embeddings
from adamatch_ray.ops.late_interaction import LateInteraction, late_interaction

Gather = Callable[[Tensor], Tensor]
"""Concatenates a tensor [b, ...] of every worker to [W * b, ...], with gradients."""


class ContrastiveLoss(NamedTuple):
    """The loss of this worker's rows and columns (mean over b), and its in-batch top-1 accuracy image to report."""

    loss: Tensor
    accuracy: Tensor


def identity(x: Tensor) -> Tensor:
    """The gather of a single worker."""
    return x


def contrastive_loss(
    embeddings: Embeddings, group_b: Tensor, rank: int = 0, gather: Gather = identity
) -> ContrastiveLoss:
    """Eqs. 7-9, averaged over the image heads.

    group_b: int64 [b], equal for studies whose report text is equal: those are no negatives of each other.
    """
    text, precision = embeddings.text, _precision(embeddings.text.word_BND)
    word_JND, mask_JN = gather_padded(text.word_BND.to(precision), text.mask_BN, gather)
    group_J = gather(group_b)
    b = group_b.shape[0]
    own_j = torch.arange(b, device=group_b.device) + (0 if gather is identity else rank * b)
    ignored_bJ = group_b.unsqueeze(1) == group_J.unsqueeze(0)
    ignored_bJ[torch.arange(b, device=group_b.device), own_j] = False
    losses, hits = [], []
    for patch_bPD in embeddings.image.heads:
        scores = late_interaction(patch_bPD.to(precision), word_JND, mask_JN)
        losses.append(_one_head(scores, embeddings.temperature, ignored_bJ, own_j, gather))
        best = scores.image_to_text_IJ.detach().masked_fill(ignored_bJ, float("-inf")).argmax(1)
        hits.append((best == own_j).float().mean())
    return ContrastiveLoss(torch.stack(losses).mean(), torch.stack(hits).mean())


def _precision(x: Tensor) -> torch.dtype:
    """That of autocast, where it is on: half as much is gathered, and a GPU multiplies six times as fast.

    Rounding adds little to what autocast has done to the embeddings (docs/measured.md).
    """
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def gather_padded(word_BND: Tensor, mask_BN: Tensor, gather: Gather) -> tuple[Tensor, Tensor]:
    """Everyone's words and masks, padded to the longest report of any worker (by `gather`'s first dimension)."""
    if gather is identity:
        return word_BND, mask_BN
    longest = int(gather(torch.tensor([mask_BN.shape[1]], device=mask_BN.device)).max())
    extra = longest - mask_BN.shape[1]
    word_BND = torch.nn.functional.pad(word_BND, (0, 0, 0, extra))
    mask_BN = torch.nn.functional.pad(mask_BN, (0, extra))
    return gather(word_BND), gather(mask_BN.to(torch.uint8)).bool()


def _one_head(scores: LateInteraction, tau: Tensor, ignored_bJ: Tensor, own_j: Tensor, gather: Gather) -> Tensor:
    minus_inf = float("-inf")
    rows_bJ = (scores.image_to_text_IJ / tau).masked_fill(ignored_bJ, minus_inf)
    loss_image = torch.logsumexp(rows_bJ, 1) - rows_bJ.gather(1, own_j.unsqueeze(1)).squeeze(1)
    # Eq. 8 normalises over images, which lie along dim 1 here; over reports it is another loss (docs/method.md 6 c).
    columns_Jb = (scores.text_to_image_JI / tau).masked_fill(ignored_bJ.T, minus_inf)
    positive_b = columns_Jb[own_j].diagonal()
    if gather is identity:
        total_j = torch.logsumexp(columns_Jb, 1)
    else:  # [W, J] parts of each column's sum, one row a worker
        parts_WJ = gather(torch.logsumexp(columns_Jb, 1).unsqueeze(0))
        total_j = torch.logsumexp(parts_WJ, 0)[own_j]
    return 0.5 * (loss_image + total_j - positive_b).mean()
