"""The page stands alone, says what it shows, and lets no report text act as markup."""

import re
from typing import Any

import numpy as np
import pytest
from markupsafe import escape

from adamatch_ray.data.facts import Marks
from adamatch_ray.data.images import encode_png
from adamatch_ray.data.predictions import Key
from adamatch_ray.evaluation.images import ImageScore
from adamatch_ray.evaluation.memorisation import CopyRow
from adamatch_ray.evaluation.reports import StudyScore
from adamatch_ray.evaluation.split import Placed, Split, Study
from adamatch_ray.pages import results as page
from adamatch_ray.pages.material import Material
from adamatch_ray.pages.round_trips import round_trips

EVIL = '<script>alert("x")</script> <img src=http://evil.example/x> & more'


def shown(source: str) -> Material:
    image = encode_png(np.random.default_rng(0).integers(0, 255, (32, 32), dtype=np.uint8))
    studies = tuple(Study(f"s{n}", Key(f"s{n}", "1"), EVIL, (None,) * 14, image) for n in range(3))
    material = Material(Split("test", source, studies))
    material.reports = Placed({"s0": EVIL}, ("s1", "s2"), ())
    material.report_rows = [
        StudyScore(f"s{n}", 0.25 * n, 0.5 * n, ("Edema",), ("Fracture",), (), "ok") for n in range(3)
    ]
    material.images = Placed({"s0": image, "s1": b"broken"}, ("s2",), ())
    material.image_rows = [ImageScore(f"s{n}", float("nan"), (), ("Edema",), "ok") for n in range(3)]
    material.copies = [CopyRow("s0", "generated_image", 0.97, 0.5, EVIL, True)]
    material.points = {"real": [[0.0, 1.0]] * 3, "generated": [[2.0, -1.0]] * 3}
    return material


def going_round() -> Material:
    """Nine studies there and back: s0 keeps its effusion, s1 turns its side, the others lose it; s2 has no X-ray."""
    image = encode_png(np.random.default_rng(0).integers(0, 255, (32, 32), dtype=np.uint8))
    said = "Small left effusion."
    material = Material(
        Split("test", "phantom", tuple(Study(f"s{n}", Key(f"s{n}"), said, (None,) * 14, image) for n in range(9)))
    )
    names = [f"s{n}" for n in range(9)]
    material.images = Placed({name: image for name in names if name != "s2"}, ("s2",), ())
    second = dict.fromkeys(names, "No effusion.") | {"s0": said, "s1": "Small right effusion."}
    material.second_reports = Placed(second, (), ())
    return material


def test_trips_go_from_best_to_worst_and_some_are_drawn_by_seed() -> None:
    trips = round_trips(going_round())
    assert list(trips) == ["Report → X-ray → report"]
    best, middle, worst, *others = trips["Report → X-ray → report"]
    assert (best.why, best.id, worst.why) == ("best", "s0", "worst")
    assert best.steps[2].marks == Marks(("effusion, left",), (), (), ())
    assert [trip.why for trip in others] == ["at random"] * 4
    assert len({trip.id for trip in (best, middle, worst, *others)}) == 7
    assert round_trips(going_round()) == trips


def test_a_trip_says_in_words_what_is_wrong() -> None:
    material = going_round()
    material.marks = {"generated": {"s0": Marks((), ("Pleural Effusion, right instead of left",), (), ())}}
    text = page.build(summary("phantom"), material, [])
    for said in ("✓ right</b> effusion, left", "✗ wrong side</b> Pleural Effusion, right instead of left",
                 "✗ missing</b> effusion, left", 'alt="X-ray drawn from it, study s0"'):  # fmt: skip
        assert said in text
    assert text.count("<li>") == text.count("</li>")


def summary(source: str) -> dict[str, Any]:
    label = {"f1": 0.5, "reference": 3}
    headline = {"table": "reports", "measure": "BLEU-4", "value": 0.1234, "low": 0.1, "high": 0.2, "reference": 0.05,
                "reference_name": "random train report", "paper": 0.106, "paper_table": "Table 1",
                "lower_is_better": False, "digits": 4, "source": "reports.json#values/bleu_4"}  # fmt: skip
    recall = {f"{name}@{k}": 50.0 for name in ("image_to_text", "text_to_image") for k in (1, 5, 10)}
    chance = {f"@{k}": 1.0 * k for k in (1, 5, 10)}
    tables = {
        "reports": {"missing": 2, "studies": 3, "findings": {"by_report": {"labels": {"Edema": label}}}},
        "images": {"missing": 1, "studies": 3,
                   "findings": {side: {"labels": {"Edema": label}} for side in ("generated", "real")}},
        "retrieval": {"full": recall, "chance": chance},
        "localization": {
            "findings": {"effusion": {"box_iou": 0.5, "point_hit": 0.1, "phrases": 4}}, "groups": {}
        },
        "cycle": {"generated_image": {"recall": recall}, "chance": chance},
        "memorisation": {"images": {"features": {"pixels": {"planted": 128, "planted_found": 0.99, "real": 99,
                                                            "false_alarms": 0.0, "trusted": True}}}},
    }  # fmt: skip
    return {"title": "Evaluation", "split": "test", "studies": 3, "data": source, "use": "Research use only.",
            "predictions": "runs/x/generations", "headlines": [headline], "differences": {"reports": EVIL},
            "left_out": {}, "tables": tables}  # fmt: skip


def built(source: str = "phantom") -> str:
    return page.build(summary(source), shown(source), ["metrics.json", "report.html", "table.md"])


def test_nothing_comes_from_outside_and_no_text_acts() -> None:
    text = built()
    assert "<script" not in text and "<link" not in text and "@import" not in text and "url(" not in text
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'<img src="([^"]*)"', text))
    assert str(escape(EVIL)) in text and EVIL not in text
    targets = re.findall(r'href="([^"]*)"', text)
    assert {"metrics.json", "table.md"} <= set(targets) and all("/" not in target for target in targets)
    for target in (target[1:] for target in targets if target.startswith("#")):
        assert f'id="{target}"' in text


def test_it_reads_on_a_phone_and_is_well_formed() -> None:
    text = built()
    assert '<meta name="viewport" content="width=device-width,initial-scale=1">' in text and "max-width:40rem" in text
    for tag in ("div", "span", "table", "tr", "td", "section", "figure", "details", "p", "small", "main"):
        assert len(re.findall(rf"<{tag}[ >]", text)) == text.count(f"</{tag}>"), tag


@pytest.mark.parametrize("source", ["phantom", "mimic_cxr"])
def test_research_use_is_said_always_and_phantom_where_it_is_one(source: str) -> None:
    text = built(source)
    assert "Research use only" in text
    assert ("synthetic phantom" in text) == (source == "phantom")


def test_numbers_stand_with_their_interval_comparison_paper_and_source() -> None:
    text = built()
    row = next(part for part in text.split("<tr>") if "reports.json#values/bleu_4" in part)
    for said in ("0.1234", "0.1000 … 0.2000", "0.0500 random train report", "0.1060 (Table 1)"):
        assert said in row


def test_what_is_missing_is_said_and_has_a_frame_instead_of_a_picture() -> None:
    text = built()
    assert "2 of 3 studies have no prediction" in text and "1 of 3 studies have no prediction" in text
    assert "(none)" in text and '<div class="none">no image</div>' in text
