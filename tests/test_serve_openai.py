"""The unmodified `openai` client against this service: its own calls, its own types, its own errors."""

import base64
import io
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from fake_models import CANVAS, REPORT, FakeModels, fake_app
from PIL import Image
from ray.exceptions import ActorDiedError
from starlette.testclient import TestClient

from adamatch_ray.data.images import decode_png
from adamatch_ray.data.phantom import generate
from serve.protocol import MODEL_ID
from serve.settings import Settings


@pytest.fixture
def models() -> FakeModels:
    return FakeModels()


@pytest.fixture
def client(models: FakeModels) -> Iterator[openai.OpenAI]:
    with TestClient(fake_app(models=models), raise_server_exceptions=False) as http:
        yield openai.OpenAI(base_url="http://testserver/v1", api_key="none", http_client=http, max_retries=0)


def messages(url: str = "") -> list[Any]:
    stream = io.BytesIO()
    Image.fromarray(generate(1, 5, 120).image).save(stream, "PNG")
    url = url or f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
    ask = {"type": "text", "text": "Write the report."}
    return [
        {"role": "system", "content": "You are a radiologist."},
        {"role": "user", "content": [ask, {"type": "image_url", "image_url": {"url": url, "detail": "high"}}]},
    ]


def test_a_chat_with_an_image_is_its_report(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL_ID, messages=messages(), temperature=0.2, max_tokens=300)
    assert answer.choices[0].message.content == REPORT and answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop" and answer.object == "chat.completion"
    drafted = client.chat.completions.create(model=MODEL_ID, messages=messages(), seed=3)
    assert drafted.choices[0].message.content == f"{REPORT} Draft 3."


def test_a_streamed_chat_says_the_same_in_pieces(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model=MODEL_ID, messages=messages(), stream=True))
    pieces = [chunk.choices[0].delta.content for chunk in chunks]
    assert "".join(piece or "" for piece in pieces) == REPORT and len(pieces) > len(REPORT.split())
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-1].choices[0].finish_reason == "stop"
    assert len({chunk.id for chunk in chunks}) == 1


def test_an_image_is_drawn_from_a_prompt(client: openai.OpenAI) -> None:
    drawn = client.images.generate(model=MODEL_ID, prompt=REPORT, n=2, response_format="b64_json", size="1024x1024")
    assert drawn.data is not None and len(drawn.data) == 2
    pictures = [base64.b64decode(image.b64_json or "") for image in drawn.data]
    assert pictures[0] != pictures[1] and decode_png(pictures[0]).shape == (CANVAS, CANVAS)
    again = client.images.generate(prompt=REPORT, extra_body={"seed": 1})
    assert again.data and base64.b64decode(again.data[0].b64_json or "") == pictures[1], "the second has the next seed"


def test_models_are_listed_in_one_shape(client: openai.OpenAI) -> None:
    listed = client.models.list()
    assert [model.id for model in listed] == [MODEL_ID] and client.models.retrieve(MODEL_ID).object == "model"
    assert (listed.model_extra or {})["trained_on"] == "phantom"


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"model": "gpt-5"}, openai.NotFoundError, MODEL_ID),
        ({"messages": [{"role": "user", "content": "hello"}]}, openai.UnprocessableEntityError, "image_url"),
        ({"messages": []}, openai.UnprocessableEntityError, "messages"),
        ({"messages": messages("https://example.org/x.png")}, openai.UnprocessableEntityError, "nothing is fetched"),
        ({"messages": messages("data:image/png;base64,%%%")}, openai.UnprocessableEntityError, "not base64"),
        ({"messages": messages("data:image/png;base64,aGVsbG8=")}, openai.APIStatusError, "not an image"),
        ({"n": 2}, openai.UnprocessableEntityError, "n"),
    ],
)
def test_what_cannot_be_answered_is_an_error_of_the_client(
    client: openai.OpenAI, options: dict[str, Any], error: type[openai.APIStatusError], says: str
) -> None:
    for stream in (False, True):
        with pytest.raises(error) as raised:
            client.chat.completions.create(**{"model": MODEL_ID, "messages": messages(), "stream": stream, **options})
        assert says in str(raised.value) and raised.value.type == "invalid_request_error"


def test_a_failure_of_the_models_is_one_too_before_and_within_a_stream(
    client: openai.OpenAI, models: FakeModels
) -> None:
    models.failing["keywords"] = [ActorDiedError()] * 2
    with pytest.raises(openai.InternalServerError, match="restarted"):
        client.chat.completions.create(model=MODEL_ID, messages=messages(), stream=True)
    models.failing["words"] = [ActorDiedError()] * 2
    with pytest.raises(openai.APIError, match="restarted"):
        list(client.chat.completions.create(model=MODEL_ID, messages=messages(), stream=True))


def test_the_key_is_the_token_of_the_service() -> None:
    with TestClient(fake_app(Settings.model_validate({"token": "sesame"}))) as http:
        for key, fits in (("sesame", True), ("other", False)):
            client = openai.OpenAI(base_url="http://testserver/v1", api_key=key, http_client=http, max_retries=0)
            if fits:
                assert client.models.list().data
            else:
                with pytest.raises(openai.AuthenticationError):
                    client.models.list()
