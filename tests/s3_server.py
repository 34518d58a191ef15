"""An S3 server on loopback that can be made to fail: moto's, behind a door that sometimes stays shut."""

import random
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server


class _Quiet(MotoRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        pass


class LoopbackS3:
    """Serves S3 from this process's memory. `failing` is the share of requests answered 503; those whose method and
    URL hold `refused` are answered 403; see also `away`."""

    def __init__(self) -> None:
        self.requests = self.failed = 0
        self.failing, self.refused = 0.0, ""
        self.draw = random.Random(0)
        self._away_until = 0.0
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=_Quiet)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def away(self, seconds: float) -> None:
        """Drop the connection of every request for so long, without an answer."""
        self._away_until = time.monotonic() + seconds

    def close(self) -> None:
        self._server.shutdown()

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        self.requests += 1
        if time.monotonic() < self._away_until:
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            return self._fail("503 Service Unavailable", start_response)
        request = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}?{environ['QUERY_STRING']}"
        if self.refused and self.refused in request:
            return self._fail("403 Forbidden", start_response)
        if self.draw.random() < self.failing:
            return self._fail("503 Service Unavailable", start_response)
        answer: Iterable[bytes] = self._app(environ, start_response)
        return answer

    def _fail(self, status: str, start_response: Callable[..., Any]) -> Iterable[bytes]:
        self.failed += 1
        start_response(status, [("Content-Length", "0"), ("Connection", "close")])
        return [b""]


@contextmanager
def loopback_s3(bucket: str = "bucket") -> Iterator[tuple[LoopbackS3, dict[str, str]]]:
    """A running server with one empty bucket, and the environment in which s3:// means it."""
    import boto3
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()  # one that is kept would speak to an earlier server
    server = LoopbackS3()
    environment = {
        "AWS_ENDPOINT_URL": server.url,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    reset = urllib.request.Request(f"{server.url}/moto-api/reset", method="POST")
    urllib.request.urlopen(reset).close()  # its memory is this process's, shared by all servers
    client = boto3.client("s3", endpoint_url=server.url, aws_access_key_id="testing",
                          aws_secret_access_key="testing", region_name="us-east-1")  # fmt: skip
    client.create_bucket(Bucket=bucket)
    try:
        yield server, environment
    finally:
        server.close()
