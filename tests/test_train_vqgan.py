"""VQ-GAN training: exact resume, what each loss pulls on, scores, and the job from end to end."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage.metrics import structural_similarity as reference_ssim

from adamatch_ray.config import RunConfig, VQGANStage, VQGANTrain, load_config
from adamatch_ray.engines.image_tokens import ImageTokenizer, load_pretrained
from adamatch_ray.losses import perceptual
from adamatch_ray.losses.structure import structural_similarity
from adamatch_ray.losses.vqgan import feature_distance
from adamatch_ray.model_config import DiscriminatorConfig, PVTConfig, VQLossConfig
from adamatch_ray.models.pvt import PyramidVisionTransformer
from adamatch_ray.models.vqgan import VQGAN
from adamatch_ray.models.vqgan_io import fingerprint, save_pretrained
from adamatch_ray.storage import Root
from adamatch_ray.train.distributed import Worker
from adamatch_ray.train.fit_vqgan import VQGANFitter, model_config, perceptual_distance
from adamatch_ray.train.loop import TrainSettings

ALONE = Worker(0, 1, torch.device("cpu"), bf16=False)
TINY = VQGANStage(
    image_size=32,
    in_channels=1,
    ch=8,
    groups=4,
    ch_mult=(1, 2, 2),
    num_res_blocks=1,
    attn_resolutions=(),
    z_channels=8,
    codes=16,
    code_dim=4,
    ema_decay=0.9,
    perceptual="none",
    discriminator=DiscriminatorConfig(ch=8, layers=1),
    loss=VQLossConfig(structure_weight=0.5, adversarial_start=3),
    train=VQGANTrain(batch_size=4, lr=1e-3, crop=0.8),
)
OPTIONS = {
    "image_size": "64", "ch": "8", "groups": "4", "ch_mult": "1,1,2", "z_channels": "8", "codes": "16", "code_dim": "4",
    "discriminator.ch": "8", "discriminator.layers": "1", "train.epochs": "2", "train.batch_size": "16",
    "loss.adversarial_start": "6", "perceptual": "none",
}  # fmt: skip
ARGUMENTS = [part for name, value in OPTIONS.items() for part in (f"--vqgan.{name}", value)]


def canvases(count: int = 4, side: int = 32, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side), dtype=np.uint8)


def fitter_of(stage: VQGANStage, worker: Worker = ALONE, *, total: int = 8, init: str = "") -> VQGANFitter:
    settings = TrainSettings("vqgan", "fidelity", "unused", RunConfig(vqgan=stage), total, init=init)
    return VQGANFitter(settings, worker)


def take_step(fitter: VQGANFitter, images: NDArray[np.uint8]) -> dict[str, float]:
    shown = {name: float(value) for name, value in fitter.step({"image": images}).items()}
    fitter.schedule.step += 1
    return shown


def run_steps(fitter: VQGANFitter, start: int, stop: int) -> list[dict[str, float]]:
    assert fitter.schedule.step == start
    return [take_step(fitter, canvases(seed=step)) for step in range(start, stop)]


@pytest.mark.parametrize("ema_decay", [0.9, 0.0])
def test_resumed_run_is_the_uninterrupted_one(ema_decay: float, tmp_path: Path) -> None:
    """Both networks, both optimisers and the keeper's averages: every loss is the same, to the last bit."""
    stage = replace(TINY, ema_decay=ema_decay)
    whole = fitter_of(stage)
    losses = run_steps(whole, 0, 8)
    first = fitter_of(stage)
    run_steps(first, 0, 5)
    first.save(tmp_path)
    second = fitter_of(replace(stage, train=replace(stage.train, seed=9)))
    second.stage = stage
    second.begin(tmp_path)
    assert run_steps(second, 5, 8) == losses[5:]
    assert fingerprint(second.model) == fingerprint(whole.model)


def test_discriminator_joins_at_its_step_and_not_before() -> None:
    fitter = fitter_of(TINY)
    before = copy.deepcopy(fitter.discriminator.state_dict())
    shown = run_steps(fitter, 0, 3)
    assert all(torch.equal(value, before[name]) for name, value in fitter.discriminator.state_dict().items())
    shown += run_steps(fitter, 3, 5)
    assert not torch.equal(fitter.discriminator.state_dict()["main.0.weight"], before["main.0.weight"])
    assert [row["adversarial_weight"] > 0 for row in shown] == [False] * 3 + [True] * 2
    assert ["fake_logit" in row for row in shown] == [False] * 3 + [True] * 2


def test_training_fits_its_images() -> None:
    stage = replace(TINY, loss=replace(TINY.loss, adversarial_weight=0.0), train=replace(TINY.train, lr=5e-3, crop=1.0))
    fitter = fitter_of(stage, total=60)
    ramps = np.stack([np.roll(np.tile(np.linspace(0, 255, 32), (32, 1)), 8 * i, 1) for i in range(4)]).astype(np.uint8)
    before = fitter.score(iter([ramps]))
    for _ in range(60):
        take_step(fitter, ramps)
    after = fitter.score(iter([ramps]))
    assert after["psnr"] > before["psnr"] + 6 and after["ssim"] > before["ssim"] + 0.2
    assert after["fidelity"] > before["fidelity"]


def test_scores_are_those_of_the_decoded_tokens() -> None:
    """What is scored is what a user gets: encode, decode, 8 bits; batches of unequal size count by their images."""
    fitter = fitter_of(TINY)
    run_steps(fitter, 0, 3)
    images = canvases(6, seed=5)
    scores = fitter.score(iter([images[:4], images[4:]]))
    tokenizer = ImageTokenizer(copy.deepcopy(fitter.model))
    tokens = tokenizer.encode(images)
    made = tokenizer.decode(tokens).astype(float)
    error = ((made - images) ** 2).mean((1, 2))
    assert scores["psnr"] == pytest.approx(float((10 * np.log10(255**2 / error)).mean()), abs=0.01)
    assert scores["ssim"] == pytest.approx(
        np.mean([reference_ssim(a.astype(float), b, data_range=255.0) for a, b in zip(images, made, strict=True)]),
        abs=1e-3,
    )
    assert scores["codes_used"] == len(np.unique(tokens)) / 16


def test_picture_holds_originals_above_reconstructions() -> None:
    fitter, images = fitter_of(TINY), canvases(3)
    picture = fitter.picture(images)
    assert picture.shape == (64, 96) and picture.dtype == np.uint8
    assert np.array_equal(picture[:32, 32:64], images[1])


def test_starts_from_a_published_file(tmp_path: Path) -> None:
    torch.manual_seed(4)
    model = VQGAN(model_config(TINY))
    save_pretrained(model, tmp_path)
    fitter = fitter_of(TINY, init=str(tmp_path / "model.safetensors"))
    assert fingerprint(fitter.model) == fingerprint(model)
    take_step(fitter, canvases())
    assert fingerprint(fitter.model) != fingerprint(model)


def tiny_encoder() -> PyramidVisionTransformer:
    torch.manual_seed(0)
    return PyramidVisionTransformer(
        PVTConfig(
            image_size=32,
            dims=(8, 16, 24, 32),
            depths=(1, 1, 1, 1),
            heads=(1, 2, 3, 4),
            reductions=(4, 2, 1, 1),
            mlp_ratios=(2, 2, 2, 2),
            num_classes=14,
        )
    )


@pytest.mark.parametrize("side", [32, 64])
@pytest.mark.parametrize("make", [perceptual.stage_distance, perceptual.clinical_distance])
def test_classifier_features_pull_on_the_reconstruction_only(make: Callable[..., Any], side: int) -> None:
    encoder = tiny_encoder()
    distance = make(encoder)
    image = torch.rand(2, 1, side, side) * 2 - 1
    other = torch.rand(2, 1, side, side).requires_grad_()
    assert float(distance(image, image)) == 0
    distance(image, other).backward()
    assert other.grad is not None and other.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in encoder.parameters()) and not encoder.training


def test_choice_of_perceptual_term() -> None:
    stage = replace(TINY, perceptual="encoder")
    chosen = perceptual_distance(stage, tiny_encoder(), ALONE.device)
    assert chosen is not None and chosen.func is feature_distance  # type: ignore[attr-defined]
    assert perceptual_distance(TINY, None, ALONE.device) is None


def test_lpips_without_its_weights_says_which_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ValueError, match=perceptual.VGG_FILE):
        perceptual_distance(replace(TINY, perceptual="lpips"), None, ALONE.device)


def test_ssim_is_that_of_scikit_image() -> None:
    images, others = canvases(3, seed=1).astype(np.float64), canvases(3, seed=2).astype(np.float64)
    others = 0.7 * images + 0.3 * others
    found = structural_similarity(torch.tensor(images)[:, None], torch.tensor(others)[:, None], span=255.0)
    wanted = [reference_ssim(a, b, data_range=255.0) for a, b in zip(images, others, strict=True)]
    assert found.numpy() == pytest.approx(wanted, abs=1e-4)


def test_encoder_is_needed_only_where_features_are_used() -> None:
    def needs(**options: str) -> bool:
        return load_config("phantom", {f"vqgan.{name}": value for name, value in options.items()}).vqgan.needs_encoder

    plain = {"loss.clinical_weight": "0"}
    assert needs() and needs(**plain) and not needs(**{"train.epochs": "0"})
    assert not needs(perceptual="none", **plain) and not needs(**{"loss.perceptual_weight": "0"}, **plain)
    assert needs(perceptual="none", **{"loss.clinical_weight": "100"})


@pytest.mark.ray
@pytest.mark.slow
def test_job_trains_and_resumes(
    job: Callable[[str], Any], studies_root: Path, tiny_yaml: Path, tmp_path: Path, ray_session: None
) -> None:
    (tmp_path / "studies").symlink_to(studies_root / "studies")
    arguments = ["--config", str(tiny_yaml), "--root", str(tmp_path), *ARGUMENTS]
    answer = job("train_vqgan")(arguments)
    assert answer["status"] == "done" and answer["steps"] == 12 and 0 < answer["codes_used"] <= 1
    stage = Root(str(tmp_path)).stage("vqgan")
    model = load_pretrained(tmp_path / "vqgan" / "model")
    assert model.config.image_size == 64 and not hasattr(model.config, "train")
    rows = [json.loads(row) for row in (stage.read_text("metrics.jsonl") or "").splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(1, 13))
    assert (tmp_path / "vqgan" / "pictures" / "reconstructions-0000012.png").is_file()
    assert job("train_vqgan")(arguments)["status"] == "skipped"


def test_canvas_of_another_size_names_both(
    job: Callable[[str], Any], studies_root: Path, tiny_yaml: Path, tmp_path: Path
) -> None:
    (tmp_path / "studies").symlink_to(studies_root / "studies")
    with pytest.raises(ValueError, match="64 pixels and this VQ-GAN reads 256"):
        job("train_vqgan")(["--config", str(tiny_yaml), "--root", str(tmp_path), "--vqgan.perceptual", "none"])


def test_published_model_is_adopted_without_training(
    job: Callable[[str], Any], studies_root: Path, tiny_yaml: Path, tmp_path: Path
) -> None:
    (tmp_path / "studies").symlink_to(studies_root / "studies")
    arguments = ["--config", str(tiny_yaml), "--root", str(tmp_path), *ARGUMENTS, "--vqgan.train.epochs", "0"]
    with pytest.raises(ValueError, match=r"vqgan\.init"):
        job("train_vqgan")(arguments)
    overrides = {f"vqgan.{name}": value for name, value in OPTIONS.items()}
    torch.manual_seed(1)
    model = VQGAN(model_config(load_config(str(tiny_yaml), overrides).vqgan))
    torch.save({"state_dict": {**model.state_dict(), "loss.weight": torch.zeros(1)}}, tmp_path / "published.ckpt")
    answer = job("train_vqgan")([*arguments, "--vqgan.init", str(tmp_path / "published.ckpt")])
    assert answer["status"] == "done" and answer["steps"] == 0
    assert fingerprint(load_pretrained(tmp_path / "vqgan" / "model")) == fingerprint(model)


def _one_of_two(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    fitter = fitter_of(TINY, Worker(rank, 2, torch.device("cpu"), bf16=False))
    for step in range(5):
        take_step(fitter, canvases(seed=10 * step + rank))
    parts = [fitter.model.state_dict(), fitter.discriminator.state_dict(), {"share": fitter.keeper.share}]
    learned = [{name: value for name, value in part.items() if "running" not in name} for part in parts]
    torch.save(learned, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_workers_stay_equal(tmp_path: Path) -> None:
    """Different images on each, the discriminator included, codes re-seeded by one: the weights remain the same."""
    torch.multiprocessing.spawn(_one_of_two, (str(tmp_path),), nprocs=2)
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert all(torch.equal(a[name], b[name]) for a, b in zip(one, other, strict=True) for name in a)
