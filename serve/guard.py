"""What every request passes before the application sees it: an id, the token, admission, its body's size, a deadline.

And every answer on its way out: security headers and the counters of /metrics. Logs get ids, paths and types of
errors, never a message or a body.
"""

import asyncio
import logging
import re
import time
import traceback
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.measures import Measures
from serve.problems import Problem
from serve.settings import Settings
from serve.tokens import Tokens

logger = logging.getLogger("ray.serve")

_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_PRIVATE = ("/v1/", "/metrics")
_SECURITY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Guard:
    """ASGI middleware around the whole application; `echo_id` is off where the proxy in front names the id itself."""

    def __init__(self, app: ASGIApp, settings: Settings, measures: Measures, echo_id: bool = True) -> None:
        self._app, self._settings, self._measures, self._echo_id = app, settings, measures, echo_id
        self._tokens = Tokens(settings)
        self._at_work = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        answer = _Answer(send, request_id if self._echo_id else None)
        started = time.perf_counter()
        try:
            await self._admit(scope, headers, receive, answer, request_id)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._measures.requests(route, scope["method"], answer.status, time.perf_counter() - started)

    async def _admit(
        self, scope: Scope, headers: Headers, receive: Receive, answer: "_Answer", request_id: str
    ) -> None:
        try:
            name = self._tokens.name(headers) if scope["path"].startswith(_PRIVATE) else ""
            async with asyncio.timeout(self._settings.timeout_s):
                if scope["method"] == "POST":
                    self._tokens.spend(name)
                    await self._work(scope, headers, receive, answer)
                else:
                    await self._app(scope, receive, answer)
        except Problem as problem:
            await answer.replace(problem, request_id)
        except TimeoutError:
            await answer.replace(Problem(504, "no answer in time; try again, or with less"), request_id)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            logger.error("request %s: %s at %s:%s", request_id, type(error).__name__, where.filename, where.lineno)
            await answer.replace(Problem(500, "an error of the server, not of the request"), request_id)

    async def _work(self, scope: Scope, headers: Headers, receive: Receive, answer: "_Answer") -> None:
        """A request with a body: only so many at once, and none larger than the limit."""
        if self._at_work >= self._settings.max_requests:
            raise Problem(429, f"{self._at_work} requests are at work; try again later", retry_after=1)
        self._at_work += 1
        try:
            await self._app(scope, await self._read(headers, receive), answer)
        finally:
            self._at_work -= 1

    async def _read(self, headers: Headers, receive: Receive) -> Receive:
        limit = self._settings.max_body
        too_large = Problem(413, f"the body is larger than {limit >> 20} MB")
        declared = headers.get("content-length", "0")
        if not declared.isdecimal() or len(declared) > 18:
            raise Problem(400, "Content-Length is not a number")
        if int(declared) > limit:
            raise too_large
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Problem(400, "the connection ended before the body did")
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > limit:
                raise too_large
        whole: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> Message:
            return whole.pop() if whole else await receive()

        return replay


class _Answer:
    """`send`, remembering whether an answer has begun, and adding the headers every answer has."""

    def __init__(self, send: Send, request_id: str | None) -> None:
        self._send, self._request_id = send, request_id
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in _SECURITY.items():
                headers.setdefault(name, value)
            headers.setdefault("Cache-Control", "no-store")
            if self._request_id:
                headers["X-Request-ID"] = self._request_id
        await self._send(message)

    async def replace(self, problem: Problem, request_id: str) -> None:
        """Answer with a problem, unless an answer is under way already."""
        if self.status:
            return

        async def nothing() -> Message:
            return {"type": "http.disconnect"}

        await problem.response(request_id)({"type": "http"}, nothing, self)
