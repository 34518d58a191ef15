"""A match of words and regions, as the protocol tells it."""

from typing import TYPE_CHECKING

from adamatch_ray.geometry import CanvasImage
from serve.protocol import Box, ImageSize, MatchResponse, Phrase, Region, Word

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from adamatch_ray.engines.matching import Match


def match_response(match: "Match", image: CanvasImage, report: str) -> MatchResponse:
    """Every word with its region and its best patch, and all similarities."""
    similarity_NP = match.similarity_NP
    regions = {id(region): region for region in match.regions if region is not None}
    number = {key: n for n, key in enumerate(regions)} | {id(None): -1}
    boxes = _boxes(match.boxes_P4)
    words, cursor = [], 0
    for text, row, region in zip(match.words, similarity_NP, match.regions, strict=True):
        start = report.lower().find(text.lower(), cursor)
        end = cursor = start + len(text) if start >= 0 else cursor
        patch = int(row.argmax())
        words.append(
            Word(text=text, start=start, end=end if start >= 0 else -1, patch=patch,
                 score=round(float(row[patch]), 4), box=boxes[patch], region=number[id(region)])
        )  # fmt: skip
    return MatchResponse(
        report=report,
        image=ImageSize(width=image.width, height=image.height),
        words=words,
        phrases=[
            Phrase(
                finding=p.finding,
                text=p.text,
                words=list(p.words),
                denied=p.denied,
                groundable=p.groundable,
                confidence=round(p.confidence, 4),
                region=number[id(p.region)],
            )
            for p in match.phrases
        ],
        regions=[
            Region(point=region.point, box=region.box, outline=region.outline(image.height, image.width))
            for region in regions.values()
        ],
        boxes=boxes,
        fixed_boxes=_boxes(match.fixed_boxes_P4),
        similarity=[[round(float(value), 4) for value in row] for row in similarity_NP],
        text_to_image=round(float(similarity_NP.max(1).mean()), 4) if similarity_NP.size else 0.0,
        image_to_text=round(float(similarity_NP.max(0).mean()), 4) if similarity_NP.size else 0.0,
    )


def _boxes(boxes_P4: "NDArray[np.float32]") -> list[Box]:
    return [(x0, y0, x1, y1) for x0, y0, x1, y1 in boxes_P4.astype(float).round(1).tolist()]
