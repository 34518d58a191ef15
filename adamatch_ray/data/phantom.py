"""Phantoms: procedural chest X-rays with reports and ground-truth boxes, so that every stage runs without patient data.

A study is a pure function of (index, seed, side). Because each finding's place is known, an explanation can be scored:
does the region matched to the word "effusion" lie on the effusion? Nothing measured on phantoms is clinical.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from adamatch_ray.data.phantom_anatomy import SIDES, Chest, Plane, ramp, smooth_noise
from adamatch_ray.data.phantom_report import FINDING_WORDS, Finding, Habitus, write_report
from adamatch_ray.schema import SOURCE

__all__ = ["FINDING_WORDS", "NamedBox", "PhantomStudy", "generate", "list_phantoms", "parse_phantom_path"]

_SCHEME = "phantom://"
_FIELD_CM = 36.0  # what the long side of the image measures on the patient
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
    boxes = [box for f in sorted(findings, key=_order) for box in _paint(chest, f, rng)]
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
    found: list[Finding] = []
    taken: set[str] = set()
    while len(found) < wanted:
        finding = _draw_finding(_NAMES[rng.integers(len(_NAMES))], rng)
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
    """Detector noise, gain and contrast."""
    noisy = image + np.float32(0.018) * rng.standard_normal(image.shape, np.float32)
    bright = np.clip(noisy, 0, 1) ** np.float32(rng.uniform(0.85, 1.15))
    return (bright * np.float32(255 * rng.uniform(0.92, 1.0))).astype(np.uint8)


def _order(finding: Finding) -> int:
    return list(_PAINTERS).index(finding.name)


def _paint(chest: Chest, finding: Finding, rng: np.random.Generator) -> list[NamedBox]:
    """Draw one finding into the chest; a box around each part of it that has a name."""
    return [_box(name, mask) for name, mask in _PAINTERS[finding.name](chest, finding, rng)]


def _box(name: str, mask: Plane) -> NamedBox:
    """The smallest box around the visible part of a mask [H, W]."""
    seen = mask > 0.35
    columns, rows = np.flatnonzero(seen.any(0)), np.flatnonzero(seen.any(1))
    assert columns.size and rows.size, f"{name} was drawn outside the image"
    return NamedBox(name, float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))


Parts = list[tuple[str, Plane]]


def _spot(chest: Chest, finding: Finding, rng: np.random.Generator) -> tuple[float, float]:
    """A point in the finding's zone of its lung, away from the heart."""
    y = chest.depth(finding.side, finding.zone) + float(rng.uniform(-0.02, 0.02))
    inner, outer = chest.span(finding.side, y)
    if finding.side == "left" and finding.zone == "lower":
        inner = max(inner, chest.heart[0] + chest.heart_width - chest.middle - 0.04)
    return chest.at(finding.side, inner + (outer - inner) * float(rng.uniform(0.45, 0.6)), y)


def _disc(chest: Chest, centre: tuple[float, float], cm: float) -> Plane:
    height, width = chest.shape
    pixels = cm / 2 / _FIELD_CM * max(height, width)
    return chest.ellipse(centre, pixels / width, pixels / height, min(1.0, 1.5 / pixels))


def _edema(chest: Chest, finding: Finding, rng: np.random.Generator) -> Parts:
    strength, reach = {"mild": (0.45, 0.10), "moderate": (0.65, 0.13), "severe": (0.85, 0.165)}[finding.size]
    parts: Parts = []
    for side in SIDES:
        centre = chest.at(side, 0.10 + 0.5 * reach, chest.depth(side, "mid"))
        wing = chest.ellipse(centre, reach, 1.25 * reach, 0.8) * chest.lung(side)
        chest.paint(strength * wing * (0.75 + 0.25 * smooth_noise(chest.shape, 24, rng)), 0.66)
        parts.append(("edema", wing))
    return parts


def _cardiomegaly(chest: Chest, finding: Finding, rng: np.random.Generator) -> Parts:
    return [("cardiomegaly", chest.ellipse(chest.heart, chest.heart_width, 0.135, 0.12))]


def _consolidation(chest: Chest, finding: Finding, rng: np.random.Generator) -> Parts:
    dense = finding.size == "dense"
    noise = smooth_noise(chest.shape, 22, rng)
    blob = chest.ellipse(_spot(chest, finding, rng), 0.125, 0.105, 0.6) * chest.lung(finding.side)
    texture = 0.9 + 0.1 * noise if dense else np.clip(3.2 * noise - 1.1, 0, 1)
    chest.paint(blob * texture, 0.70 if dense else 0.62)
    return [("consolidation", blob)]


def _atelectasis(chest: Chest, finding: Finding, rng: np.random.Generator) -> Parts:
    y = chest.depth(finding.side, finding.zone) + float(rng.uniform(-0.02, 0.02))
    inner, outer = chest.span(finding.side, y)
    slope = float(rng.uniform(-0.05, -0.02))
    ends = [
        chest.at(finding.side, inner + 0.15 * (outer - inner), y - slope),
        chest.at(finding.side, outer - 0.02, y + slope),
    ]
    band = chest.strokes([ends], 0.024, 1.0)
    chest.paint(band, 0.74)
    return [("atelectasis", band)]


def _effusion(chest: Chest, finding: Finding, rng: np.random.Generator) -> Parts:
    side, low = finding.side, chest.bottom[finding.side]
    deep = {"small": 0.12, "moderate": 0.28, "large": 0.48}[finding.size] * (low - chest.apex)
    outward = np.clip(chest.u(side) / np.float32(chest.reach), 0, 1)
    surface = np.float32(low + 0.015 - deep) + np.float32(0.05) - np.float32(0.13) * outward**4
    edge = chest.lateral(chest.y, side) + np.float32(0.01) - chest.u(side)
    inside = np.minimum(np.minimum(edge, chest.u(side) - np.float32(0.075)), np.float32(low + 0.085) - chest.y)
    fluid = ramp(np.minimum(chest.y - surface, inside))
    chest.paint(fluid, 0.80)
    return [("effusion", fluid)]


def _pneumothorax(chest: Chest, finding: Finding, rng: np.random.Generator) -> Parts:
    side = finding.side
    rim = {"small": 0.045, "moderate": 0.085, "large": 0.13}[finding.size]
    reach = {"small": 0.32, "moderate": 0.5, "large": 0.75}[finding.size]
    lung, collapsed = chest.lung(side), chest.lung(side, rim)
    floor = np.float32(chest.apex + reach * (chest.bottom[side] - chest.apex))
    air = np.clip(lung - collapsed, 0, 1) * ramp(floor - chest.y, 0.04) * (chest.u(side) > 0.1)
    chest.paint(air, 0.02)
    chest.paint(np.clip(4 * collapsed * (1 - collapsed), 0, 1) * ramp(floor - chest.y, 0.04) * (lung > 0.9), 0.62)
    return [("pneumothorax", air)]


def _nodule(chest: Chest, finding: Finding, rng: np.random.Generator) -> Parts:
    disc = _disc(chest, _spot(chest, finding, rng), finding.cm)
    chest.paint(disc, 0.72)
    return [("nodule", disc)]


def _granuloma(chest: Chest, finding: Finding, rng: np.random.Generator) -> Parts:
    disc = _disc(chest, _spot(chest, finding, rng), 1.1)
    chest.paint(disc, 1.0)
    return [("granuloma", disc)]


def _fracture(chest: Chest, finding: Finding, rng: np.random.Generator) -> Parts:
    y = chest.depth(finding.side, finding.zone)
    edge = chest.span(finding.side, y)[1]
    near, far, step = edge - 0.13, edge + 0.03, 0.035
    ends = [
        chest.at(finding.side, u, y + dy)
        for u, dy in ((near, -0.025), (edge - 0.05, 0), (edge - 0.05, step), (far, 0.055))
    ]
    bone = chest.strokes([ends[:2], ends[2:]], 0.022, 0.8)
    chest.paint(chest.strokes([[ends[0], ends[3]]], 0.06, 2.0) * np.float32(0.6), 0.15)
    chest.paint(bone, 0.85)
    return [("fracture", bone)]


def _hernia(chest: Chest, finding: Finding, rng: np.random.Generator) -> Parts:
    centre = chest.middle + 0.01, chest.heart[1] + 0.035
    pouch = chest.ellipse(centre, 0.085, 0.075)
    chest.paint(pouch, 0.82)
    chest.paint(chest.ellipse(centre, 0.067, 0.057) * (chest.y < centre[1]), 0.12)
    return [("hernia", pouch)]


def _wires(chest: Chest, finding: Finding, rng: np.random.Generator) -> Parts:
    lines = []
    for y in chest.apex + 0.13 + 0.075 * np.arange(5):
        a, b = 0.028, 0.014
        x = chest.middle
        lines.append([(x - a, y - b), (x + a, y + b), (x + a, y - b), (x - a, y + b), (x - a, y - b)])
    wires = chest.strokes(lines, 0.007, 0.5)
    chest.paint(np.clip(wires * 1.3, 0, 1), 1.0)
    return [("wires", wires)]


def _tube(chest: Chest, finding: Finding, rng: np.random.Generator) -> Parts:
    middle, carina = chest.middle, chest.apex + 0.17
    if finding.size == "endotracheal":
        line = [(middle, 0.0), (middle + 0.004, carina - 0.04)]
    elif finding.size == "enteric":
        low = max(chest.bottom.values()) + 0.05
        line = [
            (middle - 0.02, 0.0),
            (middle - 0.02, low),
            chest.at("left", 0.05, low + 0.06),
            chest.at("left", 0.2, low + 0.05),
        ]
    else:
        side, y = finding.side, chest.depth(finding.side, "lower")
        inner, outer = chest.span(side, chest.depth(side, "upper"))
        line = [
            chest.at(side, 0.47, y + 0.03),
            chest.at(side, 0.36, y - 0.03),
            chest.at(side, 0.33, chest.depth(side, "mid")),
        ]
        line.append(chest.at(side, 0.5 * (inner + outer), chest.depth(side, "upper")))
    tube = chest.strokes([line], 0.016 if finding.size != "enteric" else 0.011)
    chest.paint(tube, 1.0)
    return [("tube", tube)]


def _pacemaker(chest: Chest, finding: Finding, rng: np.random.Generator) -> Parts:
    side = finding.side
    x, y = chest.at(side, 0.31, chest.apex + 0.10 + float(rng.uniform(0, 0.02)))
    can = ramp(np.minimum(np.float32(0.055) - np.abs(chest.x - x), np.float32(0.045) - np.abs(chest.y - y)), 0.015)
    tip = chest.heart[0] + 0.04, chest.heart[1] + 0.06
    vein = chest.at("right", 0.06, chest.apex + 0.2)
    route = [(x, y), chest.at(side, 0.15, y - 0.03), vein, (vein[0], chest.heart[1] - 0.04), tip]
    lead = chest.strokes([route], 0.008)
    chest.paint(np.clip(1.3 * lead, 0, 1), 1.0)
    chest.paint(can, 1.0)
    return [("pacemaker", can), ("lead", lead)]


# In the order of painting: haze below, devices on top.
_PAINTERS: dict[str, Callable[[Chest, Finding, np.random.Generator], Parts]] = {
    "edema": _edema,
    "cardiomegaly": _cardiomegaly,
    "consolidation": _consolidation,
    "atelectasis": _atelectasis,
    "effusion": _effusion,
    "pneumothorax": _pneumothorax,
    "nodule": _nodule,
    "granuloma": _granuloma,
    "fracture": _fracture,
    "hernia": _hernia,
    "wires": _wires,
    "tube": _tube,
    "pacemaker": _pacemaker,
}
_NAMES = tuple(_PAINTERS)
