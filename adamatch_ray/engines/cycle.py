"""The whole cycle: X-ray to report to X-ray, report to X-ray to report (section 3.2).

AdaMatch finds keywords and keypatches, the VQ-GAN reads and draws images, the language model writes between them. A row
that fails keeps its place with a status that says why; an empty report or a blank image is no failure, its prompt just
holds no hints.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from adamatch_ray.codebooks import keyword_groups
from adamatch_ray.engines.generation import GenerationEngine, ImageRequest, ReportRequest, ReportResult
from adamatch_ray.engines.image_tokens import ImageTokenizer, fingerprint
from adamatch_ray.engines.keypatch_tokens import KeypatchTokens
from adamatch_ray.engines.loader import load_generation, load_instructions, load_vqgan
from adamatch_ray.engines.matching import Keypatch, Keyword, MatchingEngine
from adamatch_ray.engines.placing import Phrase
from adamatch_ray.geometry import CanvasImage
from adamatch_ray.instructions import spell_keywords
from adamatch_ray.model_config import GenerationSettings, InstructionConfig
from adamatch_ray.specs import STAGES
from adamatch_ray.storage import Root, Stage

MATCHED = 64
"""Rows that AdaMatch sees at once; always as many, so that a score is rounded alike whatever else is set."""

Given = TypeVar("Given")
Answer = TypeVar("Answer")


class ReportAnswer(NamedTuple):
    """A report, the keywords it was written from, and the tokens of the X-ray; `status` as in `ReportResult`."""

    report: str
    keywords: list[Keyword]
    image_tokens: NDArray[np.uint16]
    status: str


class ImageAnswer(NamedTuple):
    """An X-ray uint8 [S, S], its tokens, and the keypatches it was drawn from.

    `image` is None and there are no tokens where `status` is "error: …" instead of "ok".
    """

    image: NDArray[np.uint8] | None
    image_tokens: NDArray[np.uint16]
    keypatches: list[Keypatch]
    status: str


class CycleEngine:
    """Both directions and both cycles for lists of rows; offline actors and online deployments hold one each."""

    def __init__(
        self,
        matching: MatchingEngine,
        tokenizer: ImageTokenizer,
        generation: GenerationEngine,
        keypatch_tokens: KeypatchTokens,
        instructions: InstructionConfig,
    ) -> None:
        self.matching, self.tokenizer, self.generation = matching, tokenizer, generation
        self.keypatch_tokens, self.instructions = keypatch_tokens, instructions

    @classmethod
    def load(cls, root: Root, device: str = "cpu", settings: GenerationSettings | None = None) -> "CycleEngine":
        """The models of a root's finished stages. ValueError names an unfinished one, or two that do not fit."""
        for name in ("vqgan", "llm"):
            root.stage(name).require()
        _require_parents(root.stage("tokens"), ("vqgan", "codebooks"))
        vqgan, generation = load_vqgan(root), load_generation(root, device, settings)
        grid = (vqgan.config.grid, vqgan.config.grid)
        generation.layout.check_cache(vqgan.config.codes, grid, fingerprint(vqgan))
        return cls(
            MatchingEngine.load(root, device),
            ImageTokenizer(vqgan, device),
            generation,
            KeypatchTokens.load(root.stage("tokens")),
            load_instructions(root),
        )

    @property
    def canvas(self) -> int:
        """Side of the X-rays that it reads and draws, pixels."""
        return self.tokenizer.config.image_size

    def reports(self, images: Sequence[CanvasImage], seeds: Sequence[int]) -> list[ReportAnswer]:
        """A report for each X-ray; all must lie on canvases of side `canvas`, else ValueError."""
        if not images:
            return []
        tokens_BT, keywords = self._look(images)
        results = self._write(tokens_BT, keywords, seeds)
        rows = zip(results, keywords, tokens_BT, strict=True)
        return [ReportAnswer(result.text, found, tokens, result.status) for result, found, tokens in rows]

    def probe_reports(self, images: Sequence[CanvasImage], seeds: Sequence[int]) -> tuple[list[str], list[str]]:
        """Two more reports for each X-ray, to tell what the first was written from.

        Without keywords; and with its own keywords, but the tokens of the X-ray behind it (of the first for the last).
        """
        tokens_BT, keywords = self._look(images)
        without = self._write(tokens_BT, [[] for _ in images], seeds)
        other = self._write(np.roll(tokens_BT, -1, axis=0), keywords, seeds)
        return [result.text for result in without], [result.text for result in other]

    def _look(self, images: Sequence[CanvasImage]) -> tuple[NDArray[np.uint16], list[list[Keyword]]]:
        """Tokens [B, T] and keywords."""
        count = self.instructions.keywords
        groups, least = keyword_groups(self.instructions), self.instructions.least_probability
        keywords = _by_group(images, lambda group: self.matching.keywords(group, count, groups, least))
        return self.tokenizer.encode(np.stack([image.pixels for image in images])), keywords

    def _write(
        self, tokens_BT: NDArray[np.uint16], keywords: Sequence[Sequence[Keyword]], seeds: Sequence[int]
    ) -> list[ReportResult]:
        requests = [
            ReportRequest(tokens, spell_keywords(own, self.instructions), seed)
            for tokens, own, seed in zip(tokens_BT, keywords, seeds, strict=True)
        ]
        return self.generation.cxr_to_report(requests)

    def images(self, reports: Sequence[str], seeds: Sequence[int]) -> list[ImageAnswer]:
        """An X-ray for each report."""
        if not reports:
            return []
        count, sided = self.instructions.keypatches, self.instructions.keypatch_sides
        keypatches = _by_group(reports, lambda group: self.matching.keypatches(group, count, sided))
        rows = zip(reports, keypatches, seeds, strict=True)
        requests = [image_request(report, found, self.keypatch_tokens, seed) for report, found, seed in rows]
        results = self.generation.report_to_cxr(requests)
        drawn = [result.image_tokens for result in results if result.status == "ok"]
        decoded = iter(self.tokenizer.decode(np.stack(drawn)) if drawn else ())
        return [
            ImageAnswer(next(decoded) if status == "ok" else None, tokens, found, status)
            for (tokens, status), found in zip(results, keypatches, strict=True)
        ]

    def phrases(self, pairs: Sequence[tuple[CanvasImage, str]]) -> list[list[Phrase]]:
        """The findings that each report names, and where its X-ray shows them."""

        def find(group: Sequence[tuple[CanvasImage, str]]) -> list[list[Phrase]]:
            matches = self.matching.match([image for image, _ in group], [report for _, report in group])
            return [list(match.phrases) for match in matches]

        return _by_group(pairs, find)

    def image_cycle(
        self, images: Sequence[CanvasImage], seeds: Sequence[int]
    ) -> list[tuple[ReportAnswer, ImageAnswer]]:
        """X-ray to report, and that report to an X-ray."""
        first = self.reports(images, seeds)
        given = [None if answer.status.startswith("error") else answer.report for answer in first]
        failed = ImageAnswer(None, np.zeros(0, np.uint16), [], "error: there is no report to draw from")
        return list(zip(first, _second_half(self.images, given, seeds, failed), strict=True))

    def report_cycle(self, reports: Sequence[str], seeds: Sequence[int]) -> list[tuple[ImageAnswer, ReportAnswer]]:
        """Report to X-ray, and that X-ray to a report. Keyword boxes are in pixels of the drawn X-ray."""
        first = self.images(reports, seeds)
        given = [None if answer.image is None else as_canvas(answer.image) for answer in first]
        failed = ReportAnswer("", [], np.zeros(0, np.uint16), "error: there is no X-ray to report on")
        return list(zip(first, _second_half(self.reports, given, seeds, failed), strict=True))


def image_request(
    report: str, keypatches: Sequence[Keypatch], keypatch_tokens: KeypatchTokens, seed: int
) -> ImageRequest:
    """What the language model is asked for a report."""
    return ImageRequest(report, keypatch_tokens.codes([keypatch.entry for keypatch in keypatches]), seed)


def as_canvas(image: NDArray[np.uint8]) -> CanvasImage:
    """A drawn X-ray [S, S] as an X-ray of that size, to be read again."""
    return CanvasImage(image, *image.shape)


def row_seed(seed: int, study_id: str, direction: str) -> int:
    """The seed of one row, in [0, 2^63): the same in every process, whatever rows are beside it."""
    digest = hashlib.blake2b(f"{seed}/{direction}/{study_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def second_seed(seed: int) -> int:
    """The seed of a cycle's second half, whose draws must not be those of the first."""
    return row_seed(seed, "", "second half")


def _require_parents(stage: Stage, names: Sequence[str]) -> None:
    """ValueError, naming both sides, where a finished stage was made from another parent than the root holds now."""
    for name, made_from in stage.require().parents.items():
        held = stage.root.stage(name).require().fingerprint if name in names else made_from
        if held != made_from:
            raise ValueError(
                f"{stage.uri} was made from {name} {made_from}, but {name} is {held} now; "
                f"run: python jobs/{STAGES[stage.name].job}.py --overwrite"
            )


def _second_half(
    ask: Callable[[Sequence[Given], Sequence[int]], list[Answer]],
    given: Sequence[Given | None],
    seeds: Sequence[int],
    failed: Answer,
) -> list[Answer]:
    """Answers to what the first half gave; `failed` where it gave nothing."""
    going = [(value, second_seed(seed)) for value, seed in zip(given, seeds, strict=True) if value is not None]
    answers = iter(ask([value for value, _ in going], [seed for _, seed in going]))
    return [failed if value is None else next(answers) for value in given]


def _by_group(rows: Sequence[Given], find: Callable[[Sequence[Given]], list[list[Answer]]]) -> list[list[Answer]]:
    return [found for start in range(0, len(rows), MATCHED) for found in find(rows[start : start + MATCHED])]
