"""Studies with known places to rows of `metrics.localization`: phantoms by their boxes, MS-CXR by its phrases."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from adamatch_ray.data import loading
from adamatch_ray.data.images import decode_png
from adamatch_ray.data.phantom_report import FINDING_WORDS
from adamatch_ray.data.phrase_boxes import PhraseAnnotation
from adamatch_ray.engines.matching import Match, MatchingEngine
from adamatch_ray.geometry import CanvasImage
from adamatch_ray.metrics.localization import LocalizedPhrase, locate
from adamatch_ray.storage import Stage

COLUMNS = ["study_id", "dicom_id", "report", "image", "height", "width", "boxes"]


def localize_split(engine: MatchingEngine, studies: Stage, split: str, batch_size: int = 64) -> list[LocalizedPhrase]:
    """Every mention of a finding that a study of the split has a box of, each a row; none without such boxes."""
    rows: list[LocalizedPhrase] = []
    for batch in _batches(studies, split, batch_size):
        batch = [study for study in batch if study["boxes"]]
        matches = engine.match([canvas_image(study) for study in batch], [study["report"] for study in batch])
        for study, match in zip(batch, matches, strict=True):
            rows += _mentions(study, match)
    return rows


def localize_phrases(
    engine: MatchingEngine, studies: Stage, split: str, annotations: Sequence[PhraseAnnotation], batch_size: int = 64
) -> list[LocalizedPhrase]:
    """Each annotation whose image the split has, a row; the phrase is read alone, its map is the mean of its words'."""
    phrases: dict[str, list[PhraseAnnotation]] = {}
    for annotation in annotations:
        phrases.setdefault(annotation.dicom_id, []).append(annotation)
    rows: list[LocalizedPhrase] = []
    for batch in _batches(studies, split, batch_size):
        pairs = [(study, phrase) for study in batch for phrase in phrases.get(study["dicom_id"], ())]
        matches = engine.match([canvas_image(study) for study, _ in pairs], [phrase.phrase for _, phrase in pairs])
        for (study, phrase), match in zip(pairs, matches, strict=True):
            if match.words:
                size = study["height"], study["width"]
                score = locate(match.similarity_NP.mean(0), match.boxes_P4, phrase.boxes_on(*size), *size)
                rows.append(LocalizedPhrase(study["study_id"], phrase.finding, phrase.phrase, score))
    return rows


def canvas_image(study: dict[str, Any]) -> CanvasImage:
    """The image of a row of `schema.STUDY`."""
    return CanvasImage(decode_png(study["image"]), study["height"], study["width"])


def _batches(studies: Stage, split: str, size: int) -> Iterator[list[dict[str, Any]]]:
    for table in loading.read_split(studies, split, COLUMNS):
        for start in range(0, table.num_rows, size):
            yield table.slice(start, size).to_pylist()


def _mentions(study: dict[str, Any], match: Match) -> Iterator[LocalizedPhrase]:
    """Words that denote a box of the study. Reports deny only what is absent, so each is a finding that is there."""
    truth: dict[str, list[list[float]]] = {}
    for box in study["boxes"]:
        truth.setdefault(box["name"], []).append([box["x0"], box["y0"], box["x1"], box["y1"]])
    words = [word.lower() for word in match.words]
    spelled = np.array([any(c.isalpha() for c in word) for word in words], dtype=bool)
    for finding, boxes in truth.items():
        named = np.array([word in FINDING_WORDS[finding] for word in words], dtype=bool)
        for n in np.flatnonzero(named):
            score = locate(
                match.similarity_NP[n],
                match.boxes_P4,
                boxes,
                study["height"],
                study["width"],
                match.similarity_NP[spelled & ~named],
            )
            yield LocalizedPhrase(study["study_id"], finding, words[n], score)
