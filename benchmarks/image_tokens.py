"""Measures encoding to tokens against the plain loop people write."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from adamatch_ray.data.images import Decoded, to_canvas
from adamatch_ray.data.phantom import generate
from adamatch_ray.engines.image_tokens import ImageTokenizer
from adamatch_ray.model_config import VQGANConfig
from adamatch_ray.models.vqgan import VQGAN
from benchmarks.measure import Row, row, time_in_turns

Tokens = NDArray[np.integer]
PEER_BATCH = 16


def measure_vqgan_encode(config: VQGANConfig | None = None, images: int = 16, repeats: int = 5) -> list[Row]:
    """CPU seconds an image on phantoms, peer and ours in turn, medians of `repeats`.

    The peer is the module in evaluation mode under `no_grad`, fp32, batches of 16, tokens copied to the host each
    batch; ours gains by layout, batch and in-place steps. Weights are random, codes are latents of other phantoms;
    `equal_tokens` is the share of tokens equal to the peer's in the same run.
    """
    config = config or VQGANConfig()
    torch.manual_seed(0)
    model = VQGAN(config).eval()
    _spread_codes(model)
    canvases = _phantoms(config.image_size, images, seed=1)
    plain = VQGAN(config).eval()
    plain.load_state_dict(model.state_dict())
    runs: dict[str, Callable[[], Tokens]] = {"peer": lambda: _plain_loop(plain, canvases)}
    runs["ours"] = _encoder(ImageTokenizer(model), canvases)
    tokens = {name: run() for name, run in runs.items()}
    seconds = {name: timing.cpu_s / images for name, timing in time_in_turns(runs, repeats).items()}
    return [
        row(
            "vqgan_encode",
            "CPU seconds an image",
            seconds["ours"],
            seconds["peer"],
            peer_name="the module under no_grad, fp32",
            equal_tokens=float((tokens["ours"] == tokens["peer"]).mean()),
            codes_used=len(np.unique(tokens["peer"])),
            images=images,
            image_size=config.image_size,
        )
    ]


def _plain_loop(model: VQGAN, canvases: NDArray[np.uint8]) -> Tokens:
    found = []
    with torch.no_grad():
        for start in range(0, len(canvases), PEER_BATCH):
            gray = torch.from_numpy(canvases[start : start + PEER_BATCH])[:, None].float() / 127.5 - 1
            found.append(model.encode_tokens(gray.repeat(1, model.config.in_channels, 1, 1)).cpu().numpy())
    return np.concatenate(found)


def _encoder(tokenizer: ImageTokenizer, canvases: NDArray[np.uint8]) -> Callable[[], Tokens]:
    return lambda: tokenizer.encode(canvases)


@torch.no_grad()
def _spread_codes(model: VQGAN) -> None:
    """Codes where latents are, as training would put them: random ones would leave all images with a few tokens."""
    config = model.config
    needed = -(-config.codes // config.tokens)
    gray = torch.from_numpy(_phantoms(config.image_size, needed, seed=2))[:, None].float() / 127.5 - 1
    latents = model.quant_conv(model.encoder(gray.repeat(1, config.in_channels, 1, 1))).permute(0, 2, 3, 1)
    pick = torch.randperm(latents.shape[:3].numel())[: config.codes]
    model.quantize.embedding.weight.copy_(latents.reshape(-1, config.code_dim)[pick])


def _phantoms(side: int, count: int, seed: int) -> NDArray[np.uint8]:
    images = (generate(index, seed, max(side, 64)).image for index in range(count))
    return np.stack([to_canvas(Decoded(image, *image.shape), side) for image in images])
