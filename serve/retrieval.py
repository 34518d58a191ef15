"""An index of one split's studies, searched by X-ray or by report (eqs. 5-6)."""

import base64
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adamatch_ray.data.images import decode_png
from adamatch_ray.data.loading import read_split
from adamatch_ray.engines.embedding import Embedder
from adamatch_ray.geometry import CanvasImage
from adamatch_ray.metrics.retrieval import score_pairs
from adamatch_ray.storage import Stage
from serve.protocol import Hit

_TOGETHER = 64


class Study(NamedTuple):
    """What is shown of a hit."""

    study_id: str
    report: str
    png: bytes


class Index:
    """Embeddings of studies: heads [I, P, D] each, words [I, N, D] with their mask [I, N]."""

    def __init__(
        self, embedder: Embedder, studies: list[Study], heads: list[Tensor], words: Tensor, mask: Tensor
    ) -> None:
        self._embedder, self._studies = embedder, studies
        self._heads, self._words, self._mask = heads, words, mask

    def __len__(self) -> int:
        return len(self._studies)

    @classmethod
    def build(cls, embedder: Embedder, stage: Stage, split: str, limit: int) -> "Index":
        """Embed the first `limit` studies of a split, in stored order."""
        rows = (row for table in read_split(stage, split, ["study_id", "report", "image"]) for row in table.to_pylist())
        studies = [Study(row["study_id"], row["report"], row["image"]) for row in islice(rows, limit)]
        heads, words, masks = [], [], []
        for start in range(0, len(studies), _TOGETHER):
            part = studies[start : start + _TOGETHER]
            heads.append(embedder.images(np.stack([decode_png(study.png) for study in part])).heads)
            text = embedder.reports([study.report for study in part])
            words.append(text.word_BND)
            masks.append(text.mask_BN)
        longest = max(mask.shape[1] for mask in masks)
        return cls(
            embedder,
            studies,
            [torch.cat(parts) for parts in zip(*heads, strict=True)],
            torch.cat([F.pad(word, (0, 0, 0, longest - word.shape[1])) for word in words]),
            torch.cat([F.pad(mask, (0, longest - mask.shape[1])) for mask in masks]),
        )

    def search(self, query: CanvasImage | str, count: int) -> list[Hit]:
        """The best studies, best first: by their reports for an X-ray, by their X-rays for a report."""
        if isinstance(query, str):
            text = self._embedder.reports([query])
            scores = score_pairs(self._heads, text.word_BND, text.mask_BN).text_to_image[0]
        else:
            heads = self._embedder.images(query.pixels[None]).heads
            scores = score_pairs(heads, self._words, self._mask).image_to_text[0]
        best = np.argsort(-scores, kind="stable")[:count]
        return [self._hit(self._studies[i], float(scores[i])) for i in best]

    @staticmethod
    def _hit(study: Study, score: float) -> Hit:
        png = base64.b64encode(study.png).decode()
        return Hit(study_id=study.study_id, score=round(score, 4), report=study.report, png=png)
