"""What a report states, as facts: a finding with its side, zone and size, present or denied.

BLEU hardly notices a wrong side, a patient does. Rules and words of our own, exact on phantoms; on real reports a
yardstick for findings and sides where these words name them.
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from adamatch_ray.data.finding_lexicon import NEGATED_AFTER, NEGATED_BEFORE

FINDINGS = {
    "effusion": r"(?<!pericardial )effusions?|pleural fluid|hydrothorax",
    "pneumothorax": r"pneumothora\w+",
    "consolidation": r"consolidations?|pneumonias?",
    "nodule": r"nodules?",
    "mass": r"mass(?:es)?\b(?! effect)",
    "granuloma": r"granulomas?",
    "fracture": r"fractur\w+",
    "atelectasis": r"atelecta\w+",
    "pacemaker": r"pace ?makers?",
    "chest tube": r"chest tubes?|thoracostomy tubes?",
    "endotracheal tube": r"endotracheal tubes?",
    "enteric tube": r"(?:enteric|nasogastric|orogastric|feeding) tubes?",
    "cardiomegaly": r"cardiomegaly|(?:heart|cardiac silhouette) (?:is )?(?:\w+ )?enlarged|enlarged heart",
    "edema": r"o?edema",
    "hernia": r"hernias?",
    "sternotomy": r"sternotomy",
}
"""A finding and the phrases that name it, in lower case."""

_SIDES = {
    "left": r"left(?:[- ]sided)?",
    "right": r"right(?:[- ]sided)?",
    "both": r"bilateral(?:ly)?|both (?:sides|lungs|bases)",
}
_ZONES = {"upper": r"upper", "mid": r"mid(?:dle)?\b", "lower": r"lower"}
_SIZES = {
    "small": r"small|tiny|trace|minimal|mild",
    "moderate": r"moderate",
    "large": r"large|big|massive|severe",
    "dense": r"dense",
    "patchy": r"patchy",
}
_SENTENCE = re.compile(r"(?<=[.!?;])\s+|\n+")
_CLAUSE = re.compile(
    r", (?!pneumonia|possible)|\b(?:but|however|with)\b|\band (?=(?:an? )?(?:left|right|small|moderate|large|mild)\b)"
)


class Fact(NamedTuple):
    """A finding as a report states it; what it does not say is empty."""

    finding: str
    side: str = ""
    zone: str = ""
    size: str = ""

    @property
    def sides(self) -> tuple[str, ...]:
        """Its sides one by one; none where it has none."""
        return {"both": ("left", "right"), "": ()}.get(self.side, (self.side,))


class Facts(NamedTuple):
    """What a report says is there, and which findings it denies."""

    present: frozenset[Fact]
    denied: frozenset[str]

    @property
    def findings(self) -> frozenset[str]:
        """Findings that are there."""
        return frozenset(fact.finding for fact in self.present)

    @property
    def sided(self) -> frozenset[tuple[str, str]]:
        """Findings that are there with the sides they are on; those without a side are left out."""
        return frozenset((fact.finding, side) for fact in self.present for side in fact.sides)


class FactScores(NamedTuple):
    """Pooled F1 over studies of what reports say, and shares of reports with what no reader would accept.

    `repeated`: a sentence comes twice. `both_sides`: a finding is put on both sides that the reference has on one or
    none. `contradicted`: a finding is stated and denied.
    """

    finding: float
    finding_side: float
    whole: float
    denied: float
    repeated: float
    both_sides: float
    contradicted: float


def read_facts(report: str) -> Facts:
    """The facts of a report; words of a clause belong to the findings of that clause."""
    present: set[Fact] = set()
    denied: set[str] = set()
    for sentence in sentences(report):
        for clause in _CLAUSE.split(sentence):
            for finding, pattern in _PATTERNS.items():
                for match in pattern.finditer(clause):
                    before, after = clause[: match.start()], clause[match.end() :]
                    if _NEGATED_BEFORE.search(before) or _NEGATED_AFTER.search(after):
                        denied.add(finding)
                    else:
                        words = (_nearest(table, before, after) for table in (_SIDE, _ZONE, _SIZE))
                        present.add(Fact(finding, *words))
    return Facts(frozenset(_merged(present)), frozenset(denied))


def side_at(report: str, place: int) -> str:
    """The side of what is named at a character of a report: "left", "right", "both", or "" where none is told there."""
    start = max((m.end() for m in _SENTENCE.finditer(report, 0, place)), default=0)
    sentence = _SENTENCE.split(report[start:].lower(), maxsplit=1)[0]
    begin = max((m.end() for m in _CLAUSE.finditer(sentence) if m.end() <= place - start), default=0)
    clause = _CLAUSE.split(sentence[begin:], maxsplit=1)[0]
    return _nearest(_SIDE, clause[: place - start - begin], clause[place - start - begin :])


def spell_facts(report: str) -> list[str]:
    """What a report states, each side by itself, in alphabetical order: "effusion right lower large"."""
    facts = read_facts(report).present
    spelled = [
        " ".join(word for word in (fact.finding, side, fact.zone, fact.size) if word)
        for fact in facts
        for side in fact.sides or ("",)
    ]
    return sorted(spelled)


def affirmed(report: str) -> str:
    """The clauses of a report that deny nothing, a line each."""
    clauses = (clause for sentence in sentences(report) for clause in _CLAUSE.split(sentence))
    return "\n".join(c for c in clauses if not _NEGATED_BEFORE.search(c) and not _NEGATED_AFTER.search(c))


def sentences(report: str) -> list[str]:
    """The sentences of a report in lower case, without the full stop."""
    parts = (" ".join(part.lower().split()).rstrip(".!?;") for part in _SENTENCE.split(report))
    return [part for part in parts if part]


class Marks(NamedTuple):
    """What of a study is right, in words such as "effusion, left". `added` is not in the study."""

    right: tuple[str, ...]
    wrong_side: tuple[str, ...]
    missing: tuple[str, ...]
    added: tuple[str, ...]

    @property
    def f1(self) -> float:
        """1 where nothing was to be found and nothing was; a wrong side is missing and added."""
        wrong = 2 * len(self.wrong_side) + len(self.missing) + len(self.added)
        return 2 * len(self.right) / (2 * len(self.right) + wrong) if self.right or wrong else 1.0


def compare(reference: str, report: str) -> Marks:
    """The findings of a report against those of its reference; where that names no side, none is wrong."""
    truth, said = _sides_by_finding(reference), _sides_by_finding(report)
    right = {finding for finding in truth.keys() & said.keys() if truth[finding] in ("", said[finding])}
    return Marks(
        right=tuple(_named(finding, truth[finding]) for finding in sorted(right)),
        wrong_side=tuple(
            f"{finding}, {said[finding] or 'no side'} instead of {truth[finding]}"
            for finding in sorted(truth.keys() & said.keys() - right)
        ),
        missing=tuple(_named(finding, truth[finding]) for finding in sorted(truth.keys() - said.keys())),
        added=tuple(_named(finding, said[finding]) for finding in sorted(said.keys() - truth.keys())),
    )


def _sides_by_finding(report: str) -> dict[str, str]:
    facts = read_facts(report)
    return {
        finding: " and ".join(sorted(side for name, side in facts.sided if name == finding))
        for finding in facts.findings
    }


def _named(finding: str, side: str) -> str:
    return f"{finding}, {side}" if side else finding


def score_facts(references: Sequence[str], reports: Sequence[str]) -> FactScores:
    """How well reports state the facts of their references; report i is compared with reference i."""
    pairs = [(read_facts(a), read_facts(b)) for a, b in zip(references, reports, strict=True)]
    lines = [sentences(report) for report in reports]
    both = [_sides_too_many(truth, said) for truth, said in pairs]
    count = max(1, len(pairs))
    return FactScores(
        finding=_f1((truth.findings, said.findings) for truth, said in pairs),
        finding_side=_f1((truth.sided, said.sided) for truth, said in pairs),
        whole=_f1((truth.present, said.present) for truth, said in pairs),
        denied=_f1((truth.denied, said.denied) for truth, said in pairs),
        repeated=sum(len(set(own)) < len(own) for own in lines) / count,
        both_sides=sum(both) / count,
        contradicted=sum(bool(said.findings & said.denied) for _, said in pairs) / count,
    )


def _sides_too_many(truth: Facts, said: Facts) -> bool:
    doubled = [finding for finding in said.findings if {(finding, "left"), (finding, "right")} <= said.sided]
    return any(not {(finding, "left"), (finding, "right")} <= truth.sided for finding in doubled)


def _f1(pairs: Iterable[tuple[frozenset[object], frozenset[object]]]) -> float:
    hits = total = 0
    for truth, said in pairs:
        hits, total = hits + len(truth & said), total + len(truth) + len(said)
    return 2 * hits / total if total else 1.0


def _merged(facts: set[Fact]) -> set[Fact]:
    """Without facts that another one says with more words, such as the impression's short form of a finding."""
    return {f for f in facts if not any(f != other and _covers(other, f) for other in facts)}


def _covers(whole: Fact, part: Fact) -> bool:
    return whole.finding == part.finding and all(b in ("", a) for a, b in zip(whole[1:], part[1:], strict=True))


def _nearest(table: dict[str, re.Pattern[str]], before: str, after: str) -> str:
    """The word of a table that stands closest before the finding, else the first behind it."""
    ahead = [(match.end(), name) for name, pattern in table.items() for match in pattern.finditer(before)]
    behind = [(match.start(), name) for name, pattern in table.items() for match in pattern.finditer(after)]
    return max(ahead)[1] if ahead else min(behind)[1] if behind else ""


def _compiled(table: dict[str, str]) -> dict[str, re.Pattern[str]]:
    return {name: re.compile(rf"\b(?:{pattern})") for name, pattern in table.items()}


_PATTERNS, _SIDE, _ZONE, _SIZE = (_compiled(table) for table in (FINDINGS, _SIDES, _ZONES, _SIZES))
_NEGATED_BEFORE = re.compile("|".join(NEGATED_BEFORE))
_NEGATED_AFTER = re.compile("|".join(NEGATED_AFTER))
