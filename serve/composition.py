"""The deployments as one system: image → report, report → image, and both after each other.

Pure coordination: what travels are canvases, texts and token ids; what comes out is the protocol. The same steps as
`engines.cycle`, one after another where one needs the other's answer, side by side where not.
"""

import asyncio
import base64
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from adamatch_ray.data.images import encode_png
from adamatch_ray.data.labeler import RuleLabeler
from adamatch_ray.geometry import CanvasImage
from serve.measures import Measures
from serve.problems import Problem
from serve.protocol import (
    CycleResponse,
    Hit,
    ImageResponse,
    ImageSize,
    Keyword,
    MatchResponse,
    ReportResponse,
)

_READER = RuleLabeler()


class Composition:
    """Handles of the four deployments; whatever has their methods, each with `.remote(...)`, serves as one."""

    def __init__(
        self, matcher: Any, image_tokens: Any, report_writer: Any, image_drawer: Any, measures: Measures
    ) -> None:
        self._matcher, self._tokens = matcher, image_tokens
        self._writer, self._drawer = report_writer, image_drawer
        self._measures = measures

    async def read(self, image: CanvasImage) -> tuple[list[Keyword], list[int]]:
        """Keywords and VQ-GAN codes of an X-ray: what a report is written from."""
        keywords, codes = await asyncio.gather(
            self._call("keywords", self._matcher.keywords, image),
            self._call("encode", self._tokens.encode, image.pixels),
        )
        return keywords, codes

    async def write(
        self,
        image: CanvasImage,
        keywords: list[Keyword],
        codes: list[int],
        seed: int,
        request_id: str,
        second: bool = False,
    ) -> ReportResponse:
        """The report of an X-ray that has been read; `second`: as the second half of a cycle."""
        hints = [keyword.hint for keyword in keywords]
        written = await self._call("write", self._writer.report, codes, hints, seed, second)
        return _report_response(written, image, keywords, codes, seed, request_id)

    async def words(
        self, image: CanvasImage, keywords: list[Keyword], codes: list[int], seed: int, request_id: str
    ) -> AsyncIterator[str | ReportResponse]:
        """`write` as it goes on: pieces of the report that together are the whole, then the answer.

        A replica that takes over from one that died writes the same report; what was told of it is not told again.
        """
        hints = [keyword.hint for keyword in keywords]
        method, told, tries = self._writer.words.options(stream=True), 0, 2
        with self._asking("write"):
            while tries:
                tries -= 1
                answers = method.remote(codes, hints, seed)
                try:
                    async for report, status in answers:
                        if report[told:]:
                            yield report[told:]
                            told = len(report)
                        if status:
                            yield _report_response((report, status), image, keywords, codes, seed, request_id)
                    return
                except RayActorError:
                    if not tries:
                        raise
                finally:
                    answers.cancel()

    async def report(self, image: CanvasImage, seed: int, request_id: str, second: bool = False) -> ReportResponse:
        """image → report."""
        keywords, codes = await self.read(image)
        return await self.write(image, keywords, codes, seed, request_id, second)

    async def image(self, report: str, seed: int, request_id: str) -> ImageResponse:
        """report → image."""
        return (await self._draw(report, seed, request_id))[0]

    async def cycle_image(self, image: CanvasImage, seed: int, request_id: str) -> CycleResponse:
        """image → report → image."""
        written = await self.report(image, seed, request_id)
        drawn, _ = await self._draw(written.report, seed, request_id, second=True)
        return CycleResponse(start="image", report=written, image=drawn)

    async def cycle_report(self, report: str, seed: int, request_id: str) -> CycleResponse:
        """report → image → report."""
        drawn, pixels = await self._draw(report, seed, request_id)
        canvas = CanvasImage(pixels, *pixels.shape)
        report_again = await self.report(canvas, seed, request_id, second=True)
        return CycleResponse(start="report", image=drawn, report=report_again)

    async def match(self, image: CanvasImage, report: str) -> MatchResponse:
        """Every word of a report against every region of an image."""
        found: MatchResponse = await self._call("match", self._matcher.match, image, report)
        return found.model_copy(update={"warning": warning(report)})

    async def search(self, query: CanvasImage | str, count: int) -> tuple[list[Hit], int]:
        """The best studies of the index, and how many it has."""
        found: tuple[list[Hit], int] = await self._call("retrieve", self._matcher.retrieve, query, count)
        return found

    async def states(self, timeout_s: float = 2.0) -> dict[str, str]:
        """Of each deployment "ready" or "not ready"."""
        handles = {
            "Matcher": self._matcher,
            "ImageTokens": self._tokens,
            "ReportWriter": self._writer,
            "ImageDrawer": self._drawer,
        }

        async def state(handle: Any) -> str:
            try:
                async with asyncio.timeout(timeout_s):
                    await self._call("ready", handle.ready)
            except (Problem, TimeoutError):
                return "not ready"
            return "ready"

        found = await asyncio.gather(*map(state, handles.values()))
        return dict(zip(handles, found, strict=True))

    async def _draw(self, report: str, seed: int, request_id: str, second: bool = False) -> tuple[ImageResponse, Any]:
        keypatches, reference = await self._call("keypatches", self._matcher.keypatches, report)
        codes, status = await self._call("draw", self._drawer.image, report, reference, seed, second)
        _refuse_failed(status)
        pixels = np.asarray(await self._call("decode", self._tokens.decode, codes))
        response = ImageResponse(
            report=report,
            status=status,
            png=base64.b64encode(encode_png(pixels)).decode(),
            image=ImageSize(width=pixels.shape[1], height=pixels.shape[0]),
            image_tokens=codes,
            keypatches=keypatches,
            seed=seed,
            request_id=request_id,
            warning=warning(report),
        )
        return response, pixels

    async def _call(self, step: str, method: Any, *arguments: object) -> Any:
        """Ask a deployment. A replica that dies at it is replaced by another, once: every step can be repeated."""
        with self._asking(step):
            try:
                return await method.remote(*arguments)
            except RayActorError:
                return await method.remote(*arguments)

    @contextmanager
    def _asking(self, step: str) -> Iterator[None]:
        """Time a step, and say what went wrong with it as a Problem."""
        with self._measures.step(step):
            try:
                yield
            except BackPressureError as error:
                raise Problem(503, "too much is waiting for this step; try again", retry_after=1) from error
            except (RayActorError, DeploymentUnavailableError) as error:
                raise Problem(503, "a model is being restarted; try again", retry_after=2) from error
            except ValueError as error:  # what the engines say of input that they cannot take
                raise Problem(422, "the models cannot take this input") from error


def warning(report: str) -> str | None:
    """What is said beside an answer to a report of which no word is known."""
    return None if _READER.understands(report) else "no word of the report is known: is it an English radiology report?"


def _report_response(
    written: tuple[str, str], image: CanvasImage, keywords: list[Keyword], codes: list[int], seed: int, request_id: str
) -> ReportResponse:
    report, status = written
    _refuse_failed(status)
    return ReportResponse(
        report=report,
        status=status,
        keywords=keywords,
        image=ImageSize(width=image.width, height=image.height),
        image_tokens=codes,
        seed=seed,
        request_id=request_id,
    )


def _refuse_failed(status: str) -> None:
    """The engine's own reason (a prompt over the context, …) names sizes and settings, nothing that was sent."""
    if status.startswith("error"):
        raise Problem(422, status.removeprefix("error: "))
