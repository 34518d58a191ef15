"""The HTTP interface over models that are not there: what is asked, what comes back, and every way it can fail."""

import asyncio
import base64
import functools
import io
import json
import re
import socket
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_models import CANVAS, REPORT, TOKENS, FakeModels, fake_app
from PIL import Image
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError
from starlette.testclient import TestClient

from adamatch_ray.data.images import decode_png
from adamatch_ray.data.phantom import generate
from serve.problems import Problem
from serve.settings import Settings
from serve.tokens import Tokens

PROBLEM = "application/problem+json"


def xray(kind: str = "PNG", side: int = 120) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(generate(1, 5, side).image).save(stream, kind)
    return stream.getvalue()


def dicom(
    *, part: str = "CHEST", pixels: bool = True, syntax: str = "1.2.840.10008.1.2.1", nested: int = 0, url: str = ""
) -> bytes:
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID

    image = (generate(1, 5, 128).image.astype(np.uint16) * 16)[:100, :100]
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = UID(syntax)
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = UID("1.2.840.10008.5.1.4.1.1.1.1")
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = UID("1.2.3")
    data.BodyPartExamined, data.PhotometricInterpretation, data.SamplesPerPixel = part, "MONOCHROME2", 1
    data.Rows, data.Columns = image.shape
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    if url:
        data.PixelDataProviderURL = data.RetrieveURL = url
    if pixels:
        data.PixelData = np.ascontiguousarray(image).tobytes()
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, data, enforce_file_format=True)
    whole = stream.getvalue()
    start = 132 + 12 + struct.unpack("<I", whole[140:144])[0]
    opening = bytes.fromhex("08004011 5351 0000 ffffffff feff00e0 ffffffff")
    closing = bytes.fromhex("feff0de0 00000000 feffdde0 00000000")
    return whole[:start] + opening * nested + closing * nested + whole[start:]


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises so many pixels and has none."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    end = b"IEND" + b""
    chunks = b"".join(struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (body, end))
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.fixture
def models() -> FakeModels:
    return FakeModels()


@pytest.fixture
def client(models: FakeModels) -> Iterator[TestClient]:
    with TestClient(fake_app(models=models), raise_server_exceptions=False) as client:
        yield client


def form(image: bytes | None = None, **fields: object) -> dict[str, Any]:
    return {"files": {"image": ("x", image or xray())}, "data": {name: str(value) for name, value in fields.items()}}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "DICOM"])
def test_a_report_comes_with_its_keywords_in_pixels_of_the_upload(client: TestClient, kind: str) -> None:
    image = dicom() if kind == "DICOM" else xray(kind)
    answer = client.post("/v1/report", **form(image, seed=0)).json()
    assert answer["report"] == REPORT and answer["status"] == "ok" and len(answer["image_tokens"]) == TOKENS
    size = answer["image"]
    expected = (100, 100) if kind == "DICOM" else Image.open(io.BytesIO(image)).size
    assert (size["width"], size["height"]) == expected
    assert answer["keywords"][0]["box"] == pytest.approx([0.1 * size["width"], 0.6 * size["height"],
                                                          0.4 * size["width"], 0.9 * size["height"]])  # fmt: skip
    assert answer["match"] is None


def test_explained_words_stand_where_the_report_has_them(client: TestClient) -> None:
    answer = client.post("/v1/report", **form(explain=True)).json()
    words = answer["match"]["words"]
    assert [REPORT[w["start"] : w["end"]] for w in words] == [w["text"] for w in words]
    preview = decode_png(base64.b64decode(answer["preview"]))
    assert max(preview.shape) == CANVAS, "the padding of the canvas is cut away"


def test_a_report_streams_keywords_words_and_then_everything(client: TestClient) -> None:
    answer = client.post("/v1/report", headers={"Accept": "text/event-stream"}, **form())
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = re.findall(r"event: (\w+)\ndata: (.*)\n\n", answer.text)
    assert [name for name, _ in events] == ["keywords", *["word"] * len(REPORT.split()), "report"]
    assert "".join(json.loads(data) for name, data in events if name == "word") == REPORT
    assert json.loads(events[-1][1])["report"] == REPORT


def test_a_failure_in_the_middle_of_a_stream_is_an_event(client: TestClient, models: FakeModels) -> None:
    models.failing["words"] = [ValueError("secret text")]
    answer = client.post("/v1/report", headers={"Accept": "text/event-stream"}, **form())
    name, data = re.findall(r"event: (\w+)\ndata: (.*)\n\n", answer.text)[-1]
    assert name == "problem" and json.loads(data)["status"] == 422 and "secret" not in data


def test_a_writer_that_dies_at_it_is_replaced_and_no_word_comes_twice(client: TestClient, models: FakeModels) -> None:
    models.breaking = True
    answer = client.post("/v1/report", headers={"Accept": "text/event-stream"}, **form())
    events = re.findall(r"event: (\w+)\ndata: (.*)\n\n", answer.text)
    assert not models.breaking and models.calls.count("words") == 2
    assert "".join(json.loads(data) for name, data in events if name == "word") == REPORT
    assert json.loads(events[-1][1])["report"] == REPORT


def test_an_image_comes_as_json_or_as_a_picture(client: TestClient) -> None:
    body = {"report": REPORT, "seed": 3}
    answer = client.post("/v1/image", json=body).json()
    picture = client.post("/v1/image", json=body, headers={"Accept": "image/png"})
    assert picture.headers["content-type"] == "image/png"
    assert picture.content == base64.b64decode(answer["png"])
    assert decode_png(picture.content).shape == (CANVAS, CANVAS)
    assert answer["keypatches"][0]["word"] == "effusion" and answer["image_tokens"][0] == 3


def test_a_cycle_starts_from_either_side(client: TestClient) -> None:
    there = client.post("/v1/cycle", **form()).json()
    assert there["start"] == "image" and there["image"]["report"] == there["report"]["report"]
    back = client.post("/v1/cycle", json={"report": REPORT}).json()
    assert back["start"] == "report" and back["report"]["image"] == {"width": CANVAS, "height": CANVAS}


def test_match_and_retrieve(client: TestClient) -> None:
    match = client.post("/v1/match", **form(report=REPORT)).json()
    assert len(match["similarity"]) == len(match["words"]) and len(match["similarity"][0]) == len(match["boxes"])
    assert len(client.post("/v1/retrieve", **form(k=2)).json()["hits"]) == 2
    found = client.post("/v1/retrieve", json={"report": REPORT}).json()
    assert (found["indexed"], found["split"]) == (3, "test")


def test_a_service_without_an_index_says_so() -> None:
    client = TestClient(fake_app(Settings(index_studies=0)))
    assert client.post("/v1/retrieve", json={"report": REPORT}).status_code == 404


@pytest.mark.parametrize(
    ("name", "data", "status", "says"),
    [
        ("nothing", b"", 422, "zero-byte"),
        ("text", b"hello, I am a text", 415, "not an image"),
        ("a zip", b"PK\x03\x04" + bytes(200), 415, "not a JPEG, PNG or DICOM"),
        ("a truncated JPEG", xray("JPEG")[:900], 422, "truncated"),
        ("a truncated PNG", xray()[:900], 422, "truncated"),
        ("a bomb of 20,000 x 20,000", png_header(20_000, 20_000), 413, "exceeds"),
    ],
)
def test_a_file_that_is_no_usable_image_is_refused(
    client: TestClient, name: str, data: bytes, status: int, says: str
) -> None:
    answer = client.post("/v1/report", files={"image": ("x", data)})
    assert answer.status_code == status, name
    assert answer.headers["content-type"] == PROBLEM and says in answer.json()["detail"]


def test_an_ankle_is_refused_and_named(client: TestClient) -> None:
    answer = client.post("/v1/report", **form(dicom(part="EXTREMITY")))
    assert answer.status_code == 422 and "not a chest view" in answer.json()["detail"]


def test_a_dicom_without_pixels_or_with_300_nested_sequences_is_answered(client: TestClient) -> None:
    assert client.post("/v1/report", **form(dicom(pixels=False))).status_code == 422
    assert client.post("/v1/report", **form(dicom(nested=300))).status_code in (200, 422)
    assert client.post("/v1/report", **form()).status_code == 200


def test_a_deflated_dicom_may_not_inflate_a_thousandfold() -> None:
    client = TestClient(fake_app(Settings(max_megapixels=1)))
    small = dicom(syntax="1.2.840.10008.1.2.1.99")
    assert client.post("/v1/report", **form(small)).status_code == 200
    body = small.index(b"1.2.840.10008.1.2.1.99")
    start = 132 + 12 + struct.unpack("<I", small[140:144])[0]
    assert body < start
    packer = zlib.compressobj(9, wbits=-15)
    packed = packer.compress(bytes(64 << 20)) + packer.flush()
    answer = client.post("/v1/report", **form(small[:start] + packed))
    assert answer.status_code == 413 and "deflated" in answer.json()["detail"]


def test_memory_is_back_after_a_storm_of_bad_input(client: TestClient) -> None:
    packer = zlib.compressobj(9, wbits=-15)
    bomb = dicom(syntax="1.2.840.10008.1.2.1.99")[:400] + packer.compress(bytes(64 << 20)) + packer.flush()
    storm = [png_header(20_000, 20_000), bomb, dicom(nested=3000), xray("JPEG")[:900], bytes(8 << 20)]

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    def blow() -> None:
        assert all(client.post("/v1/report", **form(data)).status_code < 500 for data in storm)

    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc")
    blow()
    before = resident()
    for _ in range(5):
        blow()
    assert resident() - before < 64 << 20


@pytest.mark.parametrize(
    ("path", "options", "status"),
    [
        ("/v1/image", {"content": b"{", "headers": {"Content-Type": "application/json"}}, 400),
        ("/v1/image", {"json": {"report": "  ... "}}, 422),
        ("/v1/image", {"json": {"report": "effusion\x00"}}, 422),
        ("/v1/image", {"json": {"report": "effusion", "sede": 1}}, 422),
        ("/v1/image", {"json": {"report": "effusion", "seed": -1}}, 422),
        ("/v1/image", {"json": {"report": "effusion", "seed": 2**60}}, 422),
        ("/v1/image", {"json": {"report": "effusion " * 120_000}}, 413),
        ("/v1/image", {"content": b'{"report": "\\ud800 lung"}', "headers": {"Content-Type": "application/json"}}, 400),
        ("/v1/image", {"content": b"a report", "headers": {"Content-Type": "text/plain"}}, 415),
        ("/v1/image", {"content": b"[" * 100_000, "headers": {"Content-Type": "application/json"}}, 400),
        ("/v1/report", {"json": {}}, 415),
        ("/v1/report", {"content": b"xx", "headers": {"Content-Type": "multipart/form-data"}}, 400),
        ("/v1/report", {"content": b"--b\r\nx", "headers": {"Content-Type": "multipart/form-data; boundary=b"}}, 422),
        ("/v1/report", {"data": {"seed": "1"}, "files": {"picture": ("x", b"x")}}, 422),
        ("/v1/report", {"files": [("image", ("x", b"x")), ("image", ("y", b"y"))]}, 400),
        ("/v1/report", {"files": {"image": ("x", xray())}, "data": {"seed": "one"}}, 422),
        ("/v1/match", {"files": {"image": ("x", xray())}}, 422),
        ("/v1/retrieve", {"json": {"report": "effusion", "k": 5000}}, 422),
        ("/v1/nothing", {"json": {}}, 404),
        ("/v1/models", {"json": {}}, 405),
    ],
)
def test_a_bad_request_is_a_problem_that_repeats_nothing(
    client: TestClient, path: str, options: dict[str, Any], status: int
) -> None:
    answer = client.post(path, **options)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == PROBLEM
    problem = answer.json()
    assert problem["status"] == status and problem["request_id"] == answer.headers["X-Request-ID"]
    assert "effusion" not in answer.text


def test_a_body_over_the_limit_is_refused_said_or_not() -> None:
    client = TestClient(fake_app(Settings(max_upload_mb=1)))
    assert client.post("/v1/report", **form(bytes(2 << 20))).status_code == 413

    def unannounced() -> Iterator[bytes]:
        for _ in range(64):
            yield bytes(1 << 16)

    answer = client.post("/v1/image", content=unannounced(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413


def test_a_request_id_is_kept_where_it_is_harmless(client: TestClient) -> None:
    assert client.get("/healthz", headers={"X-Request-ID": "ward-7.42"}).headers["X-Request-ID"] == "ward-7.42"
    assert client.get("/healthz", headers={"X-Request-ID": "a b" * 99}).headers["X-Request-ID"] != "a b" * 99


def test_a_token_is_asked_for_where_one_is_set() -> None:
    client = TestClient(fake_app(Settings.model_validate({"token": "open sesame"})))
    assert client.get("/v1/models").status_code == 401
    assert client.get("/v1/models", headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert client.get("/v1/models", headers={"Authorization": "Bearer open sesame"}).status_code == 200
    assert client.get("/healthz").status_code == client.get("/").status_code == 200
    assert "open sesame" not in repr(Settings.model_validate({"token": "open sesame"}))


NAMED = {"tokens": "ward-7=0123456789abcdef archive=fedcba9876543210", "requests_per_minute": 12}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_each_of_several_tokens_opens_and_nothing_else_does() -> None:
    client = TestClient(fake_app(Settings.model_validate({**NAMED, "token": "open sesame"})))
    for token in ("0123456789abcdef", "fedcba9876543210", "open sesame"):
        assert client.get("/v1/models", headers=bearer(token)).status_code == 200
    for token in ("ward-7", "0123456789abcde", "0123456789abcdef0", "ward-7=0123456789abcdef", ""):
        assert client.get("/v1/models", headers=bearer(token)).status_code == 401
    assert client.get("/v1/models", headers={"Authorization": "Basic 0123456789abcdef"}).status_code == 401


def test_a_token_that_asks_too_often_is_told_when_to_come_back_and_others_are_not() -> None:
    client = TestClient(fake_app(Settings.model_validate(NAMED)))
    ward, archive = bearer("0123456789abcdef"), bearer("fedcba9876543210")

    def ask(headers: dict[str, str]) -> Any:
        return client.post("/v1/image", json={"report": REPORT}, headers=headers)

    assert [ask(ward).status_code for _ in range(3)] == [200, 200, 429]
    refused = ask(ward)
    assert refused.headers["content-type"] == PROBLEM and 1 <= int(refused.headers["Retry-After"]) <= 5
    assert ask(archive).status_code == 200
    assert client.get("/v1/models", headers=ward).status_code == 200, "only the models' work is counted"


def test_a_bucket_fills_again_at_the_rate_that_is_set() -> None:
    now = [0.0]
    tokens = Tokens(Settings(requests_per_minute=60), clock=lambda: now[0])
    for _ in range(10):
        tokens.spend("ward-7")
    with pytest.raises(Problem, match="too often"):
        tokens.spend("ward-7")
    now[0] = 3.0
    for _ in range(3):
        tokens.spend("ward-7")
    with pytest.raises(Problem):
        tokens.spend("ward-7")


@pytest.mark.parametrize("entry", ["=0123456789abcdef", "ward", "ward=short", "a/b=0123456789abcdef", "ward-7=" * 2])
def test_tokens_that_cannot_be_read_stop_the_start_and_are_not_repeated(entry: str) -> None:
    with pytest.raises(ValueError, match="entry 3 is not NAME=TOKEN") as caught:
        fake_app(Settings.model_validate({"tokens": f"{NAMED['tokens']} {entry}"}))
    assert entry not in str(caught.value)


def test_every_route_of_the_api_asks_for_the_token() -> None:
    client = TestClient(fake_app(Settings.model_validate(NAMED)))
    routes = [(path, method) for path, methods in client.get("/openapi.json").json()["paths"].items()
              for method in methods if path not in ("/healthz", "/readyz")]  # fmt: skip
    assert len(routes) >= 9
    for path, method in [*routes, ("/v1/", "get"), ("/v1/nothing", "post")]:
        assert client.request(method, path.replace("{name}", "phantom-1")).status_code == 401, path


def test_no_other_site_may_read_an_answer(client: TestClient) -> None:
    """CORS is off: nothing is allowed to another origin, in an answer or before a request."""
    origin = {"Origin": "https://elsewhere.example"}
    asked = client.options("/v1/image", headers={**origin, "Access-Control-Request-Method": "POST"})
    answers = [asked, client.get("/v1/models", headers=origin), client.post("/v1/image", json={}, headers=origin)]
    assert asked.status_code == 405
    for answer in answers:
        assert not [name for name in answer.headers if name.lower().startswith("access-control-")]
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"


def test_every_answer_carries_the_security_headers(client: TestClient) -> None:
    for path in ("/", "/docs", "/app.js", "/healthz", "/v1/models", "/v1/nothing"):
        headers = client.get(path).headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["Referrer-Policy"] == "no-referrer"


def test_a_body_that_is_too_large_is_refused_before_it_is_sent_or_parsed() -> None:
    """Its announced length is enough: no byte of it is read."""
    app, sent = fake_app(Settings(max_upload_mb=1)), []

    async def receive() -> Any:
        raise AssertionError("the body was asked for")

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-length", b"9000000000"), (b"content-type", b"multipart/form-data; boundary=b")]
    scope = {"type": "http", "method": "POST", "path": "/v1/report", "headers": headers, "query_string": b""}
    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 413


def test_nothing_that_is_sent_is_fetched(client: TestClient) -> None:
    """Addresses in names, fields, text and DICOM headers lead nowhere: a listener hears nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/x.png"
        client.post("/v1/report", files={"image": (url, dicom(url=url))}, data={"seed": url})
        client.post("/v1/report", files={"image": (url, dicom(url=url))})
        client.post("/v1/image", json={"report": f"effusion, see {url}"})
        client.post("/v1/retrieve", json={"report": url, "k": 1})
        client.post("/v1/image", json={"report": "effusion"}, headers={"Referer": url, "X-Forwarded-Host": url})
        listener.settimeout(0.2)
        with pytest.raises(TimeoutError):
            listener.accept()


@pytest.mark.parametrize(
    ("error", "status"),
    [(BackPressureError(9, 8), 503), (ActorDiedError(), 503), (ValueError("no word"), 422), (KeyError("x"), 500)],
)
def test_a_failing_model_is_a_problem_a_client_can_act_on(
    client: TestClient, models: FakeModels, error: Exception, status: int
) -> None:
    models.failing["keypatches"] = [error, error]
    answer = client.post("/v1/image", json={"report": REPORT})
    assert answer.status_code == status and answer.headers["content-type"] == PROBLEM
    assert ("Retry-After" in answer.headers) == (status == 503)
    assert "no word" not in answer.text


def test_a_replica_that_died_is_asked_again_elsewhere(client: TestClient, models: FakeModels) -> None:
    models.failing["image"] = [ActorDiedError()]
    assert client.post("/v1/image", json={"report": REPORT}).status_code == 200


def test_more_requests_than_fit_are_told_to_come_back(models: FakeModels) -> None:
    models.delay = 0.5
    statuses: list[int] = []
    with TestClient(fake_app(Settings(max_requests=2), models)) as client:

        def ask() -> None:
            answer = client.post("/v1/image", json={"report": REPORT})
            statuses.append(answer.status_code)
            assert answer.status_code == 200 or answer.headers["Retry-After"] == "1"

        threads = [threading.Thread(target=ask) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(statuses) == [200, 200, 429, 429, 429]
        assert client.post("/v1/image", json={"report": REPORT}).status_code == 200


def test_an_answer_that_takes_too_long_is_a_timeout(models: FakeModels) -> None:
    models.delay = 5.0
    client = TestClient(fake_app(Settings(timeout_s=0.1), models))
    assert client.post("/v1/image", json={"report": REPORT}).status_code == 504


def test_health_readiness_and_counters(client: TestClient, models: FakeModels) -> None:
    assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
    models.failing["ready"] = [ActorDiedError()] * 8
    answer = client.get("/readyz")
    assert answer.status_code == 503 and "not ready" in answer.json()["deployments"].values()
    client.post("/v1/image", json={"report": REPORT})
    text = client.get("/metrics").text
    assert 'adamatch_requests_total{method="POST",route="/v1/image",status="200"} 1.0' in text
    assert 'adamatch_step_seconds_count{step="draw"} 1.0' in text and "effusion" not in text


def test_samples_are_phantoms_with_their_findings(client: TestClient) -> None:
    samples = client.get("/v1/samples").json()
    assert len(samples) >= 4 and any("effusion" in sample["findings"] for sample in samples)
    picture = client.get(f"/{samples[0]['url']}")
    assert Image.open(io.BytesIO(picture.content)).size == tuple(samples[0]["image"].values())
    assert client.get("/v1/samples/../secret.png").status_code == 404


def test_what_is_described_is_what_is_there(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    assert {"/v1/report", "/v1/image", "/v1/cycle", "/v1/match", "/v1/retrieve"} <= set(schema["paths"])
    for path in ("/v1/report", "/v1/image"):
        assert {"400", "413", "415", "422", "429", "503", "504"} <= set(schema["paths"][path]["post"]["responses"])
    assert "ProblemDetails" in schema["components"]["schemas"]


def test_no_page_may_run_what_this_service_did_not_send(client: TestClient) -> None:
    for path in ("/", "/docs"):
        page = client.get(path)
        assert "default-src 'none'" in page.headers["Content-Security-Policy"]
        assert not re.search(r"<script(?![^>]*src=)|\sstyle=|\son\w+=|https?://", page.text), path
    assert "Research use only" in client.get("/").text


def test_logs_hold_no_report(client: TestClient, models: FakeModels, caplog: pytest.LogCaptureFixture) -> None:
    models.failing["keypatches"] = [KeyError("a secret in the report")]
    assert client.post("/v1/image", json={"report": "a secret in the report"}).status_code == 500
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (None, "application/json"),
        ("*/*", "application/json"),
        ("image/png", "image/png"),
        ("IMAGE/PNG", "image/png"),
        ("text/html, image/png;q=0.9", "image/png"),
        ("image/*", "image/png"),
        ("application/json;q=0.5, image/png", "image/png"),
        ("application/json, image/png;q=0.5", "application/json"),
        ("image/png;q=0, */*", "application/json"),
        ("image/png;q=0", "application/json"),
        ("image/pngx", "application/json"),
        ("*/*;q=0.1, image/png;q=0.2", "image/png"),
    ],
)
def test_what_a_client_accepts_is_weighed(client: TestClient, accept: str | None, chosen: str) -> None:
    headers = {} if accept is None else {"Accept": accept}
    assert client.post("/v1/image", json={"report": REPORT}, headers=headers).headers["content-type"] == chosen
    same = (("IMAGE/PNG", "TEXT/EVENT-STREAM"), ("image/", "text/"), ("/png", "/event-stream"))
    streamed = {name: functools.reduce(lambda said, pair: said.replace(*pair), same, v) for name, v in headers.items()}
    kind = client.post("/v1/report", headers=streamed, **form()).headers["content-type"]
    assert kind.startswith("text/event-stream" if chosen == "image/png" else "application/json")


def test_an_answer_to_unknown_words_carries_a_warning(client: TestClient) -> None:
    for text, warned in ((REPORT, False), ("Derrame pleural derecho con atelectasia", True), ("asdf qwer", True)):
        drawn = client.post("/v1/image", json={"report": text}).json()
        cycle = client.post("/v1/cycle", json={"report": text}).json()["image"]
        match = client.post("/v1/match", files={"image": xray()}, data={"report": text}).json()
        assert [bool(answer["warning"]) for answer in (drawn, cycle, match)] == [warned] * 3


@pytest.mark.parametrize(
    "name", ["filename*=utf-8''%D1%80.png", "FileName*=UTF-8'ru'%D1%80.png", 'filename="\u0440.png"']
)
def test_a_file_may_have_its_name_in_any_form(client: TestClient, name: str) -> None:
    head = f'--b\r\nContent-Disposition: form-data; name="image"; {name}\r\nContent-Type: image/png\r\n\r\n'
    body = head.encode() + xray() + b"\r\n--b--\r\n"
    answer = client.post("/v1/report", content=body, headers={"content-type": "multipart/form-data; boundary=b"})
    assert answer.status_code == 200, answer.text


def test_a_form_that_cannot_be_read_says_why(client: TestClient) -> None:
    fields = b"".join(b'--b\r\nContent-Disposition: form-data; name="f%d"\r\n\r\n1\r\n' % i for i in range(20))
    for kind, body, said in (
        ("multipart/form-data", b"x", "no boundary"),
        ("multipart/form-data; boundary=b", fields + b"--b--\r\n", "too many fields"),
    ):
        answer = client.post("/v1/report", content=body, headers={"content-type": kind})
        assert answer.status_code == 400 and said in answer.json()["detail"]
