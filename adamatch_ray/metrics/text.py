"""Report generation scores of the paper's Tables 1 and 2: BLEU, ROUGE-L and METEOR over whole corpora.

BLEU and ROUGE-L give the numbers of the COCO caption evaluation, which the compared papers report. METEOR exists twice,
and the two disagree: `meteor_nltk` (NLTK with WordNet, mean over studies) and `meteor_1.5` (the Java program).
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import fsum
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adamatch_ray.metrics.bootstrap import Interval, bootstrap_mean, bootstrap_sums
from adamatch_ray.metrics.meteor import meteor_java, meteor_nltk

Texts = Mapping[str, str] | Iterable[tuple[str, str]]
References = Mapping[str, str | Sequence[str]] | Iterable[tuple[str, str | Sequence[str]]]
Meteor = Literal["meteor_nltk", "meteor_1.5"]

MAX_ORDER = 4
ROUGE_BETA = 1.2

_ENUMERATION = re.compile(r"(?:^|(?<=[.:;?!]))\s*\d{1,2}[.)](?:\s+|(?=[A-Za-z]))", re.MULTILINE)
_SENTENCE_END = re.compile(r"[.](?:\s+|$)")
_DROPPED = str.maketrans("", "", ".,?;*!%^&_+():[]{}<=>@\"/\\'")


def clean_report(text: str) -> str:
    """Report to the form that published scores are computed on: lower case, ` . ` between sentences, no enumerations.

    Punctuation inside a sentence is dropped, hyphens stay, decimal points go (`3.5 cm` becomes `35 cm`): scores are
    comparable only where references and hypotheses both went through this. An empty report gives an empty string.
    """
    text = _ENUMERATION.sub(" ", text).lower()
    sentences = (" ".join(part.translate(_DROPPED).split()) for part in _SENTENCE_END.split(text))
    kept = [sentence for sentence in sentences if sentence]
    return " . ".join(kept) + " ." if kept else ""


class Aligned(NamedTuple):
    """References and hypotheses of the same studies, ordered by study id."""

    ids: tuple[str, ...]
    references: tuple[tuple[str, ...], ...]
    hypotheses: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


def align_predictions(references: References, predictions: Texts) -> Aligned:
    """Pair predictions with references by study id.

    A study without a prediction stays, with an empty hypothesis, and is listed in `missing`; a prediction for an
    unknown study is left out and listed in `unexpected`. Nothing else changes the denominator. Both sides may be
    mappings or pairs. Raises ValueError for an id that occurs twice or a study without a reference.
    """
    reference_of = _by_id("reference", references)
    prediction_of = _by_id("prediction", predictions)
    if not reference_of:
        raise ValueError("there are no references to score against; check the split and the path")
    ids = tuple(sorted(reference_of))
    texts = tuple((found,) if isinstance(found := reference_of[key], str) else tuple(found) for key in ids)
    if bare := [key for key, group in zip(ids, texts, strict=True) if not group]:
        raise ValueError(f"{len(bare)} studies have an empty list of references, e.g. {bare[0]!r}; leave them out")
    hypotheses = tuple(prediction_of.get(key, "") for key in ids)
    missing = tuple(key for key in ids if key not in prediction_of)
    unexpected = tuple(sorted(set(prediction_of) - set(reference_of)))
    return Aligned(ids, texts, hypotheses, missing, unexpected)


def _by_id(side: str, items: Any) -> dict[str, Any]:
    pairs = list(items.items() if isinstance(items, Mapping) else items)
    counts = Counter(key for key, _ in pairs)
    if repeated := sorted(key for key, count in counts.items() if count > 1):
        raise ValueError(f"{len(repeated)} {side} ids occur more than once, e.g. {repeated[0]!r}; keep one row a study")
    return dict(pairs)


def bleu_counts(references: Sequence[Sequence[str]], hypotheses: Sequence[str]) -> NDArray[np.int64]:
    """Integer sufficient statistics of corpus BLEU, one row a study, shape (S, 9).

    Columns: clipped n-gram matches (4), n-grams proposed (4), length of the reference closest in length. Rows add up:
    the corpus score is `bleu_from_counts(counts.sum(0))`, whatever the order or the partition of the studies.
    """
    rows = []
    for group, hypothesis in zip(references, hypotheses, strict=True):
        words = hypothesis.split()
        reference_words = [reference.split() for reference in group]
        row = _clipped_matches(reference_words, words)
        row += [max(0, len(words) - order) for order in range(MAX_ORDER)]
        row.append(min((abs(len(other) - len(words)), len(other)) for other in reference_words)[1])
        rows.append(row)
    return np.array(rows, dtype=np.int64).reshape(-1, 2 * MAX_ORDER + 1)


def _clipped_matches(references: list[list[str]], words: list[str]) -> list[int]:
    matches = []
    for order in range(1, MAX_ORDER + 1):
        allowed: Counter[tuple[str, ...]] = Counter()
        for reference in references:
            allowed |= _ngrams(reference, order)
        matches.append((allowed & _ngrams(words, order)).total())
    return matches


def _ngrams(words: list[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[start:] for start in range(order)), strict=False))


def bleu_from_counts(counts: NDArray[Any]) -> NDArray[np.float64]:
    """BLEU-1..4 of summed counts, shape (..., 9) to (..., 4): geometric mean of precisions times brevity penalty.

    The two tiny constants are those of the COCO caption evaluation; they decide the value where an order has no match.
    A corpus of empty hypotheses scores 0.
    """
    counts = np.asarray(counts, dtype=np.float64)
    matched, proposed, reference = counts[..., :MAX_ORDER], counts[..., MAX_ORDER:-1], counts[..., -1]
    precision = (matched + 1e-15) / (proposed + 1e-9)
    geometric = np.exp(np.log(precision).cumsum(axis=-1) / np.arange(1, MAX_ORDER + 1))
    length = proposed[..., 0]
    brevity = np.exp(np.minimum(0.0, 1 - (reference + 1e-9) / (length + 1e-15)))
    return geometric * brevity[..., None]


def rouge_l(references: Sequence[str], hypothesis: str) -> float:
    """ROUGE-L of one study (β = 1.2): best precision and best recall over its references. Empty text scores 0."""
    words = hypothesis.split()
    precision = recall = 0.0
    for reference in references:
        reference_words = reference.split()
        common = _common_length(reference_words, words)
        if common:
            precision = max(precision, common / len(words))
            recall = max(recall, common / len(reference_words))
    if not precision:
        return 0.0
    return (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)


def _common_length(first: list[str], second: list[str]) -> int:
    """Length of the longest common subsequence; one word-parallel integer step for each word of `second`.

    A zero bit i of `row` says that the table of the textbook recursion rises at position i; the addition carries the
    rise to the next match.
    """
    positions: dict[str, int] = {}
    bit = 1
    for word in first:
        positions[word] = positions.get(word, 0) | bit
        bit <<= 1
    row = full = bit - 1
    for word in second:
        if match := row & positions.get(word, 0):
            row = (row + match) | (row - match)
    return len(first) - (row & full).bit_count()


@dataclass(frozen=True)
class TextScores:
    """Corpus figures by name, and what they were computed over."""

    values: dict[str, float]
    studies: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    empty: int = field(metadata={"help": "hypotheses without a word, missing ones included; all score 0"})
    intervals: dict[str, Interval] = field(default_factory=dict, metadata={"help": "bootstrap over studies"})

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"intervals": {name: found._asdict() for name, found in self.intervals.items()}}


def score_reports(
    references: References,
    predictions: Texts,
    *,
    meteor: Sequence[Meteor] = ("meteor_nltk",),
    clean: bool = True,
    resamples: int = 0,
    seed: int = 0,
) -> TextScores:
    """All text figures of a corpus: `bleu_1`..`bleu_4`, `rouge_l` and the METEORs asked for.

    Args:
        references: one report, or several, by study id.
        predictions: one report by study id; see `align_predictions` for ids on one side only.
        meteor: which METEOR, each under its own name.
        clean: pass both sides through `clean_report`; False where they are tokenised already.
        resamples: draws of the bootstrap over studies, 0 for none. `meteor_1.5` gets no interval: its corpus figure
            is not a mean over studies.
        seed: seed of the bootstrap.
    """
    aligned = align_predictions(references, predictions)
    groups, hypotheses = aligned.references, aligned.hypotheses
    if clean:
        groups = tuple(tuple(map(clean_report, group)) for group in groups)
        hypotheses = tuple(map(clean_report, hypotheses))
    counts = bleu_counts(groups, hypotheses)
    means = {"rouge_l": np.array([rouge_l(*pair) for pair in zip(groups, hypotheses, strict=True)])}
    if "meteor_nltk" in meteor:
        means["meteor_nltk"] = meteor_nltk(groups, hypotheses)
    names = [f"bleu_{order}" for order in range(1, MAX_ORDER + 1)]
    values = dict(zip(names, bleu_from_counts(counts.sum(axis=0)).tolist(), strict=True))
    # fsum: exact, so that neither the order of studies nor the number of workers shows in the last digit.
    values |= {name: fsum(column) / len(column) for name, column in means.items()}
    if "meteor_1.5" in meteor:
        values["meteor_1.5"] = meteor_java(groups, hypotheses)
    intervals: dict[str, Interval] = {}
    if resamples:
        found = bootstrap_sums(counts, bleu_from_counts, resamples=resamples, seed=seed)
        intervals = dict(zip(names, found, strict=True))
        intervals |= {name: bootstrap_mean(column, resamples=resamples, seed=seed) for name, column in means.items()}
    empty = sum(not hypothesis.split() for hypothesis in hypotheses)
    return TextScores(values, len(aligned.ids), aligned.missing, aligned.unexpected, empty, intervals)
