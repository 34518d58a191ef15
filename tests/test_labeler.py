"""The rule labeler on phrases, on published samples and on real reports it was not developed on."""

import csv
import hashlib
import json
import pickle
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from adamatch_ray.data.labeler import Labels, RuleLabeler, finding_scores
from adamatch_ray.schema import CHEXPERT_LABELS

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
OPENI = {
    "Atelectasis": ("Atelectasis",),
    "Cardiomegaly": ("Cardiomegaly",),
    "Consolidation": ("Consolidation",),
    "Edema": ("Edema",),
    "Lung Lesion": ("Mass", "Nodule"),
    "Pleural Effusion": ("Effusion",),
    "Pneumothorax": ("Pneumothorax",),
}


def mentioned(report: str) -> dict[str, float]:
    values = RuleLabeler().label([report])[0]
    return {name: value for name, value in zip(CHEXPERT_LABELS, values, strict=True) if value is not None}


def row(**values: float) -> Labels:
    return tuple(values.get(name.replace(" ", "_")) for name in CHEXPERT_LABELS)


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        ("Small right pleural effusion.", {"Pleural Effusion": 1}),
        ("No pleural effusion, pneumothorax, or focal consolidation.", {"Pleural Effusion": 0, "Pneumothorax": 0}),
        ("No pneumothorax, but there is a small effusion.", {"Pneumothorax": 0, "Pleural Effusion": 1}),
        ("Pneumonia cannot be excluded.", {"Pneumonia": -1}),
        ("No evidence to suggest pneumonia.", {"Pneumonia": 0}),
        ("Opacities may represent atelectasis or pneumonia.", {"Atelectasis": -1, "Pneumonia": -1, "Lung Opacity": 1}),
        ("No effusion or pneumothorax.", {"Pleural Effusion": 0, "Pneumothorax": 0}),
        ("Pulmonary edema has resolved.", {"Edema": 0}),
        ("The heart is not enlarged.", {"Cardiomegaly": 0}),
        ("The heart is mildly enlarged.", {"Cardiomegaly": 1}),
        ("Heart size is at the upper limits of normal.", {"Cardiomegaly": 0}),
        ("Borderline cardiomegaly.", {"Cardiomegaly": -1}),
        ("No change in the left effusion.", {"Pleural Effusion": 1}),
        ("Pericardial effusion.", {}),
        ("Chest tube has been removed. No pneumothorax.", {"Support Devices": 0, "Pneumothorax": 0}),
        ("Blunting of the left costophrenic angle.", {"Pleural Effusion": -1}),
        ("Cardiomediastinal silhouette is normal.", {"Cardiomegaly": 0, "Enlarged Cardiomediastinum": 0}),
        ("Healed rib fractures. Left lower lobe nodule.", {"Fracture": 1, "Lung Lesion": 1}),
        ("Pneumonia. No pneumonia.", {"Pneumonia": 1}),
        ("Possible pneumonia. No pneumonia.", {"Pneumonia": -1}),
    ],
)
def test_phrases(report: str, expected: dict[str, float]) -> None:
    found = mentioned(report)
    assert {name: found.get(name) for name in expected} == expected
    quiet = {name for name, value in found.items() if value != 0} - {"No Finding", *expected}
    assert not quiet, "nothing else may be asserted"


def test_no_finding_means_no_finding() -> None:
    assert mentioned("The lungs are clear. No effusion.")["No Finding"] == 1
    assert mentioned("Right picc line. The lungs are clear.")["No Finding"] == 1
    assert "No Finding" not in mentioned("Possible pneumonia.")
    assert mentioned(" \n") == {}


def test_published_samples() -> None:
    path = SHARED / "knownanswers" / "chexpert_sample_labels.csv"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    with path.open(newline="") as file:
        for sample in csv.DictReader(file):
            found = mentioned(sample["Reports"])
            expected = {name: float(sample[name]) for name in CHEXPERT_LABELS if sample[name]}
            assert found == expected, sample["Reports"]


def test_memory_of_sentences_changes_nothing() -> None:
    reports = ["No effusion. Mild edema.", "Mild edema. Possible effusion.", ""] * 3
    remembering, forgetting = RuleLabeler(), RuleLabeler(0)
    assert remembering.label(reports) == forgetting.label(reports)
    assert remembering.label(reports[:1]) == remembering.label(reports)[:1]
    assert pickle.loads(pickle.dumps(remembering)).label(reports) == forgetting.label(reports)


def test_openi_reports_of_the_held_out_half() -> None:
    """The lexicon was developed on the studies whose hashed id is even; these are the others."""
    answers, folder = SHARED / "knownanswers" / "openi_gld_std14.csv", SHARED / "openi" / "ecgen-radiology"
    if not answers.exists() or not folder.exists():
        pytest.skip(f"{answers} or {folder} is not there")
    reports, truth = [], []
    with answers.open(newline="") as file:
        for sample in csv.DictReader(file):
            path = folder / f"{sample['filename'].removeprefix('CXR')}.xml"
            if int(hashlib.sha256(sample["filename"].encode()).hexdigest(), 16) % 2 == 0 or not path.exists():
                continue
            nodes = {node.get("Label"): "".join(node.itertext()) for node in ET.parse(path).iter("AbstractText")}
            reports.append("\n".join(text for name in ("FINDINGS", "IMPRESSION") if (text := nodes.get(name))))
            names = {name: float(any(sample[one] == "1" for one in group)) for name, group in OPENI.items()}
            truth.append(tuple(names.get(name) for name in CHEXPERT_LABELS))
    assert len(reports) > 1000
    predicted = [
        tuple(value if name in OPENI else None for name, value in zip(CHEXPERT_LABELS, values, strict=True))
        for values in RuleLabeler().label(reports)
    ]
    scores = finding_scores(truth, predicted, uncertain="absent")
    assert scores.micro.f1 > 0.8
    assert scores.labels["Cardiomegaly"].f1 > 0.8
    assert scores.labels["Atelectasis"].f1 > 0.8


def test_finding_scores_by_hand() -> None:
    truth = [row(Edema=1, Pneumonia=1), row(Edema=0), row(Edema=-1), row()]
    guess = [row(Edema=1), row(Edema=1), row(Edema=1), row(Fracture=-1)]
    scores = finding_scores(truth, guess)
    edema = scores.labels["Edema"]
    assert (edema.precision, edema.recall, edema.f1) == pytest.approx((2 / 3, 1, 0.8))
    assert (edema.reference, edema.predicted) == (2, 3)
    assert scores.micro[:3] == pytest.approx((2 / 4, 2 / 3, 4 / 7))
    assert scores.micro_five.f1 == pytest.approx(0.8)
    assert scores.macro.f1 == pytest.approx(0.8 / 3), "edema, pneumonia and fracture occur; eleven labels do not"
    assert finding_scores(truth, guess, uncertain="absent").labels["Edema"].f1 == pytest.approx(0.5)
    json.dumps(scores.to_json())


def test_finding_scores_of_nothing() -> None:
    assert finding_scores([row()], [row()]).macro.f1 == 0
    assert finding_scores([], []).micro.f1 == 0
    with pytest.raises(ValueError, match="align them"):
        finding_scores([row()], [])
    with pytest.raises(ValueError, match="instead of 14"):
        finding_scores([(1.0,)], [(1.0,)])
