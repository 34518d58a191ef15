"""How each finding of a phantom looks: one function a finding, which paints it and tells where it put it.

A function returns the mask [H, W] of every part that has a name, so that a box is drawn around what can be seen.
"""

from collections.abc import Callable

import numpy as np

from adamatch_ray.data.phantom_anatomy import HEART_HEIGHT, SIDES, Chest, Plane, ramp, rounded, smooth_noise
from adamatch_ray.data.phantom_report import Finding

_FIELD_CM = 36.0  # what the long side of the image measures on the patient

Parts = list[tuple[str, Plane]]


def _spot(chest: Chest, finding: Finding, rng: np.random.Generator) -> tuple[float, float]:
    """A point in the finding's zone of its lung, away from the heart."""
    y = chest.depth(finding.side, finding.zone) + float(rng.uniform(-0.02, 0.02))
    inner, outer = chest.span(finding.side, y)
    inner = max(inner, chest.heart_edge(finding.side, y))
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
    return [("cardiomegaly", chest.ellipse(chest.heart, chest.heart_width, HEART_HEIGHT, 0.12))]


def _consolidation(chest: Chest, finding: Finding, rng: np.random.Generator) -> Parts:
    dense = finding.size == "dense"
    noise = smooth_noise(chest.shape, 22, rng)
    blob = chest.ellipse(_spot(chest, finding, rng), 0.125, 0.105, 0.6) * chest.lung(finding.side)
    texture = 0.9 + 0.1 * noise if dense else 0.3 + 0.7 * np.clip(3.2 * noise - 1.1, 0, 1)
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
    band = chest.strokes([ends], 0.03, 1.0)
    chest.paint(band, 0.86)
    return [("atelectasis", band)]


def _effusion(chest: Chest, finding: Finding, rng: np.random.Generator) -> Parts:
    side, low = finding.side, chest.bottom[finding.side]
    deep = {"small": 0.12, "moderate": 0.28, "large": 0.48}[finding.size] * (low - chest.apex)
    outward = np.clip(chest.u(side) / np.float32(chest.reach), 0, 1)
    surface = np.float32(low + 0.015 - deep) + np.float32(0.05) - np.float32(0.13) * outward**4
    edge = chest.lateral(chest.y, side) + np.float32(0.01) - chest.u(side)
    inside = np.minimum(
        np.minimum(edge, chest.u(side) - np.float32(0.075)), chest.dome(side) + np.float32(0.03) - chest.y
    )
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
    chest.paint(disc, 0.80)
    return [("nodule", disc)]


def _granuloma(chest: Chest, finding: Finding, rng: np.random.Generator) -> Parts:
    disc = _disc(chest, _spot(chest, finding, rng), 1.3)
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
    bone = chest.strokes([ends[:2], ends[2:]], 0.027, 0.8)
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
        lines.append([(x - a, y - b), (x + a, y + b)])
        lines.append([(x + a, y - b), (x - a, y + b)])
        lines += [[(x + e, y - b), (x + e, y + b)] for e in (-a, a)]
    wires = chest.strokes(lines, 0.007, 0.5)
    chest.paint(np.clip(wires * 1.3, 0, 1), 1.0)
    return [("wires", wires)]


def _tube(chest: Chest, finding: Finding, rng: np.random.Generator) -> Parts:
    middle, carina = chest.middle, chest.apex + 0.17
    low = max(chest.bottom.values()) + 0.05
    if finding.size == "endotracheal":
        line = [(middle, 0.0), (middle + 0.004, carina - 0.04)]
    elif finding.size == "enteric":
        line = [
            (middle - 0.02, 0.0),
            (middle - 0.02, low),
            chest.at("left", 0.05, low + 0.06),
            chest.at("left", 0.15, low + 0.05),
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
    tube = chest.strokes([rounded(line)], 0.016 if finding.size != "enteric" else 0.011)
    chest.paint(tube, 1.0)
    if finding.size == "enteric":
        return [("tube", tube * (chest.y < low)), ("tube", tube * (chest.y >= low))]
    return [("tube", tube)]


def _pacemaker(chest: Chest, finding: Finding, rng: np.random.Generator) -> Parts:
    side = finding.side
    x, y = chest.at(side, 0.31, chest.apex + 0.10 + float(rng.uniform(0, 0.02)))
    can = ramp(np.minimum(np.float32(0.055) - np.abs(chest.x - x), np.float32(0.045) - np.abs(chest.y - y)), 0.015)
    tip = chest.heart[0] + 0.04, chest.heart[1] + 0.06
    vein = chest.at("right", 0.06, chest.apex + 0.2)
    route = [(x, y), chest.at(side, 0.15, y - 0.03), vein, (vein[0], chest.heart[1] - 0.04), tip]
    lead = chest.strokes([rounded(route)], 0.008)
    chest.paint(np.clip(1.3 * lead, 0, 1), 1.0)
    chest.paint(can, 1.0)
    # Two boxes, because one around the whole bend would hold half of the chest.
    return [("pacemaker", can), ("lead", lead * (chest.y < vein[1])), ("lead", lead * (chest.y >= vein[1]))]


PAINTERS: dict[str, Callable[[Chest, Finding, np.random.Generator], Parts]] = {
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
"""How to draw each finding, in the order of drawing: haze below, devices on top."""
