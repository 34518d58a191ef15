"""The few numbers that people compare, ours beside the paper's, each with the file it stands in (docs/method.md 5)."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Place(NamedTuple):
    """Where a headline comes from and what stands beside it. Paths are keys joined by `/` within the table's file.

    `paper` is the published value on MIMIC-CXR, `openi` the one on OpenI.
    """

    table: str
    measure: str
    path: str
    interval: str = ""
    paper: float | None = None
    paper_table: str = ""
    reference: str = ""
    reference_name: str = ""
    lower_is_better: bool = False
    digits: int = 4
    openi: float | None = None


class Headline(NamedTuple):
    """One number; `source` is `file#path`. `reference` is this run's own floor or ceiling, where it has one."""

    table: str
    measure: str
    value: float
    low: float | None
    high: float | None
    reference: float | None
    reference_name: str
    paper: float | None
    paper_table: str
    lower_is_better: bool
    digits: int
    source: str


_FLOOR = "random train report"
_REAL, _TOKENS = "report of the real X-ray", "real X-ray through the VQ-GAN"
_DIRECTIONS = (("image_to_text", "X-ray → report"), ("text_to_image", "report → X-ray"))
_PAPER_BLEU = ((1, 0.3793, 0.4161), (2, 0.2346, 0.3002), (3, 0.1540, 0.2073), (4, 0.1060, 0.1446))
_PAPER_RECALL = {
    "image_to_text": {1: 51.47, 5: 86.19, 10: 94.77},
    "text_to_image": {1: 51.18, 5: 86.46, 10: 94.60},
}

PLACES = (
    *(
        Place("reports", f"BLEU-{n}", f"values/bleu_{n}", f"intervals/bleu_{n}", paper, "Table 1",
              f"baseline/values/bleu_{n}", _FLOOR, openi=openi)
        for n, paper, openi in _PAPER_BLEU
    ),
    Place("reports", "ROUGE-L", "values/rouge_l", "intervals/rouge_l", 0.2859, "Table 1",
          "baseline/values/rouge_l", _FLOOR, openi=0.3656),
    Place("reports", "METEOR (NLTK)", "values/meteor_nltk", "intervals/meteor_nltk"),
    Place("reports", "METEOR 1.5", "values/meteor_1.5", "", 0.1625, "Table 1", openi=0.1621),
    Place("reports", "finding F1, 14 labels pooled", "findings/by_report/micro/f1",
          "findings/by_report/micro_f1_interval", reference="baseline/finding_micro_f1", reference_name=_FLOOR),
    Place("reports", "finding F1 against the data's labels", "findings/by_data/micro/f1",
          "findings/by_data/micro_f1_interval"),
    Place("reports", "findings with their side, F1", "facts/finding_side"),
    Place("reports", "reports that say a sentence twice", "facts/repeated", lower_is_better=True),
    Place("reports", "reports that put a finding on both sides wrongly", "facts/both_sides", lower_is_better=True),
    Place("images", "FID", "fid/value", "", 1.0916, "Table 3", "fid_floor/value", "real against real",
          lower_is_better=True, openi=1.5938),
    Place("images", "NIQE", "niqe/value", "niqe/interval", 3.3931, "Table 3", "niqe/real", "real images",
          lower_is_better=True, openi=3.3096),
    Place("images", "asked findings seen, F1", "findings/generated/micro/f1", "findings/generated/micro_f1_interval",
          reference="findings/real/micro/f1", reference_name="real images"),
    Place("images", "side right where drawn", "sides/generated/share", reference="sides/real/share",
          reference_name="real images"),
    Place("images", "real X-rays through the VQ-GAN: asked findings seen, F1", "findings/reconstruction/micro/f1",
          "findings/reconstruction/micro_f1_interval", reference="findings/real/micro/f1",
          reference_name="real images"),
    Place("images", "real X-rays through the VQ-GAN: side right", "sides/reconstruction/share",
          reference="sides/real/share", reference_name="real images"),
    *(
        Place("retrieval", f"{said}, R@{k}", f"full/{name}@{k}", reference=f"chance/@{k}", reference_name="chance",
              digits=2)
        for name, said in _DIRECTIONS for k in (1, 5, 10)
    ),
    *(
        Place("retrieval", f"{said}, R@{k}, within batches of 100", f"released/{name}@{k}", "", _PAPER_RECALL[name][k],
              "Table 4", digits=2)
        for name, said in _DIRECTIONS for k in (1, 5, 10)
    ),
    Place("localization", "a finding's word points at it", "micro/point_hit", "intervals/point_hit",
          reference="micro/shuffled", reference_name="another word of the report"),
    Place("localization", "its region's box, IoU with the finding's", "micro/box_iou", "intervals/box_iou",
          reference="micro/patch_iou", reference_name="the best patch"),
    Place("localization", "… of at least one half", "micro/box_half", "intervals/box_half"),
    Place("localization", "the best patch's centre lies on the finding", "micro/patch_hit", "intervals/patch_hit"),
    Place("localization", "the map's maximum lies on the finding", "micro/map_hit", "intervals/map_hit",
          reference="micro/chance", reference_name="chance"),
    Place("localization", "map and finding, IoU over five thresholds", "micro/map_miou"),
    Place("localization", "what the image shows told from what it lacks, AUC", "groundable/auc"),
    Place("cycle", "second report against first, BLEU-4", "second_report/values/bleu_4",
          "second_report/intervals/bleu_4", reference="real_xray/values/bleu_4", reference_name=_REAL),
    Place("cycle", "second report against first, finding F1", "second_report/findings/by_report/micro/f1",
          "second_report/findings/by_report/micro_f1_interval", reference="real_xray/findings/by_report/micro/f1",
          reference_name=_REAL),
    Place("cycle", "second report against first, findings with their side, F1", "second_report/facts/finding_side",
          reference="real_xray/facts/finding_side", reference_name=_REAL),
    Place("cycle", "generated X-ray finds its report, R@1", "generated_image/recall/image_to_text@1",
          reference="reconstruction/recall/image_to_text@1", reference_name=_TOKENS, digits=2),
    Place("cycle", "second X-ray finds the study's report, R@1", "second_image/recall/image_to_text@1",
          reference="reconstruction/recall/image_to_text@1", reference_name=_TOKENS, digits=2),
    Place("cycle", "real X-ray through the VQ-GAN finds its report, R@1", "reconstruction/recall/image_to_text@1",
          reference="real/recall/image_to_text@1", reference_name="real X-ray", digits=2),
    Place("cycle", "second X-ray shows the study's findings, F1", "second_image/seen/f1",
          reference="reconstruction/seen/f1", reference_name=_TOKENS),
    Place("cycle", "second X-ray, side right where drawn", "second_image/seen/side",
          reference="reconstruction/seen/side", reference_name=_TOKENS),
    Place("reading", "without keywords: findings with their side, F1", "without_keywords/finding_side",
          reference="plain/finding_side", reference_name="with keywords"),
    Place("reading", "with another study's image: findings with their side, F1", "other_image/finding_side",
          reference="plain/finding_side", reference_name="with its own"),
    Place("reading", "with another study's image: reports that change", "other_image/changed"),
    Place("reading", "another study's report: findings with their side, F1", "floor/finding_side"),
    Place("memorisation", "generated X-rays that copy a training X-ray", "images/generated_image/share",
          reference="images/features/pixels/false_alarms", reference_name="real X-rays flagged", lower_is_better=True),
    Place("memorisation", "second X-rays that copy a training X-ray", "images/second_image/share",
          reference="images/features/pixels/false_alarms", reference_name="real X-rays flagged", lower_is_better=True),
    Place("memorisation", "planted copies that are found", "images/features/pixels/planted_found"),
    Place("memorisation", "longest span of a training report in a report, words, mean", "reports/generated_report/mean",
          reference="reports/train/mean", reference_name="in another training report", lower_is_better=True),
    Place("memorisation", "reports that share more than two training reports do",
          "reports/generated_report/share_beyond", reference="reports/train/share_beyond",
          reference_name="training reports", lower_is_better=True),
)  # fmt: skip


def headlines(tables: Mapping[str, Mapping[str, Any]], data: str) -> list[Headline]:
    """The headline numbers that the given tables hold, in the order above, beside the paper's on such data."""
    found = []
    for place in PLACES:
        table = tables.get(place.table)
        value = None if table is None else look_up(table, place.path)
        if table is None or value is None:
            continue
        interval = look_up(table, place.interval) or {}
        paper = place.openi if data == "openi" and place.openi is not None else place.paper
        found.append(
            Headline(
                place.table, place.measure, float(value), interval.get("low"), interval.get("high"),
                look_up(table, place.reference), place.reference_name, paper, place.paper_table,
                place.lower_is_better, place.digits, f"{place.table}.json#{place.path}",
            )
        )  # fmt: skip
    return found


def look_up(table: Any, path: str) -> Any:
    """The value at a path of keys joined by `/`; None where the path ends early."""
    for key in path.split("/") if path else ():
        table = table.get(key) if isinstance(table, Mapping) else None
    return table if path else None


def differences(tables: Mapping[str, Mapping[str, Any]], data: str) -> dict[str, str]:
    """By table, one line on what keeps our number and the paper's apart."""
    said = {}
    where = "synthetic phantoms" if data == "phantom" else data
    row = "the paper's row is OpenI, without training on it" if data == "openi" else "the paper's row is MIMIC-CXR"
    if "reports" in tables:
        said["reports"] = (
            f"{tables['reports']['studies']} studies of {where}; {row}. METEOR of NLTK is another number than METEOR "
            "1.5, which the compared papers print."
        )
    if "images" in tables:
        fid, niqe = tables["images"]["fid"], tables["images"].get("niqe")
        pristine = f" NIQE is fitted on {niqe['pristine']}; the paper does not say on what." if niqe else ""
        note = f" ({fid['note']})" if fid["note"] else ""
        said["images"] = (
            f"FID is over {fid['dimensions']} features of {fid['extractor']}{note}; the paper's is over 1024 features "
            f"of a chest-X-ray DenseNet-121.{pristine}{_judge(tables['images'])}"
        )
    if "retrieval" in tables:
        said["retrieval"] = (
            f"{tables['retrieval']['studies']} studies of {where}; the paper's row is MIMIC-CXR. Only the rows within "
            "batches of 100 follow its protocol, the easier one: above, every study of the split is a candidate."
        )
    if "localization" in tables:
        said["localization"] = "The paper has no such table: it needs boxes, which phantoms have."
    if "cycle" in tables:
        said["cycle"] = "The paper argues for cycle consistency and reports none."
    if "reading" in tables:
        said["reading"] = f"The first {tables['reading']['studies']} studies. The paper does not ask this."
    if "memorisation" in tables:
        said["memorisation"] = (
            "Thresholds are chosen on real X-rays of validate and on planted copies, training X-rays through the "
            "VQ-GAN; both are counted on others. The paper does not ask this."
        )
    return said


def _judge(table: Mapping[str, Any]) -> str:
    """Whose eyes saw the findings, and whether they are impartial."""
    judge = table.get("judge")
    if judge is None:
        return ""
    judged = "FID and findings" if judge["name"] == table["fid"]["extractor"] else "Findings"
    trained = "no loss of the VQ-GAN" if judge["independent"] else "losses of the VQ-GAN, too: no independent judge"
    return f" {judged} are seen through {judge['name']}, which served {trained}."


def markdown(rows: list[Headline], said: Mapping[str, str], title: str, data: str, left_out: Mapping[str, str]) -> str:
    """`table.md`: one table a section, the paper's value beside ours, and the line on what differs."""
    lines = [f"# {title}", "", f"Data: {data}. Research use only.", ""]
    for name in dict.fromkeys(row.table for row in rows):
        lines += [f"## {name}", "", "| measure | this run | 95 % interval | for comparison | paper | source |",
                  "|---|---|---|---|---|---|"]  # fmt: skip
        for row in (row for row in rows if row.table == name):
            interval = "" if row.low is None else f"{number(row.low, row.digits)} … {number(row.high, row.digits)}"
            beside = "" if row.reference is None else f"{number(row.reference, row.digits)} ({row.reference_name})"
            paper = "" if row.paper is None else f"{number(row.paper, row.digits)} ({row.paper_table})"
            ours = number(row.value, row.digits)
            lines.append(f"| {row.measure} | {ours} | {interval} | {beside} | {paper} | `{row.source}` |")
        lines += ["", f"What differs: {said[name]}" if name in said else "", ""]
    if left_out:
        lines += ["## Not scored", "", *(f"- {name}: {why}" for name, why in left_out.items()), ""]
    return "\n".join(lines)


def number(value: float | None, digits: int = 4) -> str:
    """A number as the paper prints it: four digits behind the point, two for percentages and above ten."""
    if value is None:
        return ""
    return f"{value:.{2 if abs(value) >= 10 else digits}f}"
