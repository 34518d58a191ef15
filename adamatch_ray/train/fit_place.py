"""Training of the place head on a frozen AdaMatch, by the words of reports alone (the `train_place` job)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from adamatch_ray.data import loading
from adamatch_ray.data.images import decode_png
from adamatch_ray.engines.embedding import whole_words
from adamatch_ray.engines.loader import load_embedder
from adamatch_ray.engines.phrases import PhraseFinder, finding_words, same_finding
from adamatch_ray.losses.placing import place_loss
from adamatch_ray.metrics.localization import roc_auc
from adamatch_ray.models import place_head
from adamatch_ray.models.place_head import STAGES, PlaceHead, PlaceSizes
from adamatch_ray.storage import Root
from adamatch_ray.train.distributed import Worker
from adamatch_ray.train.fitter import ModelFitter
from adamatch_ray.train.loop import TrainSettings

Findings = Mapping[str, Tensor]
"""The findings that a report does not deny, each as one unit vector."""


class PlaceFitter(ModelFitter):
    """Fits the head beside the frozen AdaMatch. It reads images and reports, and never a box."""

    model: PlaceHead

    def __init__(self, settings: TrainSettings, worker: Worker) -> None:
        self.root, self.place, self.finder = Root(settings.root), settings.config.place, PhraseFinder()
        self.embedder = load_embedder(self.root, str(worker.device))
        sizes = self.embedder.model.sizes
        torch.manual_seed(settings.train.seed)
        wanted = PlaceSizes.of(sizes.image, sizes.adamatch.dim, self.place.width, self.place.dim)
        super().__init__(settings, worker, PlaceHead(wanted))

    def loss(self, batch: loading.Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        own = self._findings(list(batch["report"]))
        look = self.embedder.look(batch["image"], stages=STAGES)
        # Tensors of inference mode cannot be kept for a backward pass; copies can.
        stages = [stage._replace(tokens_BPC=stage.tokens_BPC.clone()) for stage in look.stages]
        feature_BDGG = self.wrapped(look.input_BCHW.clone(), stages)
        others = [self._stacked(lacking(own, b, self.place.negatives, generator)) for b in range(len(own))]
        named = [self._stacked(list(findings.values())) for findings in own]
        result = place_loss(self.model, feature_BDGG, named, others)
        return result.loss, {"accuracy": result.accuracy}

    def scores(self) -> dict[str, float]:
        """How well evidence tells findings of validate in their own images from as many in images that lack them.

        Also chooses the evidence from which a finding counts as shown, and keeps it in the head.
        """
        shown: list[float] = []
        lacks: list[float] = []
        generator, size = torch.Generator().manual_seed(0), self.settings.config.evaluate.batch_size
        for part in loading.read_parts(self.root.stage("studies"), "validate", size, ["image", "report"]):
            rows = part.to_pylist()
            own = self._findings([row["report"] for row in rows])
            look = self.embedder.look(np.stack([decode_png(row["image"]) for row in rows]), stages=STAGES)
            for b, feature_DGG in enumerate(self.model(look.input_BCHW, look.stages)):
                others = lacking(own, b, len(own[b]), generator)
                for values, words in ((shown, list(own[b].values())), (lacks, others)):
                    logits = self.model.logits(feature_DGG, self._stacked(words))
                    values += place_head.evidence(logits.float()).tolist()
        cut = best_cut(shown, lacks)
        self.model.shown_from.fill_(cut)
        return {"auc": roc_auc(shown, lacks), "shown_from": cut}

    def save_model(self, folder: Path) -> None:
        place_head.save(self.model, folder)

    @torch.inference_mode()
    def _findings(self, reports: list[str]) -> list[Findings]:
        spans, texts = self.embedder.words(reports), self.embedder.reports(reports)
        return [
            finding_words(self.finder.find(report, words), whole_words(texts.word_BND[b], words))
            for b, (report, words) in enumerate(zip(reports, spans, strict=True))
        ]

    def _stacked(self, words: Sequence[Tensor]) -> Tensor:
        empty = torch.zeros(0, self.model.sizes.word, device=self.worker.device)
        return torch.stack(list(words)).clone() if words else empty


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


def best_cut(shown: Sequence[float], lacks: Sequence[float]) -> float:
    """The value from which on most of `shown` and fewest of `lacks` lie: the greatest sum of both rates."""
    values = np.sort(np.array([*shown, *lacks]))
    rates = [np.mean(np.array(shown) >= value) + np.mean(np.array(lacks) < value) for value in values]
    return float(values[int(np.argmax(rates))]) if len(values) else 0.0
