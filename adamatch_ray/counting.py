"""Parameters, operations and bytes of the models, counted on the models themselves.

They are built and run with fake tensors: shapes as on the meta device, no memory and no arithmetic, but a device that
autocast knows. A multiplication with its addition counts as two operations; normalisations, activations and softmax
are left out, as is usual. What a backward pass needs is counted in values, since their bytes depend on the precision.
"""

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    BertTokenizer,
    PretrainedConfig,
)

from adamatch_ray.filesystems import open_filesystem
from adamatch_ray.model_config import LLMConfig, PVTConfig, TextEncoderConfig, VQGANConfig
from adamatch_ray.models import text_encoder
from adamatch_ray.models.adamatch import AdaMatch, AdaMatchSizes
from adamatch_ray.models.folded_neox import FoldedNeoX, why_not_folded
from adamatch_ray.models.llm import scratch_config
from adamatch_ray.models.place_head import STAGES, PlaceHead, PlaceSizes
from adamatch_ray.models.pvt import PyramidVisionTransformer
from adamatch_ray.models.text_encoder import TextEncoder
from adamatch_ray.models.vqgan import VQGAN
from adamatch_ray.schema import CHEXPERT_LABELS

PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "emilyalsentzer/Bio_ClinicalBERT": ("bert", {"vocab_size": 28_996}),
    "d4data/biomedical-ner-all": ("distilbert", {}),
    "databricks/dolly-v2-3b": (
        "gpt_neox",
        {"vocab_size": 50_281, "hidden_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 32,
         "intermediate_size": 10_240, "max_position_embeddings": 2048},
    ),
}  # fmt: skip
"""Published models that are counted without downloading them. Dolly's rows are those of its tokenizer."""


KEPT_TOKENS = 256
"""Tokens of the sequence that what a layer keeps is counted on; attention keeps little more of a longer one."""


class Counted(NamedTuple):
    """A model: its parameters, the forward operations and the values kept for the backward pass of one item."""

    parameters: int
    operations: int
    kept: int


class CountedLLM(NamedTuple):
    """The language model. `ends` are the parameters of embedding and head, `matrices` those of the layers' matrices.

    `adapters` are the parameters of low-rank adapters of rank 1, `folded` those of the copy that decoding makes,
    `cached` and `kept` the values that a token leaves in the cache, and within one layer for the backward pass.
    """

    parameters: int
    ends: int
    matrices: int
    adapters: int
    folded: int
    cached: int
    kept: int
    shape: PretrainedConfig


def parameters(model: nn.Module) -> int:
    """All parameters of a model, each once."""
    return sum(parameter.numel() for parameter in model.parameters())


def operations(call: Callable[[], object]) -> int:
    """Operations of a forward pass."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def kept(model: nn.Module, call: Callable[[], object]) -> int:
    """Values that autograd keeps of a forward pass, without the model's own parameters."""
    own = {id(parameter.untyped_storage()) for parameter in model.parameters()}
    storages: dict[int, tuple[torch.UntypedStorage, int]] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if id(storage) not in own and tensor.is_floating_point():
            storages[id(storage)] = storage, storage.nbytes() // tensor.element_size()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        call()
    return sum(values for _, values in storages.values())


@cache
def encoder(image: PVTConfig) -> Counted:
    """The disease classifier; an item is an image."""
    with FakeTensorMode():
        model = PyramidVisionTransformer(replace(image, num_classes=len(CHEXPERT_LABELS)))
        return _counted(model, lambda: model(_image(image)))


@cache
def adamatch(sizes: AdaMatchSizes, words: int) -> tuple[Counted, Counted]:
    """The image side and the text side of AdaMatch; an item is an image, or a report of so many word pieces.

    Raises ValueError where the sizes of the text encoder are not known.
    """
    with FakeTensorMode():
        pieces = BertTokenizer(vocab={piece: number for number, piece in enumerate(text_encoder.SPECIAL)})
        model = AdaMatch(sizes, TextEncoder(sizes.text, _bert(sizes.text), pieces))
        ids = torch.zeros(1, words, dtype=torch.long)
        image = _counted(model, lambda: model.embed_images(_image(sizes.image)))
        text = _counted(model, lambda: model.text_head(model.text.bert(input_ids=ids).last_hidden_state))
        ours = parameters(model.image) + parameters(model.image_heads)
    return image._replace(parameters=ours), text._replace(parameters=text.parameters - ours)


@cache
def place(image: PVTConfig, sizes: PlaceSizes) -> Counted:
    """The place head alone; an item is an image."""
    with FakeTensorMode():
        head, encoder = PlaceHead(sizes), PyramidVisionTransformer(image)
        with torch.no_grad():
            stages = encoder.forward_stages(_image(image), STAGES)
        return _counted(head, lambda: head(_image(image), stages))


@cache
def vqgan(config: VQGANConfig) -> tuple[Counted, Counted]:
    """The way from an image to its codes, and from codes to an image; `kept` of the latter is that of both."""
    with FakeTensorMode():
        model = VQGAN(config)
        image = torch.zeros(1, config.in_channels, config.image_size, config.image_size)
        codes = torch.zeros(1, config.tokens, dtype=torch.long)
        encode = Counted(parameters(model), operations(lambda: model.encode_tokens(image)), 0)
        decode = operations(lambda: model.decode_tokens(codes))
        return encode, Counted(parameters(model), decode, kept(model, lambda: model(image)))


@cache
def finder(name: str, words: int) -> Counted:
    """A token classifier without its head; an item is a report of so many word pieces."""
    with FakeTensorMode():
        model = AutoModel.from_config(known_config(name))
        return _counted(model, lambda: model(input_ids=torch.zeros(1, words, dtype=torch.long)))


@cache
def language_model(config: LLMConfig, codes: int) -> CountedLLM:
    """The language model with a row for each code. Raises ValueError where its sizes are not known."""
    shape = llm_shape(config, codes)
    with FakeTensorMode():
        model = AutoModelForCausalLM.from_config(shape)
        layer = AutoModel.from_config(_with_layers(shape, 1))
        ids = torch.zeros(1, KEPT_TOKENS, dtype=torch.long)
        folded = [] if why_not_folded(model) else FoldedNeoX(model).layers
        ends = {end.weight for end in (model.get_input_embeddings(), model.get_output_embeddings())}
        inside = [module for module in model.base_model.modules() if isinstance(module, nn.Linear)]
        heads = shape.num_attention_heads
        keys = getattr(shape, "num_key_value_heads", None) or heads
        return CountedLLM(
            parameters=parameters(model),
            ends=sum(end.numel() for end in ends),
            matrices=sum(module.weight.numel() for module in inside),
            adapters=sum(module.in_features + module.out_features for module in inside),
            folded=sum(weight.numel() for part in folded for weight in part),
            cached=2 * shape.num_hidden_layers * shape.hidden_size * keys // heads,
            kept=kept(layer, lambda: layer(input_ids=ids, use_cache=False)) // KEPT_TOKENS,
            shape=shape,
        )


def llm_shape(config: LLMConfig, codes: int) -> PretrainedConfig:
    """The configuration of the language model, its rows for so many codes included."""
    if not config.name_or_path:
        return scratch_config(config, config.vocab_size + codes)
    shape = known_config(config.name_or_path)
    if getattr(shape, "image_codes", None) is None:  # not tuned before
        shape.vocab_size += codes
    return shape


def known_config(name: str) -> PretrainedConfig:
    """A model's configuration: of a local or s3:// folder, known here, or downloaded before; nothing is fetched.

    Raises ValueError where there is none of these.
    """
    if not Path(name).is_dir() and name in PUBLISHED:
        kind, sizes = PUBLISHED[name]
        return AutoConfig.for_model(kind, **sizes)
    try:
        if name.startswith("s3://"):  # the weights beside it are not needed
            files, path = open_filesystem(name.rstrip("/"))
            sizes = json.loads(files.cat_file(f"{path}/config.json"))
            return AutoConfig.for_model(**sizes)
        return AutoConfig.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError):
        hint = "name a local or s3:// folder that holds its config.json"
        raise ValueError(f"the sizes of {name} are not known here; {hint}") from None


def _bert(config: TextEncoderConfig) -> BertModel:
    if not config.name_or_path:
        return text_encoder.new_bert(config, config.vocab_size)
    shape = _with_layers(known_config(config.name_or_path), config.layers)
    if not isinstance(shape, BertConfig):
        raise ValueError(f"text.name_or_path {config.name_or_path} is no BERT but a {shape.model_type}")
    return BertModel(shape, add_pooling_layer=False)


def _with_layers(shape: PretrainedConfig, layers: int) -> PretrainedConfig:
    changed = deepcopy(shape)
    changed.num_hidden_layers = layers
    return changed


def _image(config: PVTConfig) -> Tensor:
    return torch.zeros(1, config.in_channels, config.image_size, config.image_size)


def _counted(model: nn.Module, call: Callable[[], object]) -> Counted:
    return Counted(parameters(model), operations(call), kept(model, call))
