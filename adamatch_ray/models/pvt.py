"""Pyramid vision transformer (v1) with adaptive patches: the image encoder (docs/method.md 1.1)."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, trunc_normal_
from torch import Tensor, nn

from adamatch_ray.model_config import PVTConfig
from adamatch_ray.models.adapatch import EMBED_EPS, AdaPatch, PatchEmbed, cell_boxes

BLOCK_EPS = 1e-6
STAGES = 4
POOLED_STAGE = 3
"""Stage whose patches are classified when `pooling` says so: the one whose patches AdaMatch matches by default."""


class StageOutput(NamedTuple):
    """What one stage says about the image. Patches run row by row; boxes are xyxy in [0, 1] of the canvas."""

    tokens_BPC: Tensor
    """[B, P, C] after the stage's blocks, without the class token."""
    boxes_BP4: Tensor
    """[B, P, 4] fp32, where each patch was read: the predicted box, or the cell where the stage has no AdaPatch."""
    fixed_boxes_P4: Tensor
    """[P, 4] fp32, the cells of the stage's grid."""
    local_tokens_BPC: Tensor
    """[B, P, C] patch plus position embedding: nothing of the other patches of this stage has been mixed in yet."""


class Judgement(NamedTuple):
    """What the classification head reads of each image, averaged over it, [B, D], and its logits [B, num_classes]."""

    feature_BD: Tensor
    logit_BL: Tensor


class Attention(nn.Module):
    """Multi-head attention whose keys and values come from a map shrunk by `reduction` a side."""

    def __init__(self, dim: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.reduce: nn.Module = nn.Identity()
        if reduction > 1:
            self.reduce = SpatialReduction(dim, reduction)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Tokens [B, T, C] to tokens [B, T, C]."""
        q = self.q(x_BTC).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(self.reduce(x_BTC)).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class SpatialReduction(nn.Module):
    """Merge each `reduction` x `reduction` square of tokens into one."""

    def __init__(self, dim: int, reduction: int) -> None:
        super().__init__()
        self.sr = nn.Conv2d(dim, dim, kernel_size=reduction, stride=reduction)
        self.norm = nn.LayerNorm(dim, eps=EMBED_EPS)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Tokens [B, T, C] of a square map to [B, T / reduction^2, C]."""
        return self.norm(self.sr(to_map(x_BTC)).flatten(2).transpose(1, 2))


class Neighbours(nn.Module):
    """Mix each patch with the eight around it, each channel for itself: what is read at a place stays near it."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_BPC: Tensor) -> Tensor:
        """Tokens [B, P, C] of a square map to tokens [B, P, C]."""
        return self.proj(self.conv(to_map(x_BPC)).flatten(2).transpose(1, 2))


class Block(nn.Module):
    """Pre-norm transformer block around a mixer of tokens."""

    def __init__(self, dim: int, mixer: nn.Module, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=BLOCK_EPS)
        self.attn = mixer
        self.norm2 = nn.LayerNorm(dim, eps=BLOCK_EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Tokens [B, T, C] to tokens [B, T, C]."""
        x_BTC = x_BTC + self.drop_path(self.attn(self.norm1(x_BTC)))
        return x_BTC + self.drop_path(self.mlp(self.norm2(x_BTC)))


class Stage(nn.Module):
    """Patch embedding, position embedding and blocks. Stage 4 carries the class token as well."""

    def __init__(self, config: PVTConfig, stage: int) -> None:
        super().__init__()
        i = stage - 1
        before, blocks = sum(config.depths[:i]), config.depths[i]
        drop_step = config.drop_path / max(1, sum(config.depths) - 1)
        dim, self.grid = config.dims[i], config.grid(stage)
        if stage in config.adapatch_stages:
            self.patch_embed: nn.Module = AdaPatch(config.dims[i - 1], dim, config.samples)
        elif stage == 1:
            self.patch_embed = PatchEmbed(config.in_channels, dim, config.patch_size)
        else:
            self.patch_embed = PatchEmbed(config.dims[i - 1], dim, patch=2)
        self.position = nn.Parameter(torch.empty(1, self.grid**2 + (stage == STAGES), dim))
        trunc_normal_(self.position, std=0.02)

        def mixer() -> nn.Module:
            attends = stage in config.attention_stages
            return Attention(dim, config.heads[i], config.reductions[i]) if attends else Neighbours(dim)

        self.blocks = nn.ModuleList(
            Block(dim, mixer(), config.mlp_ratios[i], drop_step * block) for block in range(before, before + blocks)
        )
        self.blocks.apply(init_linear)

    def forward(self, x_BCHW: Tensor, cls_token: Tensor | None = None) -> tuple[StageOutput, Tensor | None]:
        """Map [B, C, H, W] to the stage's output and, where a class token goes in, that token [B, C]."""
        fixed = cell_boxes(self.grid, x_BCHW.device)
        if isinstance(self.patch_embed, AdaPatch):
            x, boxes = self.patch_embed(x_BCHW)
            boxes = boxes.float()
        else:
            x, boxes = self.patch_embed(x_BCHW), fixed.expand(len(x_BCHW), -1, -1)
        extra = 0 if cls_token is None else 1
        # Before attention: what a patch says of its own place alone, for `image_heads: local` and `both`.
        local = x + self.position[:, extra:]
        x = local
        if cls_token is not None:
            x = torch.cat([(cls_token + self.position[:, :1]).expand(len(x), -1, -1), local], dim=1)
        for block in self.blocks:
            x = block(x)
        return StageOutput(x[:, extra:], boxes, fixed, local), x[:, 0] if extra else None


class PyramidVisionTransformer(nn.Module):
    """Four stages of shrinking grids; a class token and a head on the last one (docs/method.md 1.1)."""

    def __init__(self, config: PVTConfig) -> None:
        super().__init__()
        self.config = config
        self.stages = nn.ModuleList(Stage(config, stage) for stage in range(1, STAGES + 1))
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.dims[-1]))
        trunc_normal_(self.cls_token, std=0.02)
        self.norm = nn.LayerNorm(config.pooled_dim, eps=BLOCK_EPS)
        self.head = nn.Linear(config.pooled_dim, config.num_classes) if config.num_classes else None
        # Patches that all show next to nothing share their gradient evenly, and no place is learnt for epochs: the head
        # of single patches keeps the larger weights it is made with.
        if self.head is not None and config.pooling == "token":
            init_linear(self.head)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Class logits [B, num_classes] of images [B, C, image_size, image_size]."""
        return self.judge(image_BCHW).logit_BL

    def judge(self, image_BCHW: Tensor) -> Judgement:
        """Features and class logits of images. With `pooling` "patches" a class is seen where one patch shows it.

        The logits are then the log-mean-exp over the patches of stage 3, of `sharpness` s: log mean exp(s x) / s, a
        maximum with a gradient for every patch.
        """
        if self.head is None:
            raise ValueError("this encoder has no head: set num_classes, or call forward_stages for its patches")
        if self.config.pooling == "token":
            feature_BD = self.norm(self._run(image_BCHW, STAGES)[1])
            return Judgement(feature_BD, self.head(feature_BD))
        return self.judge_patches(self.forward_stages(image_BCHW, POOLED_STAGE)[-1].tokens_BPC)

    def judge_patches(self, tokens_BPC: Tensor) -> Judgement:
        """As `judge`, with `pooling` "patches", from the tokens of stage 3."""
        assert self.head is not None and self.config.pooling == "patches"
        feature_BPD = self.norm(tokens_BPC)
        evidence_BPL, sharpness = self.head(feature_BPD), self.config.sharpness
        log_sum_BL = (sharpness * evidence_BPL).logsumexp(1)
        return Judgement(feature_BPD.mean(1), (log_sum_BL - math.log(evidence_BPL.shape[1])) / sharpness)

    def shares(self, tokens_BPC: Tensor) -> Tensor:
        """How much of each class each patch accounts for [B, P, L], as `judge_patches` weighs them (sum 1)."""
        assert self.head is not None and self.config.pooling == "patches"
        return (self.config.sharpness * self.head(self.norm(tokens_BPC))).softmax(1)

    def freeze_unread(self) -> None:
        """Data-parallel training waits for every trainable parameter's gradient; what `judge` leaves out has none."""
        if self.config.pooling == "patches":
            self.stages[POOLED_STAGE:].requires_grad_(False)
            self.cls_token.requires_grad_(False)

    def forward_stages(self, image_BCHW: Tensor, last_stage: int = 3) -> list[StageOutput]:
        """Outputs of stages 1 to `last_stage` (1 to 4); later stages are not run."""
        if not 1 <= last_stage <= STAGES:
            raise ValueError(f"last_stage must be 1 to {STAGES}; got {last_stage}")
        return self._run(image_BCHW, last_stage)[0]

    def _run(self, image_BCHW: Tensor, last_stage: int) -> tuple[list[StageOutput], Tensor | None]:
        size = (self.config.in_channels, self.config.image_size, self.config.image_size)
        if image_BCHW.shape[1:] != size:
            raise ValueError(
                f"images are {tuple(image_BCHW.shape)}, the encoder takes [B, {size[0]}, {size[1]}, {size[2]}]"
            )
        outputs: list[StageOutput] = []
        x, cls_BC = image_BCHW, None
        for number, stage in enumerate(self.stages[:last_stage], start=1):
            output, cls_BC = stage(x, self.cls_token if number == STAGES else None)
            outputs.append(output)
            x = to_map(output.tokens_BPC)
        return outputs, cls_BC


def to_map(tokens_BPC: Tensor) -> Tensor:
    """Tokens [B, P, C] of a square grid as a map [B, C, H, H], without copying."""
    side = round(tokens_BPC.shape[1] ** 0.5)
    return tokens_BPC.transpose(1, 2).unflatten(-1, (side, side))


def init_linear(module: nn.Module) -> None:
    """Truncated-normal weight and zero bias where `module` is linear."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
