"""AdaMatch's hints for the language model, a shard of studies at a time, whole or not at all (docs/method.md 2)."""

from collections.abc import Sequence
from functools import partial

import pyarrow as pa

from adamatch_ray.cluster import device_of
from adamatch_ray.codebooks import GROUPS, keyword_groups
from adamatch_ray.data.images import decode_png
from adamatch_ray.engines.matching import MatchingEngine
from adamatch_ray.geometry import CanvasImage
from adamatch_ray.schema import HINTS
from adamatch_ray.shards import MadeShard, identity_of, make_shard, spread
from adamatch_ray.stage import StageRun
from adamatch_ray.storage import Root

KEYWORDS, KEYPATCHES = 15, 5
"""Hints kept of a study, unless a prompt takes more; it may take fewer."""

SPARE = 8
"""Asked-for keypatches for each that is kept: a train study's own patches are in the visual codebook, and dropped."""

SPLITS = ("train", "validate")
"""Splits that the language model is tuned or selected on."""

_COLUMNS = ["study_id", "dicom_id", "report", "image", "height", "width"]


class HintCache:
    """Writes `llm/hints/` shards from `studies/` shards of the same names.

    A keypatch never comes from the study it is a hint for: at generation time it could not either. A shard's footer
    names what it was made from, so one that is there is not made again, and a stale one is replaced.
    """

    def __init__(
        self,
        root: str,
        device: str = "cpu",
        batch_size: int = 32,
        *,
        keywords: int = KEYWORDS,
        keypatches: int = KEYPATCHES,
        keypatch_sides: bool = False,
        groups: Sequence[str] = GROUPS,
        least: float = 0.0,
    ) -> None:
        """Raises ValueError while `studies/`, `adamatch/` or `codebooks/` is unfinished."""
        stages = Root(root)
        self.studies, self.target = stages.stage("studies"), stages.stage("llm")
        parents = [stages.stage(name).require().fingerprint for name in ("studies", "adamatch", "codebooks")]
        self.keywords, self.keypatches = max(keywords, KEYWORDS), max(keypatches, KEYPATCHES)
        self.groups, self.least, self.keypatch_sides = tuple(groups), least, keypatch_sides
        self.maker = [*parents, self.keywords, self.keypatches, SPARE, self.groups, least]
        self.maker += ["sided"] if keypatch_sides else []  # else known as before there was this setting
        self.engine = MatchingEngine.load(stages, device)
        self.batch_size = batch_size

    def make(self, file: str) -> MadeShard:
        """Make the hints of one studies shard, unless they are there."""
        return make_shard(self.target, f"hints/{file}", identity_of(self.maker, file), lambda: self._table(file))

    def _table(self, file: str) -> pa.Table:
        batches = self.studies.read_table(file, _COLUMNS).to_batches(max_chunksize=self.batch_size)
        return pa.Table.from_batches([self._hints(part) for part in batches], schema=HINTS)

    def _hints(self, studies: pa.RecordBatch) -> pa.RecordBatch:
        rows = studies.to_pylist()
        images = [CanvasImage(decode_png(row["image"]), row["height"], row["width"]) for row in rows]
        keywords = self.engine.keywords(images, self.keywords, self.groups, self.least)
        reports = [row["report"] for row in rows]
        likenesses = self.engine.keypatches(reports, self.keypatches * SPARE, self.keypatch_sides)
        entries = [
            [keypatch.entry for keypatch in own if keypatch.study_id != row["study_id"]][: self.keypatches]
            for row, own in zip(rows, likenesses, strict=True)
        ]
        texts = [[{"text": k.text, "probability": k.probability, "place": k.place} for k in own] for own in keywords]
        ids = [studies.column(name) for name in ("study_id", "dicom_id")]
        hints = [pa.array(values, HINTS.field(name).type) for name, values in
                 (("keywords", texts), ("keypatches", entries))]  # fmt: skip
        return pa.RecordBatch.from_arrays([*ids, *hints], schema=HINTS)


def make_hints(run: StageRun) -> dict[str, int]:
    """Make the missing hint shards of all studies that are tuned or selected on; rows by file within the stage."""
    studies = run.root.stage("studies").require()
    wanted = {name: rows for name, rows in sorted(studies.files.items()) if rows and name.startswith(SPLITS)}
    config, prompt = run.config, run.config.llm.instructions
    maker = partial(
        HintCache,
        run.root.uri,
        device_of(config.scale),
        config.evaluate.batch_size,
        keywords=prompt.keywords,
        keypatches=prompt.keypatches,
        keypatch_sides=prompt.keypatch_sides,
        groups=keyword_groups(prompt),
        least=prompt.least_probability,
    )
    files = {shard.file: shard.rows for shard in spread(list(wanted), maker, config.scale, "llm hints")}
    expected = {f"hints/{name}": rows for name, rows in wanted.items()}
    assert files == expected, "hints have other rows than the studies"
    return expected
