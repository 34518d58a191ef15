"""The phrases of a report that name a finding, and which of them say that it is not there (docs/method.md 2)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from adamatch_ray.data.labeler import RuleLabeler
from adamatch_ray.engines.embedding import ReportWord
from adamatch_ray.engines.entities import STOP_WORDS, LexiconEntities

FINDING_GROUPS = ("Disease_disorder", "Sign_symptom")
"""Groups of the lexicon whose terms are seen or not seen at a place."""


class Mention(NamedTuple):
    """One mention of a finding: the lexicon's term for it, as the report has it, and the numbers of its words.

    start: where it begins in the report. denied: the report says that the finding is absent.
    """

    finding: str
    text: str
    start: int
    words: tuple[int, ...]
    denied: bool


class PhraseFinder:
    """Finds mentions by the project's lexicon, and what is denied by the words around them."""

    def __init__(self) -> None:
        self._lexicon, self._labeler = LexiconEntities(), RuleLabeler()

    def find(self, report: str, words: Sequence[ReportWord]) -> list[Mention]:
        """The mentions in reading order; `words` are those of the report that the text encoder saw."""
        mentions = []
        for found, start, stop in self._lexicon.spans(report):
            inside = [n for n, word in enumerate(words) if start <= word.place.start < stop]
            own = tuple(n for n in inside if words[n].text.lower() not in STOP_WORDS and words[n].text.isalnum())
            if found.group in FINDING_GROUPS and own:
                text = " ".join(words[n].text for n in inside)
                denied = self._labeler.value_at(report, start, stop) == 0
                mentions.append(Mention(found.text, text, start, own, denied))
        return mentions


def finding_words(mentions: Sequence[Mention], word_ND: Tensor) -> dict[str, Tensor]:
    """Each finding that a report does not deny, as the unit mean [D] of all words that name it there."""
    named: dict[str, list[int]] = {}
    for mention in mentions:
        if not mention.denied:
            named.setdefault(mention.finding, []).extend(mention.words)
    return {finding: F.normalize(word_ND[numbers].mean(0), dim=0) for finding, numbers in named.items()}


def same_finding(one: str, other: str) -> bool:
    """Whether two terms may name one thing: all words of either are in the other ("fracture", "rib fracture")."""
    a, b = set(one.split()), set(other.split())
    return a <= b or b <= a
