"""The pages' templates: text is escaped, and what they need (style, script, pictures) stands inside the page."""

import base64
from functools import cache
from typing import TYPE_CHECKING

from adamatch_ray.evaluation.headline import number

if TYPE_CHECKING:
    from jinja2 import Environment


def render(template: str, **values: object) -> str:
    """The page that a file of `templates/` makes of values; a name that it misses is an error."""
    return _environment().get_template(template).render(values) + "\n"


def data_uri(png: bytes) -> str:
    """A PNG as an address that needs no other file."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(__package__), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=StrictUndefined,
    )  # fmt: skip
    environment.filters |= {
        "data_uri": data_uri,
        "number": number,
        "px": lambda value: f"{value:.1f}",
        "points": lambda corners: " ".join(f"{x:.1f},{y:.1f}" for x, y in corners),
    }
    return environment
