"""Sizes and choices of every model, as plain frozen dataclasses.

They live apart from the models so that a command line can describe them without importing torch, and apart from the
run configuration so that a bare GPU machine can build a model from its own `config.json`.
"""

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, TypeVar

Model = TypeVar("Model")


def option(default: Any, help: str) -> Any:
    """A documented field: its default and the line that `--help` prints for it."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class PVTConfig:
    """The image encoder, PVT-medium (v1) by default (docs/method.md 1.1)."""

    image_size: int = option(224, "side of the square input, pixels")
    in_channels: int = option(3, "channels of the input; gray is replicated")
    patch_size: int = option(4, "side of a stage-1 patch, pixels")
    dims: tuple[int, ...] = option((64, 128, 320, 512), "width of each stage")
    depths: tuple[int, ...] = option((3, 4, 18, 3), "blocks of each stage")
    heads: tuple[int, ...] = option((1, 2, 5, 8), "attention heads of each stage")
    reductions: tuple[int, ...] = option((8, 4, 2, 1), "spatial reduction of keys and values, each stage")
    mlp_ratios: tuple[float, ...] = option((8.0, 8.0, 4.0, 4.0), "MLP width over token width, each stage")
    drop_path: float = option(0.1, "stochastic depth of the last block; earlier ones less")
    adapatch_stages: tuple[int, ...] = option((2, 3, 4), "stages whose patches are adaptive")
    attention_stages: tuple[int, ...] = option(
        (1, 2, 3, 4), "stages whose patches attend to all others (paper); blocks of the rest mix neighbours only"
    )
    samples: int = option(3, "k of the k x k points sampled in an adaptive patch")
    num_classes: int = option(0, "outputs of the classification head (0: no head)")
    pooling: Literal["token", "patches"] = option(
        "token", "what is classified: the class token (paper), or each patch of stage 3, of which the strongest counts"
    )
    sharpness: float = option(1.0, "how much more than others the strongest patch counts, when patches are pooled")

    @property
    def pooled_dim(self) -> int:
        """Width of what the classification head reads."""
        return self.dims[3] if self.pooling == "token" else self.dims[2]

    def __post_init__(self) -> None:
        for name in ("dims", "depths", "heads", "reductions", "mlp_ratios"):
            values = getattr(self, name)
            if len(values) != 4 or min(values) <= 0:
                raise ValueError(f"{name} needs {4} positive values, one a stage; got {values}")
        if min(self.image_size, self.in_channels, self.patch_size) < 1 or self.num_classes < 0:
            raise ValueError("image_size, in_channels and patch_size must be at least 1 and num_classes at least 0")
        stride = self.patch_size * 2 ** (4 - 1)
        if self.image_size % stride:
            raise ValueError(f"image_size {self.image_size} must be a multiple of {stride} (patch_size x 8)")
        for stage in range(1, 4 + 1):
            self._check_stage(stage)
        if set(self.adapatch_stages) - {2, 3, 4} or len(set(self.adapatch_stages)) != len(self.adapatch_stages):
            raise ValueError(f"adapatch_stages must be some of 2, 3 and 4, each once; got {self.adapatch_stages}")
        if set(self.attention_stages) - {1, 2, 3, 4} or 4 not in self.attention_stages:
            raise ValueError(f"attention_stages must be some of 1 to 4, 4 included; got {self.attention_stages}")
        if self.samples < 2:
            raise ValueError(f"samples must be at least 2 (points run from corner to corner); got {self.samples}")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path must be in [0, 1); got {self.drop_path}")
        if self.sharpness <= 0:
            raise ValueError(f"sharpness must be above 0; got {self.sharpness}")

    def grid(self, stage: int) -> int:
        """Patches a side in `stage` (1 to 4)."""
        return self.image_size // (self.patch_size * 2 ** (stage - 1))

    def _check_stage(self, stage: int) -> None:
        dim, heads, reduction = self.dims[stage - 1], self.heads[stage - 1], self.reductions[stage - 1]
        if dim % heads:
            raise ValueError(f"stage {stage}: dim {dim} must be a multiple of its {heads} heads")
        if self.grid(stage) % reduction:
            raise ValueError(f"stage {stage}: grid {self.grid(stage)} must be a multiple of its reduction {reduction}")
        if stage == 4 and reduction != 1:
            raise ValueError(f"stage {stage} holds the class token, so its reduction must be 1; got {reduction}")


@dataclass(frozen=True)
class TextEncoderConfig:
    """A BERT-like report encoder (docs/method.md 1.3)."""

    name_or_path: str = option(
        "emilyalsentzer/Bio_ClinicalBERT",
        "hub name or folder, local or s3://; empty: a small BERT from scratch",
    )
    max_tokens: int = option(112, "longest report in word pieces, CLS and SEP included")
    unit: Literal["wordpiece", "word"] = option(
        "wordpiece", "what is matched: word pieces, or pieces summed into words"
    )
    layers: int = option(12, "transformer layers used")
    vocab_size: int = option(2000, "WordPiece entries, when trained from scratch")
    hidden_size: int = option(128, "width, when trained from scratch")
    heads: int = option(4, "attention heads, when trained from scratch")


@dataclass(frozen=True)
class AdaMatchConfig:
    """The joint space of adaptive patches and words (docs/method.md 1.1, 1.4)."""

    adapatch: bool = option(True, "adaptive patches in stages 2-4 (false: fixed patches, Table 5)")
    stage: Literal[2, 3, 4] = option(3, "image stage whose patches are matched (Table 6)")
    dim: int = option(256, "joint dimension D")
    projection: Literal["linear", "conv"] = option("linear", "image projection: one layer (paper) or Conv-BN-Conv")
    image_heads: Literal["mixed", "local", "both"] = option(
        "mixed", "patches matched after the stage's attention (paper), before it, or both with the losses averaged"
    )
    words: Literal["all", "entities", "findings"] = option(
        "all", "words that training aligns: all (paper), those of the lexicon's entities, or of its diseases and signs"
    )
    finding_weight: float = option(
        0.0, "weight of an auxiliary term: single patches must show the labelled findings (needs image.pooling patches)"
    )
    temperature: float = option(0.07, "initial contrastive temperature")
    negatives: Literal["global", "local"] = option("global", "negatives from all workers, or from the own batch only")


@dataclass(frozen=True)
class VQGANConfig:
    """Size of a VQ-GAN; the defaults are the paper's (docs/method.md 3)."""

    image_size: int = option(256, "side of the square image, pixels")
    in_channels: int = option(3, "image channels; published files have 3, gray is replicated")
    ch: int = option(128, "channels at full resolution")
    ch_mult: tuple[int, ...] = option((1, 1, 2, 2, 4), "channel multiple of each level; each further one halves a side")
    num_res_blocks: int = option(2, "residual blocks a level (the decoder has one more)")
    attn_resolutions: tuple[int, ...] = option((16,), "sides at which attention is added")
    groups: int = option(32, "groups of each normalisation; published files have 32")
    z_channels: int = option(256, "channels the encoder ends with")
    codes: int = option(1024, "number of codes")
    code_dim: int = option(256, "length of a code's vector")
    beta: float = option(0.25, "weight of the commitment term")
    legacy_beta: bool = option(False, "put beta on the codebook term, as published")
    ema_decay: float = option(0.0, "above 0: codes follow a moving average, not gradients")

    def __post_init__(self) -> None:
        if self.image_size % self.downsampling:
            raise ValueError(f"image_size {self.image_size} must be a multiple of {self.downsampling} for this ch_mult")
        if self.groups < 1 or any(self.ch * mult % self.groups for mult in self.ch_mult):
            raise ValueError(
                f"ch {self.ch} times each of ch_mult {self.ch_mult} must be a multiple of groups {self.groups}"
            )
        if not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(f"ema_decay {self.ema_decay} must lie in [0, 1)")
        if self.ema_decay and self.legacy_beta:
            raise ValueError("legacy_beta weighs the codebook term, which ema_decay > 0 replaces: choose one")

    @property
    def downsampling(self) -> int:
        """Pixels to a side of one cell."""
        return int(2 ** (len(self.ch_mult) - 1))

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
    """Size of a patch discriminator; the defaults are the published ones (docs/method.md 3)."""

    ch: int = option(64, "channels of the first layer")
    layers: int = option(3, "layers of stride 2; 3 judge patches of 70 x 70 pixels")


@dataclass(frozen=True)
class VQLossConfig:
    """Weights of the VQ-GAN's losses (docs/method.md 3)."""

    structure_weight: float = option(0.0, "weight of 1 - SSIM")
    perceptual_weight: float = option(1.0, "weight of the perceptual term")
    clinical_weight: float = option(0.0, "weight of the X-ray classifier's pooled features; 100 is in use elsewhere")
    clinical_start: int = option(0, "step at which that term joins: before there is a picture it only disturbs")
    codebook_weight: float = option(1.0, "weight of codebook and commitment terms")
    adversarial_weight: float = option(0.8, "factor on the adaptive adversarial weight (0: no discriminator)")
    adversarial_start: int = option(10_000, "step at which the discriminator joins")


@dataclass(frozen=True)
class LLMConfig:
    """Which language model is tuned (docs/method.md 4). The sizes count only where `name_or_path` is empty."""

    name_or_path: str = option(
        "databricks/dolly-v2-3b",
        "hub name or folder, local or s3://, of a causal LM; empty: a GPT-NeoX from scratch",
    )
    hidden_size: int = option(192, "width, when made from scratch")
    layers: int = option(4, "layers, when made from scratch")
    heads: int = option(3, "attention heads, when made from scratch")
    context: int = option(1024, "longest prompt and answer in tokens, when made from scratch")
    vocab_size: int = option(2048, "entries of the tokenizer trained for it, when made from scratch")
    rotary: float = option(0.25, "share of each head that carries the position, when made from scratch")
    tied: bool = option(False, "one matrix for what goes in and what comes out, when made from scratch")
    image_positions: bool = option(False, "learn where image tokens lie: a vector a row and a column, zero at first")
    dtype: Literal["float32", "bfloat16", "float16"] = option("bfloat16", "dtype of the weights")
    attention: Literal["sdpa", "eager"] = option(
        "sdpa", "how attention is computed: by torch's fused kernels, or product by product"
    )
    gradient_checkpointing: bool = option(True, "recompute activations in the backward pass")
    seed: int = option(0, "seed of the new rows, and of all weights made from scratch")


@dataclass(frozen=True)
class InstructionConfig:
    """What a prompt of the language model holds (docs/method.md 4)."""

    keywords: int = option(15, "most keywords in a prompt, best first (0: none, Table 1's ablation)")
    keyword_groups: Literal["all", "findings"] = option("all", "groups of keywords: all (paper), or diseases and signs")
    keyword_places: bool = option(False, "write side and zone of a keyword's box behind it")
    keyword_confidence: tuple[float, ...] = option(
        (),
        "probabilities from which a keyword is told as it is, as 'possible'; empty: the most similar ones (paper)",
    )
    keyword_order: Literal["similarity", "told"] = option(
        "similarity", "order of keywords in training: most similar first (paper), or as the report tells them"
    )
    keyword_dropout: float = option(0.0, "share of training prompts without keywords, so that the image must be read")
    hints_first: int = option(0, "first epochs in which reports are learnt from keywords alone, and nothing else")
    image_from: int = option(0, "epoch from which a training prompt of a report holds the image beside its keywords")
    image_facts: bool = option(
        False,
        "list the findings that a report states, each with its side, beside the report that an image is drawn from",
    )
    prompt_dropout: float = option(0.0, "share of drawn training images without any prompt (needed for guidance)")
    keypatches: int = option(5, "most keypatches in a prompt, best first (0: none, Table 3's ablation)")
    keypatch_sides: bool = option(False, "a word that the report puts on one side gets keypatches of that side alone")
    keypatch_tokens: int = option(64, "most reference image tokens in a prompt, best first")
    max_report_tokens: int = option(
        0,
        "0: an over-long report refuses its record. Above 0: a report given as input keeps its first so many tokens; "
        "a report that is the answer is never cut",
    )
    seed: int = option(0, "seed of the choice among paraphrases, and of what is left out")

    def __post_init__(self) -> None:
        bounds = self.keyword_confidence
        if len(bounds) not in (0, 2) or list(bounds) != sorted(bounds, reverse=True):
            raise ValueError(f"keyword_confidence needs two probabilities, the higher one first; got {bounds}")

    @property
    def least_probability(self) -> float:
        """The probability below which a keyword is left out; 0: none is."""
        return self.keyword_confidence[-1] if self.keyword_confidence else 0.0


@dataclass(frozen=True)
class GenerationSettings:
    """How answers of the language model are drawn (docs/method.md 4)."""

    report_temperature: float = option(1.0, "temperature of report tokens (0: greedy)")
    report_top_p: float = option(0.92, "probability mass that report tokens come from")
    report_tokens: int = option(512, "longest report, in tokens")
    beams: int = option(1, "beams of a report; above 1 nothing is sampled")
    image_temperature: float = option(1.0, "temperature of image tokens (0: greedy)")
    image_top_p: float = option(1.0, "probability mass that image tokens come from")
    image_guidance: float = option(1.0, "how far image tokens follow their report: u + guidance (c - u) in log p")
    drop_repeats: bool = option(False, "leave out a sentence of a report that says an earlier one again, word for word")
    no_repeat: int = option(0, "report tokens of which no sequence may come twice (0: any may)")
    batch_size: int = option(64, "requests decoded together")
    decoder: Literal["auto", "folded", "transformers"] = option(
        "auto", "auto: folded weights (a second copy) on a CPU where the model is GPT-NeoX"
    )

    def deciding(self) -> dict[str, Any]:
        """What decides an answer: all but the batch size, so that a run may go on with smaller batches."""
        values = {item.name: getattr(self, item.name) for item in fields(GenerationSettings)}
        del values["batch_size"]
        return values


def to_json(config: Any, kind: type | None = None) -> str:
    """A configuration as the text of a `config.json`; only the fields of `kind`, when `config` is a subclass of it."""
    values = asdict(config)
    names = [f.name for f in fields(kind or type(config))]
    return json.dumps({name: values[name] for name in names}, indent=2) + "\n"


def from_dict(kind: type[Model], values: dict[str, Any]) -> Model:
    """The configuration of `kind` from parsed JSON; lists become tuples, unknown names are a `ValueError`."""
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - known):
        raise ValueError(f"{kind.__name__} has no field {', '.join(unknown)}; was it saved by a newer version?")
    return kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})
