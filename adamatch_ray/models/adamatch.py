"""AdaMatch: adaptive patches and words in one space (docs/method.md 1, paper 3.1)."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from adamatch_ray.model_config import AdaMatchConfig, PVTConfig, TextEncoderConfig, from_dict, to_json
from adamatch_ray.models import text_encoder
from adamatch_ray.models.hub import model_folder, write_card
from adamatch_ray.models.pvt import POOLED_STAGE, PyramidVisionTransformer, Stage, StageOutput
from adamatch_ray.models.text_encoder import TextEncoder, Tokens
from adamatch_ray.models.weights import read_weights
from adamatch_ray.schema import CHEXPERT_LABELS


class ImageEmbeddings(NamedTuple):
    """Normalised patch embeddings and where each patch lies.

    heads: one [B, P, D] tensor for each image head, in the order of `AdaMatch.head_names`.
    boxes_BP4: xyxy in unit coordinates of the input canvas; fixed_boxes_P4: the patch before it moved.
    """

    heads: tuple[Tensor, ...]
    boxes_BP4: Tensor
    fixed_boxes_P4: Tensor


class TextEmbeddings(NamedTuple):
    """Normalised word embeddings [B, N, D] and their mask [B, N]."""

    word_BND: Tensor
    mask_BN: Tensor


class Embeddings(NamedTuple):
    """Both sides of a batch of pairs, the temperature, and with `finding_weight` the findings' logits [B, 14]."""

    image: ImageEmbeddings
    text: TextEmbeddings
    temperature: Tensor
    finding_BL: Tensor | None = None


_KINDS: dict[str, type] = {"image": PVTConfig, "text": TextEncoderConfig, "adamatch": AdaMatchConfig}


@dataclass(frozen=True)
class AdaMatchSizes:
    """The three configurations that define an AdaMatch."""

    image: PVTConfig
    text: TextEncoderConfig
    adamatch: AdaMatchConfig


class AdaMatch(nn.Module):
    """Image encoder, text encoder, their projections to D dimensions, and the temperature."""

    def __init__(self, sizes: AdaMatchSizes, text: TextEncoder) -> None:
        super().__init__()
        self.sizes = sizes
        config = sizes.adamatch
        self.image = PyramidVisionTransformer(image_config(sizes.image, config))
        self.text = text
        _freeze_unused(self.image, config)
        width = sizes.image.dims[config.stage - 1]
        self.head_names = ("mixed", "local") if config.image_heads == "both" else (config.image_heads,)
        self.image_heads = nn.ModuleDict({name: _ImageHead(width, config) for name in self.head_names})
        self.text_head = nn.Linear(text.bert.config.hidden_size, config.dim)
        self.log_temperature = nn.Parameter(torch.tensor(config.temperature).log())

    def embed_images(self, image_BCHW: Tensor) -> ImageEmbeddings:
        """Patches of images in [-1, 1], [B, 3, S, S] with S = `image.image_size`."""
        return self.project(self._matched_stage(image_BCHW))

    def embed_reports(self, tokens: Tokens) -> TextEmbeddings:
        """Words of reports (see `text_encoder.tokenize`)."""
        words = self.text(tokens)
        return TextEmbeddings(F.normalize(self.text_head(words.features_BNH).float(), dim=-1), words.mask_BN)

    def forward(self, image_BCHW: Tensor, tokens: Tokens) -> Embeddings:
        """Embeddings of B image-report pairs; the loss over them is `losses.contrastive`."""
        # A learnt temperature below 0.01 makes the softmax a hard maximum and its gradients explode.
        temperature = self.log_temperature.exp().clamp(min=0.01, max=1.0)
        stage = self._matched_stage(image_BCHW)
        findings = None if self.image.head is None else self.image.judge_patches(stage.tokens_BPC).logit_BL
        return Embeddings(self.project(stage), self.embed_reports(tokens), temperature, findings)

    def _matched_stage(self, image_BCHW: Tensor) -> StageOutput:
        return self.image.forward_stages(image_BCHW, last_stage=self.sizes.adamatch.stage)[-1]

    def project(self, stage: StageOutput) -> ImageEmbeddings:
        """Patches of the matched stage's output."""
        features = {"mixed": stage.tokens_BPC, "local": stage.local_tokens_BPC}
        heads = tuple(F.normalize(self.image_heads[name](features[name]).float(), dim=-1) for name in self.head_names)
        return ImageEmbeddings(heads, stage.boxes_BP4, stage.fixed_boxes_P4)


class _ImageHead(nn.Module):
    """LayerNorm and projection of patch tokens [B, P, C] to [B, P, D]."""

    def __init__(self, width: int, config: AdaMatchConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        if config.projection == "linear":
            self.project: nn.Module = nn.Linear(width, config.dim)
        else:
            self.project = nn.Sequential(
                nn.Conv1d(width, 2048, 1),
                nn.BatchNorm1d(2048),
                nn.ReLU(),
                nn.Conv1d(2048, config.dim, 1),
                nn.BatchNorm1d(config.dim, affine=False),
            )
        self.channels_first = config.projection == "conv"

    def forward(self, tokens_BPC: Tensor) -> Tensor:
        x = self.norm(tokens_BPC)
        return self.project(x.transpose(1, 2)).transpose(1, 2) if self.channels_first else self.project(x)


def _freeze_unused(image: PyramidVisionTransformer, config: AdaMatchConfig) -> None:
    """Data-parallel training waits for the gradient of every trainable parameter, so those without a part have none."""
    unused: list[nn.Module] = [*image.stages[config.stage :]]
    if image.head is None:
        unused.append(image.norm)
    if config.image_heads == "local" and image.head is None:
        matched = image.stages[config.stage - 1]
        assert isinstance(matched, Stage)
        unused.append(matched.blocks)
    for module in unused:
        module.requires_grad_(False)
    image.cls_token.requires_grad_(config.stage == 4 and config.image_heads != "local")


def image_config(image: PVTConfig, adamatch: AdaMatchConfig) -> PVTConfig:
    """The image encoder's configuration with AdaPatch and the findings' head as AdaMatch wants them.

    Raises ValueError where the auxiliary term has no patches to judge.
    """
    if adamatch.finding_weight > 0:
        if image.pooling != "patches" or adamatch.stage != POOLED_STAGE:
            raise ValueError(
                f"adamatch.finding_weight judges the patches of stage {POOLED_STAGE}: set --image.pooling patches and "
                f"--adamatch.stage {POOLED_STAGE}, or --adamatch.finding_weight 0"
            )
        image = replace(image, num_classes=len(CHEXPERT_LABELS))
    return image if adamatch.adapatch else replace(image, adapatch_stages=())


def build(sizes: AdaMatchSizes, tokenizer: PreTrainedTokenizerBase) -> AdaMatch:
    """An AdaMatch to train: pre-trained text encoder where `text.name_or_path` names one, else a new one."""
    named = sizes.text.name_or_path
    bert = text_encoder.load_bert(sizes.text) if named else text_encoder.new_bert(sizes.text, len(tokenizer))
    return AdaMatch(sizes, TextEncoder(sizes.text, bert, tokenizer))


def save(model: AdaMatch, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write configurations, `model.safetensors`, the text encoder's `text/` (config and tokenizer) and a model card."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, kind in _KINDS.items():
        (folder / f"{name}.json").write_text(to_json(getattr(model.sizes, name), kind))
    tokenizer.save_pretrained(str(folder / "text"))
    model.text.bert.config.save_pretrained(str(folder / "text"))
    save_file({k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors")
    write_card(
        folder, "AdaMatch: regions of chest X-rays and words of reports", _facts(model), task="feature-extraction"
    )


def _facts(model: AdaMatch) -> str:
    image, config = model.sizes.image, model.sizes.adamatch
    return f"""
- Patches of a gray X-ray of {image.image_size} x {image.image_size} pixels and words of an English report become unit
  vectors of {config.dim} numbers; their cosines say what matches.
- {sum(p.numel() for p in model.parameters()):,} parameters; image heads: {", ".join(model.head_names)}; patches
  {"move and resize (AdaPatch)" if config.adapatch else "are those of a fixed grid"}.
- To use it: `adamatch_ray.engines.embedding.Embedder.from_pretrained(this folder)`.

A high similarity is no finding, a low one no all-clear.
"""


def load(folder: str | Path) -> tuple[AdaMatch, PreTrainedTokenizerBase]:
    """Model and tokenizer that `save` wrote, in a folder or under a hub name; in evaluation mode. ValueError if not."""
    folder = model_folder(folder)
    missing = [f"{name}.json" for name in _KINDS if not (folder / f"{name}.json").is_file()]
    if missing:
        raise ValueError(f"{folder} is not an AdaMatch model folder: no {', '.join(missing)}")
    texts = {name: (folder / f"{name}.json").read_text() for name in _KINDS}
    parts: dict[str, Any] = {name: from_dict(kind, json.loads(texts[name])) for name, kind in _KINDS.items()}
    tokenizer = text_encoder.load_tokenizer(folder / "text")
    sizes = AdaMatchSizes(**parts)
    bert = text_encoder.bert_from_folder(folder / "text")
    model = AdaMatch(sizes, TextEncoder(sizes.text, bert, tokenizer))
    model.load_state_dict(read_weights(folder / "model.safetensors"))
    return model.eval(), tokenizer
