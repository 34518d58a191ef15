"""Phantom studies: the same every time, and picture, boxes, report and labels tell the same story."""

import re
from collections import Counter
from functools import cache

import numpy as np
import pyarrow as pa
import pytest

from adamatch_ray.data.phantom import FINDING_WORDS, NamedBox, PhantomStudy, generate, list_phantoms, parse_phantom_path
from adamatch_ray.schema import CHEXPERT_LABELS, SOURCE

SIDED = ("effusion", "pneumothorax", "consolidation", "nodule", "atelectasis", "granuloma")
LABEL_OF = {
    "effusion": "Pleural Effusion",
    "pneumothorax": "Pneumothorax",
    "consolidation": "Consolidation",
    "nodule": "Lung Lesion",
    "atelectasis": "Atelectasis",
    "cardiomegaly": "Cardiomegaly",
    "edema": "Edema",
    "fracture": "Fracture",
    "pacemaker": "Support Devices",
    "tube": "Support Devices",
    "wires": "Support Devices",
}
DENIAL = {
    "Pleural Effusion": "effusion",
    "Pneumothorax": "pneumothorax",
    "Consolidation": "consolidation",
    "Edema": "edema",
    "Fracture": "fracture",
    "Lung Opacity": "opacity",
    "Support Devices": "devices",
}


@cache
def studies() -> tuple[PhantomStudy, ...]:
    return tuple(generate(index, 7, 160) for index in range(300))


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower()))


def sentences(text: str) -> list[set[str]]:
    return [words(sentence) for sentence in re.split(r"\.\s", text)]


def denies(sentence: set[str]) -> bool:
    return "no" in sentence


def mean_in(study: PhantomStudy, box: NamedBox) -> float:
    return float(study.image[int(box.y0) : int(box.y1), int(box.x0) : int(box.x1)].mean())


def side_of(study: PhantomStudy, box: NamedBox) -> str:
    return "right" if box.x0 + box.x1 < study.image.shape[1] else "left"


def mirrored(study: PhantomStudy, box: NamedBox) -> NamedBox:
    width = study.image.shape[1]
    return NamedBox(box.name, width - box.x1, box.y0, width - box.x0, box.y1)


def test_a_study_is_the_same_every_time_and_differs_by_index_and_seed() -> None:
    once, again = generate(3, 5, 160), generate(3, 5, 160)
    assert np.array_equal(once.image, again.image)
    assert (once.findings, once.impression, once.boxes, once.labels) == (
        again.findings,
        again.impression,
        again.boxes,
        again.labels,
    )
    for other in (generate(4, 5, 160), generate(3, 6, 160)):
        assert other.image.shape != once.image.shape or not np.array_equal(other.image, once.image)


def test_the_report_does_not_depend_on_the_size_of_the_picture() -> None:
    for index in range(20):
        small, large = generate(index, 0, 96), generate(index, 0, 192)
        assert [b.name for b in small.boxes] == [b.name for b in large.boxes]
        assert small.labels == large.labels
        for a, b in zip(small.boxes, large.boxes, strict=True):
            assert np.allclose(np.array(a[1:]) * 2, b[1:], atol=9), (index, a, b)


def test_images_have_the_long_side_asked_for_and_many_shapes() -> None:
    assert all(max(s.image.shape) == 160 and s.image.dtype == np.uint8 and s.image.ndim == 2 for s in studies())
    ratios = [s.image.shape[0] / s.image.shape[1] for s in studies()]
    assert min(ratios) < 0.9 and max(ratios) > 1.1


def test_every_kind_of_box_occurs_and_lies_inside_the_image() -> None:
    assert {b.name for s in studies() for b in s.boxes} == set(FINDING_WORDS)
    for study in studies():
        height, width = study.image.shape
        for box in study.boxes:
            assert 0 <= box.x0 <= box.x1 - 1 and box.x1 <= width, box
            assert 0 <= box.y0 <= box.y1 - 1 and box.y1 <= height, box


@pytest.mark.parametrize(
    ("name", "sign", "contrast"),
    [
        ("effusion", 1, 20),
        ("pneumothorax", -1, 20),
        ("consolidation", 1, 20),
        ("nodule", 1, 35),
        ("granuloma", 1, 50),
        ("pacemaker", 1, 50),
    ],
)
def test_findings_stand_out_from_the_other_side_of_the_chest(name: str, sign: int, contrast: float) -> None:
    gaps = [
        sign * (mean_in(s, b) - mean_in(s, mirrored(s, b)))
        for s in studies()
        for b in s.boxes
        if b.name == name and len(s.boxes) == 1 + (name == "pacemaker") * 2
    ]
    assert gaps and np.median(gaps) > contrast, (name, sorted(gaps))


def test_an_enlarged_heart_is_wider_the_worse_it_is_said_to_be() -> None:
    widths: dict[str, list[float]] = {"mild": [], "moderate": [], "severe": []}
    for study in studies():
        for box in study.boxes:
            if box.name == "cardiomegaly":
                degree = next(d for d in widths if f"{d} cardiomegaly" in study.impression.lower())
                widths[degree].append((box.x1 - box.x0) / study.image.shape[1])
    assert max(widths["mild"]) < min(widths["moderate"]) <= max(widths["moderate"]) < min(widths["severe"])


def test_a_measurement_in_the_report_is_the_size_in_the_picture() -> None:
    checked = 0
    for study in studies():
        boxes = [b for b in study.boxes if b.name == "nodule"]
        said = re.findall(r"([\d.]+) (cm|mm)", study.findings)
        if len(boxes) == len(said) == 1:
            cm = float(said[0][0]) / (10 if said[0][1] == "mm" else 1)
            assert boxes[0].x1 - boxes[0].x0 == pytest.approx(cm / 36 * 160, abs=2.1)
            checked += 1
    assert checked > 20


def test_the_report_names_every_box_with_its_side_in_both_sections() -> None:
    for study in studies():
        for box in study.boxes:
            needed = {side_of(study, box)} if box.name in SIDED else set()
            denoting = set(FINDING_WORDS[box.name])
            for section in (study.findings, study.impression):
                if box.name == "lead" and section is study.impression:
                    continue
                said = [s for s in sentences(section) if not denies(s) and s & denoting and needed <= s]
                assert said, (box, section)


def test_the_report_denies_nothing_that_is_there() -> None:
    for study in studies():
        present = {word for b in study.boxes for word in FINDING_WORDS[b.name]}
        for sentence in sentences(study.findings):
            if denies(sentence):
                assert not sentence & present, study.findings


def test_labels_say_what_the_report_says() -> None:
    for study in studies():
        label = dict(zip(CHEXPERT_LABELS, study.labels, strict=True))
        positive = {LABEL_OF[b.name] for b in study.boxes if b.name in LABEL_OF}
        assert all(label[name] == (1.0 if name in positive else label[name]) for name in LABEL_OF.values())
        assert positive >= {name for name in LABEL_OF.values() if label[name] == 1.0}
        denied = set().union(*(s for s in sentences(study.findings) if denies(s)))
        for name, word in DENIAL.items():
            assert (label[name] == 0.0) == (word in denied), (name, study.findings)
        assert (label["Cardiomegaly"] == 0.0) == bool(re.search("heart (size )?is normal", study.findings.lower()))
        assert (label["No Finding"] == 1.0) == (not study.boxes)
        pneumonia = 1.0 if "dense" in words(study.findings) else -1.0
        assert label["Pneumonia"] == (pneumonia if "consolidation" in {b.name for b in study.boxes} else None)
        assert set(study.labels) <= {1.0, 0.0, -1.0, None}


def test_reports_are_short_plain_and_seldom_alike() -> None:
    reports = [f"{s.findings} {s.impression}" for s in studies()]
    lengths = [len(report.split()) for report in reports]
    assert 25 <= np.median(lengths) <= 60 and max(lengths) <= 75
    assert len(set().union(*map(words, reports))) < 400
    assert len(set(reports)) / len(reports) > 0.75
    assert all(r[0].isupper() and r.endswith(".") for r in reports)


def test_about_a_fifth_is_normal_and_none_has_more_than_four_findings() -> None:
    counts = Counter(len({(b.name, side_of(s, b)) for b in s.boxes if b.name != "lead"}) for s in studies())
    assert 0.12 < counts[0] / len(studies()) < 0.28
    assert {s.view_position for s in studies()} == {"PA", "AP"}


def test_the_listing_is_a_source_table_that_grows_without_changing() -> None:
    rows = list(list_phantoms(30, 9))
    table = pa.Table.from_pylist(rows, schema=SOURCE)
    assert all(set(row) == set(SOURCE.names) for row in rows)
    assert table.column("study_id")[4].as_py() == "phantom-9-0000004"
    assert table.column("dicom_id")[4].as_py() == "phantom-9-0000004-1"
    assert len(set(table.column("study_id").to_pylist())) == 30
    assert set(Counter(table.column("subject_id").to_pylist()).values()) == {1, 2}
    assert rows[:10] == list(list_phantoms(10, 9))
    assert [parse_phantom_path(str(row["image_path"])) for row in rows] == [(9, index) for index in range(30)]


@pytest.mark.parametrize("path", ["phantom://1", "phantom://a/2", "file://1/2", "phantom://-1/2", "phantom://1/2/3"])
def test_a_path_that_is_no_phantom_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="phantom://<seed>/<index>"):
        parse_phantom_path(path)


def test_a_study_that_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="side from 64"):
        generate(0, 0, side=10)
    with pytest.raises(ValueError, match="from 0"):
        generate(-1, 0)
