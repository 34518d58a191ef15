"""Disease classification: the pre-training of the image encoder (docs/method.md 1.1; the `pretrain_encoder` job)."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_auroc

from adamatch_ray.config import EncoderStage, RunConfig
from adamatch_ray.data import loading
from adamatch_ray.model_config import to_json
from adamatch_ray.models.inputs import model_input, random_crops
from adamatch_ray.models.pvt import PyramidVisionTransformer
from adamatch_ray.models.pvt_published import load_published, load_published_file
from adamatch_ray.schema import CHEXPERT_LABELS
from adamatch_ray.storage import Root, Stage
from adamatch_ray.train.distributed import Worker, current_worker
from adamatch_ray.train.loop import Loss, Task, run


def classification_loop(settings: dict[str, Any]) -> None:
    """Train on this worker. settings: root, config (RunConfig), image (PVTConfig), total_steps, resume_path."""
    config: RunConfig = settings["config"]
    train = config.encoder.train
    worker = current_worker(train.precision, train.threads)
    studies = Root(settings["root"]).stage("studies")
    torch.manual_seed(train.seed)
    model = PyramidVisionTransformer(settings["image"])
    if config.encoder.init:
        load_published(model, load_published_file(config.encoder.init), drop_head=True)
    model.freeze_unread()
    model = model.to(worker.device)
    size = settings["image"].image_size

    def loss(wrapped: nn.Module, batch: loading.Batch, generator: torch.Generator, worker: Worker) -> Loss:
        crops = random_crops(len(batch["image"]), train.crop, generator)
        logits = wrapped(model_input(batch["image"], size, worker.device, crops)).float()
        return Loss(masked_bce(logits, targets(batch["labels"], config.encoder).to(worker.device)), {})

    def save_model(folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(to_json(settings["image"]))
        save_file(
            {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors"
        )

    task = Task(
        stage="encoder",
        train=train,
        model=model,
        loss=loss,
        validate=lambda worker: {"auroc": mean_auroc(*predict(model, studies, "validate", config, worker))},
        score="auroc",
        save_model=save_model,
    )
    run(task, settings, worker)


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
    for table in loading.read_split(studies, split):
        for start in range(0, table.num_rows, config.evaluate.batch_size):
            batch = loading.to_batch(table.slice(start, config.evaluate.batch_size))
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
