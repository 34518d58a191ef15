"""Reports from X-rays and X-rays from reports: the language model at work (section 3.2).

A request's answer depends on its prompt and its seed, not on the requests it happens to be batched with. A request that
fails keeps its place among the answers, with a status that says why, so no metric loses its row.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from adamatch_ray.engines.local_backend import DecodePlan, GenerationBackend, LocalBackend, Watch
from adamatch_ray.instructions import InstructionBuilder
from adamatch_ray.model_config import GenerationSettings, InstructionConfig, from_dict
from adamatch_ray.models.hub import model_folder
from adamatch_ray.models.llm import INSTRUCTIONS, load_llm
from adamatch_ray.models.llm_tokens import TokenLayout

OK = "ok"
_SENTENCE_ENDS = re.compile(r"(?<=[.!?])\s+")
_LAST_WORD = re.compile(r"\S+\Z")


@dataclass
class Caller:
    """Who waits for an answer. Once `gone`, no step is spent on it, and what comes of it means nothing.

    `hear` is told of a report as it is written, in the thread that decodes: all of it so far that will stay.
    """

    hear: Callable[[str], None] | None = None
    gone: bool = False


class ReportRequest(NamedTuple):
    """An X-ray's h·w image tokens (VQ-GAN codes) and its keywords, best first."""

    image_tokens: ArrayLike
    keywords: Sequence[str] = ()
    seed: int = 0
    caller: Caller | None = None


class ImageRequest(NamedTuple):
    """A report and the VQ-GAN codes of its keypatches, best first."""

    report: str
    keypatch_tokens: ArrayLike = ()
    seed: int = 0
    caller: Caller | None = None


class ReportResult(NamedTuple):
    """`status` is "ok", "truncated: …" (text without an end) or "error: …" (no text)."""

    text: str
    token_ids: list[int]
    status: str


class ImageResult(NamedTuple):
    """h·w VQ-GAN codes in raster order, uint16; empty where `status` is "error: …" instead of "ok"."""

    image_tokens: NDArray[np.uint16]
    status: str


def without_repeats(report: str) -> str:
    """A report without the sentences that say an earlier one again.

    Forbidding tokens that would repeat a sequence ends sentences in words that do not fit; this leaves whole ones.
    """
    first: dict[str, str] = {}
    for sentence in _SENTENCE_ENDS.split(report):
        first.setdefault(_said(sentence), sentence)
    return " ".join(first.values())


def settled(report: str, drop_repeats: bool) -> str:
    """What the whole report will begin with, told from its beginning: whole words, as long as they will not be dropped.

    A sentence that may yet turn out to say an earlier one again waits until it says something else.
    """
    whole = _LAST_WORD.sub("", report).strip()
    if not drop_repeats:
        return whole
    *said, last = _SENTENCE_ENDS.split(whole)
    if any(f"{_said(sentence)} ".startswith(f"{_said(last)} ") for sentence in said):
        return without_repeats(" ".join(said))
    return without_repeats(whole)


def _said(sentence: str) -> str:
    return " ".join(sentence.lower().split())


class GenerationEngine:
    """cxr_to_report and report_to_cxr for lists of requests; offline actors and online deployments hold one each.

    `model` may be None if a `backend` of your own does the decoding.
    """

    def __init__(
        self,
        model: PreTrainedModel | None,
        tokenizer: PreTrainedTokenizerBase,
        layout: TokenLayout,
        device: torch.device | str = "cpu",
        settings: GenerationSettings | None = None,
        instructions: InstructionConfig | None = None,
        backend: GenerationBackend | None = None,
    ) -> None:
        self.settings, self.layout = settings or GenerationSettings(), layout
        self._tokenizer = tokenizer
        self._builder = InstructionBuilder(tokenizer, layout, instructions)
        if backend is None:
            if model is None:
                raise ValueError("GenerationEngine needs a model, or a backend that has one")
            rows = model.get_input_embeddings().num_embeddings
            if rows != layout.vocab_size:
                raise ValueError(f"the model has {rows} rows, the layout {layout.vocab_size}: load both together")
            torch.nn.Module.to(model, device)
            backend = LocalBackend(model, self.settings.batch_size, self.settings.decoder)
        self._backend = backend

    @classmethod
    def from_pretrained(
        cls,
        folder_or_name: str | Path,
        device: str = "cpu",
        settings: GenerationSettings | None = None,
        instructions: InstructionConfig | None = None,
    ) -> "GenerationEngine":
        """The language model of a model folder or hub name; `instructions` where they are known from elsewhere.

        ValueError where there is no model, or nothing says how its prompts are made.
        """
        folder = model_folder(folder_or_name)
        known = instructions or _instructions_beside(folder)
        llm = load_llm(folder, "float32" if device == "cpu" else "auto")  # bf16 is slower than fp32 on most CPUs
        return cls(llm.model, llm.tokenizer, llm.layout, device, settings, known)

    def cxr_to_report(self, requests: Sequence[ReportRequest]) -> list[ReportResult]:
        """One result a request, in order. Ids come from the text rows only; the text stops before `### End`.

        What a caller hears are beginnings of the text that it gets at last.
        """
        s, layout = self.settings, self.layout
        plan = DecodePlan(
            0, layout.text_size, layout.end_id, s.report_temperature, s.report_top_p, s.beams, no_repeat=s.no_repeat
        )
        prompts = [self._prompt(request, 1) for request in requests]
        answers = self._complete(prompts, requests, s.report_tokens, plan)
        results = []
        for prompt, answer in zip(prompts, answers, strict=True):
            if isinstance(prompt, str):
                results.append(ReportResult("", [], prompt))
                continue
            ended = bool(answer) and answer[-1] == layout.end_id
            text = str(self._tokenizer.decode(answer, skip_special_tokens=True)).strip()
            text = without_repeats(text) if s.drop_repeats else text
            status = OK if ended else f"truncated: no end of report within {len(answer)} tokens"
            results.append(ReportResult(text, answer, status))
        return results

    def report_to_cxr(self, requests: Sequence[ImageRequest]) -> list[ImageResult]:
        """One result a request, in order. Exactly h·w tokens, drawn from the image rows only: every answer decodes."""
        s, layout = self.settings, self.layout
        null = tuple(self._builder.image_prompt("", ())) if s.image_guidance != 1 else ()
        plan = DecodePlan(
            layout.image_start,
            layout.vocab_size,
            None,
            s.image_temperature,
            s.image_top_p,
            guidance=s.image_guidance,
            null_prompt=null,
            image=True,
        )
        prompts = [self._prompt(request, layout.image_tokens) for request in requests]
        answers = self._complete(prompts, requests, layout.image_tokens, plan)
        empty = np.zeros(0, dtype=np.uint16)
        results = []
        for prompt, answer in zip(prompts, answers, strict=True):
            if isinstance(prompt, str):
                results.append(ImageResult(empty, prompt))
            elif len(answer) < layout.image_tokens:
                results.append(ImageResult(empty, "error: nobody waits for this image any more"))
            else:
                results.append(ImageResult(layout.decode_image(answer), OK))
        return results

    def _prompt(self, request: ReportRequest | ImageRequest, room: int) -> list[int] | str:
        """The prompt, or the error that stands in for its answer."""
        try:
            if isinstance(request, ReportRequest):
                prompt = self._builder.report_prompt(request.image_tokens, request.keywords)
            else:
                prompt = self._builder.image_prompt(request.report, request.keypatch_tokens)
        except ValueError as error:
            return f"error: {error}"
        if len(prompt) + room > self.layout.context:
            return (
                f"error: a prompt of {len(prompt)} tokens and an answer of {room} exceed the context of "
                f"{self.layout.context}; shorten the report or set max_report_tokens"
            )
        return prompt

    def _complete(
        self,
        prompts: list[list[int] | str],
        requests: Sequence[ReportRequest] | Sequence[ImageRequest],
        longest: int,
        plan: DecodePlan,
    ) -> list[list[int]]:
        good = [(i, prompt) for i, prompt in enumerate(prompts) if isinstance(prompt, list)]
        limits = [min(longest, self.layout.context - len(prompt)) for _, prompt in good]
        answers: list[list[int]] = [[] for _ in prompts]
        if good:
            asked = [requests[i] for i, _ in good]
            watch = self._watch([request.caller for request in asked])
            done = self._backend.complete([p for _, p in good], limits, [r.seed for r in asked], plan, watch)
            for (index, _), answer in zip(good, done, strict=True):
                answers[index] = answer
        return answers

    def _watch(self, callers: list[Caller | None]) -> Watch | None:
        """What tells callers of their answers, and the backend of callers that have gone."""
        if not any(callers):
            return None
        answers: list[list[int]] = [[] for _ in callers]

        def watch(number: int, token: int) -> bool:
            caller = callers[number]
            if caller and caller.hear:
                answers[number].append(token)
                text = str(self._tokenizer.decode(answers[number], skip_special_tokens=True))
                caller.hear(settled(text, self.settings.drop_repeats))
            return not (caller and caller.gone)

        return watch


def _instructions_beside(folder: Path) -> InstructionConfig:
    for place in (folder, folder.parent):
        if (place / INSTRUCTIONS).is_file():
            return from_dict(InstructionConfig, json.loads((place / INSTRUCTIONS).read_text()))
    raise ValueError(f"{folder} has no {INSTRUCTIONS}, which says how prompts are made: copy it there")
