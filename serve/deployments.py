"""The models as deployments, thin over the engines that also run offline: same object, same answers.

What comes in and goes out is light: canvases, texts, token ids, protocol values. Each replica works in one thread of
its own, so its event loop stays free for health checks, and a crowd of requests shares a pass through the model.
"""

import asyncio
import base64
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adamatch_ray.geometry import CanvasImage
from adamatch_ray.storage import Root
from serve.batching import Batcher
from serve.explain import match_response
from serve.protocol import Hit, Keypatch, Keyword, MatchResponse
from serve.settings import Settings

if TYPE_CHECKING:
    from adamatch_ray.engines import generation, matching


TELL_S = 0.03
"""Seconds between two messages with new words: fewer than readers notice, and a message costs more than a word."""


def _one_thread(threads: int) -> ThreadPoolExecutor:
    import torch

    torch.set_num_threads(threads)
    return ThreadPoolExecutor(1, thread_name_prefix="model")


class _Replica:
    """What each deployment says of itself."""

    async def ready(self) -> bool:
        """True; a replica is not asked before its models are loaded and warm."""
        return True


class Matcher(_Replica):
    """AdaMatch: keywords of an X-ray, keypatches of a report, their match, and the search index."""

    def __init__(self, settings: Settings) -> None:
        from adamatch_ray.codebooks import VisualCodebook
        from adamatch_ray.engines.keypatch_tokens import KeypatchTokens
        from adamatch_ray.engines.loader import load_instructions
        from adamatch_ray.engines.matching import MatchingEngine
        from serve.retrieval import Index

        root = Root(settings.root)
        pool = _one_thread(settings.threads)
        self._engine = MatchingEngine.load(root, settings.device)
        self._instructions = load_instructions(root)
        self._tokens = KeypatchTokens.load(root.stage("tokens"))
        self._crops = VisualCodebook.load(root.stage("codebooks"), crops=True).table["crop"]
        studies, limit = root.stage("studies"), settings.index_studies
        self._index = Index(self._engine.embedder, studies, settings.index_split, limit) if limit else None
        self._keywords_of = Batcher(self._keywords, settings.batch, pool)
        self._keypatches_of = Batcher(self._keypatches, settings.batch, pool)
        self._match_of = Batcher(self._match, settings.batch, pool)
        self._hits_of = Batcher(self._hits, 1, pool)
        self._warm()

    async def keywords(self, image: CanvasImage) -> list[Keyword]:
        """The keywords that go into the prompt, best first."""
        return await self._keywords_of(image)

    async def keypatches(self, report: str) -> tuple[list[Keypatch], list[int]]:
        """The keypatches of a report, best first, and their VQ-GAN codes for the prompt."""
        return await self._keypatches_of(report)

    async def match(self, image: CanvasImage, report: str) -> MatchResponse:
        """Words against regions."""
        return await self._match_of((image, report))

    async def retrieve(self, query: CanvasImage | str, count: int) -> tuple[list[Hit], int]:
        """The best studies of the index for an X-ray or a report, and how many studies it has."""
        return await self._hits_of((query, count))

    def _keywords(self, images: Sequence[CanvasImage]) -> list[list[Keyword]]:
        from adamatch_ray.codebooks import keyword_groups
        from adamatch_ray.instructions import spell_keywords

        asked = self._instructions
        found = self._engine.keywords(images, asked.keywords, keyword_groups(asked), asked.least_probability)
        return [
            [
                Keyword(text=k.text, group=k.group, score=k.score, box=k.box, place=k.place, hint=hint)
                for k, hint in zip(ks, spell_keywords(ks, asked), strict=True)
            ]
            for ks in found
        ]

    def _keypatches(self, reports: Sequence[str]) -> list[tuple[list[Keypatch], list[int]]]:
        found = self._engine.keypatches(reports, self._instructions.keypatches, self._instructions.keypatch_sides)
        return [
            ([self._described(k) for k in ks], [int(code) for code in self._tokens.codes([k.entry for k in ks])])
            for ks in found
        ]

    def _described(self, found: "matching.Keypatch") -> Keypatch:
        crop = self._crops[found.entry].as_py()
        return Keypatch(**found._asdict(), crop=base64.b64encode(crop).decode() if crop else None)

    def _match(self, pairs: Sequence[tuple[CanvasImage, str]]) -> list[MatchResponse]:
        images, reports = [image for image, _ in pairs], [report for _, report in pairs]
        found = self._engine.match(images, reports)
        return [match_response(match, image, report) for match, (image, report) in zip(found, pairs, strict=True)]

    def _hits(self, queries: Sequence[tuple[CanvasImage | str, int]]) -> list[tuple[list[Hit], int]]:
        assert self._index is not None, "the ingress answers for a service without an index"
        return [(self._index.search(query, count), len(self._index)) for query, count in queries]

    def _warm(self) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (256, 256), dtype=np.uint8)
        image, report = CanvasImage(pixels, 256, 256), "no effusion"
        self._keywords([image])
        self._keypatches([report])
        self._match([(image, report)])
        if self._index:
            self._hits([(image, 1), (report, 1)])


class ImageTokens(_Replica):
    """The VQ-GAN: canvases to codes and codes to canvases."""

    def __init__(self, settings: Settings) -> None:
        from adamatch_ray.engines.loader import load_tokenizer

        pool = _one_thread(settings.threads)
        self._engine = load_tokenizer(Root(settings.root), settings.device)
        self._encoded = Batcher(self._encode, settings.batch, pool)
        self._decoded = Batcher(self._decode, settings.batch, pool)
        side = self._engine.config.image_size
        self._decode(self._encode([np.zeros((side, side), np.uint8)]))

    async def encode(self, pixels: NDArray[np.uint8]) -> list[int]:
        """Codes of a canvas [S, S], row by row."""
        return await self._encoded(pixels)

    async def decode(self, codes: list[int]) -> NDArray[np.uint8]:
        """The canvas [S, S] of an image's codes."""
        return await self._decoded(codes)

    def _encode(self, canvases: Sequence[NDArray[np.uint8]]) -> list[list[int]]:
        return [[int(code) for code in row] for row in self._engine.encode(np.stack(canvases))]

    def _decode(self, codes: Sequence[list[int]]) -> list[NDArray[np.uint8]]:
        return list(self._engine.decode(np.array(codes, dtype=np.int64)))


class _ToReport(NamedTuple):
    codes: list[int]
    keywords: list[str]
    seed: int
    caller: "generation.Caller | None" = None


class _ToImage(NamedTuple):
    report: str
    codes: list[int]
    seed: int
    caller: "generation.Caller | None" = None


class LanguageModel(_Replica):
    """The language model, for reports or for images; deployed once for each, so that they scale apart.

    A caller that leaves is no longer written for: Serve cancels its call, and its row of the batch is given free.
    """

    def __init__(self, settings: Settings) -> None:
        from adamatch_ray.engines.loader import load_generation

        pool = _one_thread(settings.threads)
        self._engine = load_generation(Root(settings.root), settings.device)
        self._written = Batcher(self._write, settings.batch, pool)
        self._drawn = Batcher(self._draw, settings.batch, pool)
        codes = self._draw([_ToImage("no effusion", [], 0)])[0][0]
        self._write([_ToReport(codes, [], 0)])

    async def report(self, codes: list[int], keywords: list[str], seed: int, second: bool = False) -> tuple[str, str]:
        """Report and status from an image's codes and keywords; `second`: as the second half of a cycle."""
        with _waiting() as caller:
            return await self._written(_ToReport(codes, keywords, _half_seed(seed, second), caller))

    async def words(self, codes: list[int], keywords: list[str], seed: int) -> AsyncGenerator[tuple[str, str], None]:
        """The report so far, again and again as it is written, each with status ""; at last `report`'s answer."""
        told, heard = "", ""

        def hear(text: str) -> None:
            nonlocal heard
            heard = text

        with _waiting(hear) as caller:
            answer = asyncio.ensure_future(self._written(_ToReport(codes, keywords, seed, caller)))
            try:
                while not (await asyncio.wait([answer], timeout=TELL_S))[0]:
                    if told != heard:
                        told = heard
                        yield told, ""
                yield await answer
            finally:
                answer.cancel()

    async def image(self, report: str, codes: list[int], seed: int, second: bool = False) -> tuple[list[int], str]:
        """An image's codes and status from a report and its keypatches' codes; `second`: as above."""
        with _waiting() as caller:
            return await self._drawn(_ToImage(report, codes, _half_seed(seed, second), caller))

    def _write(self, asked: Sequence[_ToReport]) -> list[tuple[str, str]]:
        from adamatch_ray.engines.generation import ReportRequest

        results = self._engine.cxr_to_report([ReportRequest(*request) for request in asked])
        return [(result.text, result.status) for result in results]

    def _draw(self, asked: Sequence[_ToImage]) -> list[tuple[list[int], str]]:
        from adamatch_ray.engines.generation import ImageRequest

        results = self._engine.report_to_cxr([ImageRequest(*request) for request in asked])
        return [([int(code) for code in result.image_tokens], result.status) for result in results]


@contextmanager
def _waiting(hear: Callable[[str], None] | None = None) -> Iterator["generation.Caller"]:
    """A caller that is gone when this ends, be it with its answer or because it was cancelled."""
    from adamatch_ray.engines.generation import Caller

    caller = Caller(hear)
    try:
        yield caller
    finally:
        caller.gone = True


def _half_seed(seed: int, second: bool) -> int:
    from adamatch_ray.engines.cycle import second_seed

    return second_seed(seed) if second else seed
