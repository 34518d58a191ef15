"""Read published PVT (v1) and DPT weights into the encoder (docs/method.md 1.1, 1.2)."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from adamatch_ray.model_config import PVTConfig
from adamatch_ray.models.pvt import STAGES, PyramidVisionTransformer
from adamatch_ray.models.weights import read_weights

_RENAMES = (
    (re.compile(r"^pos_embed([1-4])$"), r"stages.\1.position"),
    (re.compile(r"^block([1-4])\."), r"stages.\1.blocks."),
    (re.compile(r"^patch_embed([1-4])\."), r"stages.\1.patch_embed."),
    (re.compile(r"\.attn\.(sr|norm)\."), r".attn.reduce.\1."),
    (re.compile(r"\.patch_embed\.patch_embed\."), ".patch_embed.predictor."),
    (re.compile(r"\.offset_predictor\."), ".offsets."),
    (re.compile(r"\.box_coder\.wh_bias$"), ".size_bias"),
    (re.compile(r"\.output_proj\."), ".project."),
)
_STAGE = re.compile(r"^stages\.([1-4])\.")

_CONSTANTS = re.compile(r"^patch_embed[2-4]\.(box_coder\.anchor|value_spatial_shapes|value_level_start_index)$")
"""Buffers of a published adaptive file that follow from the image size: nine for three adaptive stages."""


def load_published(
    model: PyramidVisionTransformer, state_dict: Mapping[str, Tensor], *, drop_head: bool = False
) -> None:
    """Load weights under their published names into `model`, in place, as `fit_published` makes them fit."""
    model.load_state_dict(fit_published(model, state_dict, drop_head=drop_head))


def check_published(path: str, config: PVTConfig) -> None:
    """Raises ValueError where a published file cannot start an encoder of this configuration."""
    with torch.device("meta"):
        model = PyramidVisionTransformer(config)
    try:
        fit_published(model, load_published_file(path), drop_head=True)
    except ValueError as error:
        raise ValueError(f"{path}: {error}" if path not in str(error) else str(error)) from None


def fit_published(
    model: PyramidVisionTransformer, state_dict: Mapping[str, Tensor], *, drop_head: bool
) -> dict[str, Tensor]:
    """Published weights under the model's names.

    Position embeddings of another image size are interpolated. Of a plain PVT, an adaptive stage begins with the
    patches of that. `drop_head` leaves the file's classification head out and keeps the model's own as initialised.
    ValueError names every missing, unexpected or misshapen weight.
    """
    own = model.state_dict()
    renamed = {_own_name(name): value for name, value in state_dict.items() if not _CONSTANTS.match(name)}
    if drop_head:
        renamed = {name: value for name, value in renamed.items() if not name.startswith("head.")}
        renamed |= {name: value for name, value in own.items() if name.startswith("head.")}
    for name in renamed.keys() & own.keys():
        if name.endswith(".position"):
            has_class_token = name == f"stages.{STAGES - 1}.position"
            renamed[name] = resize_position(renamed[name], own[name].shape[1], int(has_class_token))
    for stage in model.config.adapatch_stages:
        _adapt(renamed, own, f"stages.{stage - 1}.patch_embed.", model.config.samples)
    problems = _differences(own, renamed)
    if problems:
        raise ValueError(
            "the weights do not fit this encoder (its configuration must be the file's; another number of classes "
            "needs drop_head=True): " + "; ".join(problems)
        )
    return renamed


def load_published_file(path: str | Path) -> dict[str, Tensor]:
    """Weights of a published file, on the CPU, under the names they have there (`weights.read_weights`)."""
    return read_weights(path)


def resize_position(position: Tensor, length: int, class_tokens: int = 0) -> Tensor:
    """Position embedding [1, class_tokens + p^2, C] for `length` tokens, its square grid resized bilinearly."""
    if position.ndim != 3 or position.shape[1] == length:
        return position
    old, new = ((n - class_tokens) ** 0.5 for n in (position.shape[1], length))
    if old != int(old) or new != int(new):
        return position
    grid = position[:, class_tokens:].transpose(1, 2).unflatten(-1, (int(old), int(old)))
    grid = F.interpolate(grid.float(), size=(int(new), int(new)), mode="bilinear", align_corners=False)
    return torch.cat([position[:, :class_tokens], grid.flatten(2).transpose(1, 2).to(position.dtype)], dim=1)


def _adapt(given: dict[str, Tensor], own: Mapping[str, Tensor], stage: str, samples: int) -> None:
    """Turn fixed 2 x 2 patches into adaptive ones that give the same, in place, where the file has those.

    At the start the corner samples are the patch's four pixels: they get its weights, the samples between them none.
    Offsets are predicted from the same embedding, and begin at zero.
    """
    weight_DC22 = given.get(f"{stage}proj.weight")
    wanted = own[f"{stage}project.weight"].shape
    if weight_DC22 is None or weight_DC22.shape != own[f"{stage}predictor.proj.weight"].shape:
        return
    sampled_DXYC = weight_DC22.new_zeros(len(weight_DC22), samples, samples, weight_DC22.shape[1])
    sampled_DXYC[:, :: samples - 1, :: samples - 1] = weight_DC22.permute(0, 3, 2, 1)
    given[f"{stage}project.weight"] = sampled_DXYC.reshape(wanted)
    given[f"{stage}project.bias"] = given[f"{stage}proj.bias"]
    for name in ("proj.weight", "proj.bias", "norm.weight", "norm.bias"):
        given[f"{stage}predictor.{name}"] = given[stage + name]
    for name in ("offsets.weight", "size_bias"):
        given[stage + name] = own[stage + name]
    del given[f"{stage}proj.weight"], given[f"{stage}proj.bias"]


def _own_name(name: str) -> str:
    for pattern, replacement in _RENAMES:
        name = pattern.sub(replacement, name)
    return _STAGE.sub(lambda found: f"stages.{int(found[1]) - 1}.", name)


def _differences(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    missing = sorted(own.keys() - given.keys())
    unexpected = sorted(given.keys() - own.keys())
    misshapen = [
        f"{name} is {tuple(given[name].shape)}, not {tuple(own[name].shape)}"
        for name in sorted(own.keys() & given.keys())
        if own[name].shape != given[name].shape
    ]
    return [
        f"{word} {names}" for word, names in (("missing", missing), ("unexpected", unexpected)) if names
    ] + misshapen
