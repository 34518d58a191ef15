"""Tables, predictions and weights as other programs, downloads and data sets leave them."""

import gzip
import json
import random
import resource
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from adamatch_ray.data import tables
from adamatch_ray.data.labeler import RuleLabeler
from adamatch_ray.data.manifest import ManifestColumns, list_manifest
from adamatch_ray.data.mimic_cxr import list_mimic_cxr
from adamatch_ray.data.openi import list_openi
from adamatch_ray.data.phrase_boxes import read_phrase_boxes
from adamatch_ray.data.predictions import Key, read_predictions
from adamatch_ray.data.reports import compose_report
from adamatch_ray.models.weights import read_weights
from adamatch_ray.schema import CHEXPERT_LABELS

ROWS = [{"id": "001", "report": "NA, effusion"}, {"id": "NA", "report": ""}]
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 123\n"
HTML = b"<!DOCTYPE html><html><title>Virus scan warning</title></html>"


def parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return bytes(sink.getvalue())


def jpeg(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


# ---- one reader -----------------------------------------------------------------------------------------------------

CSV = 'id,report\n001,"NA, effusion"\nNA,\n'


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("t.csv", CSV.encode()),
        ("t.csv", CSV.replace("\n", "\r\n").encode("utf-8-sig")),
        ("t.csv", CSV.encode("utf-16")),
        ("t.tsv", CSV.replace("id,", "id\t").replace("001,", "001\t").replace("NA,\n", "NA\t\n").encode()),
        ("t.csv", CSV.replace("id,", "id;").replace("001,", "001;").replace("NA,\n", "NA;\n").encode()),
        ("t.csv", CSV.replace("NA,\n", "NA,NULL\n").encode()),
        ("t.csv", CSV.replace("NA,\n", "NA\n\n,\n").encode()),
        ("t.csv.gz", gzip.compress(CSV.encode())),
        ("t.csv.gz", CSV.encode()),  # a browser unpacked it and kept the name
        ("t.csv", gzip.compress(CSV.encode())),
        ("t.jsonl", b'{"id": "001", "report": "NA, effusion"}\n\n{"id": "NA", "report": NaN}\n'),
        ("t.csv", b"sep=,\r\n" + CSV.encode()),
        ("t.csv", CSV.replace("001", '"=""001"""').encode()),  # text, for Excel
        ("t.json", json.dumps(ROWS, indent=1).encode()),
        ("t.parquet", parquet(ROWS)),
    ],
)
def test_a_table_is_its_content_whoever_wrote_it(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    assert list(tables.read_table(str(tmp_path / name))) == ROWS


BROKEN = {
    "empty": (b"", "is empty"),
    "web page": (HTML, "web page"),
    "pointer": (LFS, "Git LFS pointer"),
    "refused": (b"<Error><Code>AccessDenied</Code></Error>", "web page"),
    "comment": (b"<!-- x --><p>", "web page"),
    "bzip2": (b"BZh91AY&SY" + b"a" * 40, "packed by bzip2"),
    "zip": (b"PK\x03\x04" + bytes(40), "zip archive"),
    "binary": (b"\x00\x01\x02" * 40, "not text"),
    "unclosed quote": (b'image,report\na.png,"Clear\n' + b"b.png,Clear\n" * 9, "quote"),
    "unclosed quote, long": (b'image,report\na.png,"Clear\n' + b"b.png,Clear\n" * 20_000, "quote"),
    "comma in a text": (b"image,report\na.png,Lungs clear, no effusion\n", "line 2: 3 cells under 2 columns"),
    "two columns of a name": (b"image,report,report\na.png,x,y\n", "two columns report"),
    "cut gzip": (gzip.compress(CSV.encode() * 999, mtime=0)[:100], "cut or damaged"),
    "wrong checksum": (gzip.compress(CSV.encode(), mtime=0)[:-8] + bytes(8), "cut or damaged"),
    "cut parquet": (parquet(ROWS)[:-9], "parquet"),
    "nesting": (b'{"a": ' + b"[" * 100_000, "line 1: not JSON"),
    "endless number": (b'{"a": ' + b"9" * 9_000 + b"}", "line 1: not JSON"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_that_is_no_table_is_named_in_one_line(tmp_path: Path, kind: str) -> None:
    data, said = BROKEN[kind]
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(ValueError, match=said) as caught:
        list(tables.read_table(str(tmp_path / "t.csv")))
    assert str(tmp_path / "t.csv") in str(caught.value) and "\n" not in str(caught.value)


# ---- what data sets look like ---------------------------------------------------------------------------------------


def mimic(root: Path, version: str = "2.0.0", ending: str = ".jpg", change: Callable[[str], str] = str) -> Path:
    jpeg(root, f"files/p10/p10000001/s50000001/d1{ending}", "files/p10/p10000001/s50000001.txt")
    for name, text in (
        ("split", "dicom_id,study_id,subject_id,split\nd1,50000001,10000001,train\n"),
        ("metadata", "dicom_id,subject_id,study_id,ViewPosition\nd1,10000001,50000001,PA\n"),
        ("chexpert", f"subject_id,study_id,{','.join(CHEXPERT_LABELS)}\n10000001,50000001,1.0{',' * 13}\n"),
    ):
        (root / f"mimic-cxr-{version}-{name}.csv.gz").write_text(change(text))
    return root


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"version": "2.1.0"},
        {"ending": ".dcm"},
        {"change": lambda text: text.replace("50000001", "50000001.0").replace("10000001", "10000001.0")},
        {"change": lambda text: text.replace("50000001", "s50000001").replace("10000001", "p10000001")},
    ],
    ids=["unpacked by a browser", "2.1.0", "DICOM", "float ids", "ids with letters"],
)
def test_mimic_cxr_in_every_form_finds_its_files_and_labels(tmp_path: Path, options: dict[str, Any]) -> None:
    row = next(list_mimic_cxr(str(mimic(tmp_path, **options))))
    assert (row["subject_id"], row["study_id"], row["labels"][0]) == ("10000001", "50000001", 1.0)
    assert Path(row["image_path"]).exists() and Path(row["report_path"]).exists()


def annotated(root: Path, **changes: Any) -> list[dict[str, Any]]:
    entry = {"id": "CXR1_IM-1", "report": "The heart is normal in size.", "image_path": ["CXR1_IM-1/0.png"]}
    (root / "annotation.json").write_text(json.dumps({"train": [entry | changes], "val": [], "test": []}))
    return list(list_openi(str(root)))


def test_r2gen_annotations_as_people_make_their_own(tmp_path: Path) -> None:
    jpeg(tmp_path, "images/CXR1_IM-1/0.png", "images/p10/x.jpg")
    for nothing in (None, float("nan"), "None"):
        assert annotated(tmp_path, report=nothing)[0]["reason"] == "no findings or impression"
    assert annotated(tmp_path, id=7)[0]["study_id"] == "7"
    for one in ("CXR1_IM-1/0.png", ["CXR1_IM-1\\0.png"]):
        (row,) = annotated(tmp_path, image_path=one)
        assert (row["reason"], row["image_path"]) == ("", f"{tmp_path}/images/CXR1_IM-1/0.png")
    assert annotated(tmp_path, image_path=None)[0]["reason"] == "no image in the report"
    (row,) = annotated(tmp_path, id="d1", study_id=5, subject_id=10000001, image_path=["p10/p10000001/s5/d1.jpg"])
    assert (row["subject_id"], row["study_id"], row["dicom_id"], row["reason"]) == ("10000001", "5", "d1", "")
    for broken in (b"", HTML, LFS, b'{"train": [', b"[]", b'{"train": {}}'):
        (tmp_path / "annotation.json").write_bytes(broken)
        with pytest.raises(ValueError, match=r"annotation\.json"):
            list(list_openi(str(tmp_path)))


def table(root: Path, header: str, row: str, columns: ManifestColumns | None = None) -> dict[str, Any]:
    (root / "t.csv").write_text(f"{header}\n{row}\n")
    return next(list_manifest(str(root / "t.csv"), columns or ManifestColumns()))


def test_published_tables_are_known_by_their_columns(tmp_path: Path) -> None:
    jpeg(tmp_path, "train/patient00001/study1/view1_frontal.png", "3/a.png")
    row = table(
        tmp_path,
        "path_to_image,frontal_lateral,deid_patient_id,section_findings,section_impression,split",
        "train/patient00001/study1/view1_frontal.jpg,Frontal,patient00001,,Clear lungs seen.,train",
    )
    assert (row["subject_id"], row["impression"], row["reason"]) == ("patient00001", "Clear lungs seen.", "")
    assert Path(row["image_path"]).exists()  # under another ending than the table says
    row = table(tmp_path, "ImageID,ImageDir,StudyID,PatientID,Projection,Report", "a.png,3,77,88,PA,torax normal hoy")
    assert (row["study_id"], row["subject_id"], row["image_path"]) == ("77", "88", f"{tmp_path}/3/a.png")
    labels = ",".join(CHEXPERT_LABELS)
    row = table(
        tmp_path,
        f"Path,Frontal/Lateral,report,{labels}",
        f"CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.png,Frontal,Large effusion.,,1.0,-1.0{',' * 11}",
    )
    assert row["image_path"] == f"{tmp_path}/train/patient00001/study1/view1_frontal.png"
    assert row["labels"][1:3] == [1.0, -1.0] and row["subject_id"] == "patient00001"


def test_names_of_images_may_be_windows_or_home_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    jpeg(tmp_path, "a/b.png")
    assert table(tmp_path, "image,report", "a\\b.png,Clear lungs seen")["image_path"] == f"{tmp_path}/a/b.png"
    (row,) = list_manifest("~/t.csv", ManifestColumns())
    assert row["image_path"] == "~/a/b.png" and row["reason"] == ""


def test_a_whole_report_in_a_column_is_its_findings_and_impression(tmp_path: Path) -> None:
    text = (
        "FINAL REPORT EXAMINATION: CHEST HISTORY: Known pneumonia, rule out pneumothorax. COMPARISON: None. "
        "FINDINGS: The lungs are clear. IMPRESSION: No acute disease."
    )
    for told in (text, text.replace(". ", ".\n\n ")):
        (tmp_path / "t.jsonl").write_text(json.dumps({"image": "a.png", "report": told, "f": float("nan")}) + "\n")
        row = next(list_manifest(str(tmp_path / "t.jsonl"), ManifestColumns(findings="f")))
        assert compose_report(row["findings"], row["impression"]) == "The lungs are clear. No acute disease."


def test_boxes_of_vindr_and_nih_are_phrases_too(tmp_path: Path) -> None:
    path = tmp_path / "boxes.csv"
    path.write_text(
        "image_id,rad_id,class_name,x_min,y_min,x_max,y_max\n"
        "a,R1,Pleural effusion,10,20,30,60\na,R2,Pleural effusion,12,20,30,60\nb,R1,No finding,,,,\n"
    )
    (found,) = read_phrase_boxes(str(path))
    assert (found.dicom_id, found.phrase, found.finding) == ("a", "pleural effusion", "Pleural effusion")
    assert found.boxes_on(500, 400) == ((10, 20, 30, 60), (12, 20, 30, 60))
    path.write_text("image_id;class_name;x_min;y_min;x_max;y_max\na;Mass;1,5;2;10,25;20\n")
    assert read_phrase_boxes(str(path))[0].boxes == ((1.5, 2, 10.25, 20),)
    path.write_text('image_id,class_name,x_min,y_min,x_max,y_max\na,Mass,"1,024",2,2000,20\n')
    with pytest.raises(ValueError, match="'1,024' is no number"):
        read_phrase_boxes(str(path))
    path.write_text("Image Index,Finding Label,Bbox [x,y,w,h],,,\n00000013_005.png,Atelectasis,512,256,128,64,,,\n")
    (found,) = read_phrase_boxes(str(path))
    assert found.dicom_id == "00000013_005" and found.boxes_on(512, 512) == ((256, 128, 320, 160),)


# ---- predictions ----------------------------------------------------------------------------------------------------


def test_a_prediction_that_says_nothing_is_missing_however_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("study_id,report\n1.0,nan\n2,None\n3,\n4,NULL\n5,N/A\n50000001.0,The lungs are clear.\n007,NA\n")
    found = read_predictions(str(path), "study_id", "report", "image").reports
    assert found == {Key("50000001"): "The lungs are clear.", Key("007"): "NA"}


# ---- weights --------------------------------------------------------------------------------------------------------


class Thing:
    """What no file of weights should hold."""


@pytest.mark.parametrize("ending", ["ckpt", "safetensors"])
def test_weights_that_are_none_are_told_apart_and_nobody_is_told_to_unpickle_them(tmp_path: Path, ending: str) -> None:
    state = {"a": torch.arange(900.0)}
    torch.save({"state_dict": {"module.a": state["a"]}}, tmp_path / "good.ckpt")
    save_file(state, tmp_path / "good.safetensors")
    assert torch.equal(read_weights(tmp_path / f"good.{ending}")["a"], state["a"])
    whole = (tmp_path / f"good.{ending}").read_bytes()
    (tmp_path / "renamed.bin").write_bytes(whole)
    (tmp_path / "renamed.safetensors").write_bytes(whole)
    for name in ("renamed.bin", "renamed.safetensors"):
        assert torch.equal(read_weights(tmp_path / name)["a"], state["a"])
    for data, said in ((whole[:700], "cut or damaged"), (b"", "empty"), (HTML, "web page"), (LFS, "Git LFS")):
        (tmp_path / f"bad.{ending}").write_bytes(data)
        with pytest.raises(ValueError, match=said) as caught:
            read_weights(tmp_path / f"bad.{ending}")
        assert f"bad.{ending}" in str(caught.value) and "weights_only" not in str(caught.value)
    torch.save([Thing()], tmp_path / "thing.ckpt")
    with pytest.raises(ValueError, match="holds more than tensors"):
        read_weights(tmp_path / "thing.ckpt")


# ---- anything at all ------------------------------------------------------------------------------------------------

SEEDS = (
    CSV.encode(),
    b'image,report,view\na.png,"1\xbd cm nodule\nin the ""left"" lung",PA\n',
    b'{"image": "a.png", "report": "Clear."}\n{"image": null, "report": NaN}\n',
    b'{"train": [{"id": "a", "report": "Clear.", "image_path": ["a/0.png"]}]}',
    b'{"images": [{"id": 1}], "annotations": [{"image_id": 1, "bbox": [1, 2, 3, 4]}], "categories": []}',
    b"image_id,class_name,x_min,y_min,x_max,y_max\na,Mass,1,2,3,4\n",
    b"FINAL REPORT\n FINDINGS: Effusion: none.\n- 3 cm mass\n IMPRESSION:\n1. ___ XXXX.\n",
    gzip.compress(CSV.encode(), mtime=0),
    HTML,
    LFS,
)
BITS = (
    b'"',
    b",",
    b"\n",
    b"\r",
    b"\0",
    b"\xff",
    b"{",
    b"}",
    b"[",
    b":",
    b"nan",
    b"1e999",
    b"\\ud800",
    b"&#1;",
    b"_x000D_",
)


def mutated(seed: int, count: int) -> Iterator[bytes]:
    """Inputs that are nearly right: bytes of the seeds turned over, cut out, doubled, or replaced by awkward ones."""
    rng = random.Random(seed)
    for _ in range(count):
        data = bytearray(rng.choice(SEEDS))
        for _ in range(rng.randint(1, 6)):
            start = rng.randrange(len(data) + 1)
            stop = min(len(data), start + rng.choice((0, 0, 1, 1, 4, 30)))
            data[start:stop] = rng.choice((b"", rng.choice(BITS), rng.randbytes(2), bytes(data[start:stop]) * 3))
        yield bytes(data)


def read_all(folder: Path, data: bytes) -> None:
    """Give some bytes to every reader that the jobs have for tables, annotations and reports."""
    (folder / "annotation.json").write_bytes(data)
    path = str(folder / "annotation.json")
    readers: tuple[Callable[[], object], ...] = (
        lambda: list(list_manifest(path, ManifestColumns())),
        lambda: read_predictions(path, "id", "report", "image"),
        lambda: read_phrase_boxes(path),
        lambda: read_phrase_boxes(path.replace("annotation.json", "boxes.csv")),
        lambda: list(list_openi(str(folder))),
    )
    (folder / "boxes.csv").write_bytes(data)
    for reader in readers:
        try:
            reader()
        except ValueError as error:
            assert "\n" not in str(error) and str(error)
    RuleLabeler().label([compose_report(tables.decode(data), "")])


def test_any_bytes_are_read_or_refused_in_one_line(tmp_path: Path) -> None:
    for data in mutated(0, 150):
        read_all(tmp_path, data)
    bomb = gzip.compress(bytes(struct.pack("<I", 0x20202020)) * (1 << 24))  # 64 MiB of blanks in one line
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (tmp_path / "t.csv.gz").write_bytes(bomb)
    with pytest.raises(ValueError, match="a line of more than"):
        list(tables.read_table(str(tmp_path / "t.csv.gz")))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000
