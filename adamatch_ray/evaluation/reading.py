"""Whether reports are read from the X-ray: written without keywords, and with another study's image in its place."""

from collections.abc import Mapping
from typing import Any

from adamatch_ray.data import loading
from adamatch_ray.data.facts import score_facts
from adamatch_ray.data.images import decode_png
from adamatch_ray.data.predictions import Key
from adamatch_ray.engines.cycle import CycleEngine, row_seed
from adamatch_ray.evaluation.split import Split
from adamatch_ray.geometry import CanvasImage
from adamatch_ray.instructions import CXR_TO_REPORT
from adamatch_ray.storage import Stage


def score(engine: CycleEngine, studies: Stage, split: Split, written: Mapping[str, str], seed: int) -> dict[str, Any]:
    """Facts of the reports that the engine writes of a split, against the studies' own.

    `written`: what generation wrote by id, with this seed; it stands beside. `floor`: the next study's own report.
    """
    keys = {study.key for study in split.studies}
    rows = (
        row
        for table in loading.read_split(studies, split.name, ["study_id", "dicom_id", "image", "height", "width"])
        for row in table.to_pylist()
    )
    asked = [row for row in rows if Key(row["study_id"], row["dicom_id"]) in keys]
    images = [CanvasImage(decode_png(row["image"]), row["height"], row["width"]) for row in asked]
    seeds = [row_seed(seed, row["study_id"], CXR_TO_REPORT) for row in asked]
    without, other = engine.probe_reports(images, seeds)
    own, plain = [study.report for study in split.studies], [written.get(id, "") for id in split.ids]
    return {
        "what": "reports of the first studies written again: without keywords, and with another study's image",
        "studies": len(own),
        "plain": score_facts(own, plain)._asdict(),
        "without_keywords": score_facts(own, without)._asdict(),
        "other_image": {
            **score_facts(own, other)._asdict(),
            "changed": sum(a != b for a, b in zip(plain, other, strict=True)) / len(own),
        },
        "floor": score_facts(own, own[1:] + own[:1])._asdict(),
    }
