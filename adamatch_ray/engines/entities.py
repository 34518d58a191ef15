"""Who finds the entities of a report: a token classifier, or the project's radiology lexicon (paper 3.2.1).

Both answer the same: for each report its distinct entities, whole words in lower case, each in one of the four groups.
"""

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple, Protocol

import torch
import yaml

from adamatch_ray.codebooks import GROUPS
from adamatch_ray.filesystems import at_hand

_FILLER = """
a an and any are as at be been both but by can could due for from had has have he her his if in into is it its may might
more most no non not of on or otherwise over per seen she should so some than that the their there these they this those
to under up very via was we were which while who will with without would cm mm ml x vs versus
"""
STOP_WORDS = frozenset(_FILLER.split())
"""Words that say nothing of an image by themselves."""

_HIDDEN = re.compile(r"x{3,}|_{2,}")  # what is left of a removed name
_WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)?")
_COMPOUND = re.compile(r"[a-z0-9]+(?:['-][a-z0-9]+)*")


class Found(NamedTuple):
    """An entity of a report and its group."""

    text: str
    group: str


class Span(NamedTuple):
    """Where an entity stands in a report in lower case: [start, stop)."""

    found: Found
    start: int
    stop: int


class EntityFinder(Protocol):
    """Finds entities."""

    def find(self, reports: Sequence[str]) -> list[list[Found]]:
        """The distinct entities of each report, in reading order."""
        ...


def open_finder(backend: str, ner: str, min_score: float, device: str = "cpu") -> EntityFinder:
    """The finder that the configuration names (`codebooks.backend`). Raises ValueError when it cannot be had."""
    return LexiconEntities() if backend == "lexicon" else NerEntities(ner, min_score, device)


def finder_identity(backend: str, ner: str, min_score: float) -> dict[str, Any]:
    """What tells finders apart whose answers may differ."""
    if backend == "ner":
        return {"backend": backend, "name": ner, "min_score": min_score}
    return {"backend": backend, "name": hashlib.sha256(_lexicon_text().encode()).hexdigest()[:16]}


class LexiconEntities:
    """Phrases of a lexicon: the longest wins, whole words only, variants and plurals folded into one term."""

    def __init__(self, lexicon: Mapping[str, Mapping[str, Sequence[str]]] | None = None) -> None:
        """`lexicon`: group -> term -> its variants; by default the project's. Raises ValueError for a phrase twice."""
        lexicon = read_lexicon() if lexicon is None else lexicon
        if unknown := sorted(set(lexicon) - set(GROUPS)):
            raise ValueError(f"lexicon: unknown group {unknown[0]!r}; the groups are {', '.join(GROUPS)}")
        self._terms = _phrases(lexicon)
        self._longest = max(map(len, self._terms), default=0)

    def find(self, reports: Sequence[str]) -> list[list[Found]]:
        """The distinct entities of each report, in reading order."""
        return [list(dict.fromkeys(span.found for span in self.spans(report))) for report in reports]

    def spans(self, report: str) -> Iterator[Span]:
        """Every mention of an entity, in reading order."""
        for run in _runs(report.lower()):
            words = [match.group() for match in run]
            start = 0
            while start < len(words):
                lengths = range(min(self._longest, len(words) - start), 0, -1)
                size = next((n for n in lengths if tuple(words[start : start + n]) in self._terms), 0)
                if size:
                    found = self._terms[tuple(words[start : start + size])]
                    yield Span(found, run[start].start(), run[start + size - 1].end())
                start += max(1, size)


class NerEntities:
    """Entities by a token-classification model whose labels include the four groups."""

    def __init__(self, name_or_path: str, min_score: float = 0.7, device: str = "cpu", batch_size: int = 16) -> None:
        """Raises ValueError when the model cannot be loaded or knows none of the groups."""
        from transformers import AutoModelForTokenClassification, AutoTokenizer, TokenClassificationPipeline

        try:
            folder = at_hand(name_or_path)
            tokenizer = AutoTokenizer.from_pretrained(folder)
            model = AutoModelForTokenClassification.from_pretrained(folder, dtype=torch.float32, weights_only=True)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"codebooks.ner {name_or_path}: no token classifier there ({str(error).splitlines()[0]}); "
                "use another folder, or --codebooks.backend lexicon"
            ) from None
        labels = {label.removeprefix("B-").removeprefix("I-") for label in model.config.id2label.values()}
        if not labels & set(GROUPS):
            raise ValueError(f"codebooks.ner {name_or_path}: its labels hold none of {', '.join(GROUPS)}")
        self._tokenizer, self._min_score, self._batch_size = tokenizer, min_score, batch_size
        self._limit = min(512, model.config.max_position_embeddings) - tokenizer.num_special_tokens_to_add()
        # "first": the label of a word is that of its first piece, so no word is cut in two.
        self._classify = TokenClassificationPipeline(
            model=model, tokenizer=tokenizer, aggregation_strategy="first", device=torch.device(device)
        )

    def find(self, reports: Sequence[str]) -> list[list[Found]]:
        """The distinct entities of each report, in reading order."""
        chunks = [(number, chunk) for number, report in enumerate(reports) for chunk in self._chunks(report)]
        found: list[list[Found]] = [[] for _ in reports]
        if not chunks:
            return found
        answers: list[list[dict[str, Any]]] = self._classify(
            [chunk for _, chunk in chunks], batch_size=self._batch_size
        )
        for (number, chunk), answer in zip(chunks, answers, strict=True):
            for span in answer:
                text = _tidy(chunk, span["start"], span["end"])
                if text and span["entity_group"] in GROUPS and span["score"] >= self._min_score:
                    found[number].append(Found(text, span["entity_group"]))
        return [list(dict.fromkeys(entities)) for entities in found]

    def _chunks(self, report: str) -> Iterator[str]:
        """The report in parts that the model has positions for, cut after a sentence where there is one."""
        pieces = self._tokenizer(report, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        starts = [start for start, _ in pieces["offset_mapping"]]
        words = pieces.word_ids()
        first = 0
        while first < len(starts):
            last = first + self._limit
            if last >= len(starts):
                last = len(starts)
            else:
                cuts = [t for t in range(first + 1, last + 1) if words[t] != words[t - 1]]
                after_space = [t for t in cuts if report[starts[t] - 1].isspace()]
                sentences = [t for t in after_space if report[: starts[t]].rstrip()[-1:] in ".!?;"]
                last = (sentences or after_space or cuts or [last])[-1]
            yield report[starts[first] : starts[last] if last < len(starts) else len(report)]
            first = last


def read_lexicon() -> dict[str, dict[str, list[str]]]:
    """The project's radiology lexicon: group -> term -> variants."""
    lexicon: dict[str, dict[str, list[str]]] = yaml.safe_load(_lexicon_text())
    return lexicon


def _lexicon_text() -> str:
    return resources.files("adamatch_ray.engines").joinpath("radiology_lexicon.yaml").read_text("utf-8")


def denoting_words(
    texts: Collection[str], lexicon: Mapping[str, Mapping[str, Sequence[str]]] | None = None
) -> frozenset[str]:
    """Words of reports that denote entities: those of their texts and, with a lexicon, of what it folds into them."""
    phrases = {tuple(text.split()) for text in texts}
    if lexicon is not None:
        phrases |= {phrase for phrase, found in _phrases(lexicon).items() if found.text in texts}
    return frozenset(word for phrase in phrases for word in phrase if not _is_filler(word))


def lexicon_words(groups: Collection[str] = GROUPS) -> frozenset[str]:
    """Words that denote entities of these groups of the project's lexicon, filler left out."""
    lexicon = read_lexicon()
    texts = {term for group in groups for term in lexicon[group]}
    return denoting_words(texts, {group: lexicon[group] for group in groups})


def _plural(phrase: str) -> str:
    """The regular English plural of a phrase's last word."""
    if re.search(r"[^aeiou]y$", phrase):
        return f"{phrase[:-1]}ies"
    return f"{phrase}es" if re.search(r"(s|x|z|ch|sh)$", phrase) else f"{phrase}s"


def _phrases(lexicon: Mapping[str, Mapping[str, Sequence[str]]]) -> dict[tuple[str, ...], Found]:
    terms: dict[tuple[str, ...], Found] = {}
    for group, entries in lexicon.items():
        for term, variants in entries.items():
            for phrase in (term, *variants):
                key = tuple(phrase.split())
                if key in terms:
                    raise ValueError(f"lexicon: {phrase!r} stands twice, under {terms[key].text!r} and {term!r}")
                terms[key] = Found(term, group)
    plurals = {tuple(_plural(" ".join(key)).split()): found for key, found in terms.items()}
    return plurals | terms


def _runs(lowered: str) -> Iterator[list[re.Match[str]]]:
    """Words of a text that follow one another with nothing but spaces or hyphens in between."""
    words: list[re.Match[str]] = []
    end = 0
    for match in _WORD.finditer(lowered):
        if lowered[end : match.start()].strip(" \t\n-"):
            yield words
            words = []
        words.append(match)
        end = match.end()
    yield words


def _tidy(text: str, start: int, end: int) -> str:
    """A span as whole lower-case words without filler at its ends; empty where nothing useful is left."""
    while start > 0 and (text[start - 1].isalnum() or text[start - 1] in "'-_"):
        start -= 1
    while end < len(text) and (text[end].isalnum() or text[end] in "'-_"):
        end += 1
    span = text[start:end].lower()
    if _HIDDEN.search(span):
        return ""
    words = _COMPOUND.findall(span)
    while words and _is_filler(words[0]):
        words = words[1:]
    while words and _is_filler(words[-1]):
        words = words[:-1]
    return " ".join(words)


def _is_filler(word: str) -> bool:
    return word in STOP_WORDS or len(word) == 1 or not any(letter.isalpha() for letter in word)
