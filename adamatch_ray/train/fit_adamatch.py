"""Contrastive training of AdaMatch (docs/method.md 1.4-1.5; the `train_adamatch` job)."""

import tempfile
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adamatch_ray.codebooks import FINDING_GROUPS, GROUPS
from adamatch_ray.data import loading
from adamatch_ray.engines.embedding import embed_split, rows_of_words
from adamatch_ray.engines.entities import lexicon_words
from adamatch_ray.losses.contrastive import contrastive_loss
from adamatch_ray.metrics.retrieval import recall_full, score_pairs
from adamatch_ray.model_config import TextEncoderConfig
from adamatch_ray.models import adamatch, text_encoder
from adamatch_ray.models.adamatch import TextEmbeddings
from adamatch_ray.models.inputs import model_input, random_crops
from adamatch_ray.models.pvt_published import load_published, load_published_file
from adamatch_ray.models.weights import read_weights
from adamatch_ray.storage import Root
from adamatch_ray.train.distributed import Worker
from adamatch_ray.train.fit_encoder import masked_bce, targets
from adamatch_ray.train.fitter import ModelFitter
from adamatch_ray.train.loop import TrainSettings


class AdaMatchFitter(ModelFitter):
    """Fits image patches and words of reports to each other."""

    model: adamatch.AdaMatch

    def __init__(self, settings: TrainSettings, worker: Worker) -> None:
        self.config, self.root = settings.config, Root(settings.root)
        self.stage = self.config.adamatch
        self.tokenizer = _tokenizer(self.root, self.config.text)
        torch.manual_seed(settings.train.seed)
        model = adamatch.build(adamatch.AdaMatchSizes(self.config.image, self.config.text, self.stage), self.tokenizer)
        _initialise(model, self.root, settings.init or self.stage.init)
        self.aligned = aligned_words(self.stage.words)
        super().__init__(settings, worker, model)

    def loss(self, batch: loading.Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        device, text, reports = self.worker.device, self.config.text, list(batch["report"])
        crops = random_crops(len(batch["image"]), self.stage.train.crop, generator)
        image = model_input(batch["image"], self.config.image.image_size, device, crops)
        embeddings = self.wrapped(image, text_encoder.tokenize(self.tokenizer, reports, text.max_tokens).to(device))
        if self.aligned is not None:
            rows = rows_of_words(self.tokenizer, reports, text, self.aligned)
            embeddings = embeddings._replace(text=only_rows(embeddings.text, rows))
        group = torch.tensor([report_group(report) for report in reports], device=device)
        result = contrastive_loss(embeddings, group, self.worker.rank, self.worker.gather(self.stage.negatives))
        shown = {"accuracy": result.accuracy, "temperature": embeddings.temperature}
        if embeddings.finding_BL is None:
            return result.loss, shown
        labels = targets(batch["labels"], self.config.encoder).to(device)
        shown["findings"] = masked_bce(embeddings.finding_BL.float(), labels)
        return result.loss + self.stage.finding_weight * shown["findings"], shown

    def scores(self) -> dict[str, float]:
        studies, batch_size = self.root.stage("studies"), self.config.evaluate.batch_size
        split = embed_split(self.model, self.tokenizer, studies, "validate", batch_size)
        recall = recall_full(score_pairs(split.heads, split.word_IND, split.mask_IN, self.worker.device), split.reports)
        return {name: value for name, value in recall.items() if name.endswith(("@1", "@10"))}

    def save_model(self, folder: Path) -> None:
        adamatch.save(self.model, self.tokenizer, folder)


def aligned_words(words: str) -> frozenset[str] | None:
    """The words that `adamatch.words` names; None for all."""
    groups = {"all": None, "entities": GROUPS, "findings": FINDING_GROUPS}[words]
    return None if groups is None else lexicon_words(groups)


def only_rows(text: TextEmbeddings, rows: list[list[int]]) -> TextEmbeddings:
    """Let only these words of each report take part in the alignment; a report without any keeps all of its words."""
    chosen_BN = torch.zeros_like(text.mask_BN)
    for b, found in enumerate(rows):
        chosen_BN[b, found or slice(None)] = True
    return text._replace(mask_BN=text.mask_BN & chosen_BN)


def report_group(report: str) -> int:
    """A number that is equal for equal report texts."""
    return zlib.crc32(report.lower().encode())


def prepare_tokenizer(root: Root, text: TextEncoderConfig) -> None:
    """Where no pre-trained text encoder is named, train a tokenizer on the train split's reports, once."""
    stage = root.stage("adamatch")
    if text.name_or_path:
        text_encoder.load_tokenizer(text.name_or_path)  # fails here, on the driver, when it cannot be had
        return
    reports = (report for table in loading.read_split(root.stage("studies"), "train", ["report"])
               for report in table["report"].to_pylist())  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        text_encoder.train_tokenizer(reports, text.vocab_size, Path(folder))
        stage.upload(Path(folder), "tokenizer")


def _tokenizer(root: Root, text: TextEncoderConfig) -> Any:
    if text.name_or_path:
        return text_encoder.load_tokenizer(text.name_or_path)
    with root.stage("adamatch").local("tokenizer") as folder:
        return text_encoder.load_tokenizer(folder)


def _initialise(model: adamatch.AdaMatch, root: Root, init: str) -> None:
    """Start the image encoder from the `encoder` stage, from a published file, or from random weights."""
    if init == "none":
        return
    if init != "encoder":
        load_published(model.image, load_published_file(init), drop_head=True)
        return
    with root.stage("encoder").local("model") as folder:
        weights = read_weights(folder / "model.safetensors")
    wanted = model.image.state_dict()
    missing = sorted(set(wanted) - set(weights)) + [
        k for k in wanted if k in weights and wanted[k].shape != weights[k].shape
    ]
    if missing:
        raise ValueError(f"the encoder stage has another shape than --image says ({missing[0]}); pretrain it again")
    model.image.load_state_dict({name: weights[name] for name in wanted})
