"""Facts of a report: exact on what phantoms say, and on sentences as radiologists write them."""

import numpy as np
import pytest

from adamatch_ray.data import phantom
from adamatch_ray.data.facts import Fact, compare, read_facts, score_facts, side_at, spell_facts
from adamatch_ray.data.phantom_report import Finding, Habitus, Report
from adamatch_ray.data.reports import compose_report

DEGREES = {"mild": "small", "moderate": "moderate", "severe": "large"}


def as_fact(finding: Finding) -> Fact:
    """What was drawn, in the words of facts."""
    kinds = {"wires": "sternotomy", "tube": f"{finding.size} tube", "nodule": finding.size}
    name = kinds.get(finding.name, finding.name)
    size = DEGREES.get(finding.size, "") if name in ("cardiomegaly", "edema") else finding.size
    sized = name in ("effusion", "pneumothorax", "consolidation", "cardiomegaly", "edema")
    return Fact(name, "both" if name == "edema" else finding.side, finding.zone, size if sized else "")


def test_facts_of_phantoms_are_what_was_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[Finding, ...]] = []
    write = phantom.write_report

    def noted(findings: tuple[Finding, ...], habitus: Habitus, rng: np.random.Generator) -> Report:
        drawn.append(findings)
        return write(findings, habitus, rng)

    monkeypatch.setattr(phantom, "write_report", noted)
    for index in range(60):
        study = phantom.generate(index, seed=3, side=64)
        facts = read_facts(compose_report(study.findings, study.impression))
        assert facts.present == {as_fact(finding) for finding in drawn[-1]}
        assert not facts.denied & facts.findings


@pytest.mark.parametrize(
    ("report", "present", "denied"),
    [
        ("Small right pleural effusion.", {Fact("effusion", "right", "", "small")}, set()),
        ("There are bilateral pleural effusions.", {Fact("effusion", "both")}, set()),
        ("No pleural effusion or pneumothorax.", set(), {"effusion", "pneumothorax"}),
        ("Pneumothorax is not seen. Effusion has resolved.", set(), {"effusion", "pneumothorax"}),
        ("Left lower lobe atelectasis, but no effusion.", {Fact("atelectasis", "left", "lower")}, {"effusion"}),
        ("Right upper mass and left chest tube.", {Fact("mass", "right", "upper"), Fact("chest tube", "left")}, set()),
        ("The heart is enlarged. Pericardial effusion is absent.", {Fact("cardiomegaly")}, set()),
    ],
)  # fmt: skip
def test_facts_of_sentences(report: str, present: set[Fact], denied: set[str]) -> None:
    facts = read_facts(report)
    assert facts.present == present and facts.denied == denied


def test_facts_are_spelled_one_side_at_a_time() -> None:
    report = "Large bilateral pleural effusions. Left upper lung nodule. No pneumothorax. The heart is enlarged."
    assert spell_facts(report) == [
        "cardiomegaly",
        "effusion left large",
        "effusion right large",
        "nodule left upper",
    ]
    assert spell_facts("No acute chest findings.") == []


@pytest.mark.parametrize(
    ("word", "side"), [("heart", ""), ("effusion", "left"), ("pneumothorax", "right"), ("edema", "both")]
)
def test_the_side_of_a_word_is_that_of_its_clause(word: str, side: str) -> None:
    report = "The heart is normal. Small left effusion, and a large right pneumothorax. Bilateral edema."
    assert side_at(report, report.lower().index(word)) == side


def test_marks_say_what_is_right_and_what_is_wrong_with_a_side() -> None:
    truth = "Small right effusion. Cardiomegaly. A left nodule. Bilateral edema. No fracture."
    said = "Small left effusion. Cardiomegaly. Left edema. Right pacemaker."
    marks = compare(truth, said)
    assert (
        marks.right == ("cardiomegaly",) and marks.missing == ("nodule, left",) and marks.added == ("pacemaker, right",)
    )
    assert marks.wrong_side == ("edema, left instead of left and right", "effusion, left instead of right")
    assert marks.f1 == 0.25 and compare(truth, truth).f1 == compare("Clear.", "No effusion.").f1 == 1
    assert compare("Effusion.", "Right effusion.").right == ("effusion",)


def test_scores_notice_the_side_and_what_no_reader_accepts() -> None:
    truth = ["Small right effusion. No pneumothorax."] * 4
    said = [
        "Small right effusion. No pneumothorax.",
        "Small left effusion. No pneumothorax.",
        "Small right effusion. Small left effusion.",
        "Small right effusion. Small right effusion. No effusion.",
    ]
    scores = score_facts(truth, said)
    assert scores.finding == 1.0
    assert scores.finding_side == pytest.approx(2 * 3 / (4 + 5))
    assert scores.denied == pytest.approx(2 * 2 / (4 + 3))
    assert (scores.repeated, scores.both_sides, scores.contradicted) == (0.25, 0.25, 0.25)


def test_both_sides_are_right_where_the_reference_has_both() -> None:
    report = "Small right effusion. Large left effusion."
    assert score_facts([report], [report]) == (1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0)
