"""Distances between an X-ray and its reconstruction as a trained network sees them (docs/method.md 3).

By default that network is the project's own disease classifier, which needs no download and has seen X-rays.
"""

from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from adamatch_ray.losses.vqgan import Distance, feature_distance
from adamatch_ray.models.pvt import PyramidVisionTransformer

VGG_FILE = "vgg16-397923af.pth"
"""torchvision's name for the weights LPIPS stands on."""


def stage_distance(encoder: PyramidVisionTransformer) -> Distance:
    """Mean squared difference of the patches of stages 1 and 2, each patch normalised to unit variance."""
    network = _frozen(encoder)

    def features(image: Tensor) -> list[Tensor]:
        stages = network.forward_stages(_as_input(image, network), last_stage=2)
        # Stages differ in scale by what training made of them; normalised, each says equally much.
        return [F.layer_norm(stage.tokens_BPC, stage.tokens_BPC.shape[-1:]) for stage in stages]

    return partial(feature_distance, features)


def clinical_distance(encoder: PyramidVisionTransformer) -> Distance:
    """Mean squared difference of the features that the classifier judges an image by."""
    network = _frozen(encoder)
    return partial(feature_distance, lambda image: network.judge(_as_input(image, network)).feature_BD)


def lpips_distance(device: torch.device) -> Distance:
    """LPIPS on VGG-16, through torchmetrics. Raises ValueError where torchvision's weights file is not there."""
    weights = Path(torch.hub.get_dir()) / "checkpoints" / VGG_FILE
    if not weights.is_file():
        raise ValueError(f"LPIPS needs {weights}, which nothing here downloads; put it there or use the encoder")
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    network = LearnedPerceptualImagePatchSimilarity("vgg").to(device).net.requires_grad_(False)
    return lambda image, other: network(_three(image), _three(other)).mean()


def _frozen(encoder: PyramidVisionTransformer) -> PyramidVisionTransformer:
    return encoder.requires_grad_(False).eval()


def _three(image: Tensor) -> Tensor:
    return image.expand(-1, 3, -1, -1)


def _as_input(image: Tensor, network: PyramidVisionTransformer) -> Tensor:
    side = network.config.image_size
    resized = image if image.shape[-1] == side else F.interpolate(image, size=(side, side), mode="area")
    return resized.expand(-1, network.config.in_channels, -1, -1)
