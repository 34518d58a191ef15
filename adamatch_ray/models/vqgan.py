"""VQ-GAN: an X-ray as a grid of codes, and back (docs/method.md 3).

Modules carry the names of the published files (`encoder.down.0.block.0.norm1`, `decoder.up...`, `quantize.embedding`),
so those load as they are. The paper's size turns 256 x 256 pixels into 16 x 16 codes out of 1024.
"""

from typing import NamedTuple

from torch import Tensor, nn

from adamatch_ray.model_config import VQGANConfig
from adamatch_ray.models.quantizer import Quantized, VectorQuantizer
from adamatch_ray.models.vqgan_layers import Downsample, Level, Middle, Upsample, group_norm, norm_swish


class VQOutput(NamedTuple):
    """A reconstruction [B, in_channels, H, W] in about [-1, 1] and what lies between it and the image."""

    reconstruction: Tensor
    quantized: Quantized


class Encoder(nn.Module):
    """Image to latent, one `down` level a side."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        widths = [config.ch * mult for mult in config.ch_mult]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(config.in_channels, config.ch, 3, padding=1)
        self.down = nn.ModuleList()
        for i, (inputs, outputs) in enumerate(zip([config.ch, *widths[:-1]], widths, strict=True)):
            attention = config.image_size // 2**i in config.attn_resolutions
            level = Level(inputs, outputs, config.num_res_blocks, attention, config.groups)
            if i < last:
                level.downsample = Downsample(outputs)
            self.down.append(level)
        self.mid = Middle(widths[-1], config.groups)
        self.norm_out = group_norm(widths[-1], config.groups)
        self.conv_out = nn.Conv2d(widths[-1], config.z_channels, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """[B, in_channels, H, W] to [B, z_channels, grid, grid]."""
        x = self.conv_in(image)
        for level in self.down:
            x = level(x)
        return self.conv_out(norm_swish(self.norm_out, self.mid(x)))


class Decoder(nn.Module):
    """Latent to image; level i of `up` works at the side of level i of the encoder, so the last one runs first."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        widths = [config.ch * mult for mult in config.ch_mult]
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], config.groups)
        self.up = nn.ModuleList()
        for i, (inputs, outputs) in enumerate(zip([*widths[1:], widths[-1]], widths, strict=True)):
            attention = config.image_size // 2**i in config.attn_resolutions
            level = Level(inputs, outputs, config.num_res_blocks + 1, attention, config.groups)
            if i > 0:
                level.upsample = Upsample(outputs)
            self.up.append(level)
        self.norm_out = group_norm(widths[0], config.groups)
        self.conv_out = nn.Conv2d(widths[0], config.in_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """[B, z_channels, grid, grid] to [B, in_channels, H, W]."""
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(norm_swish(self.norm_out, x))


class VQGAN(nn.Module):
    """Encoder, quantizer and decoder. Images are [B, in_channels, image_size, image_size] in [-1, 1]."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = VectorQuantizer(
            config.codes, config.code_dim, config.beta, config.legacy_beta, learned=config.ema_decay == 0.0
        )
        self.quant_conv = nn.Conv2d(config.z_channels, config.code_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.code_dim, config.z_channels, 1)

    def encode(self, image: Tensor) -> Quantized:
        """Image to its quantized latent, with losses."""
        return self.quantize(self.quant_conv(self.encoder(image)))

    def encode_tokens(self, image: Tensor) -> Tensor:
        """Image to codes [B, T] int64, row-major; no losses."""
        return self.quantize.nearest(self.quant_conv(self.encoder(image)))

    def decode(self, z: Tensor) -> Tensor:
        """Quantized latent [B, code_dim, grid, grid] to image."""
        return self.decoder(self.post_quant_conv(z))

    def decode_tokens(self, indices_BT: Tensor) -> Tensor:
        """Codes [B, T] to image."""
        return self.decode(self.quantize.look_up(indices_BT, self.config.grid, self.config.grid))

    def forward(self, image: Tensor) -> VQOutput:
        """Image to codes and back."""
        quantized = self.encode(image)
        return VQOutput(self.decode(quantized.z), quantized)
