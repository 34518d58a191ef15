"""The HTTP interface, /v1: a FastAPI application over a `Composition`, and the deployment that holds both.

POST /v1/report    image → report, keywords with boxes      (also as a stream of events)
POST /v1/image     report → PNG, keypatches                 (also as image/png)
POST /v1/cycle     image → report → image, or the other way round
POST /v1/match     image and report → word ↔ region
POST /v1/retrieve  image → reports, or report → images, of an indexed split
POST /v1/chat/completions, /v1/images/generations    the first two as OpenAI's clients ask for them
"""

from importlib import resources
from typing import Any

from fastapi import FastAPI, Request, Response
from ray import serve as ray_serve
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from adamatch_ray import __version__
from serve.archives import Archives
from serve.composition import Composition
from serve.guard import Guard
from serve.images import Decoder
from serve.inputs import SCHEMA
from serve.measures import Measures
from serve.openai_routes import add_openai_routes
from serve.problems import TYPES, Problem, ProblemDetails
from serve.protocol import ChatRequest, DrawRequest, ImageRequest, ModelsResponse, RetrieveRequest
from serve.routes import Service, add_routes
from serve.settings import Settings

_DESCRIPTION = """Chest X-rays and reports, matched word by region and generated in both directions.

**Research use only. Not for clinical decisions.**"""
_SCRIPTS = ("app.js", "docs.js", "api.js", "dom.js", "link.js", "viewer.js", "words.js", "work.js")
_PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/docs": ("docs.html", "text/html; charset=utf-8"),
    **{f"/{name}": (name, "text/javascript") for name in _SCRIPTS},
    **{f"/{name}": (name, "text/css") for name in ("docs.css", "style.css")},
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
"""Path → file of serve/web and its type. No other file can be asked for."""

_DESCRIBED = (ProblemDetails, ImageRequest, RetrieveRequest, ChatRequest, DrawRequest)
"""What the endpoints refer to by name; FastAPI itself sees answers only."""


@ray_serve.ingress()
class Ingress:
    """The deployment behind the URL."""

    def __init__(
        self,
        settings: Settings,
        models: ModelsResponse,
        matcher: DeploymentHandle,
        image_tokens: DeploymentHandle,
        report_writer: DeploymentHandle,
        image_drawer: DeploymentHandle,
    ) -> None:
        self._settings, self._models = settings, models
        # By gRPC instead of Ray's object store: calls of a few kilobytes then cost the ingress a quarter less CPU time.
        self._matcher, self._tokens, self._writer, self._drawer = (
            handle.options(_by_reference=False) for handle in (matcher, image_tokens, report_writer, image_drawer)
        )

    def __serve_build_asgi_app__(self) -> ASGIApp:
        measures = Measures()
        composition = Composition(self._matcher, self._tokens, self._writer, self._drawer, measures)
        # Serve's proxy names requests and says so in its answers; twice would be once too often.
        return make_app(self._settings, self._models, composition, measures, echo_id=False)


def make_app(
    settings: Settings, models: ModelsResponse, composition: Composition, measures: Measures, echo_id: bool = True
) -> ASGIApp:
    """The whole application, guard included. Runs without Ray as well, on any `Composition`."""
    app = FastAPI(title="adamatch_ray", version=__version__, description=_DESCRIPTION, docs_url=None, redoc_url=None)
    decoder = Decoder(models.canvas, settings.max_pixels, settings.decode_timeout_s)
    archives = Archives(settings.archives, decoder, settings.timeout_s)
    service = Service(settings, models, composition, measures, decoder, archives)
    add_routes(app, service)
    add_openai_routes(app, service)
    _add_page(app)
    _answer_with_problems(app)
    _describe_problems(app)
    return Guard(app, settings, measures, echo_id)


def _add_page(app: FastAPI) -> None:
    folder = resources.files("serve") / "web"

    def add(path: str, content: bytes, kind: str) -> None:
        def answer() -> Response:
            return Response(content, media_type=kind, headers={"Cache-Control": "no-cache"})

        app.add_api_route(path, answer, include_in_schema=False)

    for path, (name, kind) in _PAGE.items():
        add(path, (folder / name).read_bytes(), kind)


def _answer_with_problems(app: FastAPI) -> None:
    def on_problem(request: Request, error: Exception) -> Response:
        assert isinstance(error, Problem)
        return error.response(request.state.request_id)

    def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        status = error.status_code if error.status_code in TYPES else 400
        response = Problem(status, str(error.detail)).response(request.state.request_id)
        response.headers.update(error.headers or {})
        return response

    def on_any(request: Request, error: Exception) -> Response:
        return Problem(500, "an error of the server, not of the request").response(request.state.request_id)

    app.add_exception_handler(Exception, on_any)
    app.add_exception_handler(Problem, on_problem)
    app.add_exception_handler(HTTPException, on_http)


def _describe_problems(app: FastAPI) -> None:
    """Add the schemas that error answers and bodies refer to, and the optional token."""
    plain = app.openapi

    def whole() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = plain()
            parts = schema.setdefault("components", {})
            for model in _DESCRIBED:
                described = model.model_json_schema(ref_template=SCHEMA)
                parts.setdefault("schemas", {}).update(**described.pop("$defs", {}), **{model.__name__: described})
            parts["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
            schema["security"] = [{}, {"bearer": []}]
        return app.openapi_schema or {}

    app.openapi = whole  # type: ignore[method-assign]
