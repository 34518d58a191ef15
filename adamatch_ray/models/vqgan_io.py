"""VQ-GAN files: published checkpoints in, our own model folders in and out, and a fingerprint of the weights."""

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from adamatch_ray.model_config import VQGANConfig, from_dict, to_json
from adamatch_ray.models.hub import model_folder, write_card
from adamatch_ray.models.vqgan import VQGAN
from adamatch_ray.models.weights import read_weights

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


def load_checkpoint(path: str | Path, config: VQGANConfig) -> VQGAN:
    """Read a published VQ-GAN (`.ckpt`, `.pt`, `.pth` or `.safetensors`), plain or inside a Lightning dictionary.

    Entries `loss.*` (discriminator, perceptual network) are left out; any other name or shape that `config` does not
    describe is a ValueError, and so is a file that cannot be read without running code from it.
    """
    state = read_weights(path)
    return _filled(config, {name: value for name, value in state.items() if not name.startswith("loss.")}, Path(path))


def save_pretrained(model: VQGAN, folder: str | Path) -> None:
    """Write `config.json`, `model.safetensors` and a model card into `folder`, made if absent."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.detach().contiguous() for name, value in model.state_dict().items()}, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(to_json(model.config))
    write_card(folder, "VQ-GAN for chest X-rays (AdaMatch-Cyclic)", _facts(model), task="image-to-image")


def load_pretrained(folder: str | Path) -> VQGAN:
    """Read what `save_pretrained` wrote, in a folder or under a hub name; in evaluation mode, on the CPU."""
    folder = model_folder(folder)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}: give the folder of a trained VQ-GAN")
    config = from_dict(VQGANConfig, json.loads((folder / CONFIG_FILE).read_text()))
    return _filled(config, read_weights(folder / WEIGHTS_FILE), folder).eval()


def fingerprint(model: VQGAN) -> str:
    """SHA-256 over names, types, shapes and bytes of the weights, the same on every device and memory layout."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _facts(model: VQGAN) -> str:
    c = model.config
    return f"""
- A gray X-ray of {c.image_size} x {c.image_size} pixels becomes {c.grid} x {c.grid} codes out of {c.codes}, in raster
  order, and back; {sum(p.numel() for p in model.parameters()):,} parameters, fingerprint `{fingerprint(model)}`.
- Language models are tuned on the codes of one VQ-GAN: use the one whose fingerprint their card names.
- To use it: `adamatch_ray.engines.image_tokens.ImageTokenizer.from_pretrained(this folder)`.

A picture it decodes is a reconstruction: small findings may be lost, or made up.
"""


def _filled(config: VQGANConfig, state: dict[str, Tensor], path: Path) -> VQGAN:
    with torch.device("meta"):
        model = VQGAN(config)
    expected = model.state_dict()
    missing, unknown = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or unknown:
        raise ValueError(
            f"{path} does not fit the VQGANConfig: {len(missing)} names missing {missing[:3]}, "
            f"{len(unknown)} unknown {unknown[:3]}; set ch_mult, num_res_blocks and attn_resolutions as in its training"
        )
    for name, value in expected.items():
        if state[name].shape != value.shape:
            raise ValueError(
                f"{path}: {name} has shape {tuple(state[name].shape)}, the VQGANConfig says {tuple(value.shape)}; "
                "set in_channels, ch, z_channels, codes and code_dim as in its training"
            )
    # float() as published files may be in half precision, whose codes differ
    model.load_state_dict({name: value.float() for name, value in state.items()}, assign=True)
    model.quantize.embedding.weight.requires_grad_(model.quantize.learned)
    return model
