"""MIMIC-CXR as PhysioNet lays it out, listed without opening an image or a report (docs/method.md 7).

    <root>/mimic-cxr-{2.1.0,2.0.0}-{split,metadata,chexpert,negbio}.csv[.gz]
    <root>/files/p10/p10000032/s50414267/<dicom_id>.{jpg,dcm,png}
    <reports root or root>/files/p10/p10000032/s50414267.txt

Ids keep the digits of the tables, as strings, without the letters of the folders: subject "10000032", study "50414267".
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from sys import intern

from adamatch_ray.data import sources, tables, views
from adamatch_ray.data.sources import Labels, Row
from adamatch_ray.schema import CHEXPERT_LABELS

_PREFIXES = ("mimic-cxr-2.1.0-", "mimic-cxr-2.0.0-")
_PREFIX = _PREFIXES[-1]
_LETTERS = {"subject_id": "p", "study_id": "s"}
_ENDINGS = (".jpg", ".dcm", ".png")
_GROUP = re.compile(r"p\d\d")
_LOOKED_AT = 20
"""Images that are looked for to learn which ending they have; subjects among whom a report is looked for."""
_WHERE = "it comes with MIMIC-CXR-JPG 2.0.0 or later, https://physionet.org/content/mimic-cxr-jpg/"
_UNLISTED = "image is not in the metadata table"


def check_mimic_cxr(root: str, reports_root: str | None = None) -> None:
    """Raises ValueError, naming what to add, where a table is missing or none of the first subjects has a report.

    MIMIC-CXR-JPG comes without reports; a run would list its images for a minute and then refuse each of them.
    """
    _tables_of(root)
    files = _files_of(reports_root or root)
    groups = (name for name in sources.list_names(files) if _GROUP.fullmatch(name))
    subjects = (sources.join(files, group, name) for group in groups
                for name in sources.list_names(sources.join(files, group)))  # fmt: skip
    for subject in islice(subjects, _LOOKED_AT):
        if any(name.endswith(".txt") for name in sources.list_names(subject)):
            return
    raise ValueError(
        f"no report s….txt in {sources.join(files, 'p10/p10000032')} or its neighbours: unpack mimic-cxr-reports.zip "
        "of MIMIC-CXR, and name its folder as --data.reports"
    )


def list_mimic_cxr(root: str, reports_root: str | None = None) -> Iterator[Row]:
    """Yield one row of `schema.SOURCE` per image, in the order of the metadata table.

    `root` and `reports_root` (where the reports were unpacked, with or without its own `files/`) are local or URLs.
    The split is the official one. Labels are CheXpert's, NegBio's for a study that CheXpert's table does not have.
    Views other than PA and AP, and blank ones, have a reason. Raises ValueError naming a missing or unusable table.
    """
    tables_of = _tables_of(root)
    labels: dict[str, Labels] = {}
    for name in ("negbio", "chexpert"):  # the later one wins
        if tables_of[name]:
            labels.update(_labels(tables_of[name]))
    splits = {
        row["dicom_id"]: (row["subject_id"], row["study_id"], intern(row["split"]))
        for row in _table(tables_of["split"], ("dicom_id", "subject_id", "study_id", "split"))
    }
    images, reports = (_files_of(folder) for folder in (root, reports_root or root))
    placed = _Places(images, _ending(images, splits), reports, labels)
    columns = ("dicom_id", "subject_id", "study_id", "ViewPosition")
    for row in _table(tables_of["metadata"], columns):
        _, _, split = splits.pop(row["dicom_id"], ("", "", ""))
        view = row["ViewPosition"]
        reason = views.view_problem(view, blank_is_frontal=False)
        if not split:
            reason = "image is not in the split table"
        elif sources.normalise_split(split) is None:
            reason = f"{sources.UNKNOWN_SPLIT} {split[:16]}"
        yield placed.row(row["subject_id"], row["study_id"], row["dicom_id"]) | {
            "view_position": view,
            "split": sources.normalise_split(split) or "",
            "reason": reason,
        }
    for dicom_id, (subject, study, split) in splits.items():
        changes = {"split": sources.normalise_split(split) or "", "reason": _UNLISTED}
        yield placed.row(subject, study, dicom_id) | changes


@dataclass(frozen=True)
class _Places:
    """Where the files of an image are, and what is known of its study."""

    images: str
    ending: str
    reports: str
    labels: dict[str, Labels]

    def row(self, subject: str, study: str, dicom_id: str) -> Row:
        labels = self.labels.get(study)
        return sources.source_row(
            study_id=study,
            subject_id=subject,
            dicom_id=dicom_id,
            image_path=_image_path(self.images, subject, study, dicom_id, self.ending),
            report_path=sources.join(self.reports, f"p{subject[:2]}/p{subject}", f"s{study}.txt"),
            labels=None if labels is None else list(labels),
            source="mimic_cxr",
        )


def _image_path(folder: str, subject: str, study: str, dicom_id: str, ending: str) -> str:
    return sources.join(folder, f"p{subject[:2]}/p{subject}", f"s{study}", dicom_id + ending)


def _ending(folder: str, images: dict[str, tuple[str, str, str]]) -> str:
    """The ending of the image files: MIMIC-CXR has DICOM, MIMIC-CXR-JPG has JPEG; a folder may hold some of them."""
    for dicom_id, (subject, study, _) in islice(images.items(), _LOOKED_AT):
        for ending in _ENDINGS:
            if sources.exists(_image_path(folder, subject, study, dicom_id, ending)):
                return ending
    return _ENDINGS[0]


def _tables_of(root: str) -> dict[str, str]:
    """Where each table is, "" for one that can be done without. Raises ValueError naming what is missing."""
    found = {name: _find(root, name) for name in ("split", "metadata", "chexpert", "negbio")}
    for name in ("split", "metadata"):
        if not found[name]:
            raise ValueError(f"no {_PREFIX}{name}.csv or .csv.gz in {root}; {_WHERE}")
    if not found["chexpert"] and not found["negbio"]:
        raise ValueError(f"no {_PREFIX}chexpert.csv or {_PREFIX}negbio.csv (or .csv.gz) in {root}; {_WHERE}")
    return found


def _find(root: str, name: str) -> str:
    endings = (".csv", ".csv.gz")
    names = (sources.join(root, f"{prefix}{name}{ending}") for prefix in _PREFIXES for ending in endings)
    return sources.first_that_exists(names)


def _files_of(root: str) -> str:
    """The folder with p10 .. p19: `files/` of the given one, or itself where it has no `files/`."""
    inner = sources.join(root, "files")
    return inner if sources.exists(inner) else root


def _table(path: str, columns: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """Rows as text, their ids as digits alone."""
    for number, row in enumerate(tables.read_table(path)):
        if number == 0:
            tables.require(path, row, *columns)
        cells = {name: tables.text(row.get(name, "")) for name in columns}
        yield {name: tables.identifier(cell, _LETTERS[name]) if name in _LETTERS else cell
               for name, cell in cells.items()}  # fmt: skip


def _labels(path: str) -> Iterator[tuple[str, Labels]]:
    shared: dict[Labels, Labels] = {}  # a quarter million studies have a few thousand different label sets
    for row in _table(path, ("study_id", *CHEXPERT_LABELS)):
        values = sources.label_values(row, f"{path}, study {row['study_id']}")
        yield row["study_id"], shared.setdefault(values, values)
