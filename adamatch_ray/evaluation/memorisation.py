"""Whether generated X-rays and reports are copies of training studies, which are patients'.

An image is compared with every training image by its pixels and by AdaMatch's patches. Its score is how much nearer its
nearest training image is than the next ones: near 1 for a copy, whatever the data set. The threshold is chosen on real
X-rays of validate and on planted copies, training X-rays as the VQ-GAN gives them back; others are then counted.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from adamatch_ray.data import loading
from adamatch_ray.data.images import BadImage, decode_png
from adamatch_ray.data.predictions import Encoded, load_canvas
from adamatch_ray.engines.embedding import Embedder
from adamatch_ray.evaluation.image_meter import BATCH
from adamatch_ray.evaluation.split import Placed, Split
from adamatch_ray.metrics.verbatim import longest_shared
from adamatch_ray.shards import Progress
from adamatch_ray.storage import Stage

NEIGHBOURS, PLANTED, REPORTS = 50, 256, 500
FOUND, FALSE = 0.99, 0.01
"""A feature flags copies only if it finds so many of the planted ones at so few false alarms."""
_SIDE, _GRID = 32, 4


class CopyRow(NamedTuple):
    """One generated image: how near its nearest training study is by each feature, and whether it is a copy."""

    id: str
    kind: str
    pixels: float
    adamatch: float
    nearest: str
    copy: bool


def score_images(
    studies: Stage, split: Split, validate: Split, made: Mapping[str, Placed[Encoded]], embedder: Embedder,
    through: Callable[[NDArray[np.uint8]], NDArray[np.uint8]], canvas: int,
) -> tuple[dict[str, Any], list[CopyRow]]:  # fmt: skip
    """Copies among the generated images of each kind; `split` and `validate` are real and were not trained on.

    `through` gives canvases [B, S, S] back as the VQ-GAN does.
    """
    columns = ["image", "study_id"]
    first = loading.first_studies(studies, "train", PLANTED, columns)["image"]
    planted = through(np.stack([decode_png(data.as_buffer()) for data in first]))
    ids, generated = _generated(made, canvas)
    parts = {
        "validate": np.stack([decode_png(study.image) for study in validate.studies]),
        "real": np.stack([decode_png(study.image) for study in split.studies]),
        "calibration": planted[::2],
        "planted": planted[1::2],
        "generated": generated,
    }
    counts = np.cumsum([0, *(len(part) for part in parts.values())])
    queries: dict[str, list[Tensor]] = {"pixels": [], "adamatch": []}
    for chunk in _chunks(np.concatenate(list(parts.values()))):
        for name, feature_BD in _features(chunk, embedder).items():
            queries[name].append(feature_BD)
    search = {name: _Nearest(torch.cat(found), counts[1]) for name, found in queries.items()}
    names: list[str] = []
    shards = loading.list_shards(studies, "train")
    progress = Progress("metrics: training images,", sum(shard.rows for shard in shards), "images")
    for table in loading.read_parts(studies, "train", BATCH, columns):
        chunk = np.stack([decode_png(data.as_buffer()) for data in table["image"]])
        for name, feature_BD in _features(chunk, embedder).items():
            search[name].add(feature_BD, len(names))
        names += table["study_id"].to_pylist()
        progress.add(len(chunk))
    scores = {name: np.split(found.scores(), counts[1:-1]) for name, found in search.items()}
    features = {name: _calibrated(dict(zip(parts, own, strict=True))) for name, own in scores.items()}
    trusted = [name for name, own in features.items() if own["trusted"]]
    flags = {name: scores[name][-1] > features[name]["threshold"] for name in features}
    copy = np.any([flags[name] for name in trusted], axis=0) if trusted else np.zeros(len(ids), dtype=bool)
    nearest = search[trusted[0] if trusted else "pixels"].nearest[counts[-2] :]
    rows = [
        CopyRow(
            id, kind, float(scores["pixels"][-1][n]), float(scores["adamatch"][-1][n]), names[nearest[n]], bool(copy[n])
        )
        for n, (kind, id) in enumerate(ids)
    ]
    result = {
        "what": "1 - distance to the nearest training image / mean distance to the next ones; a copy is near 1",
        "train": len(names),
        "features": features,
        "flagged_by": trusted,
        **{kind: _counted([row for row in rows if row.kind == kind]) for kind in made},
    }
    return result, rows


def score_reports(made: Mapping[str, Sequence[str]], train: Sequence[str]) -> dict[str, Any]:
    """Longest spans that generated reports share with any training report, beyond what two of those share.

    For that, some training reports are compared with all the others. A generated report is flagged when it shares
    more than 99 in 100 of them do.
    """
    step = max(2, len(train) // REPORTS)
    own = longest_shared(train[::step], [text for place, text in enumerate(train) if place % step])
    limit = float(np.quantile(own, 0.99, method="higher"))
    result: dict[str, Any] = {
        "what": "words of the longest span that is also in a training report, word for word",
        "train": {**_spans(own, limit), "reports": len(own)},
        "limit": limit,
    }
    for kind, reports in made.items():
        result[kind] = {**_spans(longest_shared(reports, train), limit), "reports": len(reports)}
    return result


def _spans(longest: NDArray[np.int64], limit: float) -> dict[str, float]:
    return {
        "mean": float(longest.mean()) if len(longest) else 0.0,
        "longest": int(longest.max(initial=0)),
        "beyond": int((longest > limit).sum()),
        "share_beyond": float((longest > limit).mean()) if len(longest) else 0.0,
    }


def _counted(rows: Sequence[CopyRow]) -> dict[str, Any]:
    flagged = [row for row in rows if row.copy]
    return {"images": len(rows), "copies": len(flagged), "share": len(flagged) / max(1, len(rows)),
            "flagged": [[row.id, row.nearest] for row in flagged]}  # fmt: skip


def _calibrated(scores: Mapping[str, NDArray[np.float32]]) -> dict[str, Any]:
    """The threshold: between real X-rays and planted copies, or where the two overlap what 1 % of the real exceed."""
    highest, lowest = float(scores["validate"].max()), float(np.quantile(scores["calibration"], 1 - FOUND))
    overlap = lowest <= highest
    threshold = float(np.quantile(scores["validate"], 1 - FALSE)) if overlap else (highest + lowest) / 2
    found, false = float((scores["planted"] > threshold).mean()), float((scores["real"] > threshold).mean())
    return {
        "threshold": threshold,
        "planted": len(scores["planted"]),
        "planted_found": found,
        "real": len(scores["real"]),
        "false_alarms": false,
        "trusted": found >= FOUND and false <= FALSE,
    }


class _Nearest:
    """Cosine distances of queries [Q, D] to their nearest training images, as those stream by.

    Features are centred on the mean of the first `held_out` queries, which are real: what all X-rays have in common
    says nothing.
    """

    def __init__(self, query_QD: Tensor, held_out: int) -> None:
        self.mean_D = query_QD[:held_out].mean(0)
        self.query_QD = F.normalize(query_QD - self.mean_D, dim=-1)
        self.distance_QK = torch.full((len(query_QD), 0), torch.inf)
        self.nearest = np.zeros(len(query_QD), dtype=np.int64)

    def add(self, train_BD: Tensor, start: int) -> None:
        """Training images of numbers from `start` on."""
        distance_QB = 1 - self.query_QD @ F.normalize(train_BD - self.mean_D, dim=-1).T
        best_Q, place_Q = distance_QB.min(1)
        before_Q = self.distance_QK[:, 0] if self.distance_QK.shape[1] else torch.full_like(best_Q, torch.inf)
        self.nearest = np.where((best_Q < before_Q).numpy(), place_Q.numpy() + start, self.nearest)
        both = torch.cat([self.distance_QK, distance_QB], 1)
        self.distance_QK = both.topk(min(NEIGHBOURS, both.shape[1]), largest=False).values

    def scores(self) -> NDArray[np.float32]:
        """1 - nearest / mean of the next ones [Q]."""
        nearest_Q, next_QK = self.distance_QK[:, 0].clamp(min=0), self.distance_QK[:, 1:]
        return np.asarray((1 - nearest_Q / next_QK.mean(1).clamp(min=1e-6)).numpy())


def _features(canvas_BHW: NDArray[np.uint8], embedder: Embedder) -> dict[str, Tensor]:
    """What images are compared by, on the CPU: small pictures [B, 32 * 32], and AdaMatch's patches in 4 x 4 places."""
    pixels = torch.from_numpy(canvas_BHW).float()[:, None]
    heads = []
    for patch_BPD in embedder.images(canvas_BHW).heads:
        side = round(patch_BPD.shape[1] ** 0.5)
        grid_BDHW = patch_BPD.transpose(1, 2).unflatten(2, (side, side))
        heads.append(F.adaptive_avg_pool2d(grid_BDHW, min(_GRID, side)).flatten(1).cpu())
    return {"pixels": F.adaptive_avg_pool2d(pixels, _SIDE).flatten(1), "adamatch": torch.cat(heads, 1)}


def _generated(made: Mapping[str, Placed[Encoded]], canvas: int) -> tuple[list[tuple[str, str]], NDArray[np.uint8]]:
    """(kind, study) of every generated image that can be read, and the images [G, S, S]."""
    ids, canvases = [], [np.zeros((0, canvas, canvas), dtype=np.uint8)]
    for kind, placed in made.items():
        for id, image in placed.values.items():
            try:
                canvases.append(load_canvas(image, canvas)[None])
            except BadImage:
                continue
            ids.append((kind, id))
    return ids, np.concatenate(canvases)


def _chunks(canvas_BHW: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    for start in range(0, len(canvas_BHW), BATCH):
        yield canvas_BHW[start : start + BATCH]
