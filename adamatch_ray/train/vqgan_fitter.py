"""One worker's VQ-GAN in training: both networks, two optimisers, the care of the codes, and the scores."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from adamatch_ray.config import VQGANStage
from adamatch_ray.data.images import Pixels
from adamatch_ray.engines.image_tokens import to_gray
from adamatch_ray.losses.perceptual import clinical_distance, lpips_distance, stage_distance
from adamatch_ray.losses.structure import structural_similarity
from adamatch_ray.losses.vqgan import Distance, GeneratorLosses, generator_losses, training_step
from adamatch_ray.model_config import VQGANConfig
from adamatch_ray.models.discriminator import PatchDiscriminator
from adamatch_ray.models.inputs import model_input, random_crops
from adamatch_ray.models.pvt import PyramidVisionTransformer
from adamatch_ray.models.quantizer import CodeKeeper
from adamatch_ray.models.vqgan import VQGAN
from adamatch_ray.models.vqgan_io import load_checkpoint
from adamatch_ray.train import checkpoint, optim
from adamatch_ray.train.distributed import Worker, seed_step


class Fitter:
    """What one worker trains: both networks with their optimisers, and the keeper of the codes."""

    def __init__(self, stage: VQGANStage, worker: Worker, encoder: PyramidVisionTransformer | None, init: str) -> None:
        self.stage, self.worker, train = stage, worker, stage.train
        torch.manual_seed(train.seed)
        size = model_config(stage)
        self.model = load_checkpoint(init, size) if init else VQGAN(size)
        self.discriminator = PatchDiscriminator(stage.discriminator, stage.in_channels)
        for network in (self.model, self.discriminator):
            network.to(worker.device).to(memory_format=torch.channels_last)
        self.keeper = CodeKeeper(
            self.model.quantize,
            decay=stage.ema_decay or 0.99,
            move_codes=stage.ema_decay > 0,
            seed=train.seed,
            reduce=worker.add_up,
            primary=worker.is_first,
        )
        self.optimizer, self.judge_optimizer = self._optimizer(self.model), self._optimizer(self.discriminator)
        self.wrapped, self.judge = worker.wrap(self.model), worker.wrap(self.discriminator)
        self.perceptual = perceptual_distance(stage, encoder, worker.device)
        clinical = stage.loss.clinical_weight > 0 and encoder is not None
        self.clinical = clinical_distance(encoder) if clinical and encoder is not None else None

    def state(self) -> checkpoint.TrainState:
        """Everything that changes, for a checkpoint."""
        others: dict[str, checkpoint.Stateful] = {
            "discriminator": self.discriminator,
            "discriminator_optimizer": self.judge_optimizer,
            "codes": self.keeper,
        }
        return checkpoint.TrainState(self.model, self.optimizer, others=others)

    def step(self, canvas_BHW: Pixels, number: int, total: int) -> dict[str, Tensor]:
        """Step `number` of `total` (from 0) on canvases uint8 [B, S, S]; returns scalars to show."""
        stage, train = self.stage, self.stage.train
        generator = seed_step(train.seed, number, self.worker.rank)
        share = optim.lr_at(number, total, train.warmup)
        for optimizer in (self.optimizer, self.judge_optimizer):
            optim.set_lr(optimizer, share * optim.peak_lr(train, len(canvas_BHW) * self.worker.world))
        crops = random_crops(len(canvas_BHW), train.crop, generator) if train.crop < 1 else None
        self.model.train()
        with self.worker.autocast():
            result = training_step(
                self.wrapped,
                self.pixels(canvas_BHW, crops),
                step=number,
                config=stage.loss,
                last_layer=self.model.decoder.conv_out.weight,
                discriminator=self.discriminator,
                judge=self.judge,
                perceptual=self.perceptual,
                clinical=self.clinical,
            )
        self._descend(self.optimizer, self.model, result.generator.total)
        shown = {name: getattr(result.generator, name).detach() for name in GeneratorLosses._fields}
        if result.discriminator is not None:
            self._descend(self.judge_optimizer, self.discriminator, result.discriminator.total)
            shown |= {"real_logit": result.discriminator.real_logit, "fake_logit": result.discriminator.fake_logit}
        shown["restarted_codes"] = torch.tensor(float(self.keeper.update(result.output.quantized)))
        return {"loss": shown.pop("total"), **shown}

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
                step=0,
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

    def _descend(self, optimizer: torch.optim.Optimizer, network: nn.Module, loss: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optim.clip_gradients(network, self.stage.train.clip)
        optimizer.step()


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
