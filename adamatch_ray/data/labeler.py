"""Findings of a report as the 14 CheXpert labels, for the clinical scores that BLEU does not give (paper, section 4).

Rules and lexicon of our own: negation- and uncertainty-aware, fast, without weights or downloads. It is a yardstick to
compare models on one corpus, not CheXbert; whoever has CheXbert passes it in as a `ReportLabeler`.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from adamatch_ray.data import finding_lexicon as lexicon
from adamatch_ray.data.cleaning import close_lines, plain_lines
from adamatch_ray.data.sources import Labels
from adamatch_ray.schema import CHEXPERT_LABELS

LEADING_FIVE = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
"""The five findings that the literature averages besides all 14."""

_RANK = {None: 0, 0.0: 1, -1.0: 2, 1.0: 3}
_NO_FINDING = CHEXPERT_LABELS.index("No Finding")
_DEVICES = CHEXPERT_LABELS.index("Support Devices")
_SPACE = re.compile(r"\s")
_NOT = re.compile(r"\b(?:not|non)\b")
_SENTENCE_END = re.compile(
    r"(?<=[.!?])\s+|\n\s*\n|(?<=\w)\.(?=[A-Za-z])|\s[-*]\s(?=[A-Z])|\s(?=[\[(] ?[xX*+]?[\])]\s*\w)"
)
_NEXT_LINE = re.compile(rf"[,;]\s*(?={lexicon.FORM_LINE})")
_ASKED, _LINE = re.compile(lexicon.ASKED), re.compile(rf".*?{lexicon.FORM_LINE}")
_FORM = [(re.compile(pattern), replacement) for pattern, replacement in lexicon.FORM]
_WORD = re.compile(r"[a-z]+")


class ReportLabeler(Protocol):
    """Reports to labels, in order. `name` is printed with every score."""

    @property
    def name(self) -> str: ...

    def label(self, reports: Sequence[str]) -> list[Labels]: ...


class RuleLabeler:
    """Labels each sentence by phrases and the nearest cue around them, then keeps the strongest value of the report.

    A present finding outweighs an uncertain one, and that a negated one. `No Finding` is 1 where no finding other than
    a support device is present or uncertain, else not mentioned. Where no word is known, as in another language,
    all 14 are None. Sentences repeat, so their labels are remembered.
    """

    name = "rule labeler"

    def __init__(self, remembered_sentences: int = 50_000) -> None:
        self._size = remembered_sentences
        self._present = {number: _phrases(group) for number, group in _numbered(lexicon.PRESENT)}
        self._suggested = {number: _phrases(group) for number, group in _numbered(lexicon.SUGGESTED)}
        self._absent = {number: _phrases(group) for number, group in _numbered(lexicon.ABSENT)}
        self._neutral = _alternatives(lexicon.NEUTRAL)
        self._break = _alternatives(lexicon.BREAK)
        self._negated_before = _alternatives(lexicon.NEGATED_BEFORE)
        self._negated_after = _alternatives(lexicon.NEGATED_AFTER)
        self._uncertain_before = _alternatives(lexicon.UNCERTAIN_BEFORE)
        self._uncertain_after = _alternatives(lexicon.ALTERNATIVE_AFTER)
        self._open_after = _alternatives(lexicon.UNCERTAIN_AFTER)
        self._remembered = lru_cache(maxsize=remembered_sentences)(self._label_sentence)

    def __reduce__(self) -> tuple[type["RuleLabeler"], tuple[int]]:
        return RuleLabeler, (self._size,)  # a copy sent to a worker starts with an empty memory

    def label(self, reports: Sequence[str]) -> list[Labels]:
        """Labels of reports (findings and impression), in order. An empty one is not understood."""
        return [self._label_report(report) for report in reports]

    def value_at(self, report: str, start: int, stop: int) -> float:
        """Value of what a report names at [start, stop): 1 present, 0 absent, -1 uncertain."""
        ends = [0, *(end.end() for end in _SENTENCE_END.finditer(report.lower())), len(report)]
        begin = max(end for end in ends if end <= start)
        sentence = _SPACE.sub(" ", report.lower()[begin : min(end for end in ends if end >= stop)]).rstrip(".!? ")
        text = self._without_neutral(sentence)
        return self._value(text, start - begin, stop - begin, self._breaks(text))

    def _label_report(self, report: str) -> Labels:
        values: list[float | None] = [None] * len(CHEXPERT_LABELS)
        if not self.understands(report):
            return tuple(values)
        for number, value in (found for words in _sentences(report) for found in self._remembered(words)):
            if _RANK[value] > _RANK[values[number]]:
                values[number] = value
        findings = (value for number, value in enumerate(values) if number not in (_NO_FINDING, _DEVICES))
        values[_NO_FINDING] = None if any(findings) else 1.0
        return tuple(values)

    def understands(self, report: str) -> bool:
        """Whether a report has words that are known, and no more that only another language has."""
        words = _WORD.findall(report.lower())
        foreign = sum(word in lexicon.FOREIGN for word in words)
        known = sum(word in lexicon.ENGLISH for word in words)
        return known >= foreign and bool(known or any(self._remembered(words) for words in _sentences(report)))

    def _label_sentence(self, sentence: str) -> list[tuple[int, float]]:
        for pattern, replacement in _FORM:
            sentence = pattern.sub(replacement, sentence)
        text = self._without_neutral(sentence)
        found = [(number, 0.0) for number, pattern in self._absent.items() if pattern.search(text)]
        breaks = self._breaks(text)
        signs = [(number, pattern, -1.0) for number, pattern in self._suggested.items()]
        for number, pattern, most in [(number, pattern, 1.0) for number, pattern in self._present.items()] + signs:
            for match in pattern.finditer(text):
                value = self._value(text, match.start(), match.end(), breaks)
                found.append((number, most if value == 1.0 else value))
        return found

    def _without_neutral(self, sentence: str) -> str:
        return self._neutral.sub(lambda match: " " * len(match.group()), sentence)

    def _breaks(self, text: str) -> list[tuple[int, int]]:
        return [(match.start(), match.end()) for match in self._break.finditer(text)]

    def _value(self, text: str, start: int, stop: int, breaks: list[tuple[int, int]]) -> float:
        """Value of the mention at [start, stop), judged by the words around it as far as the next breaks."""
        first = max((end for _, end in breaks if end <= start), default=0)
        last = min((begin for begin, _ in breaks if begin >= stop), default=len(text))
        return self._assertion(text[first:start], text[start:stop], text[stop:last].partition(",")[0])

    def _assertion(self, before: str, mention: str, after: str) -> float:
        """Value of a mention from what follows it, else from the nearest cue before it, else from an alternative."""
        if self._open_after.search(after):
            return -1.0
        if self._negated_after.search(after) or _NOT.search(mention):
            return 0.0
        negated, uncertain = (_last_end(pattern, before) for pattern in (self._negated_before, self._uncertain_before))
        if negated > 0 and negated >= uncertain:
            return 0.0
        return -1.0 if uncertain > 0 or self._uncertain_after.search(after) or "borderline" in mention else 1.0


def _sentences(report: str) -> list[str]:
    """Statements in lower case, each line of a list or a form one of its own."""
    found: list[str] = []
    for sentence in _SENTENCE_END.split(_ASKED.sub(": ", close_lines(plain_lines(report)))):
        begun = ""
        for part in _NEXT_LINE.split(sentence):
            begun = f"{begun}, {part}" if begun else part
            if _LINE.match(begun):  # else it is a word of a heading: "Effusion, pneumothorax: none"
                found.append(begun)
                begun = ""
        found.append(begun)
    return [words for part in found if (words := " ".join(part.lower().split()))]


def _numbered(groups: dict[str, tuple[str, ...]]) -> list[tuple[int, tuple[str, ...]]]:
    return [(CHEXPERT_LABELS.index(name), group) for name, group in groups.items()]


def _alternatives(patterns: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(patterns))


def _phrases(patterns: Sequence[str]) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(patterns)})")


def _last_end(pattern: re.Pattern[str], text: str) -> int:
    return max((match.end() for match in pattern.finditer(text)), default=0)


class FindingScore(NamedTuple):
    """Precision, recall and F1 of a finding being present, and how often each side has it."""

    precision: float
    recall: float
    f1: float
    reference: int
    predicted: int


class FindingScores(NamedTuple):
    """Scores by label; `micro` pools all decisions, `macro` averages the labels that occur on either side."""

    labels: dict[str, FindingScore]
    micro: FindingScore
    micro_five: FindingScore
    macro: FindingScore
    studies: int
    uncertain: str

    def to_json(self) -> dict[str, Any]:
        return {
            "labels": {name: score._asdict() for name, score in self.labels.items()},
            "micro": self.micro._asdict(),
            "micro_five": self.micro_five._asdict(),
            "macro": self.macro._asdict(),
            "studies": self.studies,
            "uncertain": self.uncertain,
        }


def finding_scores(
    reference_labels: Sequence[Labels],
    predicted_labels: Sequence[Labels],
    *,
    uncertain: Literal["present", "absent"] = "present",
) -> FindingScores:
    """How well predicted reports name the findings of the references; study i is compared with study i.

    Args:
        reference_labels: S rows of 14 values, see `Labels`.
        predicted_labels: S rows of the same studies, by the same labeler.
        uncertain: what -1 counts as, on both sides. Absent and not mentioned count alike.

    Returns:
        Scores with 0 where a ratio has no denominator. Raises ValueError where the rows do not match.
    """
    if len(reference_labels) != len(predicted_labels):
        raise ValueError(f"{len(reference_labels)} reference rows and {len(predicted_labels)} predictions; align them")
    truth_SL, guess_SL = (_present(rows, uncertain) for rows in (reference_labels, predicted_labels))
    hits_L, truth_L, guess_L = ((truth_SL & guess_SL).sum(0), truth_SL.sum(0), guess_SL.sum(0))
    labels = {
        name: _score(int(hits_L[number]), int(truth_L[number]), int(guess_L[number]))
        for number, name in enumerate(CHEXPERT_LABELS)
    }
    occurring = [score for score in labels.values() if score.reference or score.predicted]
    five = [CHEXPERT_LABELS.index(name) for name in LEADING_FIVE]
    micro = _score(int(hits_L.sum()), int(truth_L.sum()), int(guess_L.sum()))
    micro_five = _score(int(hits_L[five].sum()), int(truth_L[five].sum()), int(guess_L[five].sum()))
    means = np.array([score[:3] for score in occurring] or [(0.0, 0.0, 0.0)]).mean(axis=0).tolist()
    macro = FindingScore(means[0], means[1], means[2], micro.reference, micro.predicted)
    return FindingScores(labels, micro, micro_five, macro, len(reference_labels), uncertain)


def _present(rows: Sequence[Labels], uncertain: str) -> np.ndarray:
    counted = {1.0, -1.0} if uncertain == "present" else {1.0}
    if wrong := [row for row in rows if len(row) != len(CHEXPERT_LABELS)]:
        raise ValueError(f"a row of labels has {len(wrong[0])} values instead of {len(CHEXPERT_LABELS)}")
    table = [[value in counted for value in row] for row in rows]
    return np.array(table, dtype=bool).reshape(-1, len(CHEXPERT_LABELS))


def _score(hits: int, reference: int, predicted: int) -> FindingScore:
    precision, recall = hits / max(predicted, 1), hits / max(reference, 1)
    f1 = 2 * hits / max(reference + predicted, 1)
    return FindingScore(precision, recall, f1, reference, predicted)
