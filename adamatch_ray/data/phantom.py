"""Phantoms: procedural chest X-rays with reports and ground-truth boxes, so that every stage runs without patient data.

A study is a pure function of (index, seed, side). Because each finding's place is known, an explanation can be scored:
does the region matched to the word "effusion" lie on the effusion? Nothing measured on phantoms is clinical.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from adamatch_ray.data.phantom_anatomy import Chest, Plane
from adamatch_ray.data.phantom_findings import PAINTERS
from adamatch_ray.data.phantom_report import FINDING_WORDS, Finding, Habitus, write_report
from adamatch_ray.schema import SOURCE

__all__ = ["FINDING_WORDS", "NamedBox", "PhantomStudy", "generate", "list_phantoms", "parse_phantom_path"]

_SCHEME = "phantom://"
_HEART = {"": 0.14, "mild": 0.185, "moderate": 0.225, "severe": 0.27}  # half width of the heart, fraction of the image


class NamedBox(NamedTuple):
    """Where a finding is: xyxy in original pixels, x to the right, y down, inside the image, at least one pixel."""

    name: str
    x0: float
    y0: float
    x1: float
    y1: float


@dataclass(frozen=True)
class PhantomStudy:
    """One study: the picture, what its report says, and where each finding is."""

    image: NDArray[np.uint8]  # [H, W] grayscale
    findings: str
    impression: str
    boxes: tuple[NamedBox, ...]
    labels: tuple[float | None, ...]  # in the order of schema.CHEXPERT_LABELS: 1, 0, -1 uncertain, None not mentioned
    view_position: str  # "PA" or "AP"


def generate(index: int, seed: int, side: int = 320) -> PhantomStudy:
    """The study number `index` of the endless set `seed`; `side` is the image's long side in pixels."""
    if side < 64 or index < 0 or seed < 0:
        raise ValueError(f"phantom {index} of seed {seed} at {side} px: index and seed from 0, side from 64")
    rng = np.random.default_rng(np.random.SeedSequence([seed, index]))
    findings = _draw_findings(rng)
    habitus = _draw_habitus(findings, rng)
    aspect = float(rng.uniform(0.8, 1.25))
    height, width = (side, round(side * aspect)) if aspect < 1 else (round(side / aspect), side)
    heart = next((_HEART[f.size] for f in findings if f.name == "cardiomegaly"), _HEART[""])
    chest = Chest(height, width, habitus, heart + float(rng.uniform(-0.01, 0.01)), rng)
    layered = sorted(findings, key=lambda f: list(PAINTERS).index(f.name))
    boxes = [_box(name, mask) for f in layered for name, mask in PAINTERS[f.name](chest, f, rng)]
    report = write_report(findings, habitus, rng)
    view = "AP" if any(f.name == "tube" for f in findings) or rng.random() < 0.2 else "PA"
    return PhantomStudy(
        _expose(chest.image, rng), report.findings, report.impression, tuple(boxes), report.labels, view
    )


def list_phantoms(count: int, seed: int) -> Iterator[dict[str, object]]:
    """Rows of `schema.SOURCE` for the first `count` studies of `seed`; a subject has one study or two."""
    for index in range(count):
        study = f"phantom-{seed}-{index:07d}"
        # Of three studies in a row the first two are one subject's, so that splits by subject have something to keep.
        row: dict[str, object] = dict.fromkeys(SOURCE.names, "") | {
            "study_id": study,
            "subject_id": f"phantom-{seed}-subject-{index // 3 * 2 + (index % 3 == 2):07d}",
            "dicom_id": f"{study}-1",
            "image_path": f"{_SCHEME}{seed}/{index}",
            "labels": None,
            "source": "phantom",
        }
        yield row


def parse_phantom_path(path: str) -> tuple[int, int]:
    """(seed, index) of an image path `phantom://seed/index`."""
    parts = path.removeprefix(_SCHEME).split("/")
    if not path.startswith(_SCHEME) or len(parts) != 2 or not all(p.isascii() and p.isdigit() for p in parts):
        raise ValueError(f"{path!r} is no phantom: write {_SCHEME}<seed>/<index>, for example {_SCHEME}0/17")
    return int(parts[0]), int(parts[1])


def _draw_findings(rng: np.random.Generator) -> tuple[Finding, ...]:
    """None to four findings, no two in the same place."""
    wanted = int(rng.choice(5, p=(0.2, 0.25, 0.25, 0.2, 0.1)))
    names = tuple(PAINTERS)
    found: list[Finding] = []
    taken: set[str] = set()
    while len(found) < wanted:
        finding = _draw_finding(names[rng.integers(len(names))], rng)
        places = _places(finding)
        if taken.isdisjoint(places):
            taken |= places
            found.append(finding)
    return tuple(found)


def _draw_finding(name: str, rng: np.random.Generator) -> Finding:
    def one(*options: str) -> str:
        return options[rng.integers(len(options))]

    side, zone = one("left", "right"), one("upper", "mid", "lower")
    if name in ("effusion", "pneumothorax"):
        return Finding(name, side, size=one("small", "moderate", "large"))
    if name == "nodule":
        cm = round(float(rng.uniform(1.8, 2.9) if rng.random() < 0.5 else rng.uniform(3.5, 6.0)), 1)
        return Finding(name, side, zone, "nodule" if cm < 3 else "mass", cm)
    if name == "consolidation":
        return Finding(name, side, zone, one("patchy", "dense"))
    if name in ("cardiomegaly", "edema"):
        return Finding(name, size=one("mild", "moderate", "severe"))
    if name == "tube":
        kind = one("endotracheal", "enteric", "chest")
        return Finding(name, side if kind == "chest" else "", size=kind)
    if name == "pacemaker":
        return Finding(name, side)
    return Finding(name) if name in ("hernia", "wires") else Finding(name, side, zone)


def _places(finding: Finding) -> set[str]:
    """The parts of the chest that a finding needs for itself, so that findings stay readable."""
    side, name = finding.side, finding.name
    if name == "effusion":
        return {f"{side} lower", f"{side} effusion"} | ({f"{side} mid"} if finding.size != "small" else set())
    if name == "pneumothorax":
        return {f"{side} upper"} | ({f"{side} mid"} if finding.size == "large" else set())
    if name == "edema":
        return {"left mid", "right mid"}
    if name == "pacemaker":
        return {name, f"{side} upper"}
    if name in ("cardiomegaly", "hernia"):
        return {"heart", "left lower"}
    if name in ("tube", "wires"):
        return {finding.size or name, f"{side} mid" if side else ""} - {""}
    return {f"{side} {finding.zone}"}


def _draw_habitus(findings: tuple[Finding, ...], rng: np.random.Generator) -> Habitus:
    """Variants of anatomy, each visible; a diaphragm under an effusion cannot be judged and stays level."""

    def side(chance: float) -> str:
        return "" if rng.random() > chance else ("left", "right")[rng.integers(2)]

    elevated = side(0.4)
    hidden = {f.side for f in findings if f.name == "effusion"}
    return Habitus(
        volume=("low", "normal", "large")[rng.integers(3)],
        spine=side(0.45),
        diaphragm="" if hidden else elevated,
        trachea="" if any(f.size == "endotracheal" for f in findings) else side(0.4),
        tortuous_aorta=bool(rng.random() < 0.35),
        stomach_gas=bool(rng.random() < 0.4),
    )


def _expose(image: Plane, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Detector noise, then gain and contrast through a table, which is faster than a power for every pixel."""
    level = rng.standard_normal(image.shape, np.float32)
    level *= np.float32(0.018)
    level += image
    level *= np.float32(1023)
    table = np.linspace(0, 1, 1024) ** rng.uniform(0.85, 1.15) * (255 * rng.uniform(0.92, 1.0))
    return table.astype(np.uint8).take(level.astype(np.intp), mode="clip")


def _box(name: str, mask: Plane) -> NamedBox:
    """The smallest box around the visible part of a mask [H, W]."""
    seen = mask > 0.35
    columns, rows = np.flatnonzero(seen.any(0)), np.flatnonzero(seen.any(1))
    assert columns.size and rows.size, f"{name} was drawn outside the image"
    return NamedBox(name, float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
