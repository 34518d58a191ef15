"""What every source of studies shares: rows of `schema.SOURCE`, splits by subject, local or remote."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO, cast

from adamatch_ray.filesystems import open_filesystem
from adamatch_ray.schema import CHEXPERT_LABELS, SOURCE

Row = dict[str, Any]
Labels = tuple[float | None, ...]
"""One value for each of CHEXPERT_LABELS: 1 present, 0 absent, -1 uncertain, None not mentioned."""

UNKNOWN_SPLIT = "unknown split"
_SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validate", "validation", "valid", "val", "dev"), "validate"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_ABSOLUTE = re.compile(r"/|~|[A-Za-z]:/")


def subject_split(subject_id: str, seed: int, fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)) -> str:
    """train, validate or test, drawn from a hash of (seed, subject): all of a subject's studies fall together.

    `fractions` are those of train, validate and test; they sum to 1. The draw needs no list of subjects, so more data
    leaves the split of the old as it is.
    """
    if min(fractions) < 0 or abs(sum(fractions) - 1.0) > 1e-6:
        raise ValueError(f"split fractions {fractions}: they must be at least 0 and sum to 1")
    digest = hashlib.sha256(f"{seed}|{subject_id}".encode()).digest()
    draw = int.from_bytes(digest[:8]) / 2.0**64
    if draw < fractions[0]:
        return "train"
    return "validate" if draw < fractions[0] + fractions[1] else "test"


def normalise_split(name: str) -> str | None:
    """A data set's own word for a split as one of `schema.SPLITS`; None for a word that is none of them."""
    return _SPLIT_NAMES.get(name.strip().lower())


def source_row(**values: Any) -> Row:
    """A row with every column of `schema.SOURCE`: those given, empty strings, and no labels."""
    row: Row = {name: None if name == "labels" else "" for name in SOURCE.names}
    assert values.keys() <= row.keys(), values.keys() - row.keys()
    return {**row, **values}


def label_values(cells: Mapping[str, Any], place: str) -> Labels:
    """The 14 labels of a table's row, by column. Raises ValueError, naming the place, for a cell that is none."""
    texts = [str(cells[name]).strip() for name in CHEXPERT_LABELS]
    try:
        values = tuple(float(cell.replace(",", ".")) if cell else None for cell in texts)
    except ValueError:
        values = (2.0,)
    if not {*values} <= {1.0, 0.0, -1.0, None}:
        raise ValueError(f"{place}: labels are 1.0, 0.0, -1.0 or blank")
    return values


def is_remote(path: str) -> bool:
    """Whether a path is a URL such as s3://bucket/key."""
    return "://" in path


def open_file(path: str) -> BinaryIO:
    """Open a local path or a URL for reading bytes."""
    filesystem, inner = open_filesystem(path)
    return cast(BinaryIO, filesystem.open(inner, "rb"))


def exists(path: str) -> bool:
    """Whether a file or folder is there."""
    filesystem, inner = open_filesystem(path)
    return bool(filesystem.exists(inner))


def list_names(folder: str) -> list[str]:
    """Names (not paths) in a folder, sorted; none where there is no such folder. One request, whatever the size."""
    filesystem, inner = open_filesystem(folder)
    paths = filesystem.ls(inner, detail=False) if filesystem.isdir(inner) else []
    return sorted(str(path).rstrip("/").rsplit("/", 1)[-1] for path in paths)


def locate(folder: str, name: str) -> str:
    """Where a file that a table names lies: in `folder`, unless the name says a place of its own. Empty stays empty."""
    if not name or is_remote(name):
        return name
    name = name.replace("\\", "/")  # Windows wrote it
    return name if _ABSOLUTE.match(name) else join(folder, name.removeprefix("./"))


def image_stem(name: str) -> str:
    """Name of an image file without its folders and its ending, of whichever system the path is."""
    return name.replace("\\", "/").rsplit("/", 1)[-1].rsplit(".", 1)[0]


def first_that_exists(choices: Iterable[str]) -> str:
    """The first of some paths that is there, or an empty string."""
    return next((path for path in choices if exists(path)), "")


def join(folder: str, *parts: str) -> str:
    """Path of something in a folder, local or remote."""
    return "/".join([folder.rstrip("/") if len(folder) > 1 else folder, *parts])
