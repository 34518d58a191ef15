"""What a phantom study says: the report grammar over its findings and its habitus (docs/method.md 1.3).

Everything that names a side, a zone, a size or a variant is decided by the picture; only the choice between synonymous
sentences, and which absent findings are denied, is free. So a report can be found by its image, and the reverse.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from adamatch_ray.schema import CHEXPERT_LABELS

FINDING_WORDS: dict[str, tuple[str, ...]] = {
    "effusion": ("effusion",),
    "pneumothorax": ("pneumothorax",),
    "consolidation": ("consolidation",),
    "nodule": ("nodule", "mass"),
    "atelectasis": ("atelectasis",),
    "cardiomegaly": ("cardiomegaly", "enlarged"),
    "edema": ("edema",),
    "pacemaker": ("pacemaker",),
    "lead": ("lead",),
    "tube": ("tube",),
    "fracture": ("fracture",),
    "granuloma": ("granuloma",),
    "hernia": ("hernia",),
    "wires": ("wires",),
}
"""Box name to the lower-case words that denote it in a report; at least one is in the report of every box."""


@dataclass(frozen=True)
class Finding:
    """One finding as it is drawn and told. Fields that do not apply are empty."""

    name: str
    side: str = ""  # "left" or "right" of the patient; the patient's right is on the left of the image
    zone: str = ""  # "upper", "mid" or "lower"
    size: str = ""  # the size, severity or kind, as the report words it
    cm: float = 0.0  # diameter, where the report gives one


@dataclass(frozen=True)
class Habitus:
    """Visible variants of normal anatomy. They tell normal studies apart and are no findings."""

    volume: str = "normal"  # "low", "normal" or "large"
    spine: str = ""  # the side the scoliosis is convex to
    diaphragm: str = ""  # the elevated side
    trachea: str = ""  # the side it deviates to
    tortuous_aorta: bool = False
    stomach_gas: bool = False


class Report(NamedTuple):
    """Prose of a study and its 14 labels in the order of `CHEXPERT_LABELS` (1, 0, -1 uncertain, None)."""

    findings: str
    impression: str
    labels: tuple[float | None, ...]


_LABELS: dict[str, tuple[str, ...]] = {
    "effusion": ("Pleural Effusion",),
    "pneumothorax": ("Pneumothorax",),
    "consolidation": ("Consolidation", "Lung Opacity"),
    "nodule": ("Lung Lesion",),
    "atelectasis": ("Atelectasis",),
    "cardiomegaly": ("Cardiomegaly",),
    "edema": ("Edema", "Lung Opacity"),
    "pacemaker": ("Support Devices",),
    "tube": ("Support Devices",),
    "wires": ("Support Devices",),
    "fracture": ("Fracture",),
}

# Key: name, or name:size where a size has sentences of its own. Sentences for the findings, then for the impression.
_SENTENCES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "effusion": (
        ("there is a {size} {side} pleural effusion", "{size} {side} effusion is present at the lung base"),
        ("{size} {side} pleural effusion", "{size} {side} effusion"),
    ),
    "pneumothorax": (
        ("there is a {size} {side} apical pneumothorax", "{size} {side} pneumothorax with a visible pleural line"),
        ("{size} {side} pneumothorax", "{size} {side} apical pneumothorax"),
    ),
    "consolidation:dense": (
        ("dense consolidation in the {side} {zone} lung", "there is a dense {side} {zone} lung consolidation"),
        ("{side} {zone} consolidation consistent with pneumonia", "dense {side} {zone} consolidation, pneumonia"),
    ),
    "consolidation:patchy": (
        ("patchy consolidation in the {side} {zone} lung", "there is a patchy {side} {zone} lung consolidation"),
        (
            "patchy {side} {zone} consolidation may represent pneumonia",
            "{side} {zone} consolidation, possible pneumonia",
        ),
    ),
    "nodule:nodule": (
        ("a nodule measuring {cm} is seen in the {side} {zone} lung", "there is a {cm} {side} {zone} lung nodule"),
        ("{side} {zone} lung nodule", "{cm} {side} {zone} nodule"),
    ),
    "nodule:mass": (
        ("a mass measuring {cm} is seen in the {side} {zone} lung", "there is a {cm} {side} {zone} lung mass"),
        ("{side} {zone} lung mass", "{cm} {side} {zone} mass"),
    ),
    "atelectasis": (
        ("linear atelectasis in the {side} {zone} lung", "there is a band of {side} {zone} lung atelectasis"),
        ("{side} {zone} atelectasis", "linear {side} {zone} atelectasis"),
    ),
    "cardiomegaly": (
        ("there is {size} cardiomegaly", "the heart is enlarged, {size} in degree"),
        ("{size} cardiomegaly",),
    ),
    "edema": (
        ("{size} perihilar pulmonary edema on both sides", "there is {size} bilateral pulmonary edema"),
        ("{size} pulmonary edema", "{size} edema"),
    ),
    "pacemaker": (
        ("a {side} chest pacemaker has its lead over the heart", "{side} pacemaker with a single lead"),
        ("{side} pacemaker in place", "{side} pacemaker"),
    ),
    "tube:endotracheal": (
        ("an endotracheal tube ends above the carina", "the tip of the endotracheal tube is above the carina"),
        ("endotracheal tube in place", "endotracheal tube"),
    ),
    "tube:enteric": (
        ("an enteric tube reaches the stomach", "the enteric tube passes below the diaphragm"),
        ("enteric tube in place", "enteric tube"),
    ),
    "tube:chest": (
        ("a {side} chest tube is in place", "there is a {side} chest tube"),
        ("{side} chest tube in place", "{side} chest tube"),
    ),
    "fracture": (
        ("there is a displaced fracture of a {side} {zone} rib", "displaced {side} {zone} rib fracture"),
        ("{side} {zone} rib fracture",),
    ),
    "granuloma": (
        ("a calcified granuloma is seen in the {side} {zone} lung", "calcified {side} {zone} lung granuloma"),
        ("{side} {zone} granuloma", "calcified {side} {zone} granuloma"),
    ),
    "hernia": (
        ("a hiatal hernia with an air fluid level is seen behind the heart", "there is a hiatal hernia"),
        ("hiatal hernia",),
    ),
    "wires": (
        ("median sternotomy wires are intact", "sternotomy wires are seen in the midline"),
        ("prior sternotomy, wires intact", "sternotomy wires"),
    ),
}

_VARIANTS: dict[str, tuple[str, ...]] = {
    "volume:low": ("lung volumes are low", "low lung volumes"),
    "volume:large": ("the lungs are hyperinflated", "lung volumes are large"),
    "spine": ("scoliosis convex to the {side}", "the spine curves to the {side}"),
    "diaphragm": ("the {side} hemidiaphragm is elevated", "elevation of the {side} hemidiaphragm"),
    "trachea": ("the trachea deviates to the {side}", "{side} deviation of the trachea"),
    "aorta": ("the aorta is tortuous", "tortuous aorta"),
    "stomach": ("gas distends the stomach", "gas is seen in the stomach"),
}

# What may be said of an absence: (findings that must all be absent, labels it sets to 0, sentences).
_DENIALS: tuple[tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]], ...] = (
    (
        ("effusion", "pneumothorax"),
        ("Pleural Effusion", "Pneumothorax"),
        ("no pleural effusion or pneumothorax", "there is no pneumothorax or pleural effusion"),
    ),
    (("effusion",), ("Pleural Effusion",), ("no pleural effusion", "there is no effusion")),
    (("pneumothorax",), ("Pneumothorax",), ("no pneumothorax", "there is no pneumothorax")),
    (
        ("consolidation", "edema", "atelectasis", "nodule", "granuloma"),
        ("Consolidation", "Lung Opacity"),
        ("the lungs are clear, no consolidation or opacity", "no focal consolidation or opacity in clear lungs"),
    ),
    (("consolidation",), ("Consolidation",), ("no focal consolidation", "there is no consolidation")),
    (("cardiomegaly",), ("Cardiomegaly",), ("heart size is normal", "the heart is normal in size")),
    (("edema",), ("Edema",), ("no pulmonary edema", "there is no edema")),
    (("fracture",), ("Fracture",), ("no fracture is seen", "no rib fracture")),
    (("pacemaker", "tube", "wires"), ("Support Devices",), ("no lines or devices",)),
)

_NORMAL = ("no acute cardiopulmonary process", "no acute abnormality", "no acute chest findings")
_VARIANTS_TOLD = (6, 5, 4, 2, 1)  # by number of findings: a crowded study is already distinct and needs no more words
_DENIALS_UP_TO = 32  # words of the findings section above which nothing more is denied


def write_report(findings: tuple[Finding, ...], habitus: Habitus, rng: np.random.Generator) -> Report:
    """Tell up to four `findings`, each in both sections, then variants of `habitus`, then a few denials."""
    assert len(findings) < len(_VARIANTS_TOLD), findings
    told = [findings[i] for i in rng.permutation(len(findings))]
    lines = [_sentence(f, 0, rng) for f in told]
    lines += _variants(habitus, rng)[: _VARIANTS_TOLD[len(findings)]]
    denied = _denials({f.name for f in findings}, sum(len(line.split()) for line in lines), rng)
    lines += [line for line, _ in denied]
    impression = [_sentence(f, 1, rng) for f in told] or [_pick(_NORMAL, rng)]
    absent = {label for _, labels in denied for label in labels}
    return Report(_prose(lines), _prose(impression), _labels(findings, absent))


def _sentence(finding: Finding, section: int, rng: np.random.Generator) -> str:
    key = finding.name if finding.name in _SENTENCES else f"{finding.name}:{finding.size}"
    cm = f"{finding.cm:.1f} cm" if finding.cm >= 3 or rng.random() < 0.5 else f"{round(finding.cm * 10)} mm"
    text = _pick(_SENTENCES[key][section], rng)
    return text.format(side=finding.side, zone=finding.zone, size=finding.size, cm=cm)


def _variants(habitus: Habitus, rng: np.random.Generator) -> list[str]:
    present = {
        f"volume:{habitus.volume}": "" if habitus.volume != "normal" else None,
        "spine": habitus.spine or None,
        "diaphragm": habitus.diaphragm or None,
        "trachea": habitus.trachea or None,
        "aorta": "" if habitus.tortuous_aorta else None,
        "stomach": "" if habitus.stomach_gas else None,
    }
    return [_pick(_VARIANTS[key], rng).format(side=side) for key, side in present.items() if side is not None]


def _denials(present: set[str], words: int, rng: np.random.Generator) -> list[tuple[str, tuple[str, ...]]]:
    """Sentences about what is absent with the labels they deny, no label twice, while there is room."""
    chosen: list[tuple[str, tuple[str, ...]]] = []
    for i in rng.permutation(len(_DENIALS)):
        names, labels, texts = _DENIALS[i]
        said = {label for _, denied in chosen for label in denied}
        if present.isdisjoint(names) and said.isdisjoint(labels) and words < _DENIALS_UP_TO and len(chosen) < 5:
            chosen.append((_pick(texts, rng), labels))
            words += len(chosen[-1][0].split())
    return chosen


def _labels(findings: tuple[Finding, ...], absent: set[str]) -> tuple[float | None, ...]:
    values: dict[str, float] = dict.fromkeys(absent, 0.0)
    for finding in findings:
        values.update(dict.fromkeys(_LABELS.get(finding.name, ()), 1.0))
    sizes = {f.size for f in findings if f.name == "consolidation"}
    if sizes:
        values["Pneumonia"] = 1.0 if "dense" in sizes else -1.0
    if not findings:
        values["No Finding"] = 1.0
    return tuple(values.get(label) for label in CHEXPERT_LABELS)


def _pick(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[rng.integers(len(options))]


def _prose(lines: list[str]) -> str:
    return " ".join(f"{line[0].upper()}{line[1:]}." for line in lines)
