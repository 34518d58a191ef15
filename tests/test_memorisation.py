"""Copies of training studies are found and counted, and what merely resembles them is not."""

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_predictions import generations

from adamatch_ray.data import loading
from adamatch_ray.data.images import decode_png, encode_png
from adamatch_ray.data.phantom import generate
from adamatch_ray.data.predictions import Encoded
from adamatch_ray.engines.loader import load_embedder
from adamatch_ray.evaluation import memorisation, split
from adamatch_ray.metrics.verbatim import longest_shared
from adamatch_ray.storage import Root

Main = Callable[[Sequence[str]], "dict[str, Any] | None"]


def test_the_longest_shared_span_is_counted_in_words() -> None:
    corpus = ["The heart is normal in size. No effusion.", "There is mild edema of both lungs", "Clear"]
    texts = [
        "Heart is NORMAL, in size and shape",
        "mild edema of both lungs",
        "nothing shared",
        "",
        "size no effusion there is mild",
    ]
    assert longest_shared(texts, corpus).tolist() == [5, 5, 0, 0, 3], "spans do not run from one report into the next"
    assert longest_shared(texts, []).tolist() == [0] * 5 and longest_shared([], corpus).tolist() == []


def test_the_longest_shared_span_is_that_of_a_plain_search(studies_root: Path) -> None:
    stage = Root(str(studies_root)).stage("studies")
    reports = loading.first_studies(stage, "train", 60, ["report"])["report"].to_pylist()
    texts, corpus = reports[:12], reports[12:]

    def spans(text: str) -> set[tuple[str, ...]]:
        words = re.findall(r"\w+", text.lower())
        return {tuple(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1)}

    known = set().union(*map(spans, corpus))
    assert longest_shared(texts, corpus).tolist() == [max(map(len, spans(t) & known), default=0) for t in texts]


def test_reports_are_held_against_what_training_reports_share() -> None:
    train = [f"patient {n} has finding {n} and no other in the {n} lung" for n in range(200)]
    said = {"generated_report": [train[7], "no other in the left lung", train[9] + " and more"]}
    found = memorisation.score_reports(said, train)
    assert found["train"]["longest"] == found["limit"] == 5, "and no other in the"
    assert found["generated_report"]["beyond"] == 2 and found["generated_report"]["longest"] == 12


def coarse(canvas_BHW: np.ndarray) -> np.ndarray:
    """What a good VQ-GAN does to an X-ray: fine detail goes, and some noise comes."""
    pixels = canvas_BHW.astype(np.float32)
    soft = (pixels + np.roll(pixels, 1, 1) + np.roll(pixels, 1, 2)) / 3
    return np.clip(soft + np.random.default_rng(0).normal(0, 2, pixels.shape), 0, 255).astype(np.uint8)


def test_planted_copies_are_found_and_what_resembles_training_is_not(cycle_root: Path) -> None:
    root = Root(str(cycle_root))
    studies, test = root.stage("studies"), split.read(root.stage("studies"), "test")
    train = loading.first_studies(studies, "train", 16, ["study_id", "image"]).to_pylist()
    made: dict[str, Encoded] = {}
    for number, id in enumerate(test.ids):
        own = decode_png(train[number]["image"]) if number % 3 == 0 else generate(500 + number, 77, 64).image
        made[id] = encode_png(coarse(own[None])[0]) if number else b"broken"
    placed = {"generated_image": split.Placed(made, (), ())}
    found, rows = memorisation.score_images(
        studies, test, split.read(studies, "validate"), placed, load_embedder(root), coarse, 64
    )
    assert "pixels" in found["flagged_by"] and found["train"] == 96
    assert found["features"]["pixels"]["planted_found"] >= 0.99 and found["features"]["pixels"]["false_alarms"] <= 0.01
    planted = {test.ids[number]: train[number]["study_id"] for number in range(3, 16, 3)}
    assert dict(found["generated_image"]["flagged"]) == planted, "each with the study it copies, and no other"
    assert len(rows) == found["generated_image"]["images"] == 15, "an image that cannot be read is none"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, cycle_root: Path) -> Path:
    """A root whose generations are the studies themselves."""
    folder = tmp_path_factory.mktemp("memorisation") / "run"
    shutil.copytree(cycle_root, folder)
    rows = []
    for study in split.read(Root(str(folder)).stage("studies"), "test").studies:
        row = {"study_id": study.key.study_id, "dicom_id": study.key.dicom_id, "status": "ok"}
        rows.append(row | {"direction": "report_to_cxr", "image": study.image, "cycle_report": study.report})
        rows.append(row | {"direction": "cxr_to_report", "report": study.report, "cycle_image": study.image})
    generations(folder, rows, seed=0, report_tokens=16)
    return folder


def test_a_feature_that_cannot_tell_copies_flags_none_and_the_page_says_so(
    job: Callable[[str], Main], root: Path, tiny_yaml: Path
) -> None:
    """An untrained VQ-GAN gives nothing back by which a copy could be known."""
    job("evaluate")(["--config", str(tiny_yaml), "--root", str(root), "--evaluate.tables", "memorisation"])
    found = json.loads((root / "metrics" / "memorisation.json").read_text())
    assert found["images"]["flagged_by"] == [] and found["images"]["second_image"]["copies"] == 0
    assert found["images"]["generated_image"]["images"] == 16 and found["reports"]["second_report"]["reports"] == 16
    page = (root / "metrics" / "report.html").read_text()
    assert "Copies of training studies?" in page and "no: it does not tell them from others" in page
    assert len((root / "metrics" / "memorisation_by_study.csv").read_text().splitlines()) == 1 + 2 * 16


def test_predictions_of_others_are_not_held_against_our_training_studies(
    job: Callable[[str], Main], root: Path, tiny_yaml: Path, tmp_path: Path
) -> None:
    study = split.read(Root(str(root)).stage("studies"), "test").studies[0]
    (tmp_path / "theirs.csv").write_text(f"study_id,report\n{study.id},clear\n")
    with pytest.raises(ValueError, match="was not made by this root's models"):
        job("evaluate")(["--config", str(tiny_yaml), "--root", str(root), "--overwrite", "--evaluate.tables",
                         "memorisation", "--evaluate.predictions", str(tmp_path / "theirs.csv")])  # fmt: skip
