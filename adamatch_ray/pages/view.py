"""What one study of the gallery shows, as data: words, keywords and keypatches with their places."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from adamatch_ray.codebooks import VisualCodebook
from adamatch_ray.engines.localizing import canvas_image
from adamatch_ray.engines.matching import Box, Keypatch, Keyword, Match, MatchingEngine
from adamatch_ray.geometry import CanvasImage, box_iou

DRAWN = 4
"""Boxes drawn on a picture at once; a reader tells no more apart."""

_SAME = 0.6  # overlap above which two boxes would hide each other


Point = tuple[float, float]


class Mark(NamedTuple):
    """A word or keyword and where it was matched: adaptive and fixed box, in pixels of the original image.

    `outline` are the closed polygons around its region, in the same pixels; none where only the box is known.
    """

    text: str
    score: float
    box: Box
    fixed: Box
    outline: Sequence[Sequence[Point]] = ()


class Segment(NamedTuple):
    """A piece of a report as it stands there; a word has a mark, what is between words has none."""

    text: str
    mark: Mark | None


class Reference(NamedTuple):
    """A keypatch and its crop, a PNG."""

    keypatch: Keypatch
    crop: bytes


class StudyView(NamedTuple):
    """One study: everything in pixels of its original image; `truth` are known places by name, of phantoms."""

    study_id: str
    phantom: bool
    image: CanvasImage
    report: list[Segment]
    keywords: list[Mark]
    references: list[Reference]
    truth: list[tuple[str, Box]]

    @property
    def words(self) -> list[Mark]:
        """The marks of the report's words, in reading order."""
        return [segment.mark for segment in self.report if segment.mark]


def view_studies(
    engine: MatchingEngine, codebook: VisualCodebook, studies: Sequence[dict[str, Any]]
) -> list[StudyView]:
    """Views of rows of `schema.STUDY`. `codebook` is the engine's visual codebook, loaded with its crops."""
    images = [canvas_image(study) for study in studies]
    reports = [study["report"] for study in studies]
    matched = zip(
        engine.match(images, reports), engine.keywords(images, 12), engine.keypatches(reports, 5), strict=True
    )
    return [
        StudyView(
            study_id=study["study_id"],
            phantom=study["source"] == "phantom",
            image=image,
            report=_segments(study["report"], match, image),
            keywords=[_of_keyword(keyword, match) for keyword in keywords],
            references=[Reference(patch, codebook.table["crop"][patch.entry].as_py()) for patch in keypatches],
            truth=[(b["name"], (b["x0"], b["y0"], b["x1"], b["y1"])) for b in study["boxes"] or ()],
        )
        for study, image, (match, keywords, keypatches) in zip(studies, images, matched, strict=True)
    ]


def spotlight(marks: Sequence[Mark], telling: frozenset[str] = frozenset()) -> list[int]:
    """Numbers of the DRAWN marks of highest score that say something and do not hide each other, best first.

    `telling`: lower-case words that may be chosen; where none are given, any word of four letters.
    """
    chosen: list[int] = []
    for n in sorted(range(len(marks)), key=lambda n: (-marks[n].score, n)):
        word, others = marks[n].text.lower(), [marks[k] for k in chosen]
        speaks = word in telling if telling else len(word) > 3
        if speaks and all(word != o.text.lower() and _overlap(marks[n], o) < _SAME for o in others):
            chosen.append(n)
        if len(chosen) == DRAWN:
            break
    return chosen


def centre(box: Box) -> Point:
    """The middle of a box."""
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def drawn_box(box: Box, least: float) -> Box:
    """A box no smaller than `least` a side around its own middle, so that a box of no area is still seen."""
    x, y = centre(box)
    across, down = max(box[2] - box[0], least) / 2, max(box[3] - box[1], least) / 2
    return x - across, y - down, x + across, y + down


def picture(image: CanvasImage) -> Image.Image:
    """The image without the padding of its canvas; to be shown at the proportions of the original."""
    return Image.fromarray(np.ascontiguousarray(image.inner))


def _segments(report: str, match: Match, image: CanvasImage) -> list[Segment]:
    """The whole report, cut at its words; the words of a match stand in it in their order."""
    segments: list[Segment] = []
    end = 0
    for n, word in enumerate(match.words):
        start = report.find(word, end)
        if start < 0 or not any(character.isalpha() for character in word):
            continue
        patch = int(match.similarity_NP[n].argmax())
        region = match.regions[n]
        mark = Mark(
            word,
            float(match.similarity_NP[n, patch]),
            _box(match.boxes_P4[patch]),
            _box(match.fixed_boxes_P4[patch]),
            region.outline(image.height, image.width) if region else (),
        )
        segments += [Segment(report[end:start], None), Segment(word, mark)]
        end = start + len(word)
    return [segment for segment in [*segments, Segment(report[end:], None)] if segment.text]


def _of_keyword(keyword: Keyword, match: Match) -> Mark:
    return Mark(keyword.text, keyword.score, keyword.box, _box(match.fixed_boxes_P4[keyword.patch]))


def _overlap(a: Mark, b: Mark) -> float:
    """Of the boxes as they are seen: one of no area still takes room, half of its fixed patch's."""
    boxes = [np.array([drawn_box(mark.box, (mark.fixed[2] - mark.fixed[0]) / 2)]) for mark in (a, b)]
    return float(box_iou(*boxes)[0, 0])


def _box(corners_4: np.ndarray) -> Box:
    x0, y0, x1, y1 = corners_4.tolist()
    return x0, y0, x1, y1
