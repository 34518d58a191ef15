"""Training of the place head on a frozen AdaMatch, by the words of reports alone (docs/method.md 1.6; `train_place`)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adamatch_ray.config import RunConfig
from adamatch_ray.data import loading
from adamatch_ray.engines.embedding import Embedder, whole_words
from adamatch_ray.engines.loader import load_embedder
from adamatch_ray.engines.phrases import PhraseFinder, finding_words, same_finding
from adamatch_ray.losses.placing import place_loss
from adamatch_ray.metrics.localization import roc_auc
from adamatch_ray.models import place_head
from adamatch_ray.models.place_head import PlaceHead, PlaceSizes
from adamatch_ray.storage import Root
from adamatch_ray.train.distributed import Worker, current_worker
from adamatch_ray.train.loop import Loss, Task, run

Findings = Mapping[str, Tensor]
"""The findings that a report does not deny, each as one unit vector."""


def place_loop(settings: dict[str, Any]) -> None:
    """Train on this worker. settings: root, config (RunConfig), total_steps, resume_path."""
    config: RunConfig = settings["config"]
    place, train = config.place, config.place.train
    worker = current_worker(train.precision, train.threads)
    root = Root(settings["root"])
    embedder, finder = load_embedder(root, str(worker.device)), PhraseFinder()
    sizes = embedder.model.sizes
    torch.manual_seed(train.seed)
    head = PlaceHead(PlaceSizes.of(sizes.image, sizes.adamatch.dim, place.width, place.dim)).to(worker.device)

    def loss(wrapped: nn.Module, batch: loading.Batch, generator: torch.Generator, worker: Worker) -> Loss:
        own = findings_of(embedder, finder, list(batch["report"]))
        look = embedder.look(batch["image"], stages=place_head.STAGES)
        # Tensors of inference mode cannot be kept for a backward pass; copies can.
        stages = [stage._replace(tokens_BPC=stage.tokens_BPC.clone()) for stage in look.stages]
        feature_BDGG = wrapped(look.input_BCHW.clone(), stages)
        others = [lacking(own, b, place.negatives, generator) for b in range(len(own))]
        result = place_loss(head, feature_BDGG, [_stacked(found.values(), head) for found in own],
                            [_stacked(found, head) for found in others])  # fmt: skip
        return Loss(result.loss, {"accuracy": result.accuracy})

    def validate(worker: Worker) -> dict[str, float]:
        shown, lacks = evidence_of_split(embedder, finder, head, root, config.evaluate.batch_size)
        cut = best_cut(shown, lacks)
        head.shown_from.fill_(cut)
        return {"auc": roc_auc(shown, lacks), "shown_from": cut}

    task = Task(
        stage="place",
        train=train,
        model=head,
        loss=loss,
        validate=validate,
        score="auc",
        save_model=lambda folder: place_head.save(head, folder),
    )
    run(task, settings, worker)


@torch.inference_mode()
def findings_of(embedder: Embedder, finder: PhraseFinder, reports: list[str]) -> list[dict[str, Tensor]]:
    """The findings of each report."""
    spans, texts = embedder.words(reports), embedder.reports(reports)
    return [
        finding_words(finder.find(report, words), whole_words(texts.word_BND[b], words))
        for b, (report, words) in enumerate(zip(reports, spans, strict=True))
    ]


def lacking(own: Sequence[Findings], b: int, most: int, generator: torch.Generator) -> list[Tensor]:
    """Up to `most` findings, drawn from those that other reports of the batch name and report `b` does not."""
    found = [
        word
        for other, findings in enumerate(own)
        if other != b
        for finding, word in findings.items()
        if not any(same_finding(finding, mine) for mine in own[b])
    ]
    return [found[k] for k in torch.randperm(len(found), generator=generator)[:most].tolist()]


def evidence_of_split(
    embedder: Embedder, finder: PhraseFinder, head: PlaceHead, root: Root, batch_size: int
) -> tuple[list[float], list[float]]:
    """On validate, the evidence of findings in their own images, and of as many in images that lack them."""
    shown: list[float] = []
    lacks: list[float] = []
    generator = torch.Generator().manual_seed(0)
    for table in loading.read_split(root.stage("studies"), "validate"):
        for start in range(0, table.num_rows, batch_size):
            batch = loading.to_batch(table.slice(start, batch_size))
            own = findings_of(embedder, finder, list(batch["report"]))
            look = embedder.look(batch["image"], stages=place_head.STAGES)
            for b, feature_DGG in enumerate(head(look.input_BCHW, look.stages)):
                others = lacking(own, b, len(own[b]), generator)
                for found, words in ((shown, list(own[b].values())), (lacks, others)):
                    found += place_head.evidence(head.logits(feature_DGG, _stacked(words, head)).float()).tolist()
    return shown, lacks


def best_cut(shown: Sequence[float], lacks: Sequence[float]) -> float:
    """The value from which on most of `shown` and fewest of `lacks` lie: the greatest sum of both rates."""
    values = np.sort(np.array([*shown, *lacks]))
    rates = [np.mean(np.array(shown) >= value) + np.mean(np.array(lacks) < value) for value in values]
    return float(values[int(np.argmax(rates))]) if len(values) else 0.0


def _stacked(words: Any, head: PlaceHead) -> Tensor:
    found = list(words)
    device = head.bias.device
    return torch.stack(found).clone().to(device) if found else torch.zeros(0, head.sizes.word, device=device)
