"""The studies that are scored, and who of them has a prediction: nothing here ever leaves a study out."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Generic, NamedTuple, TypeVar

from adamatch_ray.data import loading
from adamatch_ray.data.labeler import Labels
from adamatch_ray.data.predictions import Key
from adamatch_ray.storage import Stage

Value = TypeVar("Value")


class Study(NamedTuple):
    """One image-report pair. `id` is the study's, with the image's behind it where a study has several images."""

    id: str
    key: Key
    report: str
    labels: Labels
    image: bytes


@dataclass(frozen=True)
class Placed(Generic[Value]):
    """Predictions by the id of the study they are for, and the ids that are on one side only."""

    values: dict[str, Value]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        return {
            "predicted": len(self.values),
            "missing": len(self.missing),
            "missing_ids": list(self.missing),
            "unexpected": len(self.unexpected),
            "unexpected_ids": list(self.unexpected),
        }


@dataclass(frozen=True)
class Split:
    """A split in stored order, images still encoded; a test split fits in memory that way."""

    name: str
    source: str
    studies: tuple[Study, ...]
    all_views: bool = False

    @property
    def is_phantom(self) -> bool:
        return self.source == "phantom"

    @property
    def label(self) -> str:
        """What the figures were measured on, in words that go beside them."""
        views = ", all views" if self.all_views else ""
        return self.source + views + (" (synthetic, not clinical)" if self.is_phantom else "")

    @cached_property
    def ids(self) -> tuple[str, ...]:
        return tuple(study.id for study in self.studies)

    @cached_property
    def reports(self) -> dict[str, str]:
        return {study.id: study.report for study in self.studies}

    def first(self, count: int) -> "Split":
        """The first `count` studies, all of them for 0."""
        return replace(self, studies=self.studies[: count or None])

    def named(self, ids: Collection[str], source: str) -> "Split":
        """The studies of these ids; a study may have several images. Raises ValueError where there is none."""
        kept = tuple(study for study in self.studies if study.key.study_id in ids)
        if not kept:
            raise ValueError(f"none of the {len(ids)} ids of {source} is a study of split {self.name}")
        return replace(self, studies=kept)

    def having(self, predictions: Mapping[Key, object]) -> "Split":
        """The studies that have a prediction; all of them where none has, so that `place` says why."""
        kept = tuple(study for study in self.studies if any(key in predictions for key in _keys(study)))
        return replace(self, studies=kept or self.studies)

    def place(self, predictions: Mapping[Key, Value]) -> Placed[Value]:
        """Match predictions with studies. One without an image id is for every image of its study.

        Raises ValueError where no id fits at all: such a file is of another split or another data set.
        """
        values = {s.id: predictions[key] for s in self.studies for key in _keys(s) if key in predictions}
        known = {key for study in self.studies for key in _keys(study)}
        strays = sorted("/".join(filter(None, key)) for key in predictions if key not in known)
        if predictions and not values:
            raise ValueError(
                f"none of the {len(predictions)} predicted ids is a study of split {self.name}: the first is "
                f"{strays[0]!r}, the split's first is {self.ids[0]!r}; check --evaluate.split and --evaluate.id_column"
            )
        return Placed(values, tuple(id for id in self.ids if id not in values), tuple(strays))


def _keys(study: Study) -> tuple[Key, Key]:
    """The keys a study's prediction may stand under; the second one wins."""
    return Key(study.key.study_id), study.key


def read(studies: Stage, split: str) -> Split:
    """Read a split of a finished `studies/`. Raises ValueError where it is unfinished or empty."""
    columns = ["study_id", "dicom_id", "report", "labels", "image"]
    rows = [row for table in loading.read_split(studies, split, columns) for row in table.to_pylist()]
    images = Counter(row["study_id"] for row in rows)
    found = []
    for row in rows:
        key = Key(row["study_id"], row["dicom_id"])
        name = key.study_id if images[key.study_id] == 1 else f"{key.study_id}/{key.dicom_id}"
        labels = tuple(row["labels"] or [None] * 14)
        found.append(Study(name, key, row["report"], labels, row["image"]))
    data = studies.require().config["data"]
    return Split(split, str(data["source"]), tuple(found), data.get("views") == "all")
