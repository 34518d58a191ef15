"""The textual and the visual codebook: what AdaMatch explains itself with (docs/method.md 2, paper 3.2.1 and 3.2.2).

Both are made from the train split alone and belong to the AdaMatch that encoded them. Features are normalised rows
[K, D], so one matrix product with normalised patches or words gives cosine similarities.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor

from adamatch_ray.model_config import InstructionConfig
from adamatch_ray.schema import KEYPATCH
from adamatch_ray.storage import Stage

GROUPS = ("Biological_structure", "Detailed_description", "Disease_disorder", "Sign_symptom")
"""Kinds of entities that become keywords, as `d4data/biomedical-ner-all` names them."""

FINDING_GROUPS = ("Disease_disorder", "Sign_symptom")
"""Groups whose entities are findings."""

KEYPATCH_LIGHT = pa.schema([column for column in KEYPATCH if column.name not in ("feature", "crop")])
"""The small columns of a keypatch."""


def keyword_groups(config: InstructionConfig) -> tuple[str, ...]:
    """The groups that a prompt's keywords are taken from."""
    return FINDING_GROUPS if config.keyword_groups == "findings" else GROUPS


class Entity(NamedTuple):
    """A keyword, its group, and the number of train reports it is found in."""

    text: str
    group: str
    count: int  # type: ignore[assignment]  # nobody asks how often a value is in the tuple


@dataclass(frozen=True, eq=False)
class TextualCodebook:
    """Keywords with their features [K, D]; `model` is the fingerprint of the AdaMatch stage that encoded them.

    `logistic_K2`: slope and offset with which a similarity becomes the probability that a report states the keyword,
    as `fit_logistic` found them on the validate split; None in a codebook of an earlier version.
    """

    entities: tuple[Entity, ...]
    feature_KD: Tensor
    model: str
    provenance: Mapping[str, Any] = field(default_factory=dict)
    logistic_K2: Tensor | None = None

    def __post_init__(self) -> None:
        _check(len(self.entities), self.feature_KD)
        assert self.logistic_K2 is None or self.logistic_K2.shape == (len(self.entities), 2)

    def probability(self, similarity_K: Tensor) -> Tensor:
        """Probability of each keyword at its similarity; NaN where the codebook does not know."""
        if self.logistic_K2 is None:
            return torch.full_like(similarity_K, torch.nan)
        slope_K, offset_K = self.logistic_K2.to(similarity_K.device).unbind(-1)
        return (slope_K * similarity_K + offset_K).sigmoid()

    def __len__(self) -> int:
        return len(self.entities)

    def save(self, stage: Stage) -> None:
        """Write `textual.json` and `textual.safetensors` into the stage."""
        content = {"model": self.model, **self.provenance, "entities": [entity._asdict() for entity in self.entities]}
        stage.write_bytes("textual.json", (json.dumps(content, indent=1) + "\n").encode())
        tensors = {"feature_KD": self.feature_KD.float().contiguous()}
        if self.logistic_K2 is not None:
            tensors["logistic_K2"] = self.logistic_K2.float().contiguous()
        stage.write_bytes("textual.safetensors", save(tensors))

    @classmethod
    def load(cls, stage: Stage) -> "TextualCodebook":
        """The codebook of a finished stage. Raises ValueError naming the job while it is not."""
        stage.require()
        content = json.loads(stage.read_bytes("textual.json"))
        entities, model = tuple(Entity(**entity) for entity in content.pop("entities")), content.pop("model")
        tensors = load(stage.read_bytes("textual.safetensors"))
        return cls(entities, tensors["feature_KD"], model, content, tensors.get("logistic_K2"))

    def require(self, model: str, dim: int) -> None:
        """Raises ValueError, naming both, where the codebook is not of that AdaMatch stage or joint dimension."""
        _require("textual", self.model, self.feature_KD, model, dim)


@dataclass(frozen=True, eq=False)
class VisualCodebook:
    """Keypatches: rows of KEYPATCH (features apart, crops only where they were asked for) and features [K, D]."""

    table: pa.Table
    feature_KD: Tensor
    model: str

    def __post_init__(self) -> None:
        _check(self.table.num_rows, self.feature_KD)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def save(self, stage: Stage) -> None:
        """Write `visual.parquet` into the stage. The table must hold the crops."""
        count, dim = self.feature_KD.shape
        flat = pa.array(self.feature_KD.float().contiguous().view(-1).numpy())
        offsets = pa.array(range(0, count * dim + 1, dim), pa.int32())
        table = self.table.append_column("feature", pa.ListArray.from_arrays(offsets, flat)).select(KEYPATCH.names)
        footer = KEYPATCH.with_metadata({"model": self.model, "dim": str(dim)})
        stage.write_table("visual.parquet", table.cast(footer))

    @classmethod
    def load(cls, stage: Stage, crops: bool = False) -> "VisualCodebook":
        """The codebook of a finished stage. Raises ValueError naming the job while it is not."""
        stage.require()
        table = stage.read_table("visual.parquet", [name for name in KEYPATCH.names if crops or name != "crop"])
        return cls.of(table, int(table.schema.metadata[b"dim"]), table.schema.metadata[b"model"].decode())

    @classmethod
    def of(cls, table: pa.Table, dim: int, model: str) -> "VisualCodebook":
        """A codebook of KEYPATCH rows, crops or not, in their order."""
        flat = table["feature"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        feature_KD = torch.tensor(flat, dtype=torch.float32).view(table.num_rows, dim)
        return cls(table.drop_columns("feature").replace_schema_metadata(), feature_KD, model)

    def require(self, model: str, dim: int) -> None:
        """Raises ValueError, naming both, where the codebook is not of that AdaMatch stage or joint dimension."""
        _require("visual", self.model, self.feature_KD, model, dim)


def rank_entities(counts: Mapping[tuple[str, str], int], per_group: int, min_count: int = 1) -> tuple[Entity, ...]:
    """The `per_group` most frequent entities of each group, by falling count, then by text.

    `counts` says of (text, group) in how many reports it is found. A text found in several groups belongs to the one
    it is found in most often, the first of GROUPS among equals, with that group's count.
    """
    best: dict[str, Entity] = {}
    for group in GROUPS:
        for (text, named), count in counts.items():
            if named == group and (text not in best or count > best[text].count):
                best[text] = Entity(text, group, count)
    ranked = sorted((e for e in best.values() if e.count >= min_count), key=lambda e: (-e.count, e.text))
    return tuple(entity for group in GROUPS for entity in [e for e in ranked if e.group == group][:per_group])


def fit_logistic(similarity_IK: NDArray[np.floating], stated_IK: NDArray[np.bool_]) -> Tensor:
    """Slope and offset [K, 2] of the logistic regression of each keyword being stated on its similarity, I images.

    A weak pull of the slope to that of a keyword that is told by a tenth of similarity keeps rare keywords sane, and a
    keyword is never made less probable by more similarity.
    """
    from scipy.optimize import minimize

    def fit(similarity_I: NDArray[np.floating], stated_I: NDArray[np.bool_]) -> tuple[float, float]:
        centre = float(similarity_I.mean())
        x_I, y_I = (similarity_I - centre) * 10, stated_I.astype(float)

        def loss(p: NDArray[np.floating]) -> float:
            z_I = p[0] * x_I + p[1]
            return float(np.logaddexp(0, z_I).sum() - (y_I * z_I).sum() + 0.01 * ((p[0] - 1) ** 2 + p[1] ** 2))

        slope, offset = minimize(loss, np.array([1.0, -1.0]), method="L-BFGS-B", bounds=[(0, None), (None, None)]).x
        return 10 * float(slope), float(offset) - 10 * float(slope) * centre

    rows = [fit(s_I, y_I) for s_I, y_I in zip(similarity_IK.T, stated_IK.T, strict=True)]
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 2)


def rank_keypatches(table: pa.Table, count: int, per_word: int) -> pa.Table:
    """The `count` most similar keypatches with at most `per_word` of each word, in the order of a codebook.

    Ranking parts of a table and then what is left of them gives the same rows as ranking the whole.
    """
    order = [("similarity", "descending"), *((name, "ascending") for name in ("word", "study_id", "dicom_id", "patch"))]
    table = table.sort_by(order)
    seen: Counter[str] = Counter()
    kept: list[int] = []
    for row, word in enumerate(table["word"].to_pylist()):
        if len(kept) == count:
            break
        if seen[word] < per_word:
            kept.append(row)
            seen[word] += 1
    return table.take(pa.array(kept, pa.int64()))


def _check(count: int, feature_KD: Tensor) -> None:
    assert feature_KD.ndim == 2 and feature_KD.shape[0] == count, (count, feature_KD.shape)


def _require(name: str, made_by: str, feature_KD: Tensor, model: str, dim: int) -> None:
    if made_by != model:
        raise ValueError(
            f"the {name} codebook was made by AdaMatch {made_by}, not by {model}; "
            "run: python jobs/build_codebooks.py --overwrite"
        )
    if feature_KD.shape[1] != dim:
        raise ValueError(
            f"the {name} codebook has features of {feature_KD.shape[1]} dimensions, AdaMatch {model} has {dim}; "
            "run: python jobs/build_codebooks.py --overwrite"
        )
