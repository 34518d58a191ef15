"""Prompts, records and label masks of the instruction-tuned language model, both directions (section 3.2, eqs. 10-11).

    preamble · ### Instruction: · Input: · Keyword: or Reference: · ### Response: · answer · ### End

Blocks are separated by blank lines. The keys and the image tokens are put in as ids; report text is encoded so that a
key spelled inside it stays plain text. A record longer than the context is refused and counted, never cut.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from transformers import PreTrainedTokenizerBase

from adamatch_ray.data.facts import spell_facts
from adamatch_ray.model_config import InstructionConfig
from adamatch_ray.models.llm_loss import IGNORE, PackedBatch
from adamatch_ray.models.llm_tokens import INSTRUCTION_KEY, RESPONSE_KEY, TokenLayout

CXR_TO_REPORT = "cxr_to_report"
REPORT_TO_CXR = "report_to_cxr"

PREAMBLE = "A task is set out below, together with the material it works on. Answer with what the task asks for."
INSTRUCTIONS = {
    CXR_TO_REPORT: (
        "Write the radiology report of the chest X-ray given as image tokens. The keywords name what may be visible.",
        "Describe this chest X-ray the way a radiologist would, guided by the listed keywords.",
        "Read the image tokens of a frontal chest radiograph and dictate findings and impression.",
        "Using the X-ray tokens and the keywords, compose the matching report.",
        "What does this radiograph show? Reply with a full report; the keywords are hints.",
    ),
    REPORT_TO_CXR: (
        "Draw the chest X-ray that this report describes, as image tokens. The reference shows similar regions.",
        "Produce the image tokens of a frontal chest radiograph with exactly these findings.",
        "Turn the report into its X-ray; the reference tokens come from regions with the same findings.",
        "Given the report and the reference regions, generate the matching radiograph token by token.",
        "Which X-ray would have led to this report? Reply with its image tokens.",
    ),
}

_OPENING, _GAP, _KEYWORD, _REFERENCE = f"{PREAMBLE}\n\n", "\n\n", "\n\nKeyword:\n", "\n\nReference:\n"


class KeywordHint(Protocol):
    """What AdaMatch says of an image in one word or phrase, how sure it is, and where ("right lower")."""

    @property
    def text(self) -> str: ...

    @property
    def probability(self) -> float: ...

    @property
    def place(self) -> str: ...


Hint = TypeVar("Hint", bound=KeywordHint)


def spell_keywords(keywords: Iterable[KeywordHint], config: InstructionConfig) -> list[str]:
    """Keywords as a prompt lists them: the words alone (paper), or with place and certainty behind them."""
    spelled = []
    for keyword in keywords:
        words = [keyword.text]
        if config.keyword_places:
            words.append(keyword.place)
        if config.keyword_confidence:
            words += [] if keyword.probability >= config.keyword_confidence[0] else ["possible"]
        spelled.append(" ".join(words))
    return spelled


def in_order_told(keywords: Sequence[Hint], report: str) -> list[Hint]:
    """Keywords in the order in which a report first names them; those that it does not name come last.

    A model that has learnt to follow its list knows, before it names a finding, which one it is about to name: the
    side often comes first. When it writes, the most probable keyword leads.
    """
    lower = report.lower()

    def first_named(keyword: Hint) -> int:
        place = lower.find(keyword.text.split()[-1])
        return place if place >= 0 else len(lower)

    return sorted(keywords, key=first_named)


@dataclass(frozen=True)
class Example:
    """One training record. `labels` is -100 up to `response_start`, then the ids of the answer and of `### End`."""

    study_id: str
    direction: str
    input_ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    response_start: int


@dataclass(frozen=True)
class Overlength:
    """A record that was refused because it does not fit the context. Count these."""

    study_id: str
    direction: str
    tokens: int
    context: int

    @property
    def message(self) -> str:
        """Both sides, for a log or an error."""
        return f"{self.direction} record of {self.tokens} tokens exceeds the context of {self.context}"


class InstructionBuilder:
    """Makes prompts and records for one tokenizer and layout. Holds nothing that changes."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, layout: TokenLayout, config: InstructionConfig | None = None
    ) -> None:
        if len(tokenizer) != layout.text_size:
            raise ValueError(
                f"the tokenizer has {len(tokenizer)} entries, the model expects {layout.text_size}: "
                "load both from the same folder"
            )
        self.layout = layout
        self.config = config or InstructionConfig()
        self._tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab()
        self._response = [*self._text(_GAP), vocabulary[RESPONSE_KEY]]
        self._end = [*self._text(_GAP), layout.end_id]
        heads = {}
        for direction, wordings in INSTRUCTIONS.items():
            for index, wording in enumerate(wordings):
                task = self._text(_task(wording))
                heads[direction, index] = [*self._text(_OPENING), vocabulary[INSTRUCTION_KEY], *task]
        self._heads = heads

    def report_prompt(self, image_codes: ArrayLike | None, keywords: Sequence[str], paraphrase: int = 0) -> list[int]:
        """Ids that ask for the report of h·w codes, up to and with `### Response:`. ValueError for foreign codes.

        Keywords as `spell_keywords` writes them. Without codes (None) the keywords are all there is.
        """
        listed = ", ".join(keyword.strip() for keyword in keywords[: self.config.keywords])
        return [
            *self._heads[CXR_TO_REPORT, paraphrase],
            *([] if image_codes is None else self.layout.encode_whole_image(image_codes)),
            *self._text(f"{_KEYWORD}{listed}"),
            *self._response,
        ]

    def image_prompt(self, report: str, keypatch_codes: ArrayLike, paraphrase: int = 0) -> list[int]:
        """Ids that ask for the X-ray of a report; keypatch codes come in order of similarity, any number of them."""
        text = self._text(report.strip())
        limit = self.config.max_report_tokens
        reference = self.layout.encode_image(keypatch_codes)[: self.config.keypatch_tokens]
        stated = f"{_KEYWORD}{', '.join(spell_facts(report))}" if self.config.image_facts else ""
        return [
            *self._heads[REPORT_TO_CXR, paraphrase],
            *(text[:limit] if limit else text),
            *self._text(stated),
            *self._text(_REFERENCE),
            *reference,
            *self._response,
        ]

    def report_example(
        self, study_id: str, epoch: int, image_codes: ArrayLike | None, keywords: Sequence[str], report: str
    ) -> Example | Overlength:
        """Record image and keywords → report."""
        prompt = self.report_prompt(image_codes, keywords, self.paraphrase(study_id, epoch, CXR_TO_REPORT))
        return self._record(study_id, CXR_TO_REPORT, prompt, self._text(report.strip()))

    def report_lesson(
        self, study_id: str, epoch: int, image_codes: ArrayLike | None, keywords: Sequence[str], report: str
    ) -> Example | Overlength:
        """`report_example` as it is trained: at first without the image, later now and then without the keywords."""
        if epoch < self.config.image_from:
            return self.report_example(study_id, epoch, None, keywords, report)
        if self._draw(study_id, epoch, "keywords") < self.config.keyword_dropout:
            keywords = ()
        return self.report_example(study_id, epoch, image_codes, keywords, report)

    def image_lesson(
        self, study_id: str, epoch: int, report: str, keypatch_codes: ArrayLike, image_codes: ArrayLike
    ) -> Example | Overlength:
        """`image_example` as it is trained: now and then with the prompt that guidance compares with."""
        if self._draw(study_id, epoch, "prompt") < self.config.prompt_dropout:
            report, keypatch_codes = "", ()
        return self.image_example(study_id, epoch, report, keypatch_codes, image_codes)

    def image_example(
        self, study_id: str, epoch: int, report: str, keypatch_codes: ArrayLike, image_codes: ArrayLike
    ) -> Example | Overlength:
        """Record report and keypatches → image."""
        prompt = self.image_prompt(report, keypatch_codes, self.paraphrase(study_id, epoch, REPORT_TO_CXR))
        return self._record(study_id, REPORT_TO_CXR, prompt, self.layout.encode_whole_image(image_codes))

    def paraphrase(self, study_id: str, epoch: int, direction: str) -> int:
        """Which wording a study gets in an epoch: a hash, so workers agree and a resumed run repeats it."""
        return self._hash(study_id, epoch, direction) % len(INSTRUCTIONS[direction])

    def _draw(self, study_id: str, epoch: int, purpose: str) -> float:
        """A number in [0, 1) that every worker draws alike, and a resumed run again."""
        return self._hash(study_id, epoch, purpose) / 2**64

    def _hash(self, study_id: str, epoch: int, purpose: str) -> int:
        key = f"{self.config.seed}/{epoch}/{purpose}/{study_id}".encode()
        return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")

    def _record(self, study_id: str, direction: str, prompt: list[int], answer: list[int]) -> Example | Overlength:
        ids = np.array([*prompt, *answer, *self._end], dtype=np.int32)
        if len(ids) > self.layout.context:
            return Overlength(study_id, direction, len(ids), self.layout.context)
        labels = ids.copy()
        labels[: len(prompt)] = IGNORE
        return Example(study_id, direction, ids, labels, len(prompt))

    def _text(self, text: str) -> list[int]:
        ids = self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
        return list(ids)


def prompt_phrases() -> list[str]:
    """Every fixed wording as a prompt joins it: a tokenizer made for these prompts can hold each as one token."""
    tasks = [_task(wording) for wordings in INSTRUCTIONS.values() for wording in wordings]
    return [_OPENING, *tasks, _KEYWORD, _REFERENCE, _GAP]


def _task(wording: str) -> str:
    return f"\n{wording}\n\nInput:\n"


def pack(examples: Sequence[Example], context: int, pad_id: int = 0) -> PackedBatch:
    """Lay records into as few rows of at most `context` tokens as first-fit-decreasing finds; same input, same rows.

    Positions restart with each record; with `packed_attention_mask` no record sees another. ValueError if one record
    is longer than a row or there is none.
    """
    if not examples:
        raise ValueError("nothing to pack: every record of this batch was refused; raise the context or cut reports")
    longest = max(len(example.input_ids) for example in examples)
    if longest > context:
        raise ValueError(f"a record of {longest} tokens does not fit rows of {context}: build it for this context")
    rows: list[list[Example]] = []
    used: list[int] = []
    for example in sorted(examples, key=lambda e: -len(e.input_ids)):
        size = len(example.input_ids)
        row = next((index for index, filled in enumerate(used) if filled + size <= context), len(rows))
        if row == len(rows):
            rows.append([])
            used.append(0)
        rows[row].append(example)
        used[row] += size
    return _fill(rows, max(used), pad_id)


def _fill(rows: list[list[Example]], width: int, pad_id: int) -> PackedBatch:
    ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    labels = np.full_like(ids, IGNORE)
    positions, segments = np.zeros_like(ids), np.zeros_like(ids)
    for r, row in enumerate(rows):
        start = 0
        for segment, example in enumerate(row, start=1):
            # Its first label would be asked of the record before it.
            assert example.labels[0] == IGNORE, "a record starts with its prompt"
            stop = start + len(example.input_ids)
            ids[r, start:stop], labels[r, start:stop] = example.input_ids, example.labels
            positions[r, start:stop], segments[r, start:stop] = np.arange(stop - start), segment
            start = stop
        # Padding counts on: a restart would read as one more record.
        positions[r, start:] = np.arange(positions[r, start - 1] + 1, positions[r, start - 1] + 1 + width - start)
    return PackedBatch(*(torch.from_numpy(array) for array in (ids, labels, positions, segments)))
