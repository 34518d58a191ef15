"""Errors as a client sees them: application/problem+json (RFC 9457), one type for each thing that can be done about it.

No problem repeats what was sent: neither text nor image ever leaves by way of an error.
"""

from http import HTTPStatus

from pydantic import BaseModel, Field
from starlette.responses import JSONResponse

TYPES = {
    400: "malformed-request",
    401: "unauthorized",
    404: "not-found",
    405: "method-not-allowed",
    413: "too-large",
    415: "unsupported-media-type",
    422: "unusable-input",
    429: "too-many-requests",
    500: "internal-error",
    503: "temporarily-unavailable",
    504: "timeout",
}
MEDIA_TYPE = "application/problem+json"


class ErrorDetails(BaseModel):
    """The same as OpenAI's clients read it."""

    message: str
    type: str = Field(examples=["invalid_request_error"])
    code: str = Field(examples=["unusable-input"])
    param: None = None


class ProblemDetails(BaseModel):
    """What went wrong and what helps. 429 and 503 carry a Retry-After header: send the request again."""

    type: str = Field(examples=["urn:adamatch:problem:unusable-input"])
    title: str
    status: int
    detail: str
    request_id: str
    error: ErrorDetails


class Problem(Exception):
    """Raised anywhere in the ingress; `retry_after` is in seconds."""

    def __init__(self, status: int, detail: str, retry_after: int | None = None) -> None:
        assert status in TYPES, status
        super().__init__(detail)
        self.status, self.detail, self.retry_after = status, detail, retry_after

    def details(self, request_id: str) -> ProblemDetails:
        """The body of the answer."""
        named = {401: "authentication_error", 429: "rate_limit_error"}
        kind = named.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return ProblemDetails(
            type=f"urn:adamatch:problem:{TYPES[self.status]}",
            title=HTTPStatus(self.status).phrase,
            status=self.status,
            detail=self.detail,
            request_id=request_id,
            error=ErrorDetails(message=self.detail, type=kind, code=TYPES[self.status]),
        )

    def response(self, request_id: str) -> JSONResponse:
        """The whole answer."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        body = self.details(request_id).model_dump()
        return JSONResponse(body, self.status, headers, MEDIA_TYPE)


def responses(*statuses: int) -> dict[int | str, dict[str, object]]:
    """The error answers of an endpoint, for its OpenAPI description."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}
