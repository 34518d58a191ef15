"""The image tokenizer: shapes, types, batches, errors, and the codes under a box."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from adamatch_ray.engines.image_tokens import ImageTokenizer, tokens_of_box
from adamatch_ray.model_config import VQGANConfig
from adamatch_ray.models.vqgan import VQGAN
from benchmarks.image_tokens import measure_vqgan_encode

SIZES = {
    gray: VQGANConfig(
        image_size=32,
        in_channels=gray,
        ch=32,
        ch_mult=(1, 1, 2),
        num_res_blocks=1,
        attn_resolutions=(8,),
        z_channels=8,
        codes=40,
        code_dim=8,
    )
    for gray in (1, 3)
}
CODES_4x4 = np.arange(100, 116)


def tokenizer(channels: int = 1, **options: Any) -> ImageTokenizer:
    """A tokenizer whose codes lie among the latents, so that many of them are used."""
    torch.manual_seed(0)
    model = VQGAN(SIZES[channels])
    with torch.no_grad():
        pixels = torch.rand(2, channels, 32, 32) * 2 - 1
        latents = model.quant_conv(model.encoder(pixels)).permute(0, 2, 3, 1).reshape(-1, 8)
        model.quantize.embedding.weight.copy_(latents[torch.randperm(len(latents))[:40]])
    return ImageTokenizer(model, **options)


def canvases(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32), dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_batched_equals_single(channels: int) -> None:
    images = canvases(5)
    whole = tokenizer(channels, batch_size=2).encode(images)
    single = np.concatenate([tokenizer(channels, batch_size=1).encode(images[i : i + 1]) for i in range(5)])
    assert whole.shape == (5, 64) and whole.dtype == np.uint16
    assert len(np.unique(whole)) > 10
    assert np.array_equal(whole, single)
    decoded = tokenizer(channels, batch_size=3).decode(whole)
    assert decoded.shape == (5, 32, 32) and decoded.dtype == np.uint8
    assert np.abs(decoded.astype(int) - tokenizer(channels).decode(whole).astype(int)).max() <= 1


def test_engine_agrees_with_the_plain_model() -> None:
    images = canvases(3)
    engine = tokenizer(3)
    model = VQGAN(SIZES[3])
    model.load_state_dict(engine.model.state_dict())
    batch = torch.from_numpy(images)[:, None].repeat(1, 3, 1, 1).float() / 127.5 - 1
    with torch.no_grad():
        expected = model.encode_tokens(batch)
        gray = ((model.decode_tokens(expected).mean(1) + 1) * 127.5).clamp(0, 255)
    found = engine.encode(images)
    assert (found == expected.numpy()).mean() >= 0.995
    assert np.abs(engine.decode(expected.numpy()) - gray.numpy()).max() <= 0.51


def test_same_tokens_every_time_and_for_any_int_type() -> None:
    engine, images = tokenizer(), canvases(2)
    tokens = engine.encode(images)
    assert np.array_equal(tokens, engine.encode(images))
    assert np.array_equal(engine.decode(tokens), engine.decode(tokens.astype(np.int64)))


def test_no_images_give_no_tokens() -> None:
    engine = tokenizer()
    assert engine.encode(canvases(0)).shape == (0, 64)
    assert engine.decode(np.zeros((0, 64), np.uint16)).shape == (0, 32, 32)


def test_bf16_is_offered_and_says_mostly_the_same() -> None:
    images = canvases(3)
    agreement = (tokenizer(dtype=torch.bfloat16).encode(images) == tokenizer().encode(images)).mean()
    assert agreement > 0.3


def test_settings_around_a_call_are_restored() -> None:
    before = torch.backends.cudnn.allow_tf32
    tokenizer().encode(canvases(1))
    assert torch.backends.cudnn.allow_tf32 == before and torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 31, 32), np.uint8), "31x32, this VQ-GAN reads 32x32"),
        (np.zeros((32, 32), np.uint8), r"uint8 of shape \(32, 32\): give uint8 \[B, height, width\]"),
        (np.zeros((1, 32, 32), np.float32), "images are float32"),
    ],
)
def test_images_that_do_not_fit_are_refused(images: NDArray[np.uint8], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tokenizer().encode(images)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.full((1, 64), 40), "token 40 is no code of this VQ-GAN, which has 0 to 39"),
        (np.full((1, 64), -1), "token -1 is no code"),
        (np.zeros((1, 60), int), r"60 tokens \(not a square grid\) where a 8x8 grid has 64"),
        (np.zeros((1, 16), int), r"16 tokens \(a 4x4 grid\) where a 8x8 grid has 64"),
        (np.zeros(64, int), r"give integers \[B, 64\]"),
        (np.zeros((1, 64)), "tokens are float64"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(tokens: NDArray[np.integer], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tokenizer().decode(tokens)


def test_unusable_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="batch_size -1"):
        tokenizer(batch_size=-1)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0.25, 0.25, 0.75, 0.5), [105, 106]),
        ((0.0, 0.0, 0.5, 0.5), [100, 101, 104, 105]),
        ((0.125, 0.0, 0.5, 0.25), [100, 101]),  # exactly half of the first cell
        ((0.126, 0.0, 0.5, 0.25), [101]),  # just under half
        ((0.0, 0.0, 0.2, 0.2), [100]),  # 64 % of it
        ((0.0, 0.0, 0.175, 0.175), []),  # 70 % each way is 49 %
        ((-1.0, 0.75, 2.0, 3.0), [112, 113, 114, 115]),  # clipped to the canvas
        ((0.0, 0.0, 1.0, 1.0), list(range(100, 116))),
        ((0.5, 0.5, 0.5, 0.9), []),  # no width
        ((0.6, 0.6, 0.4, 0.4), []),  # inside out
    ],
)
def test_codes_of_the_cells_under_a_box(box: tuple[float, float, float, float], expected: list[int]) -> None:
    assert tokens_of_box(CODES_4x4, box, 4) == expected


def test_codes_of_a_box_need_a_square_grid() -> None:
    with pytest.raises(ValueError, match=r"15 tokens \(not a square grid\)"):
        tokens_of_box(CODES_4x4[:15], (0, 0, 1, 1), 4)


def test_measuring_gives_rows_of_plain_numbers() -> None:
    rows = measure_vqgan_encode(SIZES[1], images=2, repeats=1)
    assert [row["name"] for row in rows] == ["vqgan_encode"]
    assert json.loads(json.dumps(rows)) == rows
    assert all(float(row["equal_tokens"]) >= 0.98 for row in rows)
