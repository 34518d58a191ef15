"""Listings of MIMIC-CXR, OpenI and plain tables: every image is one row, with what is known or why it is no good."""

import csv
import gzip
import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest

from adamatch_ray.config import DataConfig
from adamatch_ray.data import sources, tables
from adamatch_ray.data.manifest import ManifestColumns, list_manifest
from adamatch_ray.data.mimic_cxr import check_mimic_cxr, list_mimic_cxr
from adamatch_ray.data.openi import FRACTIONS, image_key, list_openi
from adamatch_ray.data.sources import Row, normalise_split, subject_split
from adamatch_ray.data.views import view_problem
from adamatch_ray.pipeline.studies import list_rows
from adamatch_ray.schema import CHEXPERT_LABELS, SOURCE, SPLITS

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="no real data at ../shared/data")


def listed(rows: Iterator[Row]) -> list[Row]:
    """The rows, after checking that they fit the schema and have ids of their own."""
    found = list(rows)
    for row in found:
        assert list(row) == SOURCE.names
    assert pa.Table.from_pylist(found, schema=SOURCE).to_pylist() == found
    ids = [row["dicom_id"] for row in found if row["dicom_id"]]
    assert len(set(ids)) == len(ids)
    return found


def write_csv(path: Path, rows: list[dict[str, str]]) -> None:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = stream.getvalue().encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def reasons(rows: list[Row]) -> dict[str, str]:
    return {row["dicom_id"]: row["reason"] for row in rows}


# ---- shared ---------------------------------------------------------------------------------------------------------


def test_subject_split_is_stable_seeded_and_of_the_size_asked_for() -> None:
    drawn = [subject_split(str(number), 0) for number in range(5000)]
    assert drawn == [subject_split(str(number), 0) for number in range(5000)]
    assert drawn != [subject_split(str(number), 1) for number in range(5000)]
    assert {split: round(drawn.count(split) / 5000, 1) for split in SPLITS} == dict(
        zip(SPLITS, (0.8, 0.1, 0.1), strict=True)
    )
    assert subject_split("x", 0, (0.0, 0.0, 1.0)) == "test"
    with pytest.raises(ValueError, match="sum to 1"):
        subject_split("x", 0, (0.8, 0.1, 0.2))


def test_words_for_splits_and_views() -> None:
    assert [normalise_split(name) for name in ("Train", "val", "dev", " valid ", "validation", "TEST", "fold1")] == [
        *("train", "validate", "validate", "validate", "validate", "test", None)
    ]
    assert [view_problem(view, True) for view in ("PA", "AP", "AP Supine", "Frontal", "ap_erect", "")] == [""] * 6
    assert view_problem("LL", True) == "view LL is not frontal"
    assert view_problem("  ", False) == "view position is blank"


# ---- MIMIC-CXR ------------------------------------------------------------------------------------------------------

IMAGES = {  # dicom id: subject, study, view, split
    "aa-1": ("10000032", "50414267", "PA", "train"),
    "aa-2": ("10000032", "50414267", "LATERAL", "train"),
    "aa-3": ("10000032", "53189527", "AP", "train"),
    "bb-1": ("10000764", "57375967", "", "validate"),
    "cc-1": ("10000898", "50771383", "AP", "test"),
}


@pytest.fixture
def mimic(tmp_path: Path) -> Path:
    ids = [{"dicom_id": key, "study_id": study, "subject_id": subject} for key, (subject, study, *_) in IMAGES.items()]
    splits = [row | {"split": IMAGES[row["dicom_id"]][3]} for row in ids]
    metadata = [row | {"ViewPosition": IMAGES[row["dicom_id"]][2], "Rows": "3056"} for row in ids]
    blank = dict.fromkeys(CHEXPERT_LABELS, "")
    alphabetical = [{"subject_id": "10000032", "study_id": "50414267"} | blank | {"No Finding": "1.0", "Edema": "-1.0"}]
    other = [
        {"subject_id": "10000032", "study_id": "50414267"} | blank | {"Edema": "1.0"},
        {"subject_id": "10000032", "study_id": "53189527"} | dict(reversed((blank | {"Pneumonia": "0.0"}).items())),
    ]
    for name, rows in {"split": splits, "metadata": metadata, "chexpert": alphabetical, "negbio": other}.items():
        write_csv(tmp_path / f"mimic-cxr-2.0.0-{name}.csv{'.gz' if name in ('split', 'negbio') else ''}", rows)
    (tmp_path / "files").mkdir()
    return tmp_path


def test_a_folder_without_any_report_is_told_at_once(mimic: Path) -> None:
    with pytest.raises(ValueError, match=r"no report s….txt in .*--data\.reports"):
        check_mimic_cxr(str(mimic))
    subject = mimic / "unpacked" / "files" / "p10" / "p10000032"
    (subject / "s53189527").mkdir(parents=True)
    with pytest.raises(ValueError, match="mimic-cxr-reports"):
        check_mimic_cxr(str(mimic), str(mimic / "unpacked"))
    (subject / "s50414267.txt").write_text("FINDINGS: Clear.")
    check_mimic_cxr(str(mimic), str(mimic / "unpacked"))
    check_mimic_cxr(str(mimic), str(mimic / "unpacked" / "files"))


def test_mimic_rows_have_the_official_layout_split_and_string_ids(mimic: Path) -> None:
    rows = listed(list_mimic_cxr(str(mimic)))
    assert [row["dicom_id"] for row in rows] == list(IMAGES)
    first = rows[0]
    assert (first["subject_id"], first["study_id"], first["split"]) == ("10000032", "50414267", "train")
    assert first["image_path"] == f"{mimic}/files/p10/p10000032/s50414267/aa-1.jpg"
    assert first["report_path"] == f"{mimic}/files/p10/p10000032/s50414267.txt"
    assert [row["split"] for row in rows] == [split for *_, split in IMAGES.values()]
    assert {row["source"] for row in rows} == {"mimic_cxr"}


def test_mimic_views_that_are_not_frontal_have_their_reason(mimic: Path) -> None:
    assert reasons(listed(list_mimic_cxr(str(mimic)))) == {
        "aa-1": "",
        "aa-2": "view LATERAL is not frontal",
        "aa-3": "",
        "bb-1": "view position is blank",
        "cc-1": "",
    }


def test_laterals_are_kept_where_all_views_are_asked_for(mimic: Path) -> None:
    (mimic / "files" / "p10" / "p10000032").mkdir(parents=True)
    (mimic / "files" / "p10" / "p10000032" / "s50414267.txt").write_text("FINDINGS: Clear.")
    kept = {views: [row["dicom_id"] for row in list_rows(DataConfig("mimic_cxr", str(mimic), views=views))
                    if not row["reason"]] for views in ("frontal", "all")}  # fmt: skip
    assert kept == {"frontal": ["aa-1", "aa-3", "cc-1"], "all": list(IMAGES)}


def test_mimic_labels_are_chexperts_then_negbios_then_none(mimic: Path) -> None:
    labels = {row["dicom_id"]: row["labels"] for row in list_mimic_cxr(str(mimic))}
    named = dict(zip(CHEXPERT_LABELS, labels["aa-1"], strict=True))
    assert {name: value for name, value in named.items() if value is not None} == {"No Finding": 1.0, "Edema": -1.0}
    assert dict(zip(CHEXPERT_LABELS, labels["aa-3"], strict=True))["Pneumonia"] == 0.0
    assert labels["cc-1"] is None
    (mimic / "mimic-cxr-2.0.0-chexpert.csv").unlink()
    fallback = next(list_mimic_cxr(str(mimic)))["labels"]
    assert dict(zip(CHEXPERT_LABELS, fallback, strict=True))["Edema"] == 1.0


@pytest.mark.parametrize("name", ["split.csv.gz", "metadata.csv"])
def test_a_missing_mimic_table_is_named_with_where_to_get_it(mimic: Path, name: str) -> None:
    (mimic / f"mimic-cxr-2.0.0-{name}").unlink()
    with pytest.raises(ValueError, match=rf"{name.removesuffix('.gz')}.*physionet\.org"):
        next(list_mimic_cxr(str(mimic)))


def test_mimic_needs_one_table_of_labels_with_usable_values(mimic: Path) -> None:
    (mimic / "mimic-cxr-2.0.0-negbio.csv.gz").unlink()
    path = mimic / "mimic-cxr-2.0.0-chexpert.csv"
    path.write_text(path.read_text().replace("-1.0", "maybe"))
    with pytest.raises(ValueError, match="study 50414267: labels are"):
        next(list_mimic_cxr(str(mimic)))
    path.write_text(path.read_text().replace("Edema", "Oedema"))
    with pytest.raises(ValueError, match="has no column Edema"):
        next(list_mimic_cxr(str(mimic)))
    path.unlink()
    with pytest.raises(ValueError, match="chexpert"):
        next(list_mimic_cxr(str(mimic)))


def test_mimic_images_in_one_table_only_are_rows_too(mimic: Path) -> None:
    path = mimic / "mimic-cxr-2.0.0-metadata.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:-1], lines[1].replace("aa-1", "dd-1")]) + "\n")
    found = reasons(listed(list_mimic_cxr(str(mimic))))
    assert found["dd-1"] == "image is not in the split table"
    assert found["cc-1"] == "image is not in the metadata table"
    assert len(found) == 6


def test_mimic_reports_may_lie_elsewhere_with_or_without_files(mimic: Path, tmp_path: Path) -> None:
    apart = tmp_path / "reports"
    apart.mkdir()
    row = next(list_mimic_cxr(str(mimic), str(apart)))
    assert row["report_path"] == f"{apart}/p10/p10000032/s50414267.txt"
    (apart / "files").mkdir()
    row = next(list_mimic_cxr(str(mimic), str(apart)))
    assert row["report_path"] == f"{apart}/files/p10/p10000032/s50414267.txt"


def test_mimic_can_be_read_through_any_file_system(mimic: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(mimic), "/mimic", recursive=True)
    try:
        row = next(list_mimic_cxr("memory://mimic/"))
    finally:
        memory.rm("/mimic", recursive=True)
    assert row["image_path"] == "memory://mimic/files/p10/p10000032/s50414267/aa-1.jpg"


def test_urls_are_opened_through_fsspec() -> None:
    with fsspec.open("memory://listing/a/table.csv", "wb") as stream:
        stream.write(b"x,y\n1,2\n")
    assert sources.exists("memory://listing/a/table.csv") and not sources.exists("memory://listing/a/none.csv")
    assert sources.list_names("memory://listing/a") == ["table.csv"]
    assert sources.list_names("memory://listing/b") == []
    assert list(tables.read_table("memory://listing/a/table.csv")) == [{"x": "1", "y": "2"}]


# ---- OpenI ----------------------------------------------------------------------------------------------------------


def xml(number: int, findings: str, impression: str, images: list[str]) -> str:
    parents = "".join(f'<parentImage id="{image}"><caption>x</caption></parentImage>' for image in images)
    return (
        f'<?xml version="1.0" encoding="utf-8"?><eCitation><uId id="CXR{number}"/><Abstract>'
        f'<AbstractText Label="INDICATION">Cough</AbstractText><AbstractText Label="FINDINGS">{findings}</AbstractText>'
        f'<AbstractText Label="IMPRESSION">{impression}</AbstractText></Abstract>{parents}</eCitation>'
    )


@pytest.fixture
def nlm(tmp_path: Path) -> Path:
    (tmp_path / "ecgen-radiology").mkdir()
    (tmp_path / "NLMCXR_png").mkdir()
    reports = {
        1: xml(1, "Clear lungs &amp; heart.", "Normal.", ["CXR1_1_IM-0001-3001", "CXR1_1_IM-0001-4001"]),
        2: xml(2, "", "Stable <b>small</b> effusion\n of <i>fluid</i>.", ["CXR2_IM-0652-1001"]),
        3: xml(3, "Clear lungs.", "", []),
        10: xml(10, "NULL", " ", ["CXR10_IM-0002-1001"]),
        11: xml(11, "Lungenherd gr\u00f6\u00dfer.", "None.", ["CXR11_IM-0067-1001", "CXR11_IM-0067-1001"]),
        12: "<eCitation><uId",
    }
    for number, text in reports.items():
        (tmp_path / "ecgen-radiology" / f"{number}.xml").write_text(text, encoding="utf-8")
    for name in ("CXR1_1_IM-0001-3001", "CXR1_1_IM-0001-4001", "CXR11_IM-0067-1001", "CXR10_IM-0002-1001"):
        (tmp_path / "NLMCXR_png" / f"{name}.png").touch()
    return tmp_path


def test_every_image_of_an_nlm_report_is_a_row_and_every_trap_has_its_reason(nlm: Path) -> None:
    rows = listed(list_openi(str(nlm)))
    assert [(row["study_id"], row["dicom_id"], row["reason"]) for row in rows] == [
        ("CXR1", "CXR1_1_IM-0001-3001", ""),
        ("CXR1", "CXR1_1_IM-0001-4001", ""),
        ("CXR2", "CXR2_IM-0652-1001", "image file is missing"),
        ("CXR3", "", "no image in the report"),
        ("CXR10", "CXR10_IM-0002-1001", "no findings or impression"),
        ("CXR11", "CXR11_IM-0067-1001", ""),
        ("CXR12", "", "report is not readable XML"),
    ]
    assert rows[0]["findings"] == "Clear lungs & heart."
    assert rows[0]["image_path"] == f"{nlm}/NLMCXR_png/CXR1_1_IM-0001-3001.png"
    assert rows[2]["impression"] == "Stable small effusion of fluid."
    assert rows[5]["findings"] == "Lungenherd gr\u00f6\u00dfer."
    assert {row["report_path"] for row in rows} == {""}


@pytest.mark.parametrize("given", ["argument", "beside", "kaggle_layout"])
def test_views_come_from_the_projections_table(nlm: Path, given: str) -> None:
    folder = {"argument": nlm / "elsewhere", "beside": nlm, "kaggle_layout": nlm / "kaggle_layout"}[given]
    path = folder / "indiana_projections.csv"
    write_csv(
        path,
        [
            {"uid": "1", "filename": "1_IM-0001-4001.dcm.png", "projection": "Frontal"},
            {"uid": "1", "filename": "1_IM-0001-3001.dcm.png", "projection": "Lateral"},
        ],
    )
    rows = {row["dicom_id"]: row for row in list_openi(str(nlm), str(path) if given == "argument" else None)}
    assert rows["CXR1_1_IM-0001-4001"]["view_position"] == "Frontal"
    assert rows["CXR1_1_IM-0001-4001"]["reason"] == ""
    assert rows["CXR1_1_IM-0001-3001"]["reason"] == "view LATERAL is not frontal"
    # Not in the table: unknown, and taken.
    assert (rows["CXR11_IM-0067-1001"]["view_position"], rows["CXR11_IM-0067-1001"]["reason"]) == ("", "")


def test_the_three_forms_of_an_image_name_are_one_image() -> None:
    names = ["CXR1_1_IM-0001-4001", "1_IM-0001-4001.dcm.png", "CXR1_IM-0001-4001.png", "a/1_IM-0001-4001.png"]
    assert {image_key(name) for name in names} == {"1_IM-0001-4001"}
    assert image_key("CXR21_IM-0729-1001-0002") == image_key("21_IM-0729-1001-0002.dcm.png") != image_key(names[0])


def test_openi_split_is_by_patient_seeded_and_of_the_published_size(nlm: Path) -> None:
    splits = {(row["subject_id"], row["split"]) for row in list_openi(str(nlm), seed=3)}
    assert len(splits) == len({subject for subject, _ in splits})
    assert splits == {(subject, subject_split(subject, 3, FRACTIONS)) for subject, _ in splits}
    drawn = Counter(subject_split(f"CXR{number}", 0, FRACTIONS) for number in range(1, 3685))
    assert abs(drawn["test"] - 772) < 60 and abs(drawn["validate"] - 146) < 40


def test_r2gen_layout_keeps_its_own_split_whose_test_key_is_four_spaces(tmp_path: Path) -> None:
    def entry(study: str, images: int = 1) -> dict[str, object]:
        return {"id": study, "report": "Clear lungs.", "image_path": [f"{study}/{n}.png" for n in range(images)]}

    annotation = {
        "train": [entry("CXR1_IM-1", 2), entry("CXR9_IM-1", 0)],
        "val": [entry("CXR2_IM-2")],
        "    ": [entry("CXR3_IM-3")],
        "fold": [entry("CXR4_IM-4")],
    }
    (tmp_path / "annotation.json").write_text(json.dumps(annotation))
    for study in ("CXR1_IM-1", "CXR2_IM-2", "CXR4_IM-4"):
        (tmp_path / "images" / study).mkdir(parents=True)
    rows = listed(list_openi(str(tmp_path)))
    assert [(row["subject_id"], row["dicom_id"], row["split"], row["reason"]) for row in rows] == [
        ("CXR1", "CXR1_IM-1_0", "train", ""),
        ("CXR1", "CXR1_IM-1_1", "train", ""),
        ("CXR9", "", "train", "no image in the report"),
        ("CXR2", "CXR2_IM-2_0", "validate", ""),
        ("CXR3", "CXR3_IM-3_0", "test", "image file is missing"),
        ("CXR4", "CXR4_IM-4_0", "", "unknown split fold"),
    ]
    assert rows[1]["image_path"] == f"{tmp_path}/images/CXR1_IM-1/1.png"
    assert rows[0]["findings"] == "Clear lungs."


@pytest.mark.parametrize("folder", ["images", "images/images_normalized"])
def test_kaggle_layout(tmp_path: Path, folder: str) -> None:
    table = [
        {"uid": "1", "findings": "Clear lungs.", "impression": "Normal."},
        {"uid": "2", "findings": "", "impression": ""},
        {"uid": "3", "findings": "Clear.", "impression": ""},
    ]
    write_csv(tmp_path / "indiana_reports.csv", table)
    with pytest.raises(ValueError, match=r"no indiana_projections\.csv"):
        list(list_openi(str(tmp_path)))
    images = [("1", "1_IM-1-1.dcm.png", "Frontal"), ("1", "1_IM-1-2.dcm.png", "Lateral"), ("2", "2_IM-2-1.dcm.png", "")]
    projections = [{"uid": uid, "filename": name, "projection": view} for uid, name, view in images]
    write_csv(tmp_path / "indiana_projections.csv", projections)
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "1_IM-1-1.dcm.png").touch()
    rows = listed(list_openi(str(tmp_path)))
    assert [(row["study_id"], row["dicom_id"], row["reason"]) for row in rows] == [
        ("CXR1", "CXR1_IM-1-1", ""),
        ("CXR1", "CXR1_IM-1-2", "view LATERAL is not frontal"),
        ("CXR2", "CXR2_IM-2-1", "no findings or impression"),
        ("CXR3", "", "no image in the report"),
    ]
    assert rows[0]["image_path"] == f"{tmp_path}/{folder}/1_IM-1-1.dcm.png"


def test_a_folder_without_openi_names_the_layouts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ecgen-radiology.*annotation\.json.*indiana_reports"):
        list_openi(str(tmp_path))
    with pytest.raises(ValueError, match="no projections table"):
        list_openi(str(tmp_path), projections=str(tmp_path / "none.csv"))


def test_image_folders_are_listed_once_and_files_never_looked_up(nlm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    list_names, look = sources.list_names, sources.exists

    def names(folder: str) -> list[str]:
        asked.append(folder)
        return list_names(folder)

    def exists(path: str) -> bool:
        assert not path.endswith(".png")
        return look(path)

    monkeypatch.setattr(sources, "list_names", names)
    monkeypatch.setattr(sources, "exists", exists)
    assert len(list(list_openi(str(nlm)))) == 7
    assert sorted(asked) == sorted([f"{nlm}/NLMCXR_png", f"{nlm}/ecgen-radiology"])


# ---- tables ---------------------------------------------------------------------------------------------------------


def test_manifest_needs_no_more_than_image_and_text(tmp_path: Path) -> None:
    write_csv(
        tmp_path / "table.csv", [{"image": "a/x.png", "report": "Clear."}, {"image": "b/x.png", "report": "Big."}]
    )
    rows = listed(list_manifest(str(tmp_path / "table.csv"), ManifestColumns()))
    assert [(row["study_id"], row["subject_id"], row["dicom_id"]) for row in rows] == [
        ("1-x", "1-x", "x"),
        ("2-x", "2-x", "x-2"),
    ]
    assert rows[0]["image_path"] == f"{tmp_path}/a/x.png"
    assert (rows[0]["findings"], rows[0]["impression"], rows[0]["report_path"]) == ("Clear.", "", "")
    assert {(row["split"], row["view_position"], row["reason"]) for row in rows} == {("", "", "")}


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "jsonl"])
def test_manifest_columns_are_mapped_by_name(tmp_path: Path, kind: str) -> None:
    given = [
        {"file": "/abs/1.png", "F": "Clear.", "I": "Normal.", "id": "0017", "who": "331a", "set": "dev", "v": "PA"},
        {"file": "s3://b/2.png", "F": "", "I": "Normal.", "id": "0017", "who": "331a", "set": "Train", "v": "L"},
        {"file": "3.png", "F": "Clear.", "I": "", "id": "", "who": "", "set": "fold 2", "v": "AP Supine"},
        {"file": "", "F": "Clear.", "I": "", "id": "18", "who": "5", "set": "", "v": ""},
        {"file": "5.png", "F": " ", "I": "NULL", "id": "19", "who": "5", "set": "", "v": ""},
    ]
    path = tmp_path / f"table.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(json.dumps({k: v for k, v in row.items() if v}) for row in given) + "\n\n")
    else:
        write_csv(path, given)
    columns = ManifestColumns("file", study="id", subject="who", split="set", view="v", findings="F", impression="I")
    rows = listed(list_manifest(str(path), columns, "/pictures/"))
    assert [row["image_path"] for row in rows] == [
        "/abs/1.png",
        "s3://b/2.png",
        "/pictures/3.png",
        "",
        "/pictures/5.png",
    ]
    assert [row["split"] for row in rows] == ["validate", "train", "", "", ""]
    assert [row["reason"] for row in rows] == [
        *("", "view L is not frontal", "unknown split fold 2", "no image in the row", "empty report")
    ]
    assert [row["study_id"] for row in rows] == ["0017", "0017", "3-3", "18", "19"]
    assert [row["subject_id"] for row in rows] == ["331a", "331a", "3-3", "5", "5"]
    assert (rows[1]["findings"], rows[1]["impression"]) == ("", "Normal.")


def test_an_unknown_manifest_column_lists_those_there_are(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", [{"path": "x.png", "note": "Clear."}])
    with pytest.raises(ValueError, match="no column image, report; it has path, note"):
        list(list_manifest(str(tmp_path / "t.csv"), ManifestColumns()))
    with pytest.raises(ValueError, match="needs an image column and a text"):
        list(list_manifest(str(tmp_path / "t.csv"), ManifestColumns(image="path", text="")))
    (tmp_path / "t.jsonl").write_text('{"image": "x.png", "report": "a"}\nnot json\n')
    with pytest.raises(ValueError, match="line 2: not JSON"):
        list(list_manifest(str(tmp_path / "t.jsonl"), ManifestColumns()))


def test_bytes_that_are_no_text_do_not_stop_a_manifest(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b'\xef\xbb\xbfimage,report\nx.png,"Universit?rio, gr\xf6\xdfer\n effusion"\n')
    row = listed(list_manifest(str(tmp_path / "t.csv"), ManifestColumns()))[0]
    assert row["findings"] == "Universit?rio, gr\u00f6\u00dfer\n effusion"


def test_subjects_that_share_an_image_are_one_so_that_no_split_parts_them(tmp_path: Path) -> None:
    pairs = [("a", "1.png"), ("b", "2.png"), ("b", "3.png"), ("c", "3.png"), ("d", "4.png"), ("c", "1.png")]
    write_csv(tmp_path / "t.csv", [{"image": image, "report": "Clear.", "who": who} for who, image in pairs])
    rows = listed(list_manifest(str(tmp_path / "t.csv"), ManifestColumns(subject="who")))
    assert [row["subject_id"] for row in rows] == ["a", "a", "a", "a", "d", "a"]
    assert [row["dicom_id"] for row in rows] == ["1", "2", "3", "3-2", "4", "1-2"]


# ---- real data ------------------------------------------------------------------------------------------------------


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "rows", "studies", "usable"),
    [("", 5330, 2788, 4), ("r2gen_layout", 4166, 2083, 4), ("kaggle_layout", 5255, 2717, 0)],
)
def test_real_openi_in_three_layouts(layout: str, rows: int, studies: int, usable: int) -> None:
    found = listed(list_openi(str(DATA / "openi" / layout)))
    assert (len(found), len({row["study_id"] for row in found})) == (rows, studies)
    accepted = [row for row in found if not row["reason"]]
    assert len(accepted) == usable
    assert all(Path(row["image_path"]).is_file() for row in accepted)
    assert {row["split"] for row in found} == set(SPLITS)
    if not layout:
        reasons_seen = Counter(row["reason"] for row in found)
        assert reasons_seen["no image in the report"] == 71
        assert reasons_seen["view LATERAL is not frontal"] == 2550
        # Of 21 reports without text, 2 have no image either and are named for that.
        assert len({row["study_id"] for row in found if row["reason"] == "no findings or impression"}) == 19


@needs_data
def test_real_covid_table_through_the_manifest() -> None:
    folder = DATA / "covid"
    columns = ManifestColumns(image="filename", text="clinical_notes", subject="patientid", view="view")
    rows = listed(list_manifest(str(folder / "metadata.csv"), columns, str(folder / "images")))
    assert (len(rows), len({row["image_path"] for row in rows})) == (63, 60)
    assert all(Path(row["image_path"]).is_file() for row in rows)
    assert {row["reason"] for row in rows} == {""}
    subjects = {row["subject_id"] for row in rows}
    assert "331a" in subjects and "331b" in subjects
    # Patients 285 and 339 list the same three images: one person for the split.
    assert "285" in subjects and "339" not in subjects
