"""What OpenAI's clients ask for, answered by the same composition, so that they and what is built on them work as is.

Errors need nothing of their own: every problem has an `error` member in OpenAI's shape.
"""

import asyncio
import base64
import binascii
import time
from collections.abc import AsyncIterator
from typing import Literal

from fastapi import FastAPI, Request
from starlette.responses import StreamingResponse

from serve.inputs import body, read_json
from serve.problems import Problem, responses
from serve.protocol import (
    MAX_SEED,
    MODEL_ID,
    ChatChoice,
    ChatChunk,
    ChatRequest,
    ChatResponse,
    ChunkChoice,
    DrawnImage,
    DrawRequest,
    DrawResponse,
    ReportResponse,
    Said,
    ServedModel,
)
from serve.routes import EVENTS, FAILS, Service


def add_openai_routes(app: FastAPI, service: Service) -> None:
    """Put OpenAI's endpoints on the application; its /v1/models is the service's own."""
    ask, limit = service.composition, service.settings.max_report_chars

    @app.get("/v1/models/{model}", responses=responses(401, 404), summary="One model, as OpenAI's clients read it")
    def model(model: str) -> ServedModel:
        _check_model(model)
        return ServedModel()

    @app.post(
        "/v1/chat/completions",
        response_model=ChatResponse,
        responses={**FAILS, **responses(404), 200: {"content": {EVENTS: {"schema": {"type": "string"}}}}},
        openapi_extra=body(json=ChatRequest),
        summary="Write the report of an X-ray, as OpenAI's clients ask for it",
    )
    async def chat(request: Request) -> object:
        """The X-ray is a data URL in a message; with `stream`, chunks as the report is written, then `[DONE]`."""
        asked = await read_json(request, ChatRequest, limit)
        _check_model(asked.model)
        image = await service.decode(_last_image(asked))
        seed, request_id = asked.seed or 0, request.state.request_id
        if not asked.stream:
            answer = await ask.report(image, seed, request_id)
            said = Said(role="assistant", content=answer.report)
            choice = ChatChoice(message=said, finish_reason=_finish(answer))
            return ChatResponse(id=f"chatcmpl-{request_id}", created=int(time.time()), choices=[choice])
        keywords, codes = await ask.read(image)  # before the answer begins: what fails here still has its status
        written = ask.words(image, keywords, codes, seed, request_id)
        return StreamingResponse(_as_chunks(written, request_id), media_type=EVENTS)

    @app.post(
        "/v1/images/generations",
        response_model=DrawResponse,
        responses={**FAILS, **responses(404)},
        openapi_extra=body(json=DrawRequest),
        summary="Draw the X-ray of a report, as OpenAI's clients ask for it",
    )
    async def generations(request: Request) -> object:
        asked = await read_json(request, DrawRequest, limit)
        _check_model(asked.model or MODEL_ID)
        seeds = [((asked.seed or 0) + number) % (MAX_SEED + 1) for number in range(asked.n or 1)]
        drawn = await asyncio.gather(*(ask.image(asked.report, seed, request.state.request_id) for seed in seeds))
        return DrawResponse(created=int(time.time()), data=[DrawnImage(b64_json=one.png) for one in drawn])


def _check_model(name: str) -> None:
    if name != MODEL_ID:
        raise Problem(404, f"the only model here is {MODEL_ID}")


def _last_image(asked: ChatRequest) -> bytes:
    parts = [part for message in asked.messages if isinstance(message.content, list) for part in message.content]
    urls = [part.image_url.url for part in parts if part.image_url]
    if not urls:
        raise Problem(422, "no message has an X-ray: send it as a part of type image_url")
    head, comma, data = urls[-1].partition(",")
    if not comma or not head.startswith("data:") or not head.endswith(";base64"):
        raise Problem(422, "send the X-ray itself, as data:image/png;base64,…: nothing is fetched from elsewhere")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Problem(422, "the X-ray's data URL is not base64") from error


def _finish(answer: ReportResponse) -> Literal["stop", "length"]:
    return "stop" if answer.status == "ok" else "length"


async def _as_chunks(written: AsyncIterator[str | ReportResponse], request_id: str) -> AsyncIterator[str]:
    """Events of OpenAI's stream; a problem after the first is an event of its own."""
    created = int(time.time())

    def event(choice: ChunkChoice) -> str:
        chunk = ChatChunk(id=f"chatcmpl-{request_id}", created=created, choices=[choice])
        return f"data: {chunk.model_dump_json()}\n\n"

    yield event(ChunkChoice(delta=Said(role="assistant", content="")))
    try:
        async for told in written:
            if isinstance(told, str):
                yield event(ChunkChoice(delta=Said(content=told)))
            else:
                yield event(ChunkChoice(delta=Said(), finish_reason=_finish(told)))
    except Problem as problem:
        yield f"data: {problem.details(request_id).model_dump_json()}\n\n"
        return
    yield "data: [DONE]\n\n"
