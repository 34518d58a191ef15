"""Structural similarity (SSIM) of two image batches, as a loss and as a score (docs/method.md 3)."""

import torch.nn.functional as F
from torch import Tensor

SIDE = 7


def structural_similarity(image: Tensor, other: Tensor, span: float = 2.0) -> Tensor:
    """Mean SSIM [B] of images [B, C, H, W] whose values span `span` (2 for [-1, 1]).

    Windows of 7 x 7 pixels of equal weight that lie wholly inside, unbiased variances, K1 = 0.01 and K2 = 0.03: the
    definition that scikit-image has as its default. Both sides must be at least 7 pixels.
    """
    # Ours because torchmetrics' SSIM with the same window is another number (off by up to 9e-3) and takes three times
    # as long with its gradient; scikit-image's is the same to 1e-7, on a CPU and without one.
    image, other = image.float(), other.float()
    unbiased = SIDE**2 / (SIDE**2 - 1)
    mean, mean_other = (F.avg_pool2d(x, SIDE, 1) for x in (image, other))
    variance = unbiased * (F.avg_pool2d(image * image, SIDE, 1) - mean * mean)
    variance_other = unbiased * (F.avg_pool2d(other * other, SIDE, 1) - mean_other * mean_other)
    covariance = unbiased * (F.avg_pool2d(image * other, SIDE, 1) - mean * mean_other)
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    alike = (2 * mean * mean_other + c1) * (2 * covariance + c2)
    return (alike / ((mean**2 + mean_other**2 + c1) * (variance + variance_other + c2))).mean((1, 2, 3))
