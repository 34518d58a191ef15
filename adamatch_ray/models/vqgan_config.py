"""Sizes and weights of the VQ-GAN, its discriminator and its losses (METHOD 3); no torch, so `--help` stays quick."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class VQGANConfig:
    """Size of a VQ-GAN; the defaults are the paper's."""

    image_size: int = field(default=256, metadata={"help": "side of the square image in pixels"})
    in_channels: int = field(default=3, metadata={"help": "image channels; published files have 3, gray is replicated"})
    ch: int = field(default=128, metadata={"help": "channels at full resolution"})
    ch_mult: tuple[int, ...] = field(
        default=(1, 1, 2, 2, 4),
        metadata={"help": "channel multiple of each level; every further level halves the side"},
    )
    num_res_blocks: int = field(default=2, metadata={"help": "residual blocks a level (the decoder has one more)"})
    attn_resolutions: tuple[int, ...] = field(default=(16,), metadata={"help": "sides at which attention is added"})
    z_channels: int = field(default=256, metadata={"help": "channels the encoder ends with"})
    codes: int = field(default=1024, metadata={"help": "number of codes"})
    code_dim: int = field(default=256, metadata={"help": "length of a code's vector"})
    beta: float = field(default=0.25, metadata={"help": "weight of the commitment term"})
    legacy_beta: bool = field(default=False, metadata={"help": "put beta on the codebook term, as published"})
    ema_decay: float = field(default=0.0, metadata={"help": "above 0: codes follow a moving average, not gradients"})

    def __post_init__(self) -> None:
        if self.image_size % self.downsampling:
            raise ValueError(f"image_size {self.image_size} must be a multiple of {self.downsampling} for this ch_mult")
        if any(self.ch * mult % 32 for mult in self.ch_mult):
            raise ValueError(f"ch {self.ch} times each of ch_mult {self.ch_mult} must be a multiple of 32 (GroupNorm)")
        if not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(f"ema_decay {self.ema_decay} must lie in [0, 1)")
        if self.ema_decay and self.legacy_beta:
            raise ValueError("legacy_beta weighs the codebook term, which ema_decay > 0 replaces: choose one")

    @property
    def downsampling(self) -> int:
        """Pixels to a side of one cell."""
        return 2 ** (len(self.ch_mult) - 1)

    @property
    def grid(self) -> int:
        """Cells to a side."""
        return self.image_size // self.downsampling

    @property
    def tokens(self) -> int:
        """Codes of one image."""
        return self.grid**2


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Size of a patch discriminator; the defaults are the published ones."""

    in_channels: int = field(default=3, metadata={"help": "image channels"})
    ch: int = field(default=64, metadata={"help": "channels of the first layer"})
    layers: int = field(default=3, metadata={"help": "layers of stride 2; 3 judge patches of 70 x 70 pixels"})


@dataclass(frozen=True)
class VQLossConfig:
    """Weights of the VQ-GAN's losses."""

    perceptual_weight: float = field(default=1.0, metadata={"help": "weight of the perceptual term, if features given"})
    clinical_weight: float = field(default=100.0, metadata={"help": "weight of the X-ray classifier's features"})
    codebook_weight: float = field(default=1.0, metadata={"help": "weight of codebook and commitment terms"})
    adversarial_weight: float = field(default=0.8, metadata={"help": "factor on the adaptive adversarial weight"})
    adversarial_start: int = field(default=10_000, metadata={"help": "step at which the discriminator joins"})


PHANTOM_VQGAN = VQGANConfig(
    image_size=128,
    in_channels=1,
    ch=32,
    ch_mult=(1, 1, 2, 2),
    num_res_blocks=1,
    attn_resolutions=(),
    z_channels=64,
    codes=256,
    code_dim=64,
    ema_decay=0.95,
)
"""Learned on a laptop: phantoms of 128 x 128 pixels as 16 x 16 tokens out of 256."""
