"""A presentation state as a viewer shows it, by pydicom alone: what is drawn where over which image."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw


def lines(state: Any) -> list[NDArray[np.float64]]:
    """Points [N, 2] (column, row) of every line, in pixels of the image."""
    objects = [line for note in state.GraphicAnnotationSequence for line in note.get("GraphicObjectSequence", ())]
    assert all(
        (o.GraphicAnnotationUnits, o.GraphicType, o.GraphicDimensions) == ("PIXEL", "POLYLINE", 2) for o in objects
    )
    return [np.array(line.GraphicData, dtype=np.float64).reshape(-1, 2) for line in objects]


def texts(state: Any) -> list[str]:
    """All that is written."""
    return [
        str(text.UnformattedTextValue) for note in state.GraphicAnnotationSequence for text in note.TextObjectSequence
    ]


def shown(image: Any, state: Any) -> Image.Image:
    """The image in the state's window, its annotations over it."""
    (series,) = state.ReferencedSeriesSequence
    (referenced,) = series.ReferencedImageSequence
    assert (series.SeriesInstanceUID, referenced.ReferencedSOPInstanceUID) == (
        image.SeriesInstanceUID,
        image.SOPInstanceUID,
    )
    (window,) = state.SoftcopyVOILUTSequence
    range_ = float(window.WindowWidth) - 1  # PS3.3 C.11.2.1.2.1
    low = float(window.WindowCenter) - 0.5 - range_ / 2
    gray = np.rint(np.clip((image.pixel_array.astype(float) - low) / range_ * 255, 0, 255))
    gray = 255 - gray if state.PresentationLUTShape == "INVERSE" else gray
    picture = Image.fromarray(gray.astype(np.uint8)).convert("RGB")
    pen = ImageDraw.Draw(picture)
    for line in lines(state):
        pen.line([tuple(point) for point in line.tolist()], fill=(255, 230, 0), width=1)
    for note in state.GraphicAnnotationSequence:
        for text in note.TextObjectSequence:
            at = text.get("AnchorPoint", text.get("BoundingBoxTopLeftHandCorner"))
            pen.text((float(at[0]), float(at[1])), str(text.UnformattedTextValue), fill=(255, 230, 0))
    return picture
