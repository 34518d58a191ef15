"""Bodies of requests to checked values: multipart forms with one image, or JSON. Nothing of them touches a disk."""

import re
from typing import Any, TypeVar
from urllib.parse import quote, unquote

from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from serve.problems import Problem

Fields = TypeVar("Fields", bound=BaseModel)

SCHEMA = "#/components/schemas/{model}"
FORM, JSON = "multipart/form-data", "application/json"
_MAX_FIELD = 1 << 20
_QUALITY = re.compile(r"0(?:\.\d{0,3})?|1(?:\.0{0,3})?")
_EXTENDED_NAME = re.compile(rb"""filename\*\s*=\s*"?[\w-]*'[\w-]*'([^;"]*)"?""", re.IGNORECASE)
_FORM_FAULTS = (
    ("boundary", "its content type has no boundary"),
    ("Too many files", "it has more than one file"),
    ("Too many fields", "it has too many fields"),
    ("exceeded", "a field is too long"),
)


class _Parser(MultiPartParser):
    """Starlette's, which takes a part for a file by `filename` alone: `filename*=` (RFC 5987) says so too."""

    def on_header_end(self) -> None:
        if self._current_partial_header_name.lower() == b"content-disposition":
            value = self._current_partial_header_value
            if b"filename=" not in value.lower() and (found := _EXTENDED_NAME.search(value)):
                self._current_partial_header_value = value + b'; filename="%s"' % quote(unquote(found[1])).encode()
        super().on_header_end()


def media_type(request: Request) -> str:
    """The content type of a request, without its parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def prefers(request: Request, offered: str) -> bool:
    """Whether a client would rather have `offered` than JSON (RFC 9110, 12.5.1): named, and of higher quality.

    Where both are equal the one that is named by the more specific range, then first, is meant; where nothing is said
    it is JSON. What accepts neither gets JSON as well, which the standard allows.
    """
    ranges = []
    for place, part in enumerate(",".join(request.headers.getlist("accept")).split(",")):
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        said = [value.strip() for key, _, value in (p.partition("=") for p in parameters) if key.strip() == "q"]
        quality = float(said[0]) if said and _QUALITY.fullmatch(said[0]) else 1.0
        ranges.append((name, quality, -place))

    def wanted(kind: str) -> tuple[float, int, int]:
        names = (kind, f"{kind.partition('/')[0]}/*", "*/*")
        fits = [(2 - names.index(name), quality, place) for name, quality, place in ranges if name in names]
        specific, quality, place = max(fits, default=(-1, 0.0, 0))
        return (quality, specific, place) if quality else (0.0, -1, 0)

    return wanted(offered) > wanted(JSON) and wanted(offered)[0] > 0


async def read_form(request: Request, fields: type[Fields], max_chars: int) -> tuple[bytes, Fields]:
    """The file part `image` and the other fields of a form. Raises Problem 400, 415 or 422."""
    if media_type(request) != FORM:
        raise Problem(415, f"send {FORM} with the X-ray as part 'image'")
    parser = _Parser(request.headers, request.stream(), max_files=1, max_fields=8, max_part_size=_MAX_FIELD)
    parser.spool_max_size = 1 << 40  # the body is in memory already and bounded: an X-ray does not go to a disk
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise Problem(400, f"the form cannot be read: {_said(error)}") from error
    values: dict[str, str] = {}
    image: bytes | None = None
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            if name != "image":
                raise Problem(422, "the only file is the X-ray, as part 'image'")
            image = await value.read()
            await value.close()
        elif name in values:
            raise Problem(422, "a field is given twice")
        else:
            values[name] = value
    if image is None:
        raise Problem(422, "part 'image' is missing: send the X-ray as a file")
    try:
        return image, _checked(fields.model_validate(values), max_chars)
    except ValidationError as error:
        raise invalid(error) from error


async def read_json(request: Request, fields: type[Fields], max_chars: int) -> Fields:
    """The JSON body of a request. Raises Problem 400, 415 or 422."""
    if media_type(request) != JSON:
        raise Problem(415, f"send {JSON}")
    try:
        return _checked(fields.model_validate_json(await request.body()), max_chars)
    except ValidationError as error:
        raise invalid(error) from error


def _said(error: MultiPartException) -> str:
    return next((said for sign, said in _FORM_FAULTS if sign in error.message), "it is cut short")


def invalid(error: ValidationError) -> Problem:
    """A failed check as a problem that names fields and rules, never values."""
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    if any(fault["type"] == "json_invalid" for fault in faults):
        return Problem(400, "the body is not JSON")
    told = [": ".join([*(str(part)[:40] for part in fault["loc"][:1]), fault["msg"]]) for fault in faults[:4]]
    return Problem(422, "; ".join(told).replace("Value error, ", ""))


def body(*, form: type[BaseModel] | None = None, json: type[BaseModel] | None = None) -> dict[str, Any]:
    """OpenAPI of a request's body: a form with an image and these fields, a JSON object, or either."""
    content: dict[str, Any] = {}
    if form:
        schema = form.model_json_schema()
        image = {"type": "string", "format": "binary", "description": "JPEG, PNG or DICOM of a frontal chest X-ray"}
        schema["properties"] = {"image": image, **schema.get("properties", {})}
        schema["required"] = ["image", *schema.get("required", [])]
        content[FORM] = {"schema": schema}
    if json:
        content[JSON] = {"schema": {"$ref": SCHEMA.format(model=json.__name__)}}
    return {"requestBody": {"required": True, "content": content}}


def _checked(fields: Fields, max_chars: int) -> Fields:
    if len(getattr(fields, "report", "")) > max_chars:
        raise Problem(413, f"the report is longer than {max_chars} characters")
    return fields
