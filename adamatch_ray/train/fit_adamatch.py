"""Contrastive training of AdaMatch (docs/method.md 1.4-1.5; the `train_adamatch` job)."""

import tempfile
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from adamatch_ray.codebooks import GROUPS
from adamatch_ray.config import RunConfig
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
from adamatch_ray.storage import Root
from adamatch_ray.train.distributed import Worker, current_worker
from adamatch_ray.train.fit_encoder import masked_bce, targets
from adamatch_ray.train.loop import Loss, Task, run


def adamatch_loop(settings: dict[str, Any]) -> None:
    """Train on this worker. settings: root, config (RunConfig), total_steps, resume_path."""
    config: RunConfig = settings["config"]
    train = config.adamatch.train
    worker = current_worker(train.precision, train.threads)
    root = Root(settings["root"])
    tokenizer = _tokenizer(root, config)
    torch.manual_seed(train.seed)
    sizes = adamatch.AdaMatchSizes(config.image, config.text, config.adamatch)
    model = adamatch.build(sizes, tokenizer)
    _initialise(model, root, config.adamatch.init)
    model = model.to(worker.device)

    chosen = aligned_words(config.adamatch.words)

    def loss(wrapped: nn.Module, batch: loading.Batch, generator: torch.Generator, worker: Worker) -> Loss:
        crops = random_crops(len(batch["image"]), train.crop, generator)
        image = model_input(batch["image"], config.image.image_size, worker.device, crops)
        tokens = text_encoder.tokenize(tokenizer, batch["report"], config.text.max_tokens).to(worker.device)
        embeddings = wrapped(image, tokens)
        if chosen is not None:
            rows = rows_of_words(tokenizer, list(batch["report"]), config.text, chosen)
            embeddings = embeddings._replace(text=only_rows(embeddings.text, rows))
        group = torch.tensor([report_group(r) for r in batch["report"]], device=worker.device)
        result = contrastive_loss(embeddings, group, worker.rank, worker.gather(config.adamatch.negatives))
        shown = {"accuracy": result.accuracy, "temperature": embeddings.temperature}
        if embeddings.finding_BL is None:
            return Loss(result.loss, shown)
        labels = targets(batch["labels"], config.encoder).to(worker.device)
        shown["findings"] = masked_bce(embeddings.finding_BL.float(), labels)
        return Loss(result.loss + config.adamatch.finding_weight * shown["findings"], shown)

    def validate(worker: Worker) -> dict[str, float]:
        split = embed_split(model, tokenizer, root.stage("studies"), "validate", config.evaluate.batch_size)
        recall = recall_full(score_pairs(split.heads, split.word_IND, split.mask_IN), split.reports)
        return {name: value for name, value in recall.items() if name.endswith(("@1", "@10"))}

    task = Task(
        stage="adamatch",
        train=train,
        model=model,
        loss=loss,
        validate=validate,
        score="image_to_text@1",
        save_model=lambda folder: adamatch.save(model, tokenizer, folder),
    )
    run(task, settings, worker)


def aligned_words(words: str) -> frozenset[str] | None:
    """The words that `adamatch.words` names; None for all."""
    groups = {"all": None, "entities": GROUPS, "findings": ("Disease_disorder", "Sign_symptom")}[words]
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
    folder = Path(tempfile.mkdtemp(prefix="tokenizer-"))
    text_encoder.train_tokenizer(reports, text.vocab_size, folder)
    stage.upload(folder, "tokenizer")


def _tokenizer(root: Root, config: RunConfig) -> Any:
    if config.text.name_or_path:
        return text_encoder.load_tokenizer(config.text.name_or_path)
    folder = Path(tempfile.mkdtemp(prefix="tokenizer-"))
    return text_encoder.load_tokenizer(root.stage("adamatch").download("tokenizer", folder))


def _initialise(model: adamatch.AdaMatch, root: Root, init: str) -> None:
    """Start the image encoder from the `encoder` stage, from a published file, or from random weights."""
    if init == "none":
        return
    if init != "encoder":
        load_published(model.image, load_published_file(init), drop_head=True)
        return
    folder = root.stage("encoder").download("model", Path(tempfile.mkdtemp(prefix="encoder-")))
    weights = load_file(folder / "model.safetensors")
    wanted = model.image.state_dict()
    missing = sorted(set(wanted) - set(weights)) + [
        k for k in wanted if k in weights and wanted[k].shape != weights[k].shape
    ]
    if missing:
        raise ValueError(f"the encoder stage has another shape than --image says ({missing[0]}); pretrain it again")
    model.image.load_state_dict({name: weights[name] for name in wanted})
