"""A study is read by its address from an archive that the operator named, and from nowhere else."""

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pydicom
import pytest
from fake_models import REPORT, fake_app
from orthanc_server import orthanc
from radiographs import radiograph
from starlette.testclient import TestClient

from adamatch_ray.data.images import decode
from adamatch_ray.hospital.archive import AUTHORIZATION, Archive
from serve.settings import Settings


class Door(BaseHTTPRequestHandler):
    """Sends everybody to `target`; remembers who came, and with what."""

    target = ""
    seen: list[tuple[str, str]]

    def do_GET(self) -> None:
        self.seen.append((self.path, self.headers.get("Authorization", "")))
        self.send_response(302)
        self.send_header("Location", self.target)
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextmanager
def door(target: str = "") -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """The address of a running `Door`, and what it has seen."""
    seen: list[tuple[str, str]] = []
    server = HTTPServer(("127.0.0.1", 0), type("OneDoor", (Door,), {"target": target, "seen": seen}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()


def ask(archives: str, study: str) -> tuple[int, dict[str, object]]:
    """Status and body of the answer to a study's address."""
    with TestClient(fake_app(Settings(archives=archives))) as client:
        answer = client.post("/v1/report", json={"study": study, "seed": 1})
        return answer.status_code, answer.json()


def test_a_study_is_read_by_its_address_and_so_is_an_instance(tmp_path: Path) -> None:
    lateral, frontal = radiograph(2, ViewPosition="LL"), radiograph(2, SOPInstanceUID="2.25.39")
    with orthanc(tmp_path) as url:
        Archive(url).store([lateral, frontal])
        study = f"{url}/studies/{frontal.StudyInstanceUID}"
        instance = f"{study}/series/{frontal.SeriesInstanceUID}/instances"
        for address in (study, f"{instance}/{frontal.SOPInstanceUID}"):
            status, body = ask(f"https://other.example/dicom-web, {url}/", address)
            assert status == 200 and str(body["report"]).startswith(REPORT)
            assert body["image"] == {"width": frontal.Columns, "height": frontal.Rows}
        status, body = ask(url, f"{instance}/{lateral.SOPInstanceUID}")
        assert status == 422 and "cannot be used" in str(body["detail"])
        assert ask(url, f"{instance}/2.25.404")[0] == 404
        assert ask(url, f"{url}/studies/2.25.404")[0] == 422


def test_no_other_address_is_asked() -> None:
    with door() as (url, seen):
        host = url.removeprefix("http://")
        listed = "http://pacs.example/dicom-web"
        for study in (
            f"{url}/studies/1.2",
            f"{listed}@{host}/studies/1.2",
            f"http://pacs.example@{host}/dicom-web/studies/1.2",
            f"{listed}/studies/1.2@{host}",
            f"{listed}/studies/../../{host}",
            f"{listed}/studies/1.2/../../../x",
            f"{listed}/studies/1.2?x={url}",
            f"{listed}/studies/1.2#{url}",
            f"{listed}/studies/1.2\n{url}",
            f"{listed}.evil.example/studies/1.2",
            "https://pacs.example/dicom-web/studies/1.2",
            "http://pacs.example:81/dicom-web/studies/1.2",
            "http://PACS.example/dicom-web/studies/1.2",
            "file:///etc/passwd",
            "",
        ):
            status, body = ask(listed, study)
            assert status == 404 and "archives" in str(body["detail"]), study
        assert ask("", f"{url}/studies/1.2")[0] == 415 and ask(" , ", "/studies/1.2")[0] == 404
        assert seen == []


def test_redirects_are_not_followed_and_credentials_go_to_the_archive_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(AUTHORIZATION, "Bearer of-the-archive")
    with door() as (inner, inner_seen), door(target=inner) as (outer, outer_seen):
        status, body = ask(outer, f"{outer}/studies/1.2")
        assert status == 503 and "1.2" not in str(body["detail"])
        assert [credentials for _, credentials in outer_seen] == ["Bearer of-the-archive"]
        assert inner_seen == []
    assert ask("http://127.0.0.1:9/dicom-web", "http://127.0.0.1:9/dicom-web/studies/1.2")[0] == 503


def test_a_drawn_x_ray_comes_as_a_dicom_that_says_it_is_synthetic() -> None:
    with TestClient(fake_app()) as client:
        answer = client.post("/v1/image", json={"report": REPORT}, headers={"Accept": "application/dicom"})
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/dicom"
    made = pydicom.dcmread(io.BytesIO(answer.content))
    assert made.SyntheticData == "YES" and decode(answer.content).pixels.shape == (made.Rows, made.Columns)
