"""The endpoints: read the request, ask the composition, answer."""

import base64
import io
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass

import numpy as np
from fastapi import FastAPI, Request, Response
from starlette.responses import JSONResponse, StreamingResponse

from adamatch_ray.data.images import decode_png, encode_png
from adamatch_ray.geometry import CanvasImage
from adamatch_ray.shards import identity_of
from serve.archives import Archives
from serve.composition import Composition, warning
from serve.images import Decoder
from serve.inputs import FORM, JSON, body, media_type, prefers, read_form, read_json
from serve.measures import Measures
from serve.problems import Problem, responses
from serve.protocol import (
    CycleResponse,
    ImageRequest,
    ImageResponse,
    MatchFields,
    MatchResponse,
    ModelsResponse,
    ReadyResponse,
    ReportFields,
    ReportResponse,
    RetrieveFields,
    RetrieveRequest,
    RetrieveResponse,
    Sample,
    SeedFields,
    StudyRequest,
)
from serve.samples import samples
from serve.settings import Settings

FAILS = responses(400, 401, 413, 415, 422, 429, 500, 503, 504)
EVENTS, _PNG, _DICOM = "text/event-stream", "image/png", "application/dicom"
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_PICTURE: dict[int | str, dict[str, object]] = {200: {"content": {_PNG: _BINARY}}}
_DRAWN: dict[int | str, dict[str, object]] = {200: {"content": {_PNG: _BINARY, _DICOM: _BINARY}}}


@dataclass(frozen=True)
class Service:
    """What the endpoints work with."""

    settings: Settings
    models: ModelsResponse
    composition: Composition
    measures: Measures
    decode: Decoder
    archives: Archives


def add_routes(app: FastAPI, service: Service) -> None:
    """Put every endpoint of the API on the application."""
    _add_generation(app, service)
    _add_cycle(app, service)
    _add_matching(app, service)
    _add_information(app, service)


def _add_generation(app: FastAPI, service: Service) -> None:
    ask, limit = service.composition, service.settings.max_report_chars

    @app.post(
        "/v1/report",
        response_model=ReportResponse,
        responses={**FAILS, **responses(404), 200: {"content": {EVENTS: {"schema": {"type": "string"}}}}},
        openapi_extra=body(form=ReportFields, json=StudyRequest),
        summary="Write the report of an X-ray",
    )
    async def report(request: Request) -> object:
        """With `Accept: text/event-stream`, events as they come to be known: `keywords`, then each `word` as it is
        written (one or more, with the space before them), and at last `report`, which is the whole answer. A JSON body
        names a study instead, where the service may read archives."""
        fields: ReportFields
        if service.settings.archives and media_type(request) == JSON:
            fields = asked = await read_json(request, StudyRequest, limit)
            image = await service.archives(asked.study)
        else:
            data, fields = await read_form(request, ReportFields, limit)
            image = await service.decode(data)
        request_id = request.state.request_id
        if prefers(request, EVENTS):
            events = _report_events(service, image, fields, request_id)
            return StreamingResponse(_as_stream(events, request_id), media_type=EVENTS)
        return await _explained(service, image, fields, await ask.report(image, fields.seed, request_id))

    @app.post(
        "/v1/image",
        response_model=ImageResponse,
        responses={**FAILS, **_DRAWN},
        openapi_extra=body(json=ImageRequest),
        summary="Draw the X-ray of a report",
    )
    async def image(request: Request) -> object:
        """With `Accept: image/png`, the picture alone; with `application/dicom`, as a secondary capture that is marked
        synthetic."""
        asked = await read_json(request, ImageRequest, limit)
        drawn = await ask.image(asked.report, asked.seed, request.state.request_id)
        if prefers(request, _DICOM):
            return Response(_as_dicom(drawn, service.models), media_type=_DICOM)
        if prefers(request, _PNG):
            return Response(base64.b64decode(drawn.png), media_type=_PNG)
        return drawn


def _add_cycle(app: FastAPI, service: Service) -> None:
    ask, limit = service.composition, service.settings.max_report_chars

    @app.post(
        "/v1/cycle",
        response_model=CycleResponse,
        responses=FAILS,
        openapi_extra=body(form=SeedFields, json=ImageRequest),
        summary="There and back: image → report → image, or report → image → report",
    )
    async def cycle(request: Request) -> object:
        """A form with an image starts from it, a JSON body from its report."""
        if media_type(request) == FORM:
            data, fields = await read_form(request, SeedFields, limit)
            return await ask.cycle_image(await service.decode(data), fields.seed, request.state.request_id)
        asked = await read_json(request, ImageRequest, limit)
        return await ask.cycle_report(asked.report, asked.seed, request.state.request_id)


def _add_matching(app: FastAPI, service: Service) -> None:
    ask, limit = service.composition, service.settings.max_report_chars

    @app.post(
        "/v1/match",
        response_model=MatchResponse,
        responses=FAILS,
        openapi_extra=body(form=MatchFields),
        summary="Match the words of a report with the regions of an X-ray",
    )
    async def match(request: Request) -> object:
        data, fields = await read_form(request, MatchFields, limit)
        return await ask.match(await service.decode(data), fields.report)

    @app.post(
        "/v1/retrieve",
        response_model=RetrieveResponse,
        responses={**FAILS, **responses(404)},
        openapi_extra=body(form=RetrieveFields, json=RetrieveRequest),
        summary="Find studies: by an X-ray their reports, by a report their X-rays",
    )
    async def retrieve(request: Request) -> object:
        """A form with an image searches reports, a JSON body searches X-rays."""
        if not service.settings.index_studies:
            raise Problem(404, "this service has no index; start it with index_studies above 0")
        query: CanvasImage | str
        if media_type(request) == FORM:
            data, fields = await read_form(request, RetrieveFields, limit)
            query, count = await service.decode(data), fields.k
        else:
            asked = await read_json(request, RetrieveRequest, limit)
            query, count = asked.report, asked.k
        hits, indexed = await ask.search(query, count)
        split = service.settings.index_split
        doubt = warning(query) if isinstance(query, str) else None
        return RetrieveResponse(
            hits=hits, indexed=indexed, split=split, request_id=request.state.request_id, warning=doubt
        )


def _add_information(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models", responses=responses(401), summary="The models behind this service")
    def models() -> ModelsResponse:
        """What is served, with the fingerprints of the trained stages."""
        return service.models

    @app.get("/v1/samples", responses=responses(401), summary="Samples")
    def list_samples() -> list[Sample]:
        """Phantoms to try the service with."""
        return [drawn.sample for drawn in samples().values()]

    @app.get(
        "/v1/samples/{name}.png",
        summary="Picture of a sample",
        response_class=Response,
        responses={**responses(401, 404), **_PICTURE},
    )
    def sample(name: str) -> Response:
        """The picture of one phantom."""
        drawn = samples().get(name)
        if drawn is None:
            raise Problem(404, "there is no such sample; see /v1/samples")
        return Response(drawn.png, media_type=_PNG)

    @app.get("/healthz", summary="Is the ingress alive?")
    def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @app.get(
        "/readyz",
        response_model=ReadyResponse,
        responses={503: {"model": ReadyResponse}},
        summary="Are the models ready?",
    )
    async def readyz() -> JSONResponse:
        """The state of each deployment; 503 while one is missing."""
        states = await service.composition.states()
        ready = all(state == "ready" for state in states.values())
        return JSONResponse({"ready": ready, "deployments": states}, 200 if ready else 503)

    @app.get("/metrics", response_class=Response, responses=responses(401), summary="Counters")
    def metrics() -> Response:
        """Prometheus text format: this ingress replica alone."""
        return Response(service.measures.text(), media_type="text/plain; version=0.0.4")


async def _report_events(
    service: Service, image: CanvasImage, fields: ReportFields, request_id: str
) -> AsyncIterator[tuple[str, object]]:
    """(event, value) as they come to be known; the last is ("report", ReportResponse)."""
    ask = service.composition
    keywords, codes = await ask.read(image)
    yield "keywords", [keyword.model_dump() for keyword in keywords]
    async for told in ask.words(image, keywords, codes, fields.seed, request_id):
        if isinstance(told, str):
            yield "word", told
        else:
            yield "report", await _explained(service, image, fields, told)


async def _explained(
    service: Service, image: CanvasImage, fields: ReportFields, answer: ReportResponse
) -> ReportResponse:
    """With what `explain` asks for beside the report."""
    if not fields.explain:
        return answer
    has_words = any(letter.isalnum() for letter in answer.report)
    match = await service.composition.match(image, answer.report) if has_words else None
    return answer.model_copy(update={"match": match, "preview": _preview(image)})


def _as_dicom(drawn: ImageResponse, models: ModelsResponse) -> bytes:
    """A drawn X-ray as a DICOM file."""
    from adamatch_ray.hospital.drawn import secondary_capture  # needs the hospital extra

    version = identity_of({model.name: model.fingerprint for model in models.models})[:12]
    stream = io.BytesIO()
    secondary_capture(decode_png(base64.b64decode(drawn.png)), version).save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def _preview(image: CanvasImage) -> str:
    """The canvas without its padding: a DICOM, too, is something a browser can then show."""
    return base64.b64encode(encode_png(np.ascontiguousarray(image.inner))).decode()


async def _as_stream(events: AsyncIterator[tuple[str, object]], request_id: str) -> AsyncIterator[str]:
    """Server-sent events; a problem after the first is an event of its own."""
    try:
        async for name, value in events:
            data = value.model_dump_json() if isinstance(value, ReportResponse) else json.dumps(value)
            yield f"event: {name}\ndata: {data}\n\n"
    except Problem as problem:
        yield f"event: problem\ndata: {problem.details(request_id).model_dump_json()}\n\n"
