"""How the running service does under load: throughput batched and unbatched, first and last words, the chain's cost.

`rows` starts the application on a root, loads it with clients, and ends it. Both kinds of server get the same requests.
`python -m benchmarks.service [ROOT]` prints them.
"""

import io
import json
import statistics
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

from PIL import Image

from adamatch_ray.data.phantom import generate
from adamatch_ray.storage import Root
from serve.settings import Settings, resolve

PORT = 8123
_TEXT = "There is a large right pleural effusion. The heart is normal in size."


class Load(NamedTuple):
    """What a number of clients saw: answers a second, seconds an answer, and how often each status came."""

    per_second: float
    p50: float
    p95: float
    statuses: dict[int, int]


def rows(root: str, clients: int = 16, seconds: float = 60.0) -> list[dict[str, Any]]:
    """Answers a second with `clients` at once, batched and one by one; the chain's p50 over the engine's own time."""
    uploads = [upload(index) for index in range(32)]
    found: dict[str, dict[str, Load]] = {"/v1/report": {}, "/v1/image": {}}
    served: list[float] = []
    for name, batch in (("one by one", 1), ("batched", clients)):
        with running(resolve(Settings(root=root, batch=batch, max_requests=4 * clients))) as url:
            found["/v1/report"][name] = load(lambda seed: ask_report(url, uploads[seed % 32], seed), clients, seconds)
            found["/v1/image"][name] = load(lambda seed: ask_image(url, _TEXT, seed), clients, seconds)
            served = [_timed(lambda i: ask_report(url, uploads[i], 0), index)[1] for index in range(20)]
            streamed = [words(url, uploads, count, seconds / 2) for count in (1, clients)]
    lines = [_throughput(path, seen["batched"], seen["one by one"], clients, seconds) for path, seen in found.items()]
    served_ms, offline_ms = statistics.median(served) * 1e3, statistics.median(_offline(root, uploads[:20])) * 1e3
    overhead = {"what": "chain's own overhead, one client, p50", "ours": served_ms - offline_ms, "unit": "ms"}
    return [*lines, *streamed, {**overhead, "served_ms": served_ms, "offline_ms": offline_ms}]


def _throughput(path: str, batched: Load, single: Load, clients: int, seconds: float) -> dict[str, Any]:
    return {
        "what": f"POST {path}, {clients} clients, {seconds:.0f} s, batched against one by one",
        "ours": batched.per_second,
        "peer": single.per_second,
        "ratio": batched.per_second / single.per_second,
        "unit": "answers/s",
        "p50_s": batched.p50,
        "p95_s": batched.p95,
        "statuses": batched.statuses,
        "peer_statuses": single.statuses,
    }


def words(url: str, uploads: list[bytes], clients: int, seconds: float) -> dict[str, Any]:
    """When the first and the last word of a report are there, seconds after it was asked for, p50."""
    times: list[list[float]] = []

    def ask(seed: int) -> int:
        times.append(word_times(url, uploads[seed % len(uploads)], seed))
        return 200

    load(ask, clients, seconds)
    first, last = (statistics.median(own[place] for own in times) for place in (0, -1))
    told = f"first word of POST /v1/report as events, {clients} clients, {seconds:.0f} s, p50; peer: its last word"
    return {"what": told, "ours": first, "peer": last, "ratio": last / first, "unit": "s", "answers": len(times)}


@contextmanager
def running(settings: Settings, port: int = PORT) -> Iterator[str]:
    """The application on a port of this machine; Ray must be running or is started, and Serve is shut down after."""
    from ray import serve as ray_serve

    from serve.artifacts import check
    from serve.builder import build

    ray_serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        ray_serve.run(build(settings, check(Root(settings.root))), name="adamatch", route_prefix="/")
        yield f"http://127.0.0.1:{port}"
    finally:
        ray_serve.shutdown()


def load(ask: Callable[[int], int], clients: int, seconds: float) -> Load:
    """Each client sends its next request when it has its answer; `ask(seed)` gives a status, each seed comes once."""
    deadline = time.monotonic() + seconds

    def client(number: int) -> list[tuple[int, float]]:
        seen: list[tuple[int, float]] = []
        while time.monotonic() < deadline:
            seen.append(_timed(ask, number + clients * len(seen)))
        return seen

    started = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        answers = [answer for seen in pool.map(client, range(clients)) for answer in seen]
    took = time.monotonic() - started
    good = sorted(duration for status, duration in answers if status == 200)
    if not good:
        raise ValueError(f"no request was answered: {Counter(status for status, _ in answers)}")
    statuses = dict(Counter(status for status, _ in answers))
    return Load(len(good) / took, good[len(good) // 2], good[int(len(good) * 0.95)], statuses)


def upload(index: int) -> bytes:
    """A phantom as a PNG."""
    stream = io.BytesIO()
    Image.fromarray(generate(index, 77, 256).image).save(stream, "PNG")
    return stream.getvalue()


def ask_report(url: str, image: bytes, seed: int) -> int:
    """The status of one report."""
    return post(f"{url}/v1/report", image, seed=seed)[0]


def ask_image(url: str, report: str, seed: int) -> int:
    """The status of one drawing."""
    body = json.dumps({"report": report, "seed": seed}).encode()
    return _send(f"{url}/v1/image", body, "application/json")[0]


def post(url: str, image: bytes, **fields: object) -> tuple[int, dict[str, Any]]:
    """A form with an image, by the standard library: status and the JSON that came."""
    body, kind = _form(image, fields)
    return _send(url, body, kind)


def word_times(url: str, image: bytes, seed: int) -> list[float]:
    """Seconds from asking for a report until each event with words of it."""
    body, kind = _form(image, {"seed": seed})
    headers = {"Content-Type": kind, "Accept": "text/event-stream"}
    started = time.perf_counter()
    with urllib.request.urlopen(urllib.request.Request(f"{url}/v1/report", body, headers), timeout=300) as answer:
        return [time.perf_counter() - started for line in answer if line.startswith(b"event: word")]


def _form(image: bytes, fields: dict[str, object]) -> tuple[bytes, str]:
    """Body and content type."""
    boundary = uuid.uuid4().hex
    parts = [f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
             for name, value in fields.items()]  # fmt: skip
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n'.encode()
    body = b"".join(parts) + head + image + f"\r\n--{boundary}--\r\n".encode()
    return body, f"multipart/form-data; boundary={boundary}"


def _send(url: str, body: bytes, kind: str) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": kind}), timeout=300) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        text = error.read()
        return error.code, json.loads(text) if text.startswith(b"{") else {}


def _timed(ask: Callable[[int], int], seed: int) -> tuple[int, float]:
    started = time.perf_counter()
    status = ask(seed)
    return status, time.perf_counter() - started


def _offline(root: str, uploads: list[bytes]) -> list[float]:
    """Seconds that the same requests take from bytes to report without any service, one by one."""
    import torch

    from adamatch_ray.engines.cycle import CycleEngine
    from serve.images import read_image

    torch.set_num_threads(1)
    engine = CycleEngine.load(Root(resolve(Settings(root=root)).root))
    engine.reports([read_image(uploads[0], engine.canvas, 10**8)], [0])
    seconds = []
    for image in uploads:
        started = time.perf_counter()
        engine.reports([read_image(image, engine.canvas, 10**8)], [0])
        seconds.append(time.perf_counter() - started)
    return seconds


if __name__ == "__main__":
    for row in rows(sys.argv[1] if sys.argv[1:] else "runs/phantom"):
        print(json.dumps(row))
