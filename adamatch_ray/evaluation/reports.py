"""CXR to report, the paper's Tables 1 and 2: BLEU, ROUGE-L, METEOR, and which findings the reports name.

Every study of the split counts. One without a report counts as an empty report, and is listed.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from adamatch_ray.data.facts import score_facts
from adamatch_ray.data.labeler import Labels, ReportLabeler, finding_scores
from adamatch_ray.evaluation.split import Placed, Split
from adamatch_ray.evaluation.tables import finding_names
from adamatch_ray.metrics.bootstrap import bootstrap_sums
from adamatch_ray.metrics.text import Meteor, clean_report, rouge_l, score_reports


class StudyScore(NamedTuple):
    """One report's own figures; `missed` and `invented` are names of findings."""

    id: str
    rouge_l: float
    finding_f1: float
    found: tuple[str, ...]
    missed: tuple[str, ...]
    invented: tuple[str, ...]
    status: str


def score(
    split: Split,
    placed: Placed[str],
    labeler: ReportLabeler,
    meteor: Sequence[Meteor],
    resamples: int,
    seed: int,
) -> tuple[dict[str, Any], list[StudyScore]]:
    """Corpus figures as JSON, and one row a study in stored order.

    `findings.by_report` takes the labeler's reading of the reference for true, `findings.by_data` the labels of the
    data set: for phantoms these are what was drawn into the image.
    """
    text = score_reports(split.reports, placed.values, meteor=meteor, resamples=resamples, seed=seed)
    predicted = labeler.label([placed.values.get(id, "") for id in split.ids])
    wanted = labeler.label([study.report for study in split.studies])
    stated = [study.labels for study in split.studies]
    result = {
        "studies": text.studies,
        "empty": text.empty,
        **placed.to_json(),
        "values": text.values,
        "intervals": {name: found._asdict() for name, found in text.intervals.items()},
        "findings": {
            "labeler": labeler.name,
            "by_report": finding_table(wanted, predicted, resamples, seed),
            "by_data": finding_table(stated, predicted, resamples, seed),
        },
        "facts": score_facts(list(split.reports.values()), [placed.values.get(id, "") for id in split.ids])._asdict(),
    }
    return result, _rows(split, placed, wanted, predicted)


def finding_table(truth: Sequence[Labels], guess: Sequence[Labels], resamples: int, seed: int) -> dict[str, Any]:
    """`finding_scores` with a bootstrap interval of the pooled F1."""
    scores = finding_scores(truth, guess)
    return {**scores.to_json(), "micro_f1_interval": micro_interval(_present(truth), _present(guess), resamples, seed)}


def micro_interval(truth_SL: np.ndarray, guess_SL: np.ndarray, resamples: int, seed: int) -> dict[str, float] | None:
    """Bootstrap interval over studies of 2 hits / (present in truth + present in guess); None without resamples."""
    if not resamples:
        return None
    counts_SK = np.stack([(truth_SL & guess_SL).sum(1), truth_SL.sum(1) + guess_SL.sum(1)], axis=1)

    def f1(sums: np.ndarray) -> np.ndarray:
        return 2 * sums[..., :1] / np.maximum(sums[..., 1:], 1)

    return bootstrap_sums(counts_SK, f1, resamples=resamples, seed=seed)[0]._asdict()


def baseline(split: Split, others: Sequence[str], labeler: ReportLabeler, seed: int) -> dict[str, Any]:
    """What reports drawn at random from `others` (the train split's) score: the floor, reached without seeing."""
    order = np.random.default_rng(seed).integers(len(others), size=len(split.studies))
    drawn = {id: others[place] for id, place in zip(split.ids, order.tolist(), strict=True)}
    values = score_reports(split.reports, drawn, meteor=()).values
    guess = labeler.label(list(drawn.values()))
    truth = labeler.label([study.report for study in split.studies])
    return {
        "what": "a report of the train split drawn at random for each study",
        "values": values,
        "finding_micro_f1": finding_scores(truth, guess).micro.f1,
    }


def _rows(split: Split, placed: Placed[str], truth: Sequence[Labels], guess: Sequence[Labels]) -> list[StudyScore]:
    rows = []
    for study, wanted, named in zip(split.studies, _present(truth), _present(guess), strict=True):
        report = placed.values.get(study.id, "")
        either = int(wanted.sum() + named.sum())
        rows.append(
            StudyScore(
                study.id,
                rouge_l([clean_report(study.report)], clean_report(report)),
                # Nothing to find and nothing named is a right answer.
                float(2 * (wanted & named).sum() / either) if either else 1.0,
                finding_names(wanted & named),
                finding_names(wanted & ~named),
                finding_names(named & ~wanted),
                "ok" if report.split() else "missing",
            )
        )
    return rows


def _present(labels: Sequence[Labels]) -> np.ndarray:
    """Present or uncertain, bool [S, 14], as `finding_scores` counts by default."""
    return np.array([[value in (1.0, -1.0) for value in row] for row in labels], dtype=bool)


def available_meteors(wanted: str) -> tuple[list[Meteor], dict[str, str]]:
    """METEORs to compute for `evaluate.meteor`, and the reason for each that "auto" leaves out.

    Raises ValueError where one that is asked for by name is not installed.
    """
    from adamatch_ray.metrics.meteor import meteor_java, meteor_nltk

    asked: Mapping[str, tuple[Meteor, ...]] = {
        "auto": ("meteor_nltk", "meteor_1.5"),
        "both": ("meteor_nltk", "meteor_1.5"),
        "nltk": ("meteor_nltk",),
        "java": ("meteor_1.5",),
        "none": (),
    }
    found: list[Meteor] = []
    absent: dict[str, str] = {}
    for name in asked[wanted]:
        try:
            if name == "meteor_nltk":
                meteor_nltk([["a"]], ["a"])
            else:
                meteor_java([["a"]], ["a"])
        except ValueError as error:
            if wanted != "auto":
                raise
            absent[name] = str(error)
        else:
            found.append(name)
    return found, absent
