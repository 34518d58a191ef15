"""Parameters and operations of every model, from its configuration alone: what a plan is reckoned with.

A multiplication with its addition counts as two operations; normalisations, activations and softmax are left out, as
is usual. Tests hold these sums against the models themselves.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from adamatch_ray.model_config import LLMConfig, PVTConfig, TextEncoderConfig, VQGANConfig


@dataclass(frozen=True)
class Transformer:
    """Sizes of a plain transformer: BERT-like or GPT-NeoX-like."""

    vocab: int
    width: int
    layers: int
    heads: int
    inner: int
    positions: int


PUBLISHED = {
    "emilyalsentzer/Bio_ClinicalBERT": Transformer(28_996, 768, 12, 12, 3072, 512),
    "d4data/biomedical-ner-all": Transformer(30_522, 768, 6, 12, 3072, 512),
    "databricks/dolly-v2-3b": Transformer(50_281, 2560, 32, 32, 10_240, 2048),
}
"""Published models that a plan knows without downloading them. Dolly's rows are those of its tokenizer."""


def text_sizes(config: TextEncoderConfig) -> Transformer | None:
    """Sizes of the report encoder; None for a published one that is not in `PUBLISHED`."""
    if not config.name_or_path:
        width = config.hidden_size
        positions = max(128, config.max_tokens)
        return Transformer(config.vocab_size, width, config.layers, config.heads, 4 * width, positions)
    known = PUBLISHED.get(config.name_or_path)
    return known and Transformer(known.vocab, known.width, config.layers, known.heads, known.inner, known.positions)


def llm_sizes(config: LLMConfig, image_codes: int) -> Transformer | None:
    """Sizes of the language model with its image tokens; None for a published one that is not in `PUBLISHED`."""
    if not config.name_or_path:
        rows, width = config.vocab_size + image_codes, config.hidden_size
        return Transformer(rows, width, config.layers, config.heads, 4 * width, config.context)
    known = PUBLISHED.get(config.name_or_path)
    if known is None:
        return None
    return Transformer(known.vocab + image_codes, known.width, known.layers, known.heads, known.inner, known.positions)


def bert_parameters(size: Transformer) -> int:
    """BERT without pooler: embeddings (two token types, a norm) and layers."""
    layer = 4 * (size.width**2 + size.width) + 2 * size.width * size.inner + size.inner + size.width + 4 * size.width
    return (size.vocab + size.positions + 2 + 2) * size.width + size.layers * layer


def neox_parameters(size: Transformer) -> int:
    """GPT-NeoX: rotary positions, so none of their own; the head is not the embedding's twin."""
    layer = 4 * (size.width**2 + size.width) + 2 * size.width * size.inner + size.inner + size.width + 4 * size.width
    return 2 * size.vocab * size.width + size.layers * layer + 2 * size.width


def transformer_operations(size: Transformer, tokens: int) -> int:
    """Forward operations of the layers on one sequence of `tokens`, attention to all of them included."""
    matrices = 4 * size.width**2 + 2 * size.width * size.inner
    return size.layers * (2 * tokens * matrices + 4 * tokens**2 * size.width)


class ImageStage(NamedTuple):
    """One stage of the image encoder: its patches, its parameters, its forward operations on one image, and the bytes
    of activations that its blocks keep for the backward pass (2 bytes a value)."""

    patches: int
    parameters: int
    operations: int
    activation_bytes: int


def pvt_stages(config: PVTConfig) -> list[ImageStage]:
    """The four stages of the image encoder, without class token, last norm and head (see `pvt_parameters`)."""
    return [_pvt_stage(config, number) for number in (1, 2, 3, 4)]


def pvt_parameters(config: PVTConfig) -> int:
    """All parameters of the image encoder, with its class token, last norm and head."""
    width = config.pooled_dim
    head = (width + 1) * config.num_classes
    return sum(stage.parameters for stage in pvt_stages(config)) + config.dims[-1] + 2 * width + head


def _pvt_stage(config: PVTConfig, number: int) -> ImageStage:
    i = number - 1
    width, reduction, ratio = config.dims[i], config.reductions[i], config.mlp_ratios[i]
    before = config.dims[i - 1] if i else config.in_channels
    side = config.patch_size if number == 1 else 2
    patches = config.grid(number) ** 2
    tokens = patches + (number == 4)
    embed = before * side**2 * width  # weights of the patch embedding
    parameters, operations = embed + width + 2 * width, 2 * patches * embed
    if number in config.adapatch_stages:
        project = before * config.samples**2 * width
        parameters += 4 * width + 2 + project + 3 * width  # offsets, size bias, projection and the norm after it
        operations += 2 * patches * (4 * width + project)
    parameters += tokens * width  # position embedding
    inner = int(width * ratio)
    mlp = 2 * width * inner
    keys = tokens // reduction**2
    if number in config.attention_stages:
        mixer = 4 * (width**2 + width)
        mixing = 2 * tokens * 2 * width**2 + 2 * keys * 2 * width**2 + 4 * tokens * keys * width
        if reduction > 1:
            mixer += reduction**2 * width**2 + 3 * width
            mixing += 2 * keys * reduction**2 * width**2
    else:
        mixer = 10 * width + width**2 + width
        mixing = 2 * tokens * (9 * width + width**2)
    block = mixer + mlp + inner + width + 4 * width
    kept = int(tokens * width * (18 + 4 * ratio))
    depth = config.depths[i]
    return ImageStage(
        patches, parameters + depth * block, operations + depth * (mixing + 2 * tokens * mlp), depth * kept
    )


class Layer(NamedTuple):
    """A convolution or a norm of the VQ-GAN: its parameters and forward operations on one image."""

    parameters: int
    operations: int


def vqgan_parameters(config: VQGANConfig) -> int:
    """All parameters of the VQ-GAN (without discriminator). Codes that follow an average are no parameters."""
    layers = [*encoder_layers(config), *decoder_layers(config)]
    codes = 0 if config.ema_decay else config.codes * config.code_dim
    return sum(layer.parameters for layer in layers) + codes


def encode_operations(config: VQGANConfig) -> int:
    """Forward operations from an image to its codes."""
    distances = 2 * config.tokens * config.codes * config.code_dim
    return sum(layer.operations for layer in encoder_layers(config)) + distances


def decode_operations(config: VQGANConfig) -> int:
    """Forward operations from codes to an image."""
    return sum(layer.operations for layer in decoder_layers(config))


def encoder_layers(config: VQGANConfig) -> Iterator[Layer]:
    """Encoder and the convolution after it."""
    side, width = config.image_size, config.ch
    yield _conv(config.in_channels, width, 3, side)
    for i, mult in enumerate(config.ch_mult):
        for _ in range(config.num_res_blocks):
            yield from _residual(width, config.ch * mult, side)
            width = config.ch * mult
            if side in config.attn_resolutions:
                yield from _attention(width, side)
        if i < len(config.ch_mult) - 1:
            side //= 2
            yield _conv(width, width, 3, side)
    yield from _middle(width, side)
    yield _norm(width)
    yield _conv(width, config.z_channels, 3, side)
    yield _conv(config.z_channels, config.code_dim, 1, side)


def decoder_layers(config: VQGANConfig) -> Iterator[Layer]:
    """The convolution before the decoder, and the decoder."""
    side, width = config.grid, config.ch * config.ch_mult[-1]
    yield _conv(config.code_dim, config.z_channels, 1, side)
    yield _conv(config.z_channels, width, 3, side)
    yield from _middle(width, side)
    for i, mult in reversed(list(enumerate(config.ch_mult))):
        for _ in range(config.num_res_blocks + 1):
            yield from _residual(width, config.ch * mult, side)
            width = config.ch * mult
            if side in config.attn_resolutions:
                yield from _attention(width, side)
        if i > 0:
            side *= 2
            yield _conv(width, width, 3, side)
    yield _norm(width)
    yield _conv(width, config.in_channels, 3, side)


def _conv(inputs: int, outputs: int, kernel: int, side: int) -> Layer:
    weights = inputs * outputs * kernel**2
    return Layer(weights + outputs, 2 * weights * side**2)


def _norm(width: int) -> Layer:
    return Layer(2 * width, 0)


def _residual(inputs: int, outputs: int, side: int) -> Iterator[Layer]:
    yield _norm(inputs)
    yield _conv(inputs, outputs, 3, side)
    yield _norm(outputs)
    yield _conv(outputs, outputs, 3, side)
    if inputs != outputs:
        yield _conv(inputs, outputs, 1, side)


def _attention(width: int, side: int) -> Iterator[Layer]:
    yield _norm(width)
    yield from (_conv(width, width, 1, side) for _ in range(4))
    yield Layer(0, 4 * side**4 * width)


def _middle(width: int, side: int) -> Iterator[Layer]:
    yield from _residual(width, width, side)
    yield from _attention(width, side)
    yield from _residual(width, width, side)
