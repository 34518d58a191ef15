"""The real thing: `serve run`, HTTP through Serve's proxy, replicas that die, and the production file."""

import os
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml
from drill import kill_part

ROOT = Path(__file__).resolve().parents[1]


def test_the_production_file_is_one_that_serve_takes() -> None:
    from ray.serve.schema import ServeDeploySchema

    from serve.settings import Settings

    written = yaml.safe_load((ROOT / "serve" / "config.yaml").read_text())
    schema = ServeDeploySchema.model_validate(written)
    (application,) = schema.applications
    Settings.model_validate(application.args)
    names = {deployment.name for deployment in application.deployments}
    assert names == {"Ingress", "Matcher", "ImageTokens", "ReportWriter", "ImageDrawer"}
    assert schema.http_options.host == "127.0.0.1"
    for deployment in application.deployments:
        batch = application.args["batch"]
        assert deployment.name == "Ingress" or deployment.max_ongoing_requests >= batch, deployment.name


@pytest.mark.slow
def test_serve_run_without_artifacts_ends_at_once_with_the_command(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("serve")), "run", "serve.config", f"root={tmp_path}/none"]
    started = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0 and time.monotonic() - started < 60
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: ") and "python jobs/prepare_data.py --root" in last
    assert "Traceback" not in done.stderr


@pytest.mark.ray
@pytest.mark.slow
def test_the_service_answers_survives_a_dead_replica_and_bad_clients(ray_session: None, cycle_root: Path) -> None:
    from adamatch_ray.engines.cycle import CycleEngine
    from adamatch_ray.storage import Root
    from benchmarks.service import post, running, upload
    from serve.images import read_image
    from serve.settings import Settings, resolve

    with running(resolve(Settings(root=str(cycle_root), index_studies=8)), port=8131) as url:
        image = upload(1)
        status, served = post(f"{url}/v1/report", image, seed=4)
        engine = CycleEngine.load(Root(str(cycle_root)))
        (offline,) = engine.reports([read_image(image, engine.canvas, 10**7)], [4])
        assert (status, served["report"]) == (200, offline.report)
        assert served["image_tokens"] == offline.image_tokens.tolist()

        with urllib.request.urlopen(f"{url}/", timeout=30) as page:
            assert b"Research use only" in page.read() and page.headers["Content-Security-Policy"]
            assert len(page.headers.get_all("X-Request-ID")) == 1

        assert post(f"{url}/v1/report", b"no image")[0] == 415
        _abort_many(url, image)
        statuses = _statuses_while_a_replica_dies(url, image, "ReportWriter")
        assert set(statuses) <= {200, 503} and statuses.count(200) > len(statuses) / 2, statuses
        _wait_until(lambda: post(f"{url}/v1/report", image, seed=4)[1].get("report") == offline.report)


def _abort_many(url: str, image: bytes) -> None:
    """Clients that hang up before their answer."""
    import http.client

    port = int(url.rsplit(":", 1)[1])
    for _ in range(20):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.putrequest("POST", "/v1/report")
        connection.putheader("Content-Type", "multipart/form-data; boundary=b")
        connection.putheader("Content-Length", str(len(image)))
        connection.endheaders(image[:500])
        connection.close()


def _statuses_while_a_replica_dies(url: str, image: bytes, deployment: str) -> list[int]:
    from benchmarks.service import post

    statuses: list[int] = []
    ended = threading.Event()

    def client(number: int) -> None:
        seed = number * 1000
        while not ended.is_set():
            statuses.append(post(f"{url}/v1/report", image, seed=seed)[0])
            seed += 1

    threads = [threading.Thread(target=client, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(2)
    kill_part(os.getpid(), f"ray::ServeReplica:adamatch:{deployment}")
    time.sleep(8)
    ended.set()
    for thread in threads:
        thread.join()
    return statuses


def _wait_until(condition: Any, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the service did not come back"
        time.sleep(0.5)
