"""The training of the VQ-GAN: both networks, two optimisers, the care of the codes, the scores (docs/method.md 3)."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from adamatch_ray.config import VQGANStage
from adamatch_ray.data import loading
from adamatch_ray.data.images import Pixels, decode_png
from adamatch_ray.engines.image_tokens import to_gray
from adamatch_ray.engines.loader import load_classifier
from adamatch_ray.losses.perceptual import clinical_distance, lpips_distance, stage_distance
from adamatch_ray.losses.structure import structural_similarity
from adamatch_ray.losses.vqgan import Distance, GeneratorLosses, generator_losses, training_step
from adamatch_ray.model_config import VQGANConfig
from adamatch_ray.models.discriminator import PatchDiscriminator
from adamatch_ray.models.inputs import model_input, random_crops
from adamatch_ray.models.pvt import PyramidVisionTransformer
from adamatch_ray.models.quantizer import CodeKeeper
from adamatch_ray.models.vqgan import VQGAN
from adamatch_ray.models.vqgan_io import load_checkpoint, save_pretrained
from adamatch_ray.storage import Root, Stage
from adamatch_ray.train import optim
from adamatch_ray.train.distributed import Worker, seed_step
from adamatch_ray.train.fitter import Stateful, TrainState
from adamatch_ray.train.loop import Source, TrainSettings, study_source
from adamatch_ray.train.tracking import Tracker

SHOWN = 8
"""Validation images in a picture of reconstructions."""


class VQGANFitter:
    """Fits both networks with their optimisers, and keeps the codes in use."""

    def __init__(self, settings: TrainSettings, worker: Worker) -> None:
        self.settings, self.worker, self.stage = settings, worker, settings.config.vqgan
        self.studies = Root(settings.root).stage("studies")
        train, device = self.stage.train, worker.device
        encoder = None
        if self.stage.needs_encoder:
            encoder = load_classifier(Root(settings.root)).model.to(device)
        torch.manual_seed(train.seed)
        size = model_config(self.stage)
        self.model = load_checkpoint(settings.init, size) if settings.init else VQGAN(size)
        self.discriminator = PatchDiscriminator(self.stage.discriminator, self.stage.in_channels)
        for network in (self.model, self.discriminator):
            network.to(device).to(memory_format=torch.channels_last)
        self.keeper = CodeKeeper(
            self.model.quantize,
            decay=self.stage.ema_decay or 0.99,
            move_codes=self.stage.ema_decay > 0,
            seed=train.seed,
            reduce=worker.add_up,
            primary=worker.is_first,
        )
        self.optimizer, self.judge_optimizer = self._optimizer(self.model), self._optimizer(self.discriminator)
        self.wrapped, self.judge = worker.wrap(self.model), worker.wrap(self.discriminator)
        self.perceptual = perceptual_distance(self.stage, encoder, device)
        clinical = self.stage.loss.clinical_weight > 0 and encoder is not None
        self.clinical = clinical_distance(encoder) if clinical and encoder is not None else None
        self.schedule = optim.Schedule(settings.total_steps, train.warmup)
        others: dict[str, Stateful] = {
            "discriminator": self.discriminator,
            "discriminator_optimizer": self.judge_optimizer,
            "codes": self.keeper,
        }
        self.state = TrainState(self.model, self.optimizer, self.schedule, others)

    @property
    def source(self) -> Source:
        return study_source(self.settings)

    def begin(self, checkpoint: Path | None) -> None:
        if checkpoint:
            self.state.read(checkpoint)

    def step(self, batch: loading.Batch) -> dict[str, Tensor | float]:
        canvas_BHW, stage, train = batch["image"], self.stage, self.stage.train
        generator = seed_step(train.seed, self.schedule.step, self.worker.rank)
        lr = self.schedule.share * optim.peak_lr(train, train.batch_size * self.worker.world)
        for optimizer in (self.optimizer, self.judge_optimizer):
            optim.set_lr(optimizer, lr)
        crops = random_crops(len(canvas_BHW), train.crop, generator) if train.crop < 1 else None
        self.model.train()
        with self.worker.autocast():
            result = training_step(
                self.wrapped,
                self.pixels(canvas_BHW, crops),
                step=self.schedule.step,
                config=stage.loss,
                last_layer=self.model.decoder.conv_out.weight,
                discriminator=self.discriminator,
                judge=self.judge,
                perceptual=self.perceptual,
                clinical=self.clinical,
            )
        optim.descend(self.optimizer, self.model, result.generator.total, train.clip)
        shown: dict[str, Tensor | float] = {
            name: getattr(result.generator, name).detach() for name in GeneratorLosses._fields
        }
        if result.discriminator is not None:
            optim.descend(self.judge_optimizer, self.discriminator, result.discriminator.total, train.clip)
            shown |= {"real_logit": result.discriminator.real_logit, "fake_logit": result.discriminator.fake_logit}
        shown["restarted_codes"] = float(self.keeper.update(result.output.quantized))
        return {"loss": shown.pop("total"), **shown}

    def validate(self, tracker: Tracker) -> dict[str, float]:
        """Score and draw, on the first worker; the others wait for it in Ray Train's barrier when they report."""
        if not self.worker.is_first:
            return {}
        began = time.monotonic()
        scores = self.score(read_canvases(self.studies, "validate", self.stage.train.batch_size))
        tracker.score(self.schedule.step, {**scores, "seconds": time.monotonic() - began})
        shown = next(read_canvases(self.studies, "validate", SHOWN))
        tracker.picture(self.schedule.step, "reconstructions", self.picture(shown))
        return scores

    def save(self, folder: Path) -> None:
        if self.worker.is_first:
            self.state.write(folder)
            save_pretrained(self.model, folder / "model")

    @torch.inference_mode()
    def score(self, canvases: Iterator[Pixels]) -> dict[str, float]:
        """Means over batches uint8 [B, S, S], in fp32: PSNR (dB) and SSIM of 8-bit images, share of codes in use."""
        self.model.eval()
        weights = replace(self.stage.loss, adversarial_weight=0.0)
        sums, count = {"fidelity": 0.0, "psnr": 0.0, "ssim": 0.0}, 0
        used = torch.zeros(self.stage.codes, dtype=torch.bool)
        for canvas_BHW in canvases:
            image = self.pixels(canvas_BHW)
            output = self.model(image)
            losses = generator_losses(
                image,
                output,
                step=self.stage.loss.clinical_start,
                config=weights,
                last_layer=self.model.decoder.conv_out.weight,
                perceptual=self.perceptual,
                clinical=self.clinical,
            )
            real, made = (to_gray(x).float().unsqueeze(1) for x in (image, output.reconstruction))
            error = (real - made).square().mean((1, 2, 3)).clamp(min=1e-10)
            fidelity = weights.codebook_weight * losses.quantization - losses.total
            sums["fidelity"] += float(fidelity) * len(image)
            sums["psnr"] += float((10 * torch.log10(255**2 / error)).sum())
            sums["ssim"] += float(structural_similarity(real, made, span=255.0).sum())
            used[output.quantized.indices_BT.flatten().cpu()] = True
            count += len(image)
        return {**{name: value / count for name, value in sums.items()}, "codes_used": float(used.float().mean())}

    @torch.inference_mode()
    def picture(self, canvas_BHW: Pixels) -> Pixels:
        """Canvases in a row above what the model makes of them."""
        self.model.eval()
        made = to_gray(self.model(self.pixels(canvas_BHW)).reconstruction).cpu().numpy()
        return np.concatenate([np.concatenate(list(row), axis=1) for row in (canvas_BHW, made)])

    def pixels(self, canvas_BHW: Pixels, crop_B4: Tensor | None = None) -> Tensor:
        """Canvases uint8 [B, S, S] as the model takes them."""
        image = model_input(canvas_BHW, self.stage.image_size, self.worker.device, crop_B4)
        return image[:, : self.stage.in_channels].contiguous(memory_format=torch.channels_last)

    def _optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        train = self.stage.train
        optimizer = optim.build_optimizer(network, train, train.batch_size * self.worker.world)
        for group in optimizer.param_groups:
            group["betas"] = (train.beta1, 0.9)
        return optimizer


def model_config(stage: VQGANStage) -> VQGANConfig:
    """The size alone, without what training adds."""
    return VQGANConfig(**{name: getattr(stage, name) for name in VQGANConfig.__dataclass_fields__})


def perceptual_distance(
    stage: VQGANStage, encoder: PyramidVisionTransformer | None, device: torch.device
) -> Distance | None:
    """The distance that the configuration names, or None. Raises ValueError where LPIPS has no weights."""
    if stage.perceptual == "none" or stage.loss.perceptual_weight == 0:
        return None
    if stage.perceptual == "lpips":
        return lpips_distance(device)
    assert encoder is not None
    return stage_distance(encoder)


def read_canvases(studies: Stage, split: str, batch_size: int) -> Iterator[Pixels]:
    """Canvases uint8 [B, S, S] of a split in their stored order; the last batch of a shard may be smaller."""
    for part in loading.read_parts(studies, split, batch_size, ["image"]):
        yield np.stack([decode_png(data.as_py()) for data in part["image"]])
