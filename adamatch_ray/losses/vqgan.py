"""The losses of the VQ-GAN: L1, structure, perceptual, quantizer, and hinge adversarial of adaptive weight.

The functions only compute: the training loop that calls them owns optimizers, steps and wrappers.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adamatch_ray.losses.structure import structural_similarity
from adamatch_ray.model_config import VQLossConfig
from adamatch_ray.models.vqgan import VQOutput

Features = Callable[[Tensor], Tensor | Sequence[Tensor]]
"""Image [B, C, H, W] in [-1, 1] to one or several feature tensors; frozen, yet gradients pass to the image."""

Distance = Callable[[Tensor, Tensor], Tensor]
"""Images and their reconstructions [B, C, H, W] in [-1, 1] to a scalar; the gradient is the reconstruction's."""

Judge = Callable[..., Sequence[Tensor]]
"""Several image batches to one logits tensor each, as `PatchDiscriminator` does."""


class GeneratorLosses(NamedTuple):
    """Scalars of one step of encoder, decoder and codes; `total` is the one to go backward from."""

    total: Tensor
    reconstruction: Tensor
    structure: Tensor
    perceptual: Tensor
    clinical: Tensor
    quantization: Tensor
    adversarial: Tensor
    adversarial_weight: Tensor


class DiscriminatorLosses(NamedTuple):
    """Scalars of one step of the discriminator; the mean logits show who is winning."""

    total: Tensor
    real_logit: Tensor
    fake_logit: Tensor


class VQStep(NamedTuple):
    """Everything one training step computes; `discriminator` is None before `adversarial_start`."""

    output: VQOutput
    generator: GeneratorLosses
    discriminator: DiscriminatorLosses | None


def feature_distance(features: Features, image: Tensor, reconstruction: Tensor) -> Tensor:
    """Mean squared difference of the features of two image batches, averaged over the feature tensors."""
    with torch.no_grad():
        wanted = features(image)
    found = features(reconstruction)
    if isinstance(wanted, Tensor) and isinstance(found, Tensor):
        return F.mse_loss(found, wanted)
    pairs = zip(found, wanted, strict=True)
    return torch.stack([F.mse_loss(one, other) for one, other in pairs]).mean()


def adaptive_weight(fidelity: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """|d fidelity / d w| / |d adversarial / d w| at the decoder's last weight: both pull on it equally hard."""
    (wanted,) = torch.autograd.grad(fidelity, last_layer, retain_graph=True)
    (found,) = torch.autograd.grad(adversarial, last_layer, retain_graph=True)
    # A discriminator that is sure of itself has next to no gradient; unbounded, its weight would drown all else.
    return (wanted.norm() / (found.norm() + 1e-4)).clamp(0.0, 1e4).detach()


def generator_losses(
    image: Tensor,
    output: VQOutput,
    *,
    step: int,
    config: VQLossConfig,
    last_layer: Tensor,
    discriminator: nn.Module | None = None,
    perceptual: Distance | None = None,
    clinical: Distance | None = None,
) -> GeneratorLosses:
    """Losses of encoder, decoder and codes for images [B, C, H, W] at global step `step`.

    `last_layer` is `model.decoder.conv_out.weight`. `discriminator` is the bare module, not a distributed wrapper: its
    parameters are frozen meanwhile, so only the generator gets gradients. From `adversarial_start` on it must be given.
    """
    zero = image.new_zeros(())
    reconstruction = F.l1_loss(output.reconstruction, image)
    unlike = 1.0 - structural_similarity(image, output.reconstruction).mean() if config.structure_weight else zero
    perceived = perceptual(image, output.reconstruction) if perceptual else zero
    clinically = clinical(image, output.reconstruction) if clinical and step >= config.clinical_start else zero
    fidelity = reconstruction + config.structure_weight * unlike
    fidelity = fidelity + config.perceptual_weight * perceived + config.clinical_weight * clinically
    adversarial, weight = zero, zero
    if _adversarial(step, config):
        if discriminator is None:
            raise ValueError(f"step {step} is past adversarial_start: give a discriminator or set adversarial_weight 0")
        with _frozen(discriminator):
            (logits,) = discriminator(output.reconstruction)
        adversarial = -logits.mean()
        weight = config.adversarial_weight * adaptive_weight(fidelity, adversarial, last_layer)
    total = fidelity + config.codebook_weight * output.quantized.loss + weight * adversarial
    return GeneratorLosses(
        total,
        reconstruction.detach(),
        unlike.detach(),
        perceived.detach(),
        clinically.detach(),
        output.quantized.loss.detach(),
        adversarial.detach(),
        weight,
    )


def discriminator_losses(image: Tensor, reconstruction: Tensor, judge: Judge) -> DiscriminatorLosses:
    """Hinge loss 0.5 (mean relu(1 - real) + mean relu(1 + fake)); `judge` may be a distributed wrapper."""
    real, fake = judge(image, reconstruction.detach())
    total = 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean())
    return DiscriminatorLosses(total, real.detach().mean(), fake.detach().mean())


def training_step(
    model: Callable[[Tensor], VQOutput],
    image: Tensor,
    *,
    step: int,
    config: VQLossConfig,
    last_layer: Tensor,
    discriminator: nn.Module | None = None,
    judge: Judge | None = None,
    perceptual: Distance | None = None,
    clinical: Distance | None = None,
) -> VQStep:
    """One forward of everything: go backward from `generator.total` and `discriminator.total`, in either order.

    `model` and `judge` may be distributed wrappers; `judge` is `discriminator` itself where there is none.
    """
    output = model(image)
    generator = generator_losses(
        image,
        output,
        step=step,
        config=config,
        last_layer=last_layer,
        discriminator=discriminator,
        perceptual=perceptual,
        clinical=clinical,
    )
    judge = judge or discriminator
    if judge is None or not _adversarial(step, config):
        return VQStep(output, generator, None)
    return VQStep(output, generator, discriminator_losses(image, output.reconstruction, judge))


def _adversarial(step: int, config: VQLossConfig) -> bool:
    return config.adversarial_weight > 0.0 and step >= config.adversarial_start


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
