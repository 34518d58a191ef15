"""Report to CXR, the paper's Table 3 and Figure 6: FID, NIQE, t-SNE, and whether an image shows what it was asked for.

Every study counts: one without a readable image counts as a black canvas in FID, as showing no finding, and as the
worst image of the set in NIQE. Beside them stand what the VQ-GAN alone makes of the real ones, and the real ones.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adamatch_ray.data import loading
from adamatch_ray.data.facts import Marks, read_facts
from adamatch_ray.data.images import decode_png, encode_png
from adamatch_ray.data.labeler import Labels, ReportLabeler, finding_scores
from adamatch_ray.data.predictions import Encoded
from adamatch_ray.engines.image_tokens import ImageTokenizer
from adamatch_ray.evaluation.image_meter import BATCH, Measured
from adamatch_ray.evaluation.reports import micro_interval
from adamatch_ray.evaluation.split import Placed, Split
from adamatch_ray.evaluation.tables import finding_names
from adamatch_ray.metrics.bootstrap import bootstrap_mean
from adamatch_ray.metrics.image import FeatureStatistics, collect, fid
from adamatch_ray.metrics.niqe import NiqeParameters, fit_parameters
from adamatch_ray.metrics.tsne import tsne
from adamatch_ray.schema import CHEXPERT_LABELS
from adamatch_ray.storage import Stage

Measure = Callable[[Sequence[Encoded]], Measured]
"""Measures any number of images, in order."""

SIDED = {
    "Pleural Effusion": {"effusion"},
    "Pneumothorax": {"pneumothorax"},
    "Consolidation": {"consolidation"},
    "Lung Lesion": {"nodule", "mass"},
    "Atelectasis": {"atelectasis"},
    "Fracture": {"fracture"},
    "Support Devices": {"pacemaker", "chest tube"},
}
"""Labels that can lie on one side, and the findings of `data.facts` behind each."""

NO_FINDING = CHEXPERT_LABELS.index("No Finding")


class ImageScore(NamedTuple):
    """One image's own figures. `shown` and `lacking` are asked findings that the classifier sees or does not see."""

    id: str
    niqe: float
    shown: tuple[str, ...]
    lacking: tuple[str, ...]
    status: str


class ImageTable(NamedTuple):
    """Figures as JSON, one row a study, the statistics behind FID, and the t-SNE points (real, then generated).

    `marks`: what each kind of picture shows of what was asked, one a study.
    """

    result: dict[str, Any]
    rows: list[ImageScore]
    statistics: dict[str, FeatureStatistics]
    points: dict[str, Any] | None
    marks: dict[str, list[Marks]]


def reconstruct(tokenizer: ImageTokenizer, split: Split) -> Placed[Encoded]:
    """The real X-rays as the VQ-GAN alone gives them back: nothing drawn from its tokens can be better."""
    values: dict[str, Encoded] = {}
    for start in range(0, len(split.studies), BATCH):
        part = split.studies[start : start + BATCH]
        canvases = tokenizer.through(np.stack([decode_png(study.image) for study in part]))
        values |= {study.id: encode_png(canvas) for study, canvas in zip(part, canvases, strict=True)}
    return Placed(values, (), ())


def fit_niqe(studies: Stage, count: int, source: str) -> NiqeParameters:
    """NIQE parameters of the first `count` train images."""

    def images() -> Iterator[NDArray[np.uint8]]:
        for table in loading.read_split(studies, "train", ["image"]):
            yield from (decode_png(data.as_py()) for data in table["image"])

    chosen = (image for _, image in zip(range(count), images(), strict=False))
    return fit_parameters(chosen, f"{count} real train images ({source})")


def score(
    split: Split,
    validate: Split,
    placed: Placed[Encoded],
    measure: Measure,
    extractor: str,
    judge: str,
    labeler: ReportLabeler,
    *,
    others: Mapping[str, Placed[Encoded]],
    tsne_images: int,
    resamples: int,
    seed: int,
) -> ImageTable:
    """Compare predicted images with the real ones of the split. `validate` sets thresholds and the floor of FID.

    `others`: pictures of other kinds, by name, that only the classifier judges. `judge` is its name.
    """
    pictures, there = _measured(split, {"generated": placed, **others}, measure)
    generated, there_S = pictures["generated"], there["generated"]
    pictures["real"] = real = measure([study.image for study in split.studies])
    there["real"] = np.ones(len(split.studies), dtype=bool)
    held_out = measure([study.image for study in validate.studies])
    statistics = {
        name: collect([rows.feature_BD], rows.feature_BD.shape[1])
        for name, rows in (("real", real), ("generated", generated), ("real_validate", held_out))
    }
    thresholds_L = choose_thresholds(held_out.probability_BL, [study.labels for study in validate.studies])
    asked_SL = _asked(labeler.label([study.report for study in split.studies]))
    left_SL = asked_left([study.report for study in split.studies])
    shown = {kind: (found.probability_BL >= thresholds_L) & there[kind][:, None] for kind, found in pictures.items()}
    for shown_SL in shown.values():
        shown_SL[:, NO_FINDING] = False
    result = {
        "studies": len(split.studies),
        **placed.to_json(),
        "unreadable": int(len(placed.values) - there_S.sum()),
        **_distances(statistics, extractor),
        "niqe": _niqe(generated.niqe_B, real.niqe_B, there_S, resamples, seed),
        "findings": {
            "classifier": judge,
            "asked": f"present in the report that the image was made from, by the {labeler.name}",
            "thresholds": dict(zip(CHEXPERT_LABELS, map(_finite, thresholds_L.tolist()), strict=True)),
            **{kind: _finding_json(asked_SL, shown_SL, resamples, seed) for kind, shown_SL in shown.items()},
        },
        "sides": {
            "what": "asked on one side and seen by the classifier: the share that it sees on that side",
            **{kind: side_json(left_SL, asked_SL & shown[kind], found.across_BL) for kind, found in pictures.items()},
        },
    }
    points = _map(split, real, generated, tsne_images, seed)
    rows = _rows(split, generated.niqe_B, asked_SL, shown["generated"], there_S)
    marks = {kind: mark(asked_SL, shown[kind], left_SL, found.across_BL) for kind, found in pictures.items()}
    return ImageTable(result, rows, statistics, points, marks)


def _measured(
    split: Split, kinds: Mapping[str, Placed[Encoded]], measure: Measure
) -> tuple[dict[str, Measured], dict[str, NDArray[np.bool_]]]:
    """Each kind's pictures, a black one where there is none, and which are there [S]."""
    black = encode_png(np.zeros((8, 8), dtype=np.uint8))
    pictures = {kind: measure([own.values.get(id, black) for id in split.ids]) for kind, own in kinds.items()}
    given = {kind: np.array([id in own.values for id in split.ids]) for kind, own in kinds.items()}
    return pictures, {kind: given[kind] & pictures[kind].readable_B for kind in kinds}


def _distances(statistics: Mapping[str, FeatureStatistics], extractor: str) -> dict[str, Any]:
    floor = fid(statistics["real"], statistics["real_validate"], extractor)
    return {
        "fid": fid(statistics["real"], statistics["generated"], extractor).to_json(),
        "fid_floor": {
            "what": "real images of validate against real images of the split: what perfect images would score",
            **floor.to_json(),
        },
    }


def choose_thresholds(probability_SL: NDArray[np.floating], labels: Sequence[Labels]) -> NDArray[np.float64]:
    """For each label the threshold [L] of best F1 on real images; infinite for a label that never occurs there.

    Uncertain labels are left out; blank ones are absent. Of equal thresholds the highest is taken.
    """
    thresholds = np.full(len(CHEXPERT_LABELS), np.inf)
    table_SL = np.array([[np.nan if value == -1 else value or 0.0 for value in row] for row in labels])
    for label, (truth_S, probability_S) in enumerate(zip(table_SL.T, probability_SL.T, strict=True)):
        known_S = ~np.isnan(truth_S)
        order = np.argsort(-probability_S[known_S], kind="stable")
        ranked, hits = probability_S[known_S][order], np.cumsum(truth_S[known_S][order])
        if not len(hits) or not hits[-1]:
            continue
        f1 = 2 * hits / (np.arange(1, len(hits) + 1) + hits[-1])
        f1[:-1][ranked[:-1] == ranked[1:]] = -1  # a threshold takes all images of one probability or none
        thresholds[label] = ranked[int(f1.argmax())]
    return thresholds


def asked_left(reports: Sequence[str]) -> NDArray[np.float64]:
    """1 where a report asks for a label on the left, 0 on the right, NaN for neither or both [S, 14]."""
    left_SL = np.full((len(reports), len(CHEXPERT_LABELS)), np.nan)
    for row, report in zip(left_SL, reports, strict=True):
        said = read_facts(report).sided
        for label, findings in SIDED.items():
            sides = {side for finding, side in said if finding in findings}
            if len(sides) == 1:
                row[CHEXPERT_LABELS.index(label)] = float(sides == {"left"})
    return left_SL


def side_json(
    left_SL: NDArray[np.floating], drawn_SL: NDArray[np.bool_], across_SL: NDArray[np.floating]
) -> dict[str, Any] | None:
    """How often a finding that is seen lies on the side it was asked for; the patient's left is right of the middle.

    None for a classifier that does not tell where.
    """
    judged_SL = drawn_SL & np.isfinite(left_SL) & np.isfinite(across_SL)
    if not judged_SL.any():
        return None
    right_SL = judged_SL & ((across_SL > 0.5) == (left_SL == 1))
    labels = {
        name: {"judged": int(judged), "right": int(right)}
        for name, judged, right in zip(CHEXPERT_LABELS, judged_SL.sum(0), right_SL.sum(0), strict=True)
        if judged
    }
    return {"share": float(right_SL.sum() / judged_SL.sum()), "judged": int(judged_SL.sum()), "labels": labels}


def mark(
    asked_SL: NDArray[np.bool_],
    shown_SL: NDArray[np.bool_],
    left_SL: NDArray[np.floating],
    across_SL: NDArray[np.floating],
) -> list[Marks]:
    """What each image shows of what was asked, in words; a side counts where one was asked and one can be seen."""
    marks = []
    for asked_L, shown_L, left_L, across_L in zip(asked_SL, shown_SL, left_SL, across_SL, strict=True):
        found: dict[str, list[str]] = {name: [] for name in Marks._fields}
        for label in np.flatnonzero(asked_L | shown_L):
            name, left, across = CHEXPERT_LABELS[label], left_L[label], across_L[label]
            wanted, seen = ("left" if value else "right" for value in (left == 1, across > 0.5))
            if not shown_L[label]:
                found["missing"].append(name if np.isnan(left) else f"{name}, {wanted}")
            elif not asked_L[label]:
                found["added"].append(name)
            elif np.isnan(left) or np.isnan(across):
                found["right"].append(name)
            elif wanted == seen:
                found["right"].append(f"{name}, {wanted}")
            else:
                found["wrong_side"].append(f"{name}, {seen} instead of {wanted}")
        marks.append(Marks(**{name: tuple(values) for name, values in found.items()}))
    return marks


def _niqe(
    generated_S: NDArray[np.floating],
    real_S: NDArray[np.floating],
    there_S: NDArray[np.bool_],
    resamples: int,
    seed: int,
) -> dict[str, Any] | None:
    """None where no image has a NIQE at all, which is so on canvases below 96 pixels."""
    defined_S = there_S & np.isfinite(generated_S)
    if not defined_S.any():
        return None
    worst_S = np.where(defined_S, generated_S, generated_S[defined_S].max())
    interval = bootstrap_mean(worst_S, resamples=resamples, seed=seed)._asdict() if resamples else None
    return {
        "value": float(worst_S.mean()),
        "interval": interval,
        "counted_as_worst": int((~defined_S).sum()),
        "real": float(np.nanmean(real_S)),
    }


def _asked(labels: Sequence[Labels]) -> NDArray[np.bool_]:
    asked_SL = np.array([[value == 1.0 for value in row] for row in labels])
    asked_SL[:, NO_FINDING] = False  # it asks for nothing that could be seen
    return asked_SL


def _finding_json(
    asked_SL: NDArray[np.bool_], shown_SL: NDArray[np.bool_], resamples: int, seed: int
) -> dict[str, Any]:
    tables = [[tuple(1.0 if value else None for value in row) for row in side] for side in (asked_SL, shown_SL)]
    interval = micro_interval(asked_SL, shown_SL, resamples, seed)
    return {**finding_scores(*tables).to_json(), "micro_f1_interval": interval}


def _map(split: Split, real: Measured, generated: Measured, count: int, seed: int) -> dict[str, Any] | None:
    count = min(count, len(split.studies))
    if count < 8:
        return None
    features = np.concatenate([real.feature_BD[:count], generated.feature_BD[:count]])
    perplexity = min(30.0, 2 * count / 4)
    embedding = tsne(features, perplexity=perplexity, seed=seed)
    points = np.round(embedding.points_S2, 3).tolist()
    ids = list(split.ids[:count])
    return {"perplexity": perplexity, "divergence": embedding.divergence, "ids": ids, "real": points[:count],
            "generated": points[count:]}  # fmt: skip


def _rows(
    split: Split,
    niqe_S: NDArray[np.floating],
    asked_SL: NDArray[np.bool_],
    shown_SL: NDArray[np.bool_],
    there_S: NDArray[np.bool_],
) -> list[ImageScore]:
    columns = zip(split.ids, niqe_S.tolist(), asked_SL, shown_SL, there_S.tolist(), strict=True)
    return [
        ImageScore(
            id, quality, finding_names(asked & shown), finding_names(asked & ~shown), "ok" if there else "missing"
        )
        for id, quality, asked, shown, there in columns
    ]


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
