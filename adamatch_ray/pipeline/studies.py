"""Raw studies to `studies/` shards: list, open, decode once, write (docs/method.md 7; the `prepare_data` job).

The driver lists the source rows, orders them by a hash of (seed, id) and cuts each split into shards. One Ray task
makes one shard from its rows and nothing else, so the bytes of a shard do not depend on how many tasks run at once,
and a shard that is already there (its footer names the same rows) is not made again.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from adamatch_ray.config import DataConfig
from adamatch_ray.data import images, phantom, reports, sources, tables, views
from adamatch_ray.data.labeler import ReportLabeler, RuleLabeler
from adamatch_ray.data.manifest import ManifestColumns, list_manifest
from adamatch_ray.data.mimic_cxr import check_mimic_cxr, list_mimic_cxr
from adamatch_ray.data.openi import list_openi
from adamatch_ray.schema import QUARANTINE, SPLITS, STUDY
from adamatch_ray.shards import MadeShard, read_footer, write_shard
from adamatch_ray.storage import Root, Stage

Row = dict[str, Any]

PHANTOM_HELD_OUT = 256
"""Phantoms drawn for validate, and again for test, besides those for train."""


UNLABELLED = "labels unknown"
"""Accepted studies of which no label is known: their reports have no word that the labeler knows, or it is off."""


@dataclass(frozen=True)
class Shard:
    """The work of one task: source rows of one split, as JSON lines, and the file they become."""

    split: str
    number: int
    rows: str

    @property
    def file(self) -> str:
        """Name of the shard within the stage."""
        return f"{self.split}/part-{self.number:05d}.parquet"

    @property
    def quarantine(self) -> str:
        """Name of the file of this shard's rejected rows."""
        return f"quarantine/{self.split}-{self.number:05d}.parquet"


def list_rows(config: DataConfig) -> Iterator[Row]:
    """Every row of the source, in the source's own order, with a split. Raises ValueError naming what is missing."""
    for row in _SOURCES[config.source](config):
        if config.views == "all" and views.is_view_problem(row["reason"]):
            row = {**row, "reason": ""}
        if not row["reason"] and row["split"] not in SPLITS:
            row = {**row, "split": sources.subject_split(row["subject_id"], config.seed)}
        yield row


def plan(rows: Iterable[Row], config: DataConfig) -> tuple[list[Shard], list[Row]]:
    """Shards of usable rows in the order of a seeded hash, and the rows rejected by their listing alone.

    Raises ValueError for an empty source.
    """
    usable: dict[str, list[tuple[str, Row]]] = {split: [] for split in SPLITS}
    rejected: list[Row] = []
    for row in rows:
        if row["reason"]:
            rejected.append(row)
        else:
            key = hashlib.sha256(f"{config.seed}|{row['dicom_id']}".encode()).hexdigest()
            usable[row["split"]].append((key, row))
    if not rejected and not any(usable.values()):
        raise ValueError(f"no studies in {config.path or config.source}; is --data.path the folder or table meant?")
    shards = []
    for split, pairs in usable.items():
        pairs.sort(key=lambda pair: (pair[0], pair[1]["dicom_id"]))
        for number, start in enumerate(range(0, len(pairs), config.rows_per_shard)):
            chunk = [row for _, row in pairs[start : start + config.rows_per_shard]]
            shards.append(Shard(split, number, "\n".join(json.dumps(row, sort_keys=True) for row in chunk)))
    return shards, rejected


class StudyShards:
    """Writes `studies/` shards and the quarantine of each; the actors' maker, usable without Ray as well."""

    def __init__(self, config: DataConfig, root: str) -> None:
        self.config, self.stage = config, Root(root).stage("studies")
        self.labeler = RuleLabeler() if config.labeler == "rules" else None

    def make(self, shard: Shard) -> MadeShard:
        """Make one shard and its quarantine, unless they are there; `counts` are the rejected rows by reason."""
        text = shard.rows + json.dumps(asdict(self.config), sort_keys=True)
        identity = hashlib.sha256(text.encode()).hexdigest()
        if footer := read_footer(self.stage, shard.file, identity):
            summary = json.loads(footer[1]["summary"])
            return MadeShard(shard.file, footer[0], True, counts=summary["reasons"], notes=_notes(summary))
        accepted, rejected = [], []
        for line in shard.rows.splitlines():
            row = json.loads(line)
            try:
                accepted.append(_study(row, self.config, self.labeler))
            except (images.BadImage, _BadReport) as error:
                rejected.append({**row, "reason": str(error)})
        reasons = dict(Counter(row["reason"] for row in rejected))
        summary = {
            **{"file": shard.file, "accepted": len(accepted), "rejected": len(rejected), "reasons": reasons},
            "unlabelled": sum(not any(value is not None for value in row["labels"] or ()) for row in accepted),
        }
        write_quarantine(self.stage, shard.quarantine, rejected)
        schema = STUDY.with_metadata({"summary": json.dumps(summary, sort_keys=True)})
        write_shard(self.stage, shard.file, pa.Table.from_pylist(accepted, schema=schema), identity)
        return MadeShard(shard.file, len(accepted), reused=False, counts=reasons, notes=_notes(summary))


def _notes(summary: dict[str, Any]) -> dict[str, int]:
    return {UNLABELLED: summary["unlabelled"]} if summary["unlabelled"] else {}


def write_quarantine(stage: Stage, name: str, rows: list[Row]) -> None:
    """Write rejected rows (with their reasons) as one parquet file."""
    kept = [{key: row[key] for key in QUARANTINE.names} for row in rows]
    stage.write_table(name, pa.Table.from_pylist(kept, schema=QUARANTINE))


class _BadReport(ValueError):
    """A report that cannot be used; the message is the quarantine reason."""


def _study(row: Row, config: DataConfig, labeler: ReportLabeler | None) -> Row:
    if config.source == "phantom":
        return _phantom_study(row, config)
    findings, impression = row["findings"], row["impression"]
    if row["report_path"]:
        try:
            text = tables.decode(_read(row["report_path"]))
        except FileNotFoundError:
            raise _BadReport("report file is missing") from None
        sections = reports.split_sections(text)
        findings, impression = sections.findings, sections.impression
    report = reports.compose_report(findings, impression)
    if problem := reports.report_problem(report):
        raise _BadReport(problem)
    try:
        data = _read(row["image_path"])
    except FileNotFoundError:
        raise images.BadImage("image file is missing") from None
    decoded = images.decode(data, max_side=config.canvas)
    return {
        **{key: row[key] for key in ("study_id", "subject_id", "dicom_id", "view_position", "split", "source")},
        "report": report,
        "findings": reports.clean(findings),
        "impression": reports.clean(impression),
        "labels": labeler.label([report])[0] if labeler and row["labels"] is None else row["labels"],
        "image": images.encode_png(images.to_canvas(decoded, config.canvas)),
        "height": decoded.height,
        "width": decoded.width,
        "boxes": None,
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def _phantom_study(row: Row, config: DataConfig) -> Row:
    seed, index = phantom.parse_phantom_path(row["image_path"])
    drawn = phantom.generate(index, seed, side=2 * config.canvas)
    height, width = drawn.image.shape
    canvas = images.to_canvas(images.Decoded(drawn.image, height, width), config.canvas)
    return {
        **{key: row[key] for key in ("study_id", "subject_id", "dicom_id", "split", "source")},
        "view_position": drawn.view_position,
        "report": reports.compose_report(drawn.findings, drawn.impression),
        "findings": drawn.findings,
        "impression": drawn.impression,
        "labels": list(drawn.labels),
        "image": images.encode_png(canvas),
        "height": height,
        "width": width,
        "boxes": [dict(zip(("name", "x0", "y0", "x1", "y1"), box, strict=True)) for box in drawn.boxes],
        "sha256": hashlib.sha256(drawn.image.tobytes()).hexdigest(),
    }


def _list_phantoms(config: DataConfig) -> Iterator[Row]:
    total = config.phantoms + 2 * PHANTOM_HELD_OUT
    if config.phantoms < 1:
        raise ValueError("--data.phantoms: at least one phantom is needed")
    subjects: dict[str, str] = {}
    for index, row in enumerate(phantom.list_phantoms(total, config.seed)):
        # The held-out studies come first, so more phantoms for training leave them as they are; a subject that
        # straddles a border stays with the split it began in.
        position = "test" if index < PHANTOM_HELD_OUT else "validate" if index < 2 * PHANTOM_HELD_OUT else "train"
        yield {**row, "split": subjects.setdefault(str(row["subject_id"]), position)}


def _list_mimic_cxr(config: DataConfig) -> Iterator[Row]:
    path = _needed_path(config)
    check_mimic_cxr(path, config.reports or None)
    return list_mimic_cxr(path, config.reports or None)


_SOURCES: dict[str, Callable[[DataConfig], Iterator[Row]]] = {
    "phantom": _list_phantoms,
    "mimic_cxr": _list_mimic_cxr,
    "openi": lambda c: list_openi(_needed_path(c), c.projections or None, c.seed),
    "manifest": lambda c: list_manifest(_needed_path(c), _columns(c), c.images or None),
}


def _needed_path(config: DataConfig) -> str:
    if not config.path:
        raise ValueError(f"--data.path: name the folder or table of the {config.source} data")
    if not sources.exists(config.path):
        raise ValueError(f"--data.path {config.path}: no such file or folder")
    return config.path


def _columns(config: DataConfig) -> ManifestColumns:
    return ManifestColumns(
        image=config.image_column, text=config.text_column, study=config.id_column, subject=config.subject_column,
        split=config.split_column, view=config.view_column, findings=config.findings_column,
        impression=config.impression_column,
    )  # fmt: skip


def _read(path: str) -> bytes:
    with sources.open_file(path) as stream:
        return stream.read()
