"""What the page of results is made from, beside the figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from adamatch_ray.data.facts import Marks
from adamatch_ray.data.images import BadImage, decode_png, encode_png
from adamatch_ray.data.predictions import Encoded, load_canvas
from adamatch_ray.evaluation.images import ImageScore
from adamatch_ray.evaluation.memorisation import CopyRow
from adamatch_ray.evaluation.reports import StudyScore
from adamatch_ray.evaluation.split import Placed, Split


@dataclass
class Material:
    """Reports and images of a split by study; a part that was not scored stays empty.

    `marks`: what the classifier sees in images, by kind ("generated", "second_image", "real") and study.
    """

    split: Split
    reports: Placed[str] | None = None
    report_rows: Sequence[StudyScore] = ()
    images: Placed[Encoded] | None = None
    image_rows: Sequence[ImageScore] = ()
    points: dict[str, Any] | None = None
    second_reports: Placed[str] | None = None
    second_images: Placed[Encoded] | None = None
    marks: Mapping[str, Mapping[str, Marks]] = field(default_factory=dict)
    copies: Sequence[CopyRow] = ()
    canvas: int = field(init=False)

    def __post_init__(self) -> None:
        self.canvas = decode_png(self.split.studies[0].image).shape[0]
        self.study_of = {study.id: study for study in self.split.studies}


def thumbnail(image: Encoded | None, canvas: int) -> bytes | None:
    """An image on the canvas as a PNG; None where there is none to be read."""
    try:
        return None if image is None else encode_png(load_canvas(image, canvas))
    except BadImage:
        return None
