"""A shard of inputs to a shard of generated rows, whole or not at all (docs/method.md 4; the `generate` job)."""

import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from adamatch_ray.data.images import encode_png
from adamatch_ray.engines.cycle import CycleEngine, ImageAnswer, ReportAnswer, as_canvas, row_seed
from adamatch_ray.engines.generation import OK
from adamatch_ray.engines.matching import Keypatch, Keyword
from adamatch_ray.engines.placing import Phrase
from adamatch_ray.geometry import CanvasImage
from adamatch_ray.instructions import CXR_TO_REPORT
from adamatch_ray.model_config import GenerationSettings
from adamatch_ray.pipeline.generation_inputs import Item, Slice, read_items
from adamatch_ray.schema import GENERATION
from adamatch_ray.shards import MadeShard, identity_of, read_footer, write_shard
from adamatch_ray.storage import Root

Row = dict[str, Any]
Answers = tuple[ReportAnswer | ImageAnswer, ...]


@dataclass(frozen=True)
class GenerationShard:
    """The work behind one output file."""

    direction: str
    number: int
    slices: tuple[Slice, ...]

    @property
    def file(self) -> str:
        """Name of the file within the stage."""
        return f"{self.direction}/{self.number:05d}.parquet"

    @property
    def rows(self) -> int:
        """Number of its rows."""
        return sum(part.stop - part.start for part in self.slices)


class ShardGenerator:
    """Writes shards of `generations/` with the models of a root.

    A shard depends on its inputs, the models and the settings alone, not on who makes it, when, or beside what. Its
    footer names them, so one that is there is not made again, and one of other models or settings is replaced.
    `versions` are the fingerprints of the stages behind it.
    """

    def __init__(
        self,
        root: str,
        device: str,
        settings: GenerationSettings,
        *,
        cycle: bool,
        seed: int,
        versions: Mapping[str, str],
    ) -> None:
        self.root = Root(root)
        self.stage = self.root.stage("generations")
        self.device, self.settings, self.cycle, self.seed = device, settings, cycle, seed
        self.versions = dict(versions)

    @cached_property
    def engine(self) -> CycleEngine:
        """Loaded with the first shard that is missing."""
        return CycleEngine.load(self.root, self.device, self.settings)

    def make(self, shard: GenerationShard) -> MadeShard:
        """Make a shard, unless it is there; `counts` are its rows by the first word of their status."""
        identity = self._identity(shard)
        if footer := read_footer(self.stage, shard.file, identity):
            statuses = _count(self.stage.read_table(shard.file, ["status"])["status"].to_pylist())
            return MadeShard(shard.file, footer[0], reused=True, counts=statuses)
        engine, began = self.engine, time.monotonic()
        items = read_items(self.root, shard.slices, shard.direction, engine.canvas)
        rows = generate_rows(engine, shard.direction, items, self.seed, self.cycle)
        # Nothing of the hour or the machine is written, so that the same rows are the same bytes.
        schema = GENERATION.with_metadata({"versions": json.dumps(self.versions, sort_keys=True)})
        write_shard(self.stage, shard.file, pa.Table.from_pylist(rows, schema=schema), identity)
        statuses = _count(row["status"] for row in rows)
        seconds = time.monotonic() - began
        return MadeShard(shard.file, len(rows), reused=False, counts=statuses, seconds=seconds)

    def _identity(self, shard: GenerationShard) -> str:
        return identity_of(json.dumps(asdict(shard)), self.versions, self.settings.deciding(), self.cycle, self.seed)


def _count(statuses: Iterable[str]) -> dict[str, int]:
    """How often each first word of a status comes."""
    return dict(sorted(Counter(status.partition(":")[0] for status in statuses).items()))


def generate_rows(engine: CycleEngine, direction: str, items: Sequence[Item], seed: int, cycle: bool) -> list[Row]:
    """Rows of `schema.GENERATION`, one an item, in order; an item with a problem keeps its place."""
    seeds = [row_seed(seed, item.study_id, direction) for item in items]
    good = [index for index, item in enumerate(items) if not item.problem]
    given: list[Any] = [items[index].given for index in good]
    own_seeds = [seeds[index] for index in good]
    answers: Sequence[Answers]
    if direction == CXR_TO_REPORT:
        answers = engine.image_cycle(given, own_seeds) if cycle else [(a,) for a in engine.reports(given, own_seeds)]
    else:
        answers = engine.report_cycle(given, own_seeds) if cycle else [(a,) for a in engine.images(given, own_seeds)]
    made: dict[int, Answers] = dict(zip(good, answers, strict=True))
    seen = dict(zip(made, _phrases(engine, given, answers), strict=True))
    rows = []
    for index, item in enumerate(items):
        row: Row = dict.fromkeys(GENERATION.names)
        row |= {"study_id": item.study_id, "dicom_id": item.dicom_id, "direction": direction, "seed": seeds[index]}
        answered = {**_columns(made[index]), "phrases": seen[index]} if index in made else None
        rows.append(row | (answered or {"status": f"error: {item.problem}"}))
    return rows


def _phrases(engine: CycleEngine, given: Sequence[Any], answers: Sequence[Answers]) -> list[list[Row] | None]:
    """What the report of each first half names and where its X-ray shows it; None where either is missing."""
    pairs: dict[int, tuple[CanvasImage, str]] = {}
    for n, (one, (first, *_)) in enumerate(zip(given, answers, strict=True)):
        if isinstance(first, ReportAnswer) and not first.status.startswith("error"):
            pairs[n] = one, first.report
        elif isinstance(first, ImageAnswer) and first.image is not None:
            pairs[n] = as_canvas(first.image), one
    rows = {
        n: [_phrase(phrase, image) for phrase in phrases]
        for (n, (image, _)), phrases in zip(pairs.items(), engine.phrases(list(pairs.values())), strict=True)
    }
    return [rows.get(n) for n in range(len(answers))]


def _phrase(phrase: Phrase, image: CanvasImage) -> Row:
    row: Row = {name: getattr(phrase, name) for name in ("finding", "text", "denied", "groundable", "confidence")}
    if phrase.region is not None:
        names = ("x", "y", "x0", "y0", "x1", "y1")
        row |= dict(zip(names, (*phrase.region.point, *phrase.region.box), strict=True))
        rings = phrase.region.outline(image.height, image.width)
        row["outline"] = [[value for point in ring for value in point] for ring in rings]
    return row


def _columns(answers: Answers) -> Row:
    """What one answer, or the two of a cycle, say of a row."""
    row: Row = {"status": _joint_status([answer.status for answer in answers])}
    for answer, prefix in zip(answers, ("", "cycle_"), strict=False):
        failed = answer.status.startswith("error")
        if isinstance(answer, ReportAnswer):
            row["keywords"] = [_struct(keyword) for keyword in answer.keywords]
            row[f"{prefix}report"] = None if failed else answer.report
        else:
            row["keypatches"] = [_struct(keypatch) for keypatch in answer.keypatches]
            row[f"{prefix}image"] = None if answer.image is None else encode_png(answer.image)
            row[f"{prefix}image_tokens"] = None if failed else answer.image_tokens
    return row


def _joint_status(statuses: Sequence[str]) -> str:
    """The gravest status of a row, the earlier one of two alike."""
    first, *rest = statuses
    if not rest or rest[0] == OK or first.startswith("error"):
        return first
    kind, _, reason = rest[0].partition(": ")
    if kind == "truncated" and first != OK:
        return first
    return f"{kind}: in the second half, {reason}"


def _struct(hint: Keyword | Keypatch) -> Row:
    values = hint._asdict()
    corners = dict(zip(("x0", "y0", "x1", "y1"), values.pop("box"), strict=True))
    values.pop("patch", None)
    return {**values, **corners}
