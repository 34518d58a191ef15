"""The cycle on the page: some studies there and back, what each step kept of them, and the whole split's figures."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from adamatch_ray.data.facts import Marks, compare
from adamatch_ray.data.predictions import Encoded
from adamatch_ray.evaluation.split import Placed
from adamatch_ray.pages.material import Material, thumbnail

AT_RANDOM, SEED = 4, 0
_PICTURES = {
    "generated_image": "drawn from the study's report",
    "second_image": "drawn from the report of its X-ray",
    "reconstruction": "the X-ray through the VQ-GAN",
    "real": "the X-ray itself",
}


class Step(NamedTuple):
    """A report, or an X-ray (its PNG, None where there is none), and what of the study is right in it, where judged."""

    name: str
    report: str | None
    xray: bytes | None
    marks: Marks | None


class Trip(NamedTuple):
    """A study, why it is shown, and its three steps."""

    why: str
    id: str
    steps: tuple[Step, ...]


def picture_rows(table: Mapping[str, Any]) -> list[dict[str, Any]]:
    """By kind of picture what is seen in it and found from it; of real X-rays last, the ceilings of those above."""
    return [
        {"name": name, "recall": table[kind]["recall"], "seen": table[kind].get("seen")}
        for kind, name in _PICTURES.items()
        if kind in table
    ]


def round_trips(material: Material) -> dict[str, list[Trip]]:
    """By direction: the best study by what its last step kept, the middle one, the worst, and some at random."""
    reports, drawn = material.reports, material.images
    second_reports, second_images, study_of = material.second_reports, material.second_images, material.study_of
    trips: dict[str, list[Trip]] = {}

    def xray(placed: Placed[Encoded], id: str, name: str, kind: str) -> Step:
        png = thumbnail(placed.values.get(id), material.canvas)
        return Step(name, None, png, material.marks.get(kind, {}).get(id))

    def report(placed: Placed[str], id: str, name: str) -> Step:
        said = placed.values.get(id, "")
        return Step(name, said, None, compare(study_of[id].report, said))

    if drawn is not None and second_reports is not None:
        kept = {id: compare(study_of[id].report, second_reports.values.get(id, "")) for id in _asked(drawn)}
        trips["Report → X-ray → report"] = [
            Trip(
                why,
                id,
                (
                    Step("the study's report", study_of[id].report, None, None),
                    xray(drawn, id, "X-ray drawn from it", "generated"),
                    report(second_reports, id, "report of that X-ray"),
                ),
            )
            for why, id in _chosen(kept)
        ]
    seen = material.marks.get("second_image")
    if reports is not None and second_images is not None and seen:
        real: Placed[Encoded] = Placed({id: study.image for id, study in study_of.items()}, (), ())
        kept = {id: seen[id] for id in _asked(reports) if id in seen}
        trips["X-ray → report → X-ray"] = [
            Trip(
                why,
                id,
                (
                    xray(real, id, "the study's X-ray", "real"),
                    report(reports, id, "report of it"),
                    xray(second_images, id, "X-ray drawn from that report", "second_image"),
                ),
            )
            for why, id in _chosen(kept)
        ]
    return trips


def _asked(placed: Placed[Any]) -> list[str]:
    return [*placed.values, *placed.missing]


def _chosen(kept: Mapping[str, Marks]) -> list[tuple[str, str]]:
    """Why a study is shown, and its id; of equally good ones, the one of which more is right comes first."""
    order = sorted(kept, key=lambda id: (kept[id].f1, len(kept[id].right)), reverse=True)
    why = {order[-1]: "worst", order[len(order) // 2]: "middle", order[0]: "best"}
    others = sorted(kept.keys() - why.keys())
    picked = np.random.default_rng(SEED).permutation(len(others))[:AT_RANDOM].tolist()
    return [(said, id) for id, said in reversed(why.items())] + [("at random", others[place]) for place in picked]
