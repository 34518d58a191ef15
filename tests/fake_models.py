"""Deployments without models, for the HTTP layer and the page: quick, and their answers can be told in advance."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import numpy as np
from ray.exceptions import ActorDiedError
from starlette.types import ASGIApp

from adamatch_ray.geometry import CanvasImage
from serve.app import make_app
from serve.composition import Composition
from serve.measures import Measures
from serve.protocol import (
    Hit,
    ImageSize,
    Keypatch,
    Keyword,
    MatchResponse,
    Model,
    ModelsResponse,
    Phrase,
    Region,
    Word,
)
from serve.settings import Settings

CANVAS, TOKENS = 64, 16
REPORT = "There is a large right pleural effusion. The heart is normal in size."
MODELS = ModelsResponse(
    models=[Model(name="adamatch", fingerprint="0123456789abcdef", version="0")],
    trained_on="phantom",
    canvas=CANVAS,
    image_tokens=TOKENS,
)


class Method:
    """A method of a handle."""

    def __init__(self, function: Callable[..., Awaitable[Any]], pace: float, stream: bool = False) -> None:
        self._function, self._pace, self._stream = function, pace, stream

    def options(self, *, stream: bool) -> "Method":
        return Method(self._function, self._pace, stream)

    def remote(self, *arguments: object) -> Any:
        return Told(self._function(*arguments), self._pace) if self._stream else self._function(*arguments)


class Told:
    """What a streaming method tells; an exception among it is raised where it stands."""

    def __init__(self, answers: Awaitable[Any], pace: float) -> None:
        self._answers, self._pace = answers, pace

    async def __aiter__(self) -> AsyncIterator[Any]:
        for answer in await self._answers:
            if isinstance(answer, Exception):
                raise answer
            yield answer
            await asyncio.sleep(self._pace)

    def cancel(self) -> None:
        pass


class FakeModels:
    """All four deployments in one; `failing[method]` is raised instead of an answer, `delay` comes before it.

    `breaking`: the next replica that writes word by word dies at it. `pace`: seconds from word to word.
    """

    def __init__(self) -> None:
        self.failing: dict[str, list[Exception]] = {}
        self.delay = 0.0
        self.breaking, self.pace = False, 0.0
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Method:
        function = getattr(type(self), f"_{name}", None)
        if function is None:
            raise AttributeError(name)

        async def answer(*arguments: object) -> object:
            self.calls.append(name)
            await asyncio.sleep(self.delay)
            if self.failing.get(name):
                raise self.failing[name].pop(0)
            return function(self, *arguments)

        return Method(answer, self.pace)

    def _ready(self) -> bool:
        return True

    def _keywords(self, image: CanvasImage) -> list[Keyword]:
        w, h = image.width, image.height
        return [
            Keyword(text="pleural effusion", group="Sign_symptom", score=0.8, box=(0.1 * w, 0.6 * h, 0.4 * w, 0.9 * h)),
            Keyword(text="heart", group="Biological_structure", score=0.5, box=(0.4 * w, 0.4 * h, 0.7 * w, 0.8 * h)),
        ]

    def _keypatches(self, report: str) -> tuple[list[Keypatch], list[int]]:
        return [Keypatch(word="effusion", entry=3, score=0.7, study_id="s1", box=(0.0, 0.0, 8.0, 8.0))], [1, 2]

    def _encode(self, pixels: np.ndarray) -> list[int]:
        assert pixels.shape == (CANVAS, CANVAS)
        return [int(value) for value in pixels.reshape(-1)[:TOKENS]]

    def _decode(self, codes: list[int]) -> np.ndarray:
        return np.resize(np.array(codes, np.uint8) * 13, (CANVAS, CANVAS))

    def _report(self, codes: list[int], keywords: list[str], seed: int, second: bool) -> tuple[str, str]:
        return (REPORT if seed == 0 else f"{REPORT} Draft {seed}."), "ok"

    def _words(self, codes: list[int], keywords: list[str], seed: int) -> list[Any]:
        """One word more each time, then everything; where `breaking`, the replica dies in the middle."""
        whole, status = self._report(codes, keywords, seed, False)
        told: list[Any] = [(whole[: end.start()], "") for end in re.finditer(r" |$", whole)]
        if self.breaking:
            self.breaking = False
            return [*told[:3], ActorDiedError()]
        return [*told, (whole, status)]

    def _image(self, report: str, codes: list[int], seed: int, second: bool) -> tuple[list[int], str]:
        return [(seed + index) % 20 for index in range(TOKENS)], "ok"

    def _match(self, image: CanvasImage, report: str) -> MatchResponse:
        """Words in a 4 x 4 grid of regions, each word's region its place in the report."""
        w, h = image.width, image.height
        boxes = [(x * w / 4, y * h / 4, (x + 1.3) * w / 4, (y + 1.3) * h / 4) for y in range(4) for x in range(4)]
        fixed = [(x * w / 4, y * h / 4, (x + 1) * w / 4, (y + 1) * h / 4) for y in range(4) for x in range(4)]
        boxes = [(x0, y0, min(x1, w), min(y1, h)) for x0, y0, x1, y1 in boxes]
        words, similarity, cursor = [], [], 0
        for number, text in enumerate(report.split()):
            start = report.index(text, cursor)
            cursor = start + len(text)
            patch, score = number % 16, 0.9 if "effusion" in text else 0.2 + 0.01 * number
            words.append(
                Word(text=text, start=start, end=cursor, patch=patch, score=score, box=boxes[patch], region=patch)
            )
            similarity.append([score if p == patch else score / 2 for p in range(16)])
        size = ImageSize(width=w, height=h)
        regions = [
            Region(point=((x0 + x1) / 2, (y0 + y1) / 2), box=(x0, y0, x1, y1),
                   outline=[[(x0, y0), (x1, y0), (x1, y1), (x0, y1)]])
            for x0, y0, x1, y1 in boxes
        ]  # fmt: skip
        said = [n for n, word in enumerate(words) if word.text in ("pleural", "effusion.", "normal")]
        phrases = [
            Phrase(finding=words[n].text, text=words[n].text, words=[n], denied=words[n].text == "normal",
                   groundable=True, confidence=0.9, region=words[n].region)
            for n in said
        ]  # fmt: skip
        return MatchResponse(report=report, image=size, words=words, phrases=phrases, regions=regions,
                             boxes=boxes, fixed_boxes=fixed,
                             similarity=similarity, text_to_image=0.5, image_to_text=0.4)  # fmt: skip

    def _retrieve(self, query: object, count: int) -> tuple[list[Hit], int]:
        return [Hit(study_id=f"s{i}", score=1 - i / 10, report=REPORT, png="") for i in range(min(count, 3))], 3


def fake_app(settings: Settings | None = None, models: FakeModels | None = None) -> ASGIApp:
    """The whole application over fake models."""
    models, measures = models or FakeModels(), Measures()
    return make_app(settings or Settings(), MODELS, Composition(models, models, models, models, measures), measures)
