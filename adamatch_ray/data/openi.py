"""The Indiana University chest X-ray collection (Open-i) in the three layouts people have (docs/method.md 7).

    NLM     ecgen-radiology/<n>.xml, NLMCXR_png/<image id>.png
    R2Gen   annotation.json, images/<id>/0.png
    Kaggle  indiana_reports.csv, indiana_projections.csv, images/[images_normalized/]<filename>

One report is one patient. The published 2,912 / 772 split of 3,684 was never listed, so NLM and Kaggle draw one of that
size by subject: 79.05 % to train, 5 % of which is set aside as validate, the rest test. R2Gen keeps its own.
"""

import re
from collections.abc import Iterator
from xml.etree import ElementTree

from adamatch_ray.data import reports, sources, tables, views
from adamatch_ray.data.sources import Row

_TRAIN = 2912 / (2912 + 772)
FRACTIONS = (_TRAIN * 0.95, _TRAIN * 0.05, 1.0 - _TRAIN)
"""Shares of train, validate and test."""

_XML, _PNG, _PROJECTIONS = "ecgen-radiology", "NLMCXR_png", "indiana_projections.csv"
_MISSING, _NO_IMAGE, _NO_TEXT = "image file is missing", "no image in the report", "no findings or impression"


def list_openi(root: str, projections: str | None = None, seed: int = 0) -> Iterator[Row]:
    """Yield one row of `schema.SOURCE` per image, and one for a report that has none.

    Views come from `projections` (Kaggle's indiana_projections.csv), or from that file in `root` or its
    kaggle_layout/. An unknown view is blank and accepted; a lateral one, a missing image file and a report without
    findings and impression have a reason. Image folders are listed once; no file is looked up on its own.
    Raises ValueError where `root` has none of the layouts, or `projections` is not there.
    """
    if projections and not sources.exists(projections):
        raise ValueError(f"no projections table at {projections}")
    beside = (sources.join(root, _PROJECTIONS), sources.join(root, "kaggle_layout", _PROJECTIONS))
    projections = projections or sources.first_that_exists(beside)
    views = _views(projections) if projections else {}
    if sources.exists(sources.join(root, _XML)):
        return _nlm(root, views, seed)
    if sources.exists(sources.join(root, "annotation.json")):
        return _r2gen(root)
    if sources.exists(sources.join(root, "indiana_reports.csv")):
        return _kaggle(root, projections, views, seed)
    raise ValueError(f"{root} has neither {_XML}/ (NLM), annotation.json (R2Gen) nor indiana_reports.csv (Kaggle)")


def image_key(name: str) -> str:
    """The part that all forms of an image's name share: CXR1_1_IM-0001-4001, 1_IM-0001-4001.dcm.png, ..."""
    stem = re.sub(r"(\.dcm)?(\.png|\.jpg)?$", "", name.rsplit("/", 1)[-1], flags=re.IGNORECASE)
    stem = re.sub(r"^CXR", "", stem, flags=re.IGNORECASE)
    return re.sub(r"^(\d+)_\d+_(?=IM)", r"\1_", stem)


def _views(path: str) -> dict[str, str]:
    views = {}
    for row in tables.read_table(path):
        tables.require(path, row, "filename", "projection")
        views[image_key(tables.text(row["filename"]))] = tables.text(row["projection"])
    return views


def _nlm(root: str, views: dict[str, str], seed: int) -> Iterator[Row]:
    stored = set(sources.list_names(sources.join(root, _PNG)))
    for name in sorted(sources.list_names(sources.join(root, _XML)), key=_by_number):
        if not name.endswith(".xml"):
            continue
        with sources.open_file(sources.join(root, _XML, name)) as stream:
            try:
                report = ElementTree.parse(stream).getroot()
            except ElementTree.ParseError:
                number = name.removesuffix(".xml")
                yield _study(f"CXR{number}", seed, "", "") | {"reason": "report is not readable XML"}
                continue
        identity = report.find("uId")
        study = (identity.get("id") if identity is not None else None) or f"CXR{name.removesuffix('.xml')}"
        row = _study(study, seed, _section(report, "FINDINGS"), _section(report, "IMPRESSION"))
        images = [image for element in report.iter("parentImage") if (image := (element.get("id") or "").strip())]
        if not images:
            yield row | {"reason": _NO_IMAGE}
        for image in dict.fromkeys(images):
            path = sources.join(root, _PNG, f"{image}.png")
            yield _image(row, image, views.get(image_key(image), ""), path, f"{image}.png" in stored)


def _kaggle(root: str, projections: str, views: dict[str, str], seed: int) -> Iterator[Row]:
    if not projections:
        raise ValueError(f"no {_PROJECTIONS} in {root}; it names the images of each report")
    images: dict[str, list[str]] = {}
    for row in tables.read_table(projections):
        tables.require(projections, row, "uid", "filename")
        images.setdefault(tables.identifier(row["uid"]), []).append(tables.text(row["filename"]))
    folder = sources.join(root, "images")
    stored = set(sources.list_names(folder))
    if "images_normalized" in stored:
        folder = sources.join(folder, "images_normalized")
        stored = set(sources.list_names(folder))
    table = sources.join(root, "indiana_reports.csv")
    for report in tables.read_table(table):
        tables.require(table, report, "uid", "findings", "impression")
        number = tables.identifier(report["uid"])
        row = _study(f"CXR{number}", seed, tables.text(report["findings"]), tables.text(report["impression"]))
        names = images.get(number, [])
        if not names:
            yield row | {"reason": _NO_IMAGE}
        for name in names:
            path = sources.join(folder, name)
            yield _image(row, f"CXR{image_key(name)}", views[image_key(name)], path, name in stored)


def _r2gen(root: str) -> Iterator[Row]:
    """Entries of annotation.json: the published one's, MIMIC-CXR's (with subject and study), or people's own."""
    path, folder = sources.join(root, "annotation.json"), sources.join(root, "images")
    annotation = tables.read_json(path)
    if not isinstance(annotation, dict) or not all(isinstance(entries, list) for entries in annotation.values()):
        raise ValueError(f"{path}: an object with a list of studies for each split is needed")
    studies = set(sources.list_names(folder))
    for key, entries in annotation.items():
        # The test split's key is four spaces in the file that is passed around.
        split = sources.normalise_split(key) if key.strip() else "test"
        for number, entry in enumerate(entries):
            cells = tables.cells(entry if isinstance(entry, dict) else {})
            own = tables.identifier(cells.get("id", ""))
            study = tables.identifier(cells.get("study_id", ""), "s") or own
            subject = tables.identifier(cells.get("subject_id", ""), "p") or study.split("_")[0]
            if not study:
                raise ValueError(f"{path}: entry {number} of {key!r} has no id")
            row = _study(study, 0, _prose(cells.get("report", "")), "")
            row |= {"subject_id": subject, "split": split or ""}
            if split is None:
                row["reason"] = f"{sources.UNKNOWN_SPLIT} {key[:16]}"
            images = cells.get("image_path", "")
            names = [tables.text(name) for name in (images if isinstance(images, list) else [images]) if name]
            if not names:
                yield row | {"reason": row["reason"] or _NO_IMAGE}
            for image in names:
                # MIMIC-CXR's images have names of their own, the others' are numbered within their study.
                stem = sources.image_stem(image)
                name = stem if own != study else f"{study}_{stem}"
                # The listing has the studies' folders only; looking into each would be one request a study.
                top = sources.locate("", image).strip("/").partition("/")[0]
                yield _image(row, name, "", sources.locate(folder, image), top in studies)


def _prose(value: object) -> str:
    return value if isinstance(value, str) else ""


def _study(study: str, seed: int, findings: str, impression: str) -> Row:
    return sources.source_row(
        study_id=study,
        subject_id=study,
        split=sources.subject_split(study, seed, FRACTIONS),
        findings=findings.strip(),
        impression=impression.strip(),
        source="openi",
        reason="" if reports.compose_report(findings, impression) else _NO_TEXT,
    )


def _image(row: Row, image: str, view: str, path: str, stored: bool) -> Row:
    reason = row["reason"] or views.view_problem(view, blank_is_frontal=True) or ("" if stored else _MISSING)
    return row | {"dicom_id": image, "view_position": view, "image_path": path, "reason": reason}


def _section(report: ElementTree.Element, label: str) -> str:
    """Text of the last non-empty AbstractText of that label, that of elements inside it included."""
    text = ""
    for element in report.iter("AbstractText"):
        if (element.get("Label") or "").strip().upper() == label:
            text = " ".join("".join(element.itertext()).split()) or text
    return text


def _by_number(name: str) -> tuple[int, str]:
    digits = re.match(r"\d+", name)
    return (int(digits.group()) if digits else 0, name)
