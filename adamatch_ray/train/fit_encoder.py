"""Disease classification: the pre-training of the image encoder (docs/method.md 1.1; the `pretrain_encoder` job)."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from adamatch_ray.config import EncoderStage, RunConfig
from adamatch_ray.data import loading
from adamatch_ray.model_config import PVTConfig, to_json
from adamatch_ray.models.inputs import model_input, random_crops
from adamatch_ray.models.pvt import PyramidVisionTransformer
from adamatch_ray.models.pvt_published import load_published, load_published_file
from adamatch_ray.schema import CHEXPERT_LABELS
from adamatch_ray.storage import Root, Stage
from adamatch_ray.train.distributed import Worker
from adamatch_ray.train.fitter import ModelFitter
from adamatch_ray.train.loop import TrainSettings


class EncoderFitter(ModelFitter):
    """Fits the classifier of findings; `image` is its size."""

    model: PyramidVisionTransformer

    def __init__(self, settings: TrainSettings, worker: Worker, *, image: PVTConfig) -> None:
        self.image, self.stage = image, settings.config.encoder
        torch.manual_seed(settings.train.seed)
        model = PyramidVisionTransformer(image)
        if settings.init:
            load_published(model, load_published_file(settings.init), drop_head=True)
        model.freeze_unread()
        super().__init__(settings, worker, model)

    def loss(self, batch: loading.Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        crops = random_crops(len(batch["image"]), self.stage.train.crop, generator)
        logits = self.wrapped(model_input(batch["image"], self.image.image_size, self.worker.device, crops)).float()
        return masked_bce(logits, targets(batch["labels"], self.stage).to(self.worker.device)), {}

    def scores(self) -> dict[str, float]:
        studies = Root(self.settings.root).stage("studies")
        return {"auroc": mean_auroc(*predict(self.model, studies, "validate", self.settings.config, self.worker))}

    def save_model(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(to_json(self.image))
        weights = {name: value.detach().cpu().contiguous() for name, value in self.model.state_dict().items()}
        save_file(weights, folder / "model.safetensors")


def targets(labels_BL: Any, policy: EncoderStage) -> Tensor:
    """Labels (1, 0, -1, NaN) as 1, 0 or NaN (left out of the loss), by the policy on uncertain and blank ones."""
    labels = torch.tensor(labels_BL, dtype=torch.float32)  # a copy: batches from Ray are read-only
    uncertain = {"mask": float("nan"), "positive": 1.0, "negative": 0.0}[policy.uncertain]
    blank = {"mask": float("nan"), "negative": 0.0}[policy.blank]
    # A study whose labels are all blank was not labelled at all: nothing is known of it.
    unlabelled = labels.isnan().all(1, keepdim=True)
    filled = torch.where(labels.isnan() & ~unlabelled, blank, labels)
    return torch.where(filled == -1, uncertain, filled)


def masked_bce(logits_BL: Tensor, target_BL: Tensor) -> Tensor:
    """Binary cross-entropy averaged over the targets that are not NaN; 0 when there is none."""
    known = ~target_BL.isnan()
    loss = F.binary_cross_entropy_with_logits(logits_BL, target_BL.nan_to_num(), reduction="none")
    return (loss * known).sum() / known.sum().clamp(min=1)


def predict(
    model: PyramidVisionTransformer, studies: Stage, split: str, config: RunConfig, worker: Worker
) -> tuple[Tensor, Tensor]:
    """Probabilities and targets [N, 14] of a split, on the CPU."""
    probabilities, wanted = [], []
    for batch in map(loading.to_batch, loading.read_parts(studies, split, config.evaluate.batch_size)):
        image = model_input(batch["image"], model.config.image_size, worker.device)
        probabilities.append(model(image).float().sigmoid().cpu())
        wanted.append(targets(batch["labels"], config.encoder))
    return torch.cat(probabilities), torch.cat(wanted)


def mean_auroc(probability_NL: Tensor, target_NL: Tensor) -> float:
    """Area under the ROC curve, averaged over the labels that have both positives and negatives (0.5 if none)."""
    scores = []
    for label in range(len(CHEXPERT_LABELS)):
        known = ~target_NL[:, label].isnan()
        target = target_NL[known, label].int()
        if 0 < int(target.sum()) < len(target):
            scores.append(float(binary_auroc(probability_NL[known, label], target)))
    return sum(scores) / len(scores) if scores else 0.5
