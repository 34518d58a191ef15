"""Bodies of requests to checked values: multipart forms with one image, or JSON. Nothing of them touches a disk."""

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from serve.problems import Problem

Fields = TypeVar("Fields", bound=BaseModel)

FORM, JSON = "multipart/form-data", "application/json"
_MAX_FIELD = 1 << 20


def media_type(request: Request) -> str:
    """The content type of a request, without its parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_form(request: Request, fields: type[Fields], max_chars: int) -> tuple[bytes, Fields]:
    """The file part `image` and the other fields of a form. Raises Problem 400, 415 or 422."""
    if media_type(request) != FORM:
        raise Problem(415, f"send {FORM} with the X-ray as part 'image'")
    parser = MultiPartParser(request.headers, request.stream(), max_files=1, max_fields=8, max_part_size=_MAX_FIELD)
    parser.spool_max_size = 1 << 40  # the body is in memory already and bounded: an X-ray does not go to a disk
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise Problem(400, "the form cannot be read: it is cut short, or has more than one file") from error
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


def invalid(error: ValidationError) -> Problem:
    """A failed check as a problem that names fields and rules, never values."""
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    if any(fault["type"] == "json_invalid" for fault in faults):
        return Problem(400, "the body is not JSON")
    told = [": ".join([*(str(part)[:40] for part in fault["loc"][:1]), fault["msg"]]) for fault in faults[:4]]
    return Problem(422, "; ".join(told).replace("Value error, ", ""))


def form_body(fields: type[BaseModel]) -> dict[str, Any]:
    """OpenAPI of a form with an image and these fields."""
    schema = fields.model_json_schema()
    image = {"type": "string", "format": "binary", "description": "JPEG, PNG or DICOM of a frontal chest X-ray"}
    schema["properties"] = {"image": image, **schema.get("properties", {})}
    schema["required"] = ["image", *schema.get("required", [])]
    return {FORM: {"schema": schema}}


def json_body(fields: type[BaseModel]) -> dict[str, Any]:
    """OpenAPI of a JSON body."""
    return {JSON: {"schema": fields.model_json_schema()}}


def _checked(fields: Fields, max_chars: int) -> Fields:
    if len(getattr(fields, "report", "")) > max_chars:
        raise Problem(413, f"the report is longer than {max_chars} characters")
    return fields
