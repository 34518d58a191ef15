"""Counters of one ingress replica in Prometheus' text format. Ray's own metrics count over all replicas."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Measures:
    """Requests by route and status, and how long each deployment's part took as the ingress saw it."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "adamatch_requests", "Answers by route, method and status", ["route", "method", "status"],
            registry=self._registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "adamatch_request_seconds", "Time to answer", ["route"], buckets=_SECONDS, registry=self._registry
        )
        self._steps = Histogram(
            "adamatch_step_seconds", "Time a step took, its queue included", ["step"], buckets=_SECONDS,
            registry=self._registry,
        )  # fmt: skip

    def requests(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one answer; status 0 means that the client went away before one."""
        self._requests.labels(route, method if method in ("GET", "POST", "HEAD") else "other", str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a step of the chain."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._steps.labels(name).observe(time.perf_counter() - started)

    def text(self) -> bytes:
        """Everything, for a scrape."""
        return generate_latest(self._registry)
