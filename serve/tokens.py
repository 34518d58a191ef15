"""Who may ask, and how often: named bearer tokens, each with a bucket of requests of its own in an ingress replica."""

import hashlib
import hmac
import math
import re
import time
from collections.abc import Callable

from starlette.datastructures import Headers

from serve.problems import Problem
from serve.settings import Settings

SHORTEST = 16
_NAME = re.compile(r"[A-Za-z0-9._-]{1,40}")


class Tokens:
    """The tokens of a service. Without one everybody may ask, and all share one bucket."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._digests = {name: _digest(token) for name, token in read_tokens(settings).items()}
        self._per_second, self._most = settings.requests_per_minute / 60, max(1.0, settings.requests_per_minute / 6)
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def name(self, headers: Headers) -> str:
        """Whose token a request carries; "anyone" where none is asked for. Raises Problem 401."""
        if not self._digests:
            return "anyone"
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given, found = _digest(token.strip()), ""
        for name, digest in self._digests.items():  # all of them, each in constant time: a refusal tells nothing
            found = name if hmac.compare_digest(given, digest) else found
        if scheme.lower() != "bearer" or not found:
            raise Problem(401, "send the token of this service as 'Authorization: Bearer …'")
        return found

    def spend(self, name: str) -> None:
        """Take a request from a token's bucket, which holds ten seconds' worth. Raises Problem 429 when it is empty."""
        if not self._per_second:
            return
        now = self._clock()
        left, since = self._buckets.get(name, (self._most, now))
        left = min(self._most, left + (now - since) * self._per_second)
        self._buckets[name] = (left - 1 if left >= 1 else left, now)
        if left < 1:
            wait = math.ceil((1 - left) / self._per_second)
            raise Problem(429, "this token has asked too often; try again later", retry_after=wait)


def read_tokens(settings: Settings) -> dict[str, str]:
    """Tokens by name. Raises ValueError, which repeats none, where `tokens` cannot be read."""
    found = {"default": settings.token.get_secret_value()} if settings.token.get_secret_value() else {}
    for number, entry in enumerate(settings.tokens.get_secret_value().split(), start=1):
        name, _, token = entry.partition("=")
        if not _NAME.fullmatch(name) or len(token) < SHORTEST or name in found:
            raise ValueError(
                f"tokens: entry {number} is not NAME=TOKEN with a name of its own and {SHORTEST} characters or more; "
                "make one with: openssl rand -hex 32"
            )
        found[name] = token
    return found


def _digest(token: str) -> bytes:
    """Of one length whatever the token's."""
    return hashlib.sha256(token.encode()).digest()
