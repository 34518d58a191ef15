"""The patch discriminator of the VQ-GAN's adversarial term (docs/method.md 3)."""

import torch
from torch import Tensor, nn

from adamatch_ray.model_config import DiscriminatorConfig


class PatchDiscriminator(nn.Module):
    """Says of every patch of an image how real it looks; positive is real.

    Its state dict has the published names (`main.0.weight`, ...).
    """

    def __init__(self, config: DiscriminatorConfig, in_channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(in_channels, config.ch, 4, 2, 1), nn.LeakyReLU(0.2, inplace=True)]
        width = config.ch
        for i in range(1, config.layers + 1):
            inputs, width = width, config.ch * min(2**i, 8)
            # the batch norm that follows has its own shift, so no bias; the last of these keeps the side
            stride = 2 if i < config.layers else 1
            layers += [
                nn.Conv2d(inputs, width, 4, stride, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.LeakyReLU(0.2, inplace=True),
            ]
        self.main = nn.Sequential(*layers, nn.Conv2d(width, 1, 4, 1, 1))
        self.apply(_initialise)

    def forward(self, *images: Tensor) -> tuple[Tensor, ...]:
        """Each [B, in_channels, H, W] to logits [B, 1, h, w], each batch normalised by its own statistics.

        Real and generated images go through one call: a distributed wrapper copies the buffers of the batch norms
        before every call, and a second call would change what the first one's backward pass still needs.
        """
        return tuple(self.main(image) for image in images)


@torch.no_grad()
def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        module.weight.normal_(0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        module.weight.normal_(1.0, 0.02)
