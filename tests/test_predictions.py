"""Anyone's predictions: what a file may look like, and what is said where it cannot be used."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from adamatch_ray.data.images import BadImage, encode_png
from adamatch_ray.data.predictions import Key, load_canvas, read_generations, read_predictions
from adamatch_ray.schema import GENERATION
from adamatch_ray.storage import Manifest, Root

COLUMNS = ("study_id", "report", "image")
ROWS: list[dict[str, Any]] = [
    {"study_id": "50414267", "report": "The heart is enlarged.", "image": "a.png"},
    {"study_id": "53189527", "report": "", "image": ""},
]


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> str:
    path = folder / name
    if name.endswith(".csv"):
        lines = [",".join(rows[0]), *(",".join(str(value) for value in row.values()) for row in rows)]
        path.write_text("\n".join(lines) + "\n")
    elif name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


@pytest.mark.parametrize("name", ["p.csv", "p.jsonl", "p.parquet"])
def test_the_same_rows_in_any_format_are_the_same_predictions(tmp_path: Path, name: str) -> None:
    found = read_predictions(write(tmp_path, name, ROWS), *COLUMNS)
    assert found.reports == {Key("50414267"): "The heart is enlarged."}  # empty text is no prediction
    assert found.images == {Key("50414267"): f"{tmp_path}/a.png"}
    assert found.cycle_reports is None and found.cycle_images is None


def test_whole_numbers_are_ids_and_null_and_nan_are_no_text(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"id": 1, "text": "Clear."}, {"id": 2, "text": None}, {"id": 3, "text": float("nan")}]
    found = read_predictions(write(tmp_path, "p.jsonl", rows), "id", "text", "image")
    assert found.reports == {Key("1"): "Clear."} and found.images is None


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([ROWS[0], ROWS[0]], "study 50414267 occurs more than once"),
        # Twice is twice, even where one of the two is empty.
        ([ROWS[0], {**ROWS[0], "report": ""}], "occurs more than once"),
        ([{"id": "1", "report": "Clear."}], "needs a column study_id and one of report and image; it has id, report"),
        ([{"study_id": "1", "text": "Clear."}], "needs a column study_id and one of report and image"),
        ([{"study_id": " ", "report": "Clear."}], "1 rows have no study_id"),
        ([{"study_id": 1.5, "report": "Clear."}], r"id 1\.5 is neither text nor a whole number"),
        ([{"study_id": "1", "report": 7}], "column report holds int 7 where text is needed"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, rows: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_predictions(write(tmp_path, "p.jsonl", rows), *COLUMNS)


def test_files_that_are_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.csv: no such file"):
        read_predictions(str(tmp_path / "gone.csv"), *COLUMNS)
    (tmp_path / "p.txt").write_text("x")
    with pytest.raises(ValueError, match="has no rows"):
        read_predictions(str(tmp_path / "p.txt"), *COLUMNS)
    (tmp_path / "p.jsonl").write_text('{"study_id": "1"\n')
    with pytest.raises(ValueError, match="line 1: not JSON"):
        read_predictions(str(tmp_path / "p.jsonl"), *COLUMNS)
    (tmp_path / "p.csv").write_text("study_id,report\n")
    with pytest.raises(ValueError, match="has no rows"):
        read_predictions(str(tmp_path / "p.csv"), *COLUMNS)


def test_an_image_of_any_shape_comes_onto_the_canvas(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (80, 60), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    canvas = load_canvas(str(tmp_path / "a.png"), 64)
    assert canvas.shape == (64, 64) and not canvas[:, 0].any()  # taller than wide: black on both sides
    own = np.random.default_rng(1).integers(0, 255, (64, 64), dtype=np.uint8)
    assert (load_canvas(encode_png(own), 64) == own).all()
    for bad in (b"", b"no image", str(tmp_path / "gone.png")):
        with pytest.raises(BadImage):
            load_canvas(bad, 64)


def generations(root: Path, rows: list[dict[str, Any]], **options: Any) -> None:
    """A finished `generations/` of these rows, one file a direction."""
    stage = Root(str(root)).stage("generations")
    files = {}
    for direction in sorted({row["direction"] for row in rows}):
        full = [dict.fromkeys(GENERATION.names) | row for row in rows if row["direction"] == direction]
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(full, schema=GENERATION), buffer)
        files[f"{direction}/00000.parquet"] = len(full)
        stage.write_bytes(f"{direction}/00000.parquet", buffer.getvalue())
    settings = {"split": "test", "manifest": "", "limit": 0, "cycle": True, **options}
    stage.commit(Manifest("generations", "made up", {"generate": settings}, {}, {}, files))


def test_our_generations_keep_failures_out_and_directions_apart(tmp_path: Path) -> None:
    rows = [
        {"study_id": "a", "dicom_id": "a-1", "direction": "cxr_to_report", "report": "Clear.", "status": "ok"},
        {"study_id": "b", "dicom_id": "b-1", "direction": "cxr_to_report", "status": "error: no image"},
        {"study_id": "c", "dicom_id": "c-1", "direction": "cxr_to_report", "report": "Clea", "status": "truncated: 2"},
    ]
    generations(tmp_path, rows, limit=3)
    found = read_generations(Root(str(tmp_path)).stage("generations"))
    assert found.reports == {Key("a", "a-1"): "Clear.", Key("c", "c-1"): "Clea"}
    assert found.cycle_images == {} and found.images is None and found.cycle_reports is None
    assert (found.split, found.limit) == ("test", 3)
    with pytest.raises(ValueError, match="study a image a-1 occurs more than once"):
        generations(tmp_path, [rows[0], rows[0]])
        read_generations(Root(str(tmp_path)).stage("generations"))


@pytest.mark.parametrize("direction", ["cxr_to_report", "report_to_cxr"])
def test_a_shard_of_our_generations_is_a_table_of_predictions(tmp_path: Path, direction: str) -> None:
    image = encode_png(np.zeros((8, 8), np.uint8))
    made = {"report": "Clear."} if direction == "cxr_to_report" else {"image": image}
    row = {"study_id": "a", "dicom_id": "a-1", "direction": direction, "status": "ok", **made}
    generations(tmp_path, [row, {**row, "dicom_id": "a-2", **dict.fromkeys(made)}])
    found = read_predictions(str(tmp_path / "generations" / direction / "00000.parquet"), *COLUMNS)
    own = read_generations(Root(str(tmp_path)).stage("generations"))
    assert (found.reports, found.images) == (own.reports, own.images)
    with pytest.raises(ValueError, match=r"column image holds bytes where text is needed"):
        read_predictions(write(tmp_path, "p.parquet", [{"study_id": "a", "image": image}]), "study_id", "image", "none")
