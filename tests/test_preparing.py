"""Raw studies to shards: nothing lost, nothing doubled, the same bytes however the work is done."""

import io
import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from adamatch_ray.config import DataConfig
from adamatch_ray.data import phantom
from adamatch_ray.data.images import decode_png
from adamatch_ray.pipeline import studies as preparing
from adamatch_ray.pipeline.studies import Shard, StudyShards, list_rows, plan, write_quarantine
from adamatch_ray.schema import QUARANTINE, SPLITS, STUDY
from adamatch_ray.shards import MadeShard
from adamatch_ray.storage import Root

PHANTOMS = DataConfig(source="phantom", phantoms=30, canvas=64, rows_per_shard=8)
REPORT = "The heart is normal in size. No pleural effusion."


@pytest.fixture(scope="module")
def few_phantoms() -> list[dict[str, Any]]:
    """A dozen rows of each split."""
    left = Counter(dict.fromkeys(SPLITS, 12))
    rows = []
    for row in list_rows(PHANTOMS):
        if left[row["split"]] > 0:
            left[row["split"]] -= 1
            rows.append(row)
    return rows


def jpeg(shape: tuple[int, int] = (80, 60), seed: int = 0) -> bytes:
    smooth = np.random.default_rng(seed).integers(0, 255, (8, 6), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(smooth).resize(shape[::-1], Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def zero_pixel_png() -> bytes:
    stream = io.BytesIO()
    Image.new("L", (1, 1)).save(stream, "PNG")
    data = bytearray(stream.getvalue())
    data[16:24] = bytes(8)  # width and height of the header
    return bytes(data)


BROKEN: dict[str, tuple[bytes | None, str, str]] = {
    "truncated.jpg": (jpeg()[:-200], REPORT, "truncated image"),
    "empty.jpg": (b"", REPORT, "zero-byte file"),
    "zero.png": (zero_pixel_png(), REPORT, "image has no pixels"),
    "text.jpg": (b"not a picture at all", REPORT, "not an image: text"),
    "gone.jpg": (None, REPORT, "image file is missing"),
    "short.jpg": (jpeg(), "normal chest", "fewer than 3 tokens"),
    "silent.jpg": (jpeg(), "", "empty report"),
}


@pytest.fixture
def table(tmp_path: Path) -> DataConfig:
    """A table of eighteen good studies of nine subjects, two a subject, and one of each broken kind."""
    folder = tmp_path / "raw"
    folder.mkdir()
    lines = []
    for i in range(18):
        (folder / f"good{i}.jpg").write_bytes(jpeg((90, 60) if i % 2 else (60, 90), i))
        lines.append({"image": f"good{i}.jpg", "report": f"{REPORT} Study {i}.", "patient": f"p{i // 2}"})
    for name, (data, report, _) in BROKEN.items():
        if data is not None:
            (folder / name).write_bytes(data)
        lines.append({"image": name, "report": report, "patient": f"b-{name}"})
    path = folder / "table.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return DataConfig(
        source="manifest", path=str(path), subject_column="patient", canvas=64, rows_per_shard=4, labeler="rules"
    )


def make_shard(shard: Shard, config: DataConfig, root: str) -> MadeShard:
    return StudyShards(config, root).make(shard)


def prepare(config: DataConfig, root: Path, order: Callable[[list[Any]], None] | None = None) -> dict[str, Any]:
    """All of the job's work but Ray's part: {seen, accepted, rejected, reasons}."""
    shards, rejected = plan(list_rows(config), config)
    write_quarantine(Root(str(root)).stage("studies"), "quarantine/listing.parquet", rejected)
    seen = sum(shard.rows.count("\n") + 1 for shard in shards) + len(rejected)
    if order:
        order(shards)
    done = [make_shard(shard, config, str(root)) for shard in shards]
    return {
        "seen": seen,
        "accepted": sum(part.rows for part in done),
        "rejected": sum(sum(part.counts.values()) for part in done) + len(rejected),
        "reasons": sum((Counter(part.counts) for part in done), Counter(row["reason"] for row in rejected)),
    }


def files(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def studies(root: Path) -> list[dict[str, Any]]:
    return [row for split in SPLITS for row in _rows(root / "studies" / split)]


def quarantine(root: Path) -> list[dict[str, Any]]:
    return _rows(root / "studies" / "quarantine")


def _rows(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


# ---- the same bytes -------------------------------------------------------------------------------------------------


def test_shards_are_the_same_bytes_in_any_order_of_work(few_phantoms: list[dict[str, Any]], tmp_path: Path) -> None:
    shards, rejected = plan(few_phantoms, PHANTOMS)
    assert not rejected and len(shards) == 6
    for folder, order in (("a", shards), ("b", random.Random(0).sample(shards, 6))):
        for shard in order:
            make_shard(shard, PHANTOMS, str(tmp_path / folder))
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_the_order_of_the_source_does_not_matter(few_phantoms: list[dict[str, Any]]) -> None:
    assert plan(few_phantoms, PHANTOMS) == plan(few_phantoms[::-1], PHANTOMS)
    assert plan(few_phantoms, PHANTOMS) != plan(few_phantoms, replace(PHANTOMS, seed=1))


def test_a_rerun_makes_the_same_files_and_doubles_nothing(table: DataConfig, tmp_path: Path) -> None:
    first = prepare(table, tmp_path / "run")
    before = files(tmp_path / "run")
    assert prepare(table, tmp_path / "run", order=list.reverse) == first
    assert files(tmp_path / "run") == before


def test_a_finished_shard_is_not_made_again_and_a_lost_or_changed_one_is(
    few_phantoms: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = plan(few_phantoms, PHANTOMS)[0][0]
    summary = make_shard(shard, PHANTOMS, str(tmp_path))
    drawn: list[int] = []
    real = phantom.generate

    def counted(index: int, seed: int, side: int) -> phantom.PhantomStudy:
        drawn.append(index)
        return real(index, seed, side)

    monkeypatch.setattr(phantom, "generate", counted)
    assert make_shard(shard, PHANTOMS, str(tmp_path)) == replace(summary, reused=True) and not drawn
    before = files(tmp_path)
    (tmp_path / "studies" / shard.file).unlink()
    assert make_shard(shard, PHANTOMS, str(tmp_path)) == summary and len(drawn) == 8
    assert files(tmp_path) == before
    make_shard(shard, replace(PHANTOMS, canvas=128), str(tmp_path))
    assert len(drawn) == 16


# ---- nothing lost ---------------------------------------------------------------------------------------------------


def test_every_row_seen_is_accepted_or_has_its_true_reason(table: DataConfig, tmp_path: Path) -> None:
    counts = prepare(table, tmp_path)
    assert counts["seen"] == 18 + len(BROKEN) == counts["accepted"] + counts["rejected"]
    accepted, rejected = studies(tmp_path), quarantine(tmp_path)
    assert (len(accepted), len(rejected)) == (18, len(BROKEN)) == (counts["accepted"], counts["rejected"])
    found = {Path(row["image_path"]).name: row["reason"] for row in rejected}
    assert found == {name: reason for name, (_, _, reason) in BROKEN.items()}
    assert counts["reasons"] == Counter(found.values())
    assert {row["dicom_id"] for row in accepted} == {f"good{i}" for i in range(18)}


def test_quarantine_and_studies_have_their_schemas_even_when_empty(table: DataConfig, tmp_path: Path) -> None:
    prepare(table, tmp_path)
    for path in (tmp_path / "studies").rglob("*.parquet"):
        schema = QUARANTINE if path.parent.name == "quarantine" else STUDY
        assert pq.read_schema(path).equals(schema), path
    assert any(pq.read_metadata(p).num_rows == 0 for p in (tmp_path / "studies" / "quarantine").glob("*.parquet"))
    listing = pq.read_table(tmp_path / "studies" / "quarantine" / "listing.parquet").to_pylist()
    assert [row["reason"] for row in listing] == ["empty report"]


def test_a_subject_is_on_one_side_of_the_split_only(table: DataConfig, few_phantoms: list[dict[str, Any]]) -> None:
    both = [list(list_rows(table)), list(list_rows(replace(PHANTOMS, phantoms=300)))]
    for rows in both:
        splits: dict[str, set[str]] = {}
        for row in rows:
            if not row["reason"]:
                splits.setdefault(row["subject_id"], set()).add(row["split"])
        assert all(len(of_subject) == 1 for of_subject in splits.values())
        assert len(splits) < len(rows), "some subject has two studies"
    assert {row["split"] for row in both[1]} == set(SPLITS)


def test_more_phantoms_leave_the_held_out_ones_as_they_are() -> None:
    few, many = ({r["dicom_id"]: r["split"] for r in list_rows(replace(PHANTOMS, phantoms=n))} for n in (10, 500))
    assert few.items() <= many.items()
    assert Counter(many.values())["train"] in range(495, 506)


# ---- what a row holds -----------------------------------------------------------------------------------------------


def test_a_study_holds_its_text_its_labels_and_its_picture(table: DataConfig, tmp_path: Path) -> None:
    prepare(table, tmp_path)
    row = next(row for row in studies(tmp_path) if row["dicom_id"] == "good1")
    assert row["report"] == f"{REPORT} Study 1."
    assert (row["height"], row["width"], row["subject_id"], row["source"]) == (90, 60, "p0", "manifest")
    assert decode_png(row["image"]).shape == (64, 64) and not decode_png(row["image"])[:, :10].any()
    assert len(row["labels"]) == 14 and row["boxes"] is None and len(row["sha256"]) == 64


def test_without_a_labeler_labels_stay_unknown(table: DataConfig, tmp_path: Path) -> None:
    prepare(replace(table, labeler="none"), tmp_path)
    assert all(row["labels"] is None for row in studies(tmp_path))


def test_a_phantom_keeps_its_boxes_inside_its_picture(few_phantoms: list[dict[str, Any]], tmp_path: Path) -> None:
    make_shard(plan(few_phantoms, PHANTOMS)[0][0], PHANTOMS, str(tmp_path))
    rows = studies(tmp_path)
    assert any(row["boxes"] for row in rows)
    for row in rows:
        for box in row["boxes"]:
            assert 0 <= box["x0"] < box["x1"] <= row["width"] and 0 <= box["y0"] < box["y1"] <= row["height"]


# ---- what users get wrong -------------------------------------------------------------------------------------------


def test_an_empty_source_and_a_missing_table_are_named(tmp_path: Path) -> None:
    empty = tmp_path / "empty.csv"
    empty.write_text("image,report\n")
    config = DataConfig(source="manifest", path=str(empty))
    with pytest.raises(ValueError, match=r"no studies in .*empty\.csv; is --data\.path"):
        plan(list_rows(config), config)
    with pytest.raises(ValueError, match=r"--data\.path .*none\.csv: no such file or folder"):
        list(list_rows(DataConfig(source="manifest", path=str(tmp_path / "none.csv"))))
    with pytest.raises(ValueError, match=r"--data\.path: name the folder or table of the openi data"):
        list(list_rows(DataConfig(source="openi")))
    with pytest.raises(ValueError, match="at least one phantom"):
        list(list_rows(DataConfig(source="phantom")))
    with pytest.raises(ValueError, match="csv"):
        list(list_rows(DataConfig(source="mimic_cxr", path=str(tmp_path))))


def test_a_source_of_which_nothing_can_be_used_is_refused_with_its_reasons(tmp_path: Path) -> None:
    from jobs import prepare_data

    (tmp_path / "t.csv").write_text("image,report,v\na.png,The lungs are clear.,LATERAL\n")
    options = ["--data.source", "manifest", "--data.path", str(tmp_path / "t.csv"), "--data.view_column", "v"]
    with pytest.raises(ValueError, match=r"no study of .*t\.csv could be used: view LATERAL is not frontal \(1\)"):
        prepare_data.main(["--root", str(tmp_path / "root"), *options])


def test_a_missing_report_file_is_a_reason_not_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg())
    row = {
        **dict.fromkeys(("study_id", "subject_id", "dicom_id"), "a"),
        **dict.fromkeys(("view_position", "findings", "impression", "reason"), ""),
        "split": "train",
        "image_path": str(tmp_path / "a.jpg"),
        "report_path": str(tmp_path / "a.txt"),
        "labels": None,
        "source": "mimic_cxr",
    }
    config = DataConfig(source="mimic_cxr", path=str(tmp_path), canvas=64)
    shards, _ = plan([row], config)
    assert make_shard(shards[0], config, str(tmp_path / "one")).counts == {"report file is missing": 1}
    (tmp_path / "a.txt").write_text(" FINAL REPORT\n FINDINGS:\n The lungs are clear.\n\n IMPRESSION:\n Normal.\n")
    assert make_shard(shards[0], config, str(tmp_path / "two")).rows == 1
    assert studies(tmp_path / "two")[0]["findings"] == "The lungs are clear."


def test_the_number_held_out_is_what_the_help_says() -> None:
    counts = Counter(row["split"] for row in list_rows(PHANTOMS))
    assert preparing.PHANTOM_HELD_OUT == 256
    assert all(abs(counts[split] - 256) <= 1 for split in ("validate", "test"))


def test_studies_of_which_no_label_is_known_are_counted(table: DataConfig, tmp_path: Path) -> None:
    path = Path(table.path)
    lines = [json.loads(line) for line in path.read_text().splitlines()[:4]]
    lines[1]["report"] = "Derrame pleural derecho. Cardiomegalia."
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for _ in range(2):  # made, then found
        made = [make_shard(shard, table, str(tmp_path)) for shard in plan(list_rows(table), table)[0]]
        assert sum((Counter(shard.notes) for shard in made), Counter()) == {preparing.UNLABELLED: 1}
    labels = {row["dicom_id"]: row["labels"] for row in studies(tmp_path)}
    assert labels["good1"] == [None] * 14 and labels["good0"] != [None] * 14
