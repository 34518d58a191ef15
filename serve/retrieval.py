"""An index of one split's studies, searched by X-ray or by report (eqs. 5-6)."""

import base64
from typing import Any

import numpy as np

from adamatch_ray.data.loading import COLUMNS, first_studies, to_batch
from adamatch_ray.engines.embedding import Embedder, embed_batches
from adamatch_ray.geometry import CanvasImage
from adamatch_ray.metrics.retrieval import score_pairs
from adamatch_ray.storage import Stage
from serve.protocol import Hit

_TOGETHER = 64


class Index:
    """Embeddings of studies, the first `limit` of a split in stored order, and the rows that are shown of hits."""

    def __init__(self, embedder: Embedder, stage: Stage, split: str, limit: int) -> None:
        self._studies = first_studies(stage, split, limit, list(COLUMNS))
        starts = range(0, self._studies.num_rows, _TOGETHER)
        found = embed_batches(embedder, (to_batch(self._studies.slice(start, _TOGETHER)) for start in starts))
        self._embedder = embedder
        self._heads = [head.to(embedder.device) for head in found.heads]
        self._words, self._mask = found.word_IND.to(embedder.device), found.mask_IN.to(embedder.device)

    def __len__(self) -> int:
        return int(self._studies.num_rows)

    def search(self, query: CanvasImage | str, count: int) -> list[Hit]:
        """The best studies, best first: by their reports for an X-ray, by their X-rays for a report."""
        if isinstance(query, str):
            text = self._embedder.reports([query])
            scores = score_pairs(self._heads, text.word_BND, text.mask_BN).text_to_image[0]
        else:
            heads = self._embedder.images(query.pixels[None]).heads
            scores = score_pairs(heads, self._words, self._mask).image_to_text[0]
        best = np.argsort(-scores, kind="stable")[:count]
        rows = self._studies.take(best).to_pylist()
        return [self._hit(row, float(score)) for row, score in zip(rows, scores[best], strict=True)]

    @staticmethod
    def _hit(row: dict[str, Any], score: float) -> Hit:
        png = base64.b64encode(row["image"]).decode()
        return Hit(study_id=row["study_id"], score=round(score, 4), report=row["report"], png=png)
