"""MIMIC-CXR-JPG as PhysioNet lays it out, listed without opening an image or a report (docs/method.md 7).

    <root>/mimic-cxr-2.0.0-{split,metadata,chexpert,negbio}.csv[.gz]
    <root>/files/p10/p10000032/s50414267/<dicom_id>.jpg
    <reports root or root>/files/p10/p10000032/s50414267.txt

Ids keep the digits of the tables, as strings, without the letters of the folders: subject "10000032", study "50414267".
"""

from collections.abc import Iterator
from sys import intern

from adamatch_ray.data import sources, views
from adamatch_ray.data.sources import Exists, OpenFile, Row
from adamatch_ray.schema import CHEXPERT_LABELS

_PREFIX = "mimic-cxr-2.0.0-"
_WHERE = "it comes with MIMIC-CXR-JPG 2.0.0 or later, https://physionet.org/content/mimic-cxr-jpg/"
_UNLISTED = "image is not in the metadata table"

Labels = tuple[float | None, ...]


def list_mimic_cxr(
    root: str,
    reports_root: str | None = None,
    open_file: OpenFile = sources.open_file,
    exists: Exists = sources.exists,
) -> Iterator[Row]:
    """Yield one row of `schema.SOURCE` per image, in the order of the metadata table.

    `root` and `reports_root` (where the reports were unpacked, with or without its own `files/`) are local or URLs.
    The split is the official one. Labels are CheXpert's, NegBio's for a study that CheXpert's table does not have.
    Views other than PA and AP, and blank ones, have a reason. Raises ValueError naming a missing or unusable table.
    """
    tables = {name: _find(root, name, exists) for name in ("split", "metadata", "chexpert", "negbio")}
    for name in ("split", "metadata"):
        if not tables[name]:
            raise ValueError(f"no {_PREFIX}{name}.csv or .csv.gz in {root}; {_WHERE}")
    if not tables["chexpert"] and not tables["negbio"]:
        raise ValueError(f"no {_PREFIX}chexpert.csv or {_PREFIX}negbio.csv (or .csv.gz) in {root}; {_WHERE}")
    labels: dict[str, Labels] = {}
    for name in ("negbio", "chexpert"):  # the later one wins
        if tables[name]:
            labels.update(_labels(tables[name], open_file))
    splits = {
        row["dicom_id"]: (row["subject_id"], row["study_id"], intern(row["split"]))
        for row in _table(tables["split"], ("dicom_id", "subject_id", "study_id", "split"), open_file)
    }
    reports = _reports_folder(reports_root or root, exists)
    columns = ("dicom_id", "subject_id", "study_id", "ViewPosition")
    for row in _table(tables["metadata"], columns, open_file):
        _, _, split = splits.pop(row["dicom_id"], ("", "", ""))
        view = row["ViewPosition"].strip()
        reason = views.view_problem(view, blank_is_frontal=False)
        if not split:
            reason = "image is not in the split table"
        elif sources.normalise_split(split) is None:
            reason = f"{sources.UNKNOWN_SPLIT} {split[:16]}"
        yield _row(root, reports, row["subject_id"], row["study_id"], row["dicom_id"], labels) | {
            "view_position": view,
            "split": sources.normalise_split(split) or "",
            "reason": reason,
        }
    for dicom_id, (subject, study, split) in splits.items():
        changes = {"split": sources.normalise_split(split) or "", "reason": _UNLISTED}
        yield _row(root, reports, subject, study, dicom_id, labels) | changes


def _row(root: str, reports: str, subject: str, study: str, dicom_id: str, labels: dict[str, Labels]) -> Row:
    folder = f"p{subject[:2]}/p{subject}"
    found = labels.get(study)
    return sources.source_row(
        study_id=study,
        subject_id=subject,
        dicom_id=dicom_id,
        image_path=sources.join(root, "files", folder, f"s{study}", f"{dicom_id}.jpg"),
        report_path=sources.join(reports, folder, f"s{study}.txt"),
        labels=None if found is None else list(found),
        source="mimic_cxr",
    )


def _find(root: str, name: str, exists: Exists) -> str:
    paths = (sources.join(root, f"{_PREFIX}{name}.csv{ending}") for ending in ("", ".gz"))
    return next((path for path in paths if exists(path)), "")


def _reports_folder(root: str, exists: Exists) -> str:
    """The folder with p10 .. p19: `files/` of the given one, or itself where it has no `files/`."""
    inner = sources.join(root, "files")
    return inner if exists(inner) else root


def _table(path: str, columns: tuple[str, ...], open_file: OpenFile) -> Iterator[dict[str, str]]:
    for number, row in enumerate(sources.read_csv(path, open_file)):
        if number == 0 and (missing := [column for column in columns if column not in row]):
            raise ValueError(f"{path} has no column {', '.join(missing)}; it has {', '.join(row)}")
        yield row


def _labels(path: str, open_file: OpenFile) -> Iterator[tuple[str, Labels]]:
    shared: dict[Labels, Labels] = {}  # a quarter million studies have a few thousand different label sets
    for row in _table(path, ("study_id", *CHEXPERT_LABELS), open_file):
        cells = [row[name].strip() for name in CHEXPERT_LABELS]
        try:
            values = tuple(float(cell) if cell else None for cell in cells)
        except ValueError:
            raise ValueError(f"{path}, study {row['study_id']}: labels are 1.0, 0.0, -1.0 or blank") from None
        yield row["study_id"], shared.setdefault(values, values)
