"""Text scores: published known answers, identifiers that do not match, bootstrap."""

import importlib.util
import json
import random
import re
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from adamatch_ray.metrics.bootstrap import bootstrap_mean, bootstrap_sums
from adamatch_ray.metrics.meteor import meteor_java, meteor_nltk
from adamatch_ray.metrics.text import (
    align_predictions,
    bleu_counts,
    bleu_from_counts,
    clean_report,
    rouge_l,
    score_reports,
)

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
REFERENCES = {
    "a": "the lungs are clear . no pleural effusion or pneumothorax .",
    "b": "there is a small right pleural effusion . heart size is normal .",
    "c": "no acute cardiopulmonary process .",
}
HYPOTHESES = {
    "a": "lungs are clear . there is no pleural effusion or pneumothorax .",
    "b": "small left pleural effusion . the heart is normal in size .",
    "c": "no acute process .",
}


@pytest.fixture
def wordnet(monkeypatch: pytest.MonkeyPatch) -> None:
    import nltk

    if (SHARED / "nltk_data").exists():
        monkeypatch.setattr(nltk.data, "path", [str(SHARED / "nltk_data"), *nltk.data.path])
    try:
        from nltk.corpus import wordnet as reader

        reader.ensure_loaded()
    except LookupError:
        pytest.skip("WordNet is not installed")


def known(name: str) -> Any:
    path = SHARED / "knownanswers" / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return json.loads(path.read_text())


def textbook_rouge(reference: str, hypothesis: str) -> float:
    first, second = reference.split(), hypothesis.split()
    table = np.zeros((len(first) + 1, len(second) + 1), dtype=int)
    for i, left in enumerate(first):
        for j, right in enumerate(second):
            table[i + 1, j + 1] = table[i, j] + 1 if left == right else max(table[i, j + 1], table[i + 1, j])
    common = table[-1, -1]
    if common == 0:
        return 0.0
    precision, recall = common / len(second), common / len(first)
    return float(2.44 * precision * recall / (recall + 1.44 * precision))


def test_scores_equal_the_known_corpus() -> None:
    values = score_reports(REFERENCES, HYPOTHESES, meteor=(), clean=False).values
    expected = {"bleu_1": 0.792610, "bleu_2": 0.630632, "bleu_3": 0.496104, "bleu_4": 0.396852, "rouge_l": 0.794427}
    assert values == pytest.approx(expected, abs=6e-7)


def test_published_caption_scores(wordnet: None) -> None:
    for case in known("caption_metrics.json")["cases"]:
        ids = [str(number) for number in range(len(case["hyp"]))]
        references, predictions = zip(ids, case["refs"], strict=True), zip(ids, case["hyp"], strict=True)
        values = score_reports(references, predictions, clean=False).values
        found = {"Bleu_" + name[-1] if name.startswith("bleu") else name: value for name, value in values.items()}
        found |= {"ROUGE_L": values["rouge_l"], "METEOR_nltk_mean": values["meteor_nltk"]}
        for name, value in case.get("recomputed", {"METEOR_nltk_mean": 25 / 36}).items():
            if name in found:
                assert found[name] == pytest.approx(value, abs=1e-9), (case["name"], name)


def test_real_reports(wordnet: None) -> None:
    answer = known("openi_pairs_expected.json")

    def findings(number: int) -> str:
        tree = ET.parse(SHARED / "openi" / "ecgen-radiology" / f"{number}.xml")
        text = "".join(next(node for node in tree.iter("AbstractText") if node.get("Label") == "FINDINGS").itertext())
        return " ".join(re.sub(r"[^a-z0-9]+", " ", text.lower()).split())

    pairs = list(zip(answer["reference_ids"], answer["hypothesis_ids"], strict=True))
    references = {f"{first:04d}": findings(first) for first, _ in pairs}
    predictions = {f"{first:04d}": findings(second) for first, second in pairs}
    values = score_reports(references, predictions, clean=False).values
    expected = answer["expected"]
    for order in range(1, 5):
        assert values[f"bleu_{order}"] == pytest.approx(expected[f"Bleu_{order}"], abs=1e-9)
    assert values["rouge_l"] == pytest.approx(expected["ROUGE_L"], abs=1e-9)
    assert values["meteor_nltk"] == pytest.approx(expected["METEOR_nltk_mean"], abs=1e-9)


def test_java_meteor_known_answer() -> None:
    if importlib.util.find_spec("pycocoevalcap") is None or shutil.which("java") is None:
        pytest.skip("pycocoevalcap or java is not installed")
    references = [[text] for text in REFERENCES.values()]
    assert meteor_java(references, list(HYPOTHESES.values())) == pytest.approx(0.411807, abs=6e-7)


def test_java_meteor_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pycocoevalcap.meteor.meteor", None)
    with pytest.raises(ValueError, match="pip install pycocoevalcap"):
        meteor_java([["a"]], ["a"])


def test_missing_wordnet_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    import nltk.corpus

    def absent() -> None:
        raise LookupError("no wordnet")

    # The reader itself is replaced: where WordNet is really absent, touching its attributes would fail here.
    monkeypatch.setattr(nltk.corpus, "wordnet", SimpleNamespace(ensure_loaded=absent))
    with pytest.raises(ValueError, match=r"python -m nltk\.downloader wordnet"):
        meteor_nltk([["a b"]], ["a b"])


def test_bit_parallel_subsequence_equals_the_table() -> None:
    draw = random.Random(0)
    for _ in range(300):
        reference, hypothesis = (" ".join(draw.choices("abcdefg", k=draw.randint(0, 90))) for _ in range(2))
        assert rouge_l([reference], hypothesis) == pytest.approx(textbook_rouge(reference, hypothesis), abs=1e-12)


def test_empty_and_missing_hypotheses_score_zero_and_stay(wordnet: None) -> None:
    scores = score_reports(REFERENCES, {"a": HYPOTHESES["a"], "b": " . ", "z": "no study has this id"})
    assert scores.studies == 3
    assert scores.missing == ("c",)
    assert scores.unexpected == ("z",)
    assert scores.empty == 2
    assert scores.values["rouge_l"] == pytest.approx(rouge_l([REFERENCES["a"]], HYPOTHESES["a"]) / 3)
    nothing = score_reports(REFERENCES, {})
    assert set(nothing.values.values()) == {0.0}
    json.dumps(nothing.to_json())


def test_duplicate_ids_are_refused() -> None:
    with pytest.raises(ValueError, match=r"prediction ids occur more than once, e\.g\. 'a'"):
        align_predictions(REFERENCES, [("a", "x"), ("a", "x")])
    with pytest.raises(ValueError, match="reference ids occur more than once"):
        align_predictions([("a", "x"), ("a", "y")], {})
    with pytest.raises(ValueError, match="no references"):
        align_predictions({}, HYPOTHESES)


def test_order_of_studies_changes_nothing() -> None:
    backwards = list(HYPOTHESES.items())[::-1]
    one = score_reports(REFERENCES, HYPOTHESES, meteor=(), resamples=50, seed=3)
    two = score_reports(dict(reversed(REFERENCES.items())), backwards, meteor=(), resamples=50, seed=3)
    assert one == two


def test_bleu_counts_add_up_over_workers() -> None:
    references = [[text] for text in REFERENCES.values()]
    hypotheses = list(HYPOTHESES.values())
    whole = bleu_counts(references, hypotheses).sum(0)
    parts = bleu_counts(references[1:], hypotheses[1:]).sum(0) + bleu_counts(references[:1], hypotheses[:1]).sum(0)
    np.testing.assert_array_equal(bleu_from_counts(whole), bleu_from_counts(parts))


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("1. Left effusion.  2. Heart is normal in size.", "left effusion . heart is normal in size ."),
        (" FINDINGS:\n 1.Clear\n lungs.\n\n 2) No edema", "findings clear lungs . no edema ."),
        ("Nodule of 1.5 cm (right), t-spine", "nodule of 15 cm right t-spine ."),
        ("...", ""),
        ("", ""),
    ],
)
def test_clean_report(raw: str, clean: str) -> None:
    assert clean_report(raw) == clean
    assert clean_report(clean) == clean


def test_bootstrap_intervals_cover_and_repeat() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(100):
        values = rng.normal(2.0, 1.0, size=60)
        interval = bootstrap_mean(values, resamples=300, seed=trial)
        covered += interval.low <= 2.0 <= interval.high
        assert interval.value == pytest.approx(values.mean())
    assert covered >= 85
    assert interval == bootstrap_mean(values, resamples=300, seed=99)
    assert interval != bootstrap_mean(values, resamples=300, seed=98)


def test_bootstrap_of_sums_equals_bootstrap_of_rows() -> None:
    counts = np.random.default_rng(0).integers(1, 9, size=(80, 2))
    sums = bootstrap_sums(counts, lambda total: total[..., :1] / total[..., 1:], resamples=4000)[0]
    draws = counts[np.random.default_rng(0).integers(0, 80, size=(4000, 80))].sum(axis=1)
    assert sums.value == pytest.approx(counts[:, 0].sum() / counts[:, 1].sum())
    assert (sums.low, sums.high) == pytest.approx(np.quantile(draws[:, 0] / draws[:, 1], (0.025, 0.975)), abs=0.02)


def test_bootstrap_refuses_nothing() -> None:
    with pytest.raises(ValueError, match="at least one study"):
        bootstrap_mean(np.zeros(0))
    with pytest.raises(ValueError, match="level inside"):
        bootstrap_mean(np.zeros(3), level=1.5)
