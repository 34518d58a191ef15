"""Shards to instruction records: studies, image tokens and hints joined as they are read (docs/method.md 4).

Every study gives one record in each direction; the records of a window are shuffled together. Wordings change with the
epoch. A record that does not fit the context is an empty row, to be counted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from adamatch_ray.data import loading
from adamatch_ray.engines.keypatch_tokens import KeypatchTokens
from adamatch_ray.instructions import (
    CXR_TO_REPORT,
    REPORT_TO_CXR,
    Example,
    InstructionBuilder,
    Overlength,
    in_order_told,
    spell_keywords,
)
from adamatch_ray.model_config import InstructionConfig
from adamatch_ray.models.llm_loss import IGNORE
from adamatch_ray.models.llm_tokens import TokenLayout
from adamatch_ray.storage import Root

DIRECTIONS = (CXR_TO_REPORT, REPORT_TO_CXR)

RECORD = pa.schema(
    [
        ("study_id", pa.string()),
        ("direction", pa.string()),
        ("input_ids", pa.list_(pa.int32())),
        ("response_start", pa.int32()),
    ]
)
"""One record as it travels to a training worker; `input_ids` is empty where it is longer than the context."""


class _Hint(NamedTuple):
    text: str
    probability: float
    place: str


class RecordReader(loading.WindowReader):
    """Reads a window of studies as shuffled records. The Ray Data actor, usable without Ray as well."""

    def __init__(self, root: str, layout: TokenLayout, instructions: InstructionConfig) -> None:
        stages = Root(root)
        super().__init__(root)
        self.tokens, self.hints = stages.stage("tokens"), stages.stage("llm")
        self.builder = InstructionBuilder(load_tokenizer(stages), layout, instructions)
        self.keypatches = KeypatchTokens.load(stages.stage("tokens")) if instructions.keypatches else KeypatchTokens([])

    def read(self, window: loading.Window) -> Any:
        """The records of a window in their shuffled order, a table of `RECORD`."""
        studies = pa.concat_tables([self._studies(path) for path in window.paths]).to_pylist()
        epoch = window.seed[1]
        numbers = window.order(len(DIRECTIONS) * len(studies))
        return _to_table([self._lesson(studies[n // 2], n % 2, epoch) for n in numbers])

    def records(self, path: str, rank: int, world: int) -> list[Example | Overlength]:
        """This worker's share of a shard's records, in stored order and the first epoch's wording."""
        studies = self._studies(path).to_pylist()[rank::world]
        return [self._record(study, direction) for study in studies for direction in DIRECTIONS]

    def _studies(self, path: str) -> pa.Table:
        name = path.removeprefix(f"{self.studies.path}/")
        key = ["study_id", "dicom_id"]
        parts = [
            stage.read_table(file, [*key, *columns])
            for stage, file, columns in (
                (self.studies, name, ["report"]),
                (self.tokens, name, ["tokens"]),
                (self.hints, f"hints/{name}", ["keywords", "keypatches"]),
            )
        ]
        joined = parts[0]
        for part in parts[1:]:
            if not part.select(key).equals(parts[0].select(key)):
                raise ValueError(f"{name} has other studies in tokens/ or llm/ than in studies/: make both again")
            for column in part.column_names[2:]:
                joined = joined.append_column(column, part[column])
        return joined

    def _lesson(self, study: dict[str, Any], half: int, epoch: int) -> Example | Overlength:
        """One of the two records of a study in an epoch: both are reports from hints in the first ones."""
        name, report, codes = study["study_id"], study["report"], study["tokens"]
        if epoch < self.builder.config.hints_first:
            return self.builder.report_example(name, 2 * epoch + half, None, self._taught(study), report)
        if DIRECTIONS[half] == CXR_TO_REPORT:
            return self.builder.report_lesson(name, epoch, codes, self._taught(study), report)
        return self.builder.image_lesson(name, epoch, report, self._keypatches(study), codes)

    def _record(self, study: dict[str, Any], direction: str) -> Example | Overlength:
        name, report, codes = study["study_id"], study["report"], study["tokens"]
        if direction == CXR_TO_REPORT:
            return self.builder.report_example(name, 0, codes, self._keywords(study), report)
        return self.builder.image_example(name, 0, report, self._keypatches(study), codes)

    def _keywords(self, study: dict[str, Any]) -> list[str]:
        return spell_keywords(self._hints(study), self.builder.config)

    def _taught(self, study: dict[str, Any]) -> list[str]:
        """Keywords in the order that training lists them in."""
        hints, config = self._hints(study), self.builder.config
        return spell_keywords(
            in_order_told(hints, study["report"]) if config.keyword_order == "told" else hints, config
        )

    def _hints(self, study: dict[str, Any]) -> list["_Hint"]:
        return [_Hint(**hint) for hint in study["keywords"][: self.builder.config.keywords]]

    def _keypatches(self, study: dict[str, Any]) -> NDArray[np.uint16]:
        return self.keypatches.codes(study["keypatches"][: self.builder.config.keypatches])


def record_shards(stages: Root, split: str) -> list[loading.ShardFile]:
    """The shards of a split, counted in records."""
    shards = loading.list_shards(stages.stage("studies"), split)
    return [replace(shard, rows=len(DIRECTIONS) * shard.rows) for shard in shards]


def to_examples(batch: loading.Batch) -> list[Example]:
    """The records of a batch from Ray Data; those that were too long are missing."""
    columns = (batch[name] for name in RECORD.names)
    return [
        Example(str(study), str(direction), np.asarray(ids, np.int32), _labels(ids, int(start)), int(start))
        for study, direction, ids, start in zip(*columns, strict=True)
        if len(ids)
    ]


def load_tokenizer(stages: Root) -> PreTrainedTokenizerBase:
    """The tokenizer that the driver laid down for all workers."""
    with stages.stage("llm").local("tokenizer") as folder:
        return AutoTokenizer.from_pretrained(str(folder))


def chunks(records: Sequence[Any], size: int, count: int) -> Iterator[Sequence[Any]]:
    """Exactly `count` pieces of at most `size` records; the last ones may be empty."""
    for start in range(0, size * count, size):
        yield records[start : start + size]


def _labels(ids: np.ndarray, start: int) -> np.ndarray:
    labels = np.array(ids, np.int32)
    labels[:start] = IGNORE
    return labels


def _to_table(records: Sequence[Example | Overlength]) -> pa.Table:
    ids: list[Any] = [record.input_ids if isinstance(record, Example) else [] for record in records]
    starts = [record.response_start if isinstance(record, Example) else 0 for record in records]
    names, directions = ([getattr(record, name) for record in records] for name in ("study_id", "direction"))
    columns = [pa.array(values, kind) for values, kind in
               zip((names, directions, ids, starts), RECORD.types, strict=True)]  # fmt: skip
    return pa.Table.from_arrays(columns, schema=RECORD)
