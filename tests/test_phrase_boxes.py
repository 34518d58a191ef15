"""MS-CXR annotations in both forms they come in, what is wrong with a file, and phrases scored on studies."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from adamatch_ray.data import loading
from adamatch_ray.data.phrase_boxes import PhraseAnnotation, read_phrase_boxes
from adamatch_ray.engines.loader import load_embedder
from adamatch_ray.engines.localizing import localize_phrases
from adamatch_ray.engines.matching import MatchingEngine
from adamatch_ray.storage import Root

HEADER = "dicom_id,category_name,label_text,path,x,y,w,h,image_width,image_height,split"
ROWS = (
    'a1,Pneumothorax,"Small, left apical pneumothorax",files/p10/p1/s1/a1.jpg,100,200,300,50,2000,3000,train',
    "b2,Pneumonia,opacities in both bases,files/p10/p1/s2/b2.jpg,0,10,20,30,2544,3056,test",
    "b2,Pneumonia,opacities in both bases,files/p10/p1/s2/b2.jpg,500,600,10,10,2544,3056,test",
)
EXPECTED = [
    PhraseAnnotation("a1", "Small, left apical pneumothorax", "Pneumothorax", ((100, 200, 400, 250),), 3000, 2000),
    PhraseAnnotation("b2", "opacities in both bases", "Pneumonia", ((0, 10, 20, 40), (500, 600, 510, 610)), 3056, 2544),
]


def coco() -> dict[str, Any]:
    return {
        "info": {},
        "images": [
            {"id": 1, "file_name": "a1.jpg", "path": "files/p10/p1/s1/a1.jpg", "width": 2000, "height": 3000},
            {"id": 7, "file_name": "b2.jpg", "path": "files/p10/p1/s2/b2.jpg", "width": 2544, "height": 3056},
        ],
        "categories": [{"id": 4, "name": "Pneumothorax"}, {"id": 2, "name": "Pneumonia"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 4, "bbox": [100, 200, 300, 50],
             "label_text": "Small, left apical pneumothorax"},
            {"id": 2, "image_id": 7, "category_id": 2, "bbox": [0, 10, 20, 30],
             "label_text": "opacities in both bases"},
            {"id": 3, "image_id": 7, "category_id": 2, "bbox": [500, 600, 10, 10],
             "label_text": "opacities in both bases"},
        ],
    }  # fmt: skip


def write_csv(folder: Path, *rows: str, header: str = HEADER) -> str:
    path = folder / "ms_cxr.csv"
    path.write_text("\n".join((header, *rows)) + "\n")
    return str(path)


def write_json(folder: Path, said: Any) -> str:
    path = folder / "ms_cxr.json"
    path.write_text(json.dumps(said))
    return str(path)


def test_both_forms_say_the_same_and_boxes_of_a_phrase_are_together(tmp_path: Path) -> None:
    csv = write_csv(tmp_path, *ROWS)
    packed = tmp_path / "packed.csv.gz"
    packed.write_bytes(gzip.compress(Path(csv).read_bytes()))
    assert (
        read_phrase_boxes(csv)
        == read_phrase_boxes(str(packed))
        == read_phrase_boxes(write_json(tmp_path, coco()))
        == EXPECTED
    )


def test_the_image_is_told_by_its_path_where_there_is_no_id(tmp_path: Path) -> None:
    header = HEADER.removeprefix("dicom_id,")
    rows = [row.split(",", 1)[1] for row in ROWS]
    assert read_phrase_boxes(write_csv(tmp_path, *rows, header=header)) == EXPECTED


def test_a_box_that_reaches_over_the_edge_is_cut(tmp_path: Path) -> None:
    row = "a1,Edema,edema,a1.jpg,-5,10,3000,20,2000,3000,test"
    assert read_phrase_boxes(write_csv(tmp_path, row))[0].boxes == ((0, 10, 2000, 30),)


def test_boxes_follow_an_image_to_another_size() -> None:
    assert EXPECTED[0].boxes_on(height=300, width=400) == ((20, 20, 80, 25),)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("a1,Edema,edema,a1.jpg,x,10,20,20,2000,3000,test", "line 3: x 'x' is no number"),
        ("a1,Edema,edema,a1.jpg,1,10,nan,20,2000,3000,test", "line 3: w '' is no number"),
        ("a1,Edema,edema,a1.jpg,1,10,0,20,2000,3000,test", "line 3: box .* has no part"),
        ("a1,Edema,edema,a1.jpg,2100,10,20,20,2000,3000,test", "line 3: box .* has no part"),
        ("a1,Edema, ,a1.jpg,1,10,20,20,2000,3000,test", "line 3: no phrase"),
        ("a1,,edema,a1.jpg,1,10,20,20,2000,3000,test", "line 3: no finding"),
        ("a1,Edema,edema,a1.jpg,1,10,20,20,2000,,test", "line 3: height '' is no number"),
        ("a1,Edema,edema,a1.jpg,1,10,20,20,999,3000,test", "line 3: a1 had another size"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_line(tmp_path: Path, row: str, problem: str) -> None:
    with pytest.raises(ValueError, match=f"ms_cxr.csv, {problem}"):
        read_phrase_boxes(write_csv(tmp_path, ROWS[0], row))


def test_a_missing_column_or_an_empty_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no column label_text; it has dicom_id"):
        read_phrase_boxes(write_csv(tmp_path, ROWS[0], header=HEADER.replace("label_text", "text")))
    with pytest.raises(ValueError, match="no annotations"):
        read_phrase_boxes(write_csv(tmp_path))


def test_a_wrong_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match=r"x.json: not JSON"):
        read_phrase_boxes(str(tmp_path / "x.json"))
    with pytest.raises(ValueError, match="COCO-style"):
        read_phrase_boxes(write_json(tmp_path, []))
    said = coco()
    said["annotations"][2]["image_id"] = 99
    with pytest.raises(ValueError, match="annotation 2: no image of id 99"):
        read_phrase_boxes(write_json(tmp_path, said))
    said["annotations"][2] |= {"image_id": 7, "bbox": [1, 2, 3]}
    with pytest.raises(ValueError, match="annotation 2: bbox"):
        read_phrase_boxes(write_json(tmp_path, said))


def test_phrases_are_scored_on_the_studies_that_a_split_has(cycle_root: Path) -> None:
    root = Root(str(cycle_root))
    studies = next(loading.read_split(root.stage("studies"), "test")).to_pylist()[:3]

    def annotation(study: dict[str, Any], scale: float) -> PhraseAnnotation:
        height, width = study["height"] * scale, study["width"] * scale
        boxes = ((0.0, 0.0, width / 2, height / 2),)
        return PhraseAnnotation(study["dicom_id"], "small left effusion", "Pleural Effusion", boxes, height, width)

    annotations = [annotation(studies[0], 1), annotation(studies[2], 8), PhraseAnnotation("x", "y", "z", (), 1, 1)]
    engine = MatchingEngine(load_embedder(root))
    rows = localize_phrases(engine, root.stage("studies"), "test", annotations).rows
    assert [row.study_id for row in rows] == [studies[0]["study_id"], studies[2]["study_id"]]
    assert all(row.score.chance == pytest.approx(0.25) and row.finding == "Pleural Effusion" for row in rows)
