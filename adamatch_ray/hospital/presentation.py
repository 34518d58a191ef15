"""The regions of a report's findings as a grayscale softcopy presentation state, which viewers lay over the image."""

from collections.abc import Iterator, Sequence

import numpy as np
from highdicom import PresentationLUTTransformation
from highdicom.color import CIELabColor
from highdicom.pr import (
    AnnotationUnitsValues,
    GraphicAnnotation,
    GraphicLayer,
    GraphicObject,
    GraphicTypeValues,
    GrayscaleSoftcopyPresentationState,
    TextObject,
)
from pydicom import Dataset

from adamatch_ray.engines.placing import Phrase
from adamatch_ray.engines.regions import Region
from adamatch_ray.hospital.source import NOTICE, PRODUCT, document_fields

_YELLOW = CIELabColor(97.1, -21.6, 94.5)
_NOTICE_BOX = (0.0, 0.0, 1.0, 0.04)  # of the displayed area


def presentation_state(header: Dataset, phrases: Sequence[Phrase], version: str) -> GrayscaleSoftcopyPresentationState:
    """An overlay for the image that `header` (`source.read_header`) is of, by models of a version.

    Each region that the image shows is outlined and named; what it is good for is written across the top.
    """
    layer = GraphicLayer("FINDINGS", order=1, description=f"{PRODUCT}: {NOTICE}", display_color=_YELLOW)
    regions = _named_regions(phrases)
    lines = [line for region, _ in regions for line in _lines(region, header)]
    names = [TextObject(name, AnnotationUnitsValues.PIXEL, anchor_point=region.box[:2]) for region, name in regions]
    notice = TextObject(f"{PRODUCT}: {NOTICE}", AnnotationUnitsValues.DISPLAY, _NOTICE_BOX, text_justification="LEFT")
    state = GrayscaleSoftcopyPresentationState(
        referenced_images=[header],
        content_label="FINDINGS",
        content_description=f"{PRODUCT}: {NOTICE}",
        graphic_layers=[layer],
        graphic_annotations=[
            GraphicAnnotation([header], layer, graphic_objects=lines or None, text_objects=[*names, notice])
        ],
        # MONOCHROME1 says that the least value is white; in a presentation state that is said here.
        presentation_lut_transformation=PresentationLUTTransformation(
            "INVERSE" if header.PhotometricInterpretation == "MONOCHROME1" else "IDENTITY"
        ),
        **document_fields(header, "PR", version),
    )
    state.BodyPartExamined = "CHEST"
    if "SoftcopyVOILUTSequence" in header:
        state.SoftcopyVOILUTSequence = header.SoftcopyVOILUTSequence
    return state


def _named_regions(phrases: Sequence[Phrase]) -> list[tuple[Region, str]]:
    """Each region once, with the finding that is seen there; mentions of one finding share a region."""
    shown = {p.finding: p.region for p in phrases if p.groundable and p.region is not None}
    return [(region, finding) for finding, region in shown.items()]


def _lines(region: Region, header: Dataset) -> Iterator[GraphicObject]:
    for ring in region.outline(header.Rows, header.Columns):
        yield GraphicObject(GraphicTypeValues.POLYLINE, np.array(ring), AnnotationUnitsValues.PIXEL)
