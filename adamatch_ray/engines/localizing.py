"""Studies with known places to rows of `metrics.localization`: phantoms by their boxes, MS-CXR by its phrases."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from adamatch_ray.data import loading
from adamatch_ray.data.images import decode_png
from adamatch_ray.data.phantom_report import FINDING_WORDS
from adamatch_ray.data.phrase_boxes import PhraseAnnotation
from adamatch_ray.engines.matching import Match, MatchingEngine
from adamatch_ray.engines.placing import Phrase
from adamatch_ray.engines.regions import Region
from adamatch_ray.geometry import CanvasImage
from adamatch_ray.metrics.localization import LocalizedPhrase, Pointed, locate
from adamatch_ray.storage import Stage

COLUMNS = ["study_id", "dicom_id", "report", "image", "height", "width", "boxes"]

_NAMED = {word: finding for finding, words in FINDING_WORDS.items() for word in words}


@dataclass
class Located:
    """What a split tells: a row for each phrase whose place is known, and how the engine does where nothing is seen.

    shown, lacks: confidence in phrases whose finding the image shows, and in those of other reports whose it does not.
    denied: words that name a finding the image lacks, in its own report; denied_placed: those that were given a region.
    unplaced: words that name a finding the image has, and were given none.
    """

    rows: list[LocalizedPhrase] = field(default_factory=list)
    shown: list[float] = field(default_factory=list)
    lacks: list[float] = field(default_factory=list)
    denied: int = 0
    denied_placed: int = 0
    unplaced: int = 0


def localize_split(engine: MatchingEngine, studies: Stage, split: str, batch_size: int = 64) -> Located:
    """Every mention of a finding that a study of the split has a box of, each a row; none without such boxes."""
    found = Located()
    for batch in _batches(studies, split, batch_size):
        batch = [study for study in batch if study["boxes"]]
        images, reports = [canvas_image(study) for study in batch], [study["report"] for study in batch]
        for study, match in zip(batch, engine.match(images, reports), strict=True):
            _mentions(study, match, found)
        strange = reports[1:] + reports[:1]  # each image with the next one's report
        for study, match in zip(batch, engine.match(images, strange), strict=True):
            drawn = {box["name"] for box in study["boxes"]}
            names = [(phrase, _finding(match, phrase)) for phrase in match.phrases if not phrase.denied]
            found.lacks += [phrase.confidence for phrase, name in names if name and name not in drawn]
    return found


def localize_phrases(
    engine: MatchingEngine, studies: Stage, split: str, annotations: Sequence[PhraseAnnotation], batch_size: int = 64
) -> Located:
    """Each annotation whose image the split has, a row; the phrase is read alone.

    Its region is that of the first finding that it names, else that of its best word; its map, without a place head's,
    is the mean of its words'.
    """
    phrases: dict[str, list[PhraseAnnotation]] = {}
    for annotation in annotations:
        phrases.setdefault(annotation.dicom_id, []).append(annotation)
    found = Located()
    for batch in _batches(studies, split, batch_size):
        pairs = [(study, phrase) for study in batch for phrase in phrases.get(study["dicom_id"], ())]
        matches = engine.match([canvas_image(study) for study, _ in pairs], [phrase.phrase for _, phrase in pairs])
        for (study, phrase), match in zip(pairs, matches, strict=True):
            named = next((named for named in match.phrases if named.region), None)
            best = int(match.similarity_NP.max(1).argmax()) if match.words else 0
            region = named.region if named else match.regions[best] if match.words else None
            if region is not None:
                size = study["height"], study["width"]
                mean_P, boxes = match.similarity_NP.mean(0), phrase.boxes_on(*size)
                score = locate(mean_P, match.boxes_P4, boxes, *size, _pointed(region))
                shown = named.groundable if named else True
                found.rows.append(LocalizedPhrase(study["study_id"], phrase.finding, phrase.phrase, shown, score))
    return found


def canvas_image(study: dict[str, Any]) -> CanvasImage:
    """The image of a row of `schema.STUDY`."""
    return CanvasImage(decode_png(study["image"]), study["height"], study["width"])


def _batches(studies: Stage, split: str, size: int) -> Iterator[list[dict[str, Any]]]:
    return (part.to_pylist() for part in loading.read_parts(studies, split, size, COLUMNS))


def _mentions(study: dict[str, Any], match: Match, found: Located) -> None:
    """Words that denote a box of the study, each a row. Reports deny only what is absent, so the others are denied."""
    truth: dict[str, list[list[float]]] = {}
    for box in study["boxes"]:
        truth.setdefault(box["name"], []).append([box["x0"], box["y0"], box["x1"], box["y1"]])
    names = [_NAMED.get(word.lower(), "") for word in match.words]
    phrase_of = {n: phrase for phrase in match.phrases for n in phrase.words}
    for n, name in enumerate(names):
        region, phrase = match.regions[n], phrase_of.get(n)
        if name and name not in truth:
            found.denied += 1
            found.denied_placed += region is not None
        elif name and region is None:
            found.unplaced += 1
        elif name and region is not None:
            others = [
                other.point
                for other, called, word in zip(match.regions, names, match.words, strict=True)
                if other is not None and called != name and any(c.isalpha() for c in word)
            ]
            size = study["height"], study["width"]
            boxes = match.similarity_NP[n], match.boxes_P4, truth[name]
            score = locate(*boxes, *size, _pointed(region), others)
            groundable = phrase is None or phrase.groundable
            found.rows.append(LocalizedPhrase(study["study_id"], name, match.words[n].lower(), groundable, score))
            if phrase is not None:
                found.shown.append(phrase.confidence)


def _finding(match: Match, phrase: Phrase) -> str:
    """The name that phantoms give what a phrase names; empty where they draw nothing of the kind."""
    return next((_NAMED[word] for n in phrase.words if (word := match.words[n].lower()) in _NAMED), "")


def _pointed(region: Region) -> Pointed:
    return Pointed(region.point, region.box, region.heat)
