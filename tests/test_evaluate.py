"""Every table from one command: perfect predictions score perfectly, what is missing counts, numbers can be traced."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_predictions import generations

from adamatch_ray.cli import parse_command_line
from adamatch_ray.config import load_config, section
from adamatch_ray.data.facts import score_facts
from adamatch_ray.data.images import decode_png, encode_png
from adamatch_ray.data.labeler import Labels
from adamatch_ray.data.predictions import Key
from adamatch_ray.engines.cycle import CycleEngine
from adamatch_ray.engines.loader import load_tokenizer
from adamatch_ray.engines.localizing import Located
from adamatch_ray.evaluation import headline, images, localization, split
from adamatch_ray.metrics.localization import Localization, LocalizedPhrase
from adamatch_ray.model_config import PVTConfig, from_dict, to_json
from adamatch_ray.models.pvt import PyramidVisionTransformer
from adamatch_ray.schema import CHEXPERT_LABELS
from adamatch_ray.storage import Manifest, Root

Main = Callable[[Sequence[str]], "dict[str, Any] | None"]
ABLATIONS = Path(__file__).resolve().parents[1] / "adamatch_ray" / "presets" / "ablations"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, cycle_root: Path, tiny_yaml: Path) -> Path:
    """A finished root with an untrained disease classifier. Read only but for `metrics/`."""
    folder = tmp_path_factory.mktemp("evaluate") / "run"
    shutil.copytree(cycle_root, folder)
    config = load_config(str(tiny_yaml))
    sizes = from_dict(PVTConfig, section(config, "image") | {"num_classes": len(CHEXPERT_LABELS)})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = PyramidVisionTransformer(sizes)
    stage = Root(str(folder)).stage("encoder")
    (folder / "encoder" / "model").mkdir(parents=True)
    (folder / "encoder" / "model" / "config.json").write_text(to_json(sizes))
    save_file(model.state_dict(), folder / "encoder" / "model" / "model.safetensors")
    stage.commit(Manifest("encoder", "untrained", {"image": section(config, "image"), "encoder": {}}, {}))
    return folder


@pytest.fixture(scope="module")
def studies(root: Path) -> tuple[split.Study, ...]:
    return split.read(Root(str(root)).stage("studies"), "test").studies


def blurred(image: bytes) -> bytes:
    pixels = decode_png(image).astype(np.float32)
    return encode_png(((pixels + np.roll(pixels, 2, 0) + np.roll(pixels, 2, 1)) / 3).astype(np.uint8))


def rows_of(studies: Sequence[split.Study], keep: Callable[[int], bool] = lambda n: True) -> list[dict[str, Any]]:
    """Made-up generations: own reports without their first sentence, own images blurred; the rest has failed."""
    rows = []
    for number, study in enumerate(studies):
        report = study.report.partition(". ")[2]
        values = {"report": report, "cycle_image": blurred(study.image)}
        other = {"image": blurred(study.image), "cycle_report": report}
        for direction, made in (("cxr_to_report", values), ("report_to_cxr", other)):
            there = made if keep(number) else {}
            row = {"study_id": study.key.study_id, "dicom_id": study.key.dicom_id, "direction": direction, **there}
            rows.append(row | {"status": "ok" if there else "error: made up"})
    return rows


def evaluate(job: Callable[[str], Main], root: Path, yaml: Path, *more: str) -> dict[str, Any]:
    answer = job("evaluate")(["--config", str(yaml), "--root", str(root), "--overwrite",
                              "--evaluate.resamples", "50", "--evaluate.meteor", "none", *more])  # fmt: skip
    assert answer is not None and answer["status"] == "done"
    return answer


def table(root: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / "metrics" / f"{name}.json").read_text())
    return found


def test_every_table_and_every_number_has_its_place(
    job: Callable[[str], Main], root: Path, tiny_yaml: Path, studies: tuple[split.Study, ...]
) -> None:
    generations(root, rows_of(studies, lambda n: n != 4), seed=0, report_tokens=16)
    every = ("--evaluate.tables", "retrieval,reports,images,localization,cycle,reading", "--evaluate.probe", "3")
    answer = evaluate(job, root, tiny_yaml, *every)
    assert answer["studies"] == 16 and {"image_to_text@1", "FID", "BLEU-4"} <= answer.keys()
    metrics = table(root, "metrics")
    assert metrics["tables"].keys() == {"retrieval", "reports", "images", "localization", "cycle", "reading"}
    assert metrics["left_out"] == {} and "synthetic" in metrics["data"]
    for row in metrics["headlines"]:
        file, _, path = row["source"].partition("#")
        assert headline.look_up(table(root, file.removesuffix(".json")), path) == row["value"], row["measure"]
    text = (root / "metrics" / "table.md").read_text()
    assert "| 0.1060 (Table 1) |" in text and "What differs" in text and "synthetic phantoms" in text
    reports = table(root, "reports")
    assert reports["missing_ids"] == [studies[4].id] and reports["studies"] == 16 and reports["empty"] == 1
    listed = (root / "metrics" / "reports_by_study.csv").read_text().splitlines()
    assert len(listed) == 17 and listed[5].startswith(studies[4].id) and listed[5].endswith("missing")
    assert table(root, "images")["niqe"] is None  # 64 pixels hold no block of NIQE
    again = job("evaluate")(["--config", str(tiny_yaml), "--root", str(root), "--evaluate.resamples", "50",
                             "--evaluate.meteor", "none", *every])  # fmt: skip
    assert again is not None and again["status"] == "skipped"


def test_every_step_of_the_cycle_stands_beside_its_ceiling(
    job: Callable[[str], Main], root: Path, tiny_yaml: Path, studies: tuple[split.Study, ...]
) -> None:
    generations(root, rows_of(studies), seed=0, report_tokens=16)
    evaluate(
        job, root, tiny_yaml, "--evaluate.tables", "retrieval,reports,images,cycle,reading", "--evaluate.probe", "4"
    )
    reports, pictures, cycle, reading = (table(root, name) for name in ("reports", "images", "cycle", "reading"))
    assert cycle["real_xray"]["values"] == reports["values"] and cycle["real_xray"]["facts"] == reports["facts"]
    real = {name: value for name, value in table(root, "retrieval")["full"].items() if name.startswith("image")}
    assert cycle["real"]["recall"] == real and cycle["reconstruction"]["predicted"] == 16
    tokenizer = load_tokenizer(Root(str(root)))
    back = images.reconstruct(tokenizer, split.read(Root(str(root)).stage("studies"), "test")).values[studies[5].id]
    assert isinstance(back, bytes)
    own = tokenizer.encode(decode_png(studies[5].image)[None])
    assert np.array_equal(decode_png(back), tokenizer.decode(own)[0])
    for kind in ("generated", "second_image", "reconstruction", "real"):
        seen = cycle[kind.replace("generated", "generated_image")]["seen"]
        assert seen["f1"] == pictures["findings"][kind]["micro"]["f1"]
    assert not pictures["judge"]["name"].startswith("another") and pictures["judge"]["independent"]
    first = [study.report for study in studies[:4]]
    assert reading["studies"] == 4
    assert reading["plain"] == score_facts(first, [report.partition(". ")[2] for report in first])._asdict()
    assert reading["other_image"]["changed"] == 1  # what was made up is nothing that the model writes
    beside = {row["measure"]: row for row in table(root, "metrics")["headlines"]}
    assert beside["second report against first, BLEU-4"]["reference"] == reports["values"]["bleu_4"]


def test_a_judge_that_the_vqgan_was_trained_with_is_told_from_others(
    job: Callable[[str], Main], root: Path, tiny_yaml: Path, studies: tuple[split.Study, ...], tmp_path: Path
) -> None:
    generations(root, rows_of(studies))
    ours = Path(shutil.copytree(root, tmp_path / "ours"))
    for eyes, independent in (("untrained", False), ("other", True)):
        Root(str(ours)).stage("vqgan").commit(Manifest("vqgan", "vqgan-0", {}, {"encoder": eyes}))
        evaluate(job, ours, tiny_yaml, "--evaluate.tables", "images", "--evaluate.judge", str(root))
        assert table(ours, "images")["judge"]["independent"] == independent
        text = (ours / "metrics" / "report.html").read_text()
        assert "another run&#39;s disease classifier (untraine)" in text
        assert ("no independent judge" in text) != independent


def test_an_image_shows_a_finding_on_a_side() -> None:
    def row(**values: float) -> np.ndarray[Any, Any]:
        return np.array([[values.get(name.replace(" ", "_"), np.nan) for name in CHEXPERT_LABELS]])

    asked, shown = (
        ~np.isnan(row(**dict.fromkeys(names, 1.0)))
        for names in (
            ("Pleural_Effusion", "Pneumothorax", "Fracture", "Edema"),
            ("Pleural_Effusion", "Pneumothorax", "Edema", "Atelectasis"),
        )
    )
    left = row(Pleural_Effusion=1, Pneumothorax=0, Fracture=0)
    across = row(Pleural_Effusion=0.7, Pneumothorax=0.8, Edema=0.5, Atelectasis=0.2)
    (found,) = images.mark(asked, shown, left, across)
    assert found.right == ("Edema", "Pleural Effusion, left") and found.added == ("Atelectasis",)
    assert found.wrong_side == ("Pneumothorax, left instead of right",) and found.missing == ("Fracture, right",)


def test_perfect_predictions_of_anyone_score_perfectly(
    job: Callable[[str], Main], root: Path, tiny_yaml: Path, studies: tuple[split.Study, ...], tmp_path: Path
) -> None:
    lines = []
    for number, study in enumerate(studies):
        (tmp_path / f"{number}.png").write_bytes(study.image)
        lines.append({"uid": study.id, "text": study.report, "png": f"{number}.png"})
    lines.append({"uid": "stranger", "text": "Clear.", "png": "0.png"})
    (tmp_path / "theirs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in reversed(lines)))
    named = ["--evaluate.predictions", str(tmp_path / "theirs.jsonl"), "--evaluate.id_column", "uid"]
    named += ["--evaluate.report_column", "text", "--evaluate.image_column", "png"]
    evaluate(job, root, tiny_yaml, *named)
    reports, pictures, cycle = (table(root, name) for name in ("reports", "images", "cycle"))
    assert reports["values"]["bleu_4"] == pytest.approx(1, abs=1e-6) and reports["values"]["rouge_l"] == 1
    assert reports["findings"]["by_report"]["micro"]["f1"] == 1 and reports["baseline"]["values"]["rouge_l"] < 0.9
    assert reports["unexpected_ids"] == ["stranger"] and reports["missing"] == 0
    assert pictures["fid"]["value"] == pytest.approx(0, abs=1e-4)
    assert pictures["fid_floor"]["value"] > 100 * pictures["fid"]["value"]
    assert pictures["findings"]["generated"] == pictures["findings"]["real"]
    real = {name: value for name, value in table(root, "retrieval")["full"].items() if name.startswith("image")}
    assert cycle["generated_image"]["recall"] == real and "second_report" not in cycle
    # The same name with other content is another prediction.
    (tmp_path / "theirs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:5]))
    with pytest.raises(ValueError, match="predictions"):
        job("evaluate")(["--config", str(tiny_yaml), "--root", str(root), "--evaluate.resamples", "50",
                         "--evaluate.meteor", "none", *named])  # fmt: skip


def test_a_missing_prediction_changes_scores_and_no_denominator(
    job: Callable[[str], Main], root: Path, tiny_yaml: Path, studies: tuple[split.Study, ...]
) -> None:
    found = []
    for rows in (rows_of(studies), rows_of(studies, lambda n: n % 4 != 0), rows_of(studies)[:-8]):
        generations(root, rows)
        evaluate(job, root, tiny_yaml, "--evaluate.tables", "reports,images,cycle")
        found.append({name: table(root, name) for name in ("reports", "images", "cycle")})
    whole, failed, gone = found
    assert all(one["reports"]["studies"] == 16 and one["images"]["fid"]["generated"] == 16 for one in found)
    assert (failed["reports"]["missing"], gone["reports"]["missing"]) == (4, 4)
    for less in (failed, gone):
        assert less["reports"]["values"]["rouge_l"] < whole["reports"]["values"]["rouge_l"]
        assert less["images"]["fid"]["value"] > whole["images"]["fid"]["value"]
        asked = [one["images"]["findings"]["generated"]["micro"]["reference"] for one in (less, whole)]
        assert asked[0] == asked[1]
        assert less["cycle"]["second_report"]["studies"] == less["cycle"]["generated_image"]["studies"] == 16


def test_a_table_without_its_data_is_left_out_and_says_why(
    job: Callable[[str], Main], root: Path, tiny_yaml: Path, studies: tuple[split.Study, ...], tmp_path: Path
) -> None:
    lines = [{"study_id": study.id, "report": study.report} for study in studies]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    evaluate(job, root, tiny_yaml, "--evaluate.predictions", str(tmp_path / "p.jsonl"))
    metrics = table(root, "metrics")
    assert metrics["left_out"].keys() == {"images", "cycle"} and "has no images" in metrics["left_out"]["images"]
    assert not (root / "metrics" / "images.json").exists()  # nor what an earlier evaluation left
    assert "Not scored" in (root / "metrics" / "report.html").read_text()
    with pytest.raises(ValueError, match="has no images"):
        evaluate(job, root, tiny_yaml, "--evaluate.predictions", str(tmp_path / "p.jsonl"),
                 "--evaluate.tables", "images")  # fmt: skip
    (tmp_path / "p.jsonl").write_text('{"study_id": "elsewhere", "report": "Clear."}\n')
    with pytest.raises(ValueError, match=r"none of the 1 predicted ids.*elsewhere"):
        evaluate(job, root, tiny_yaml, "--evaluate.predictions", str(tmp_path / "p.jsonl"))


def test_only_the_studies_that_were_asked_for_count(
    job: Callable[[str], Main], root: Path, tiny_yaml: Path, studies: tuple[split.Study, ...]
) -> None:
    generations(root, rows_of(studies[:6]), limit=6)
    evaluate(job, root, tiny_yaml, "--evaluate.tables", "reports,cycle")
    assert table(root, "reports")["studies"] == 6 and table(root, "reports")["missing"] == 0
    assert table(root, "cycle")["generated_image"]["studies"] == 6
    with pytest.raises(ValueError, match=r"is of split test; say --evaluate\.split test"):
        evaluate(job, root, tiny_yaml, "--evaluate.tables", "reports", "--evaluate.split", "validate")


def test_a_named_subset_is_scored_alone(
    job: Callable[[str], Main], root: Path, tiny_yaml: Path, studies: tuple[split.Study, ...], tmp_path: Path
) -> None:
    generations(root, rows_of(studies, lambda n: n != 4))
    ids = tmp_path / "subset.txt"
    ids.write_text("\n".join([studies[n].key.study_id for n in (2, 4, 7)]) + "\n\n")
    evaluate(job, root, tiny_yaml, "--evaluate.tables", "retrieval,reports", "--evaluate.only", str(ids))
    reports = table(root, "reports")
    assert reports["studies"] == 3 and reports["missing_ids"] == [studies[4].id], "who failed still counts"
    assert table(root, "retrieval")["studies"] == 16
    ids.write_text("elsewhere\n")
    with pytest.raises(ValueError, match=r"none of the 1 ids of .*subset\.txt is a study of split test"):
        evaluate(job, root, tiny_yaml, "--evaluate.tables", "reports", "--evaluate.only", str(ids))


def test_models_of_another_root_are_scored_on_these_studies_and_left_as_they_are(
    job: Callable[[str], Main], root: Path, studies_root: Path, tiny_yaml: Path, tmp_path: Path
) -> None:
    """Zero-shot: the paper's OpenI with the models of MIMIC-CXR."""
    here = Path(shutil.copytree(studies_root, tmp_path / "here"))
    borrow = ["--root", str(here), "--from", str(root)]
    with pytest.raises(ValueError, match="nothing to borrow"):
        job("borrow")(["--root", str(here), "--from", str(studies_root)])
    answer = job("borrow")(borrow)
    assert answer is not None and {"encoder", "adamatch", "codebooks", "vqgan", "tokens", "llm"} <= {*answer["stages"]}
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    assert CycleEngine.load(Root(str(here))).canvas == 64
    evaluate(job, here, tiny_yaml, "--evaluate.tables", "retrieval")
    assert (here / "metrics" / "manifest.json").is_file() and not (here / "adamatch").exists()
    skipped = job("train_adamatch")(["--config", str(tiny_yaml), "--root", str(here)])
    assert skipped is not None and skipped["status"] == "skipped"
    with pytest.raises(ValueError, match=rf"adamatch is borrowed from {root}/adamatch"):
        job("train_adamatch")(["--config", str(tiny_yaml), "--root", str(here), "--overwrite"])
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()} == before
    with pytest.raises(ValueError, match=r"has .*adamatch.* of its own; borrow for another --root"):
        job("borrow")(["--root", str(root), "--from", str(here)])


def test_batch_sizes_change_no_number(
    job: Callable[[str], Main], root: Path, tiny_yaml: Path, studies: tuple[split.Study, ...]
) -> None:
    generations(root, rows_of(studies, lambda n: n != 2))
    found = []
    for batch in (16, 3):
        evaluate(job, root, tiny_yaml, "--evaluate.batch_size", str(batch))
        metrics = table(root, "metrics")
        found.append({name: value for name, value in metrics.items() if name in ("tables", "headlines")})
    assert found[0] == found[1]


def test_thresholds_are_the_best_of_all() -> None:
    rng = np.random.default_rng(0)
    probability = rng.integers(0, 8, size=(60, 14)) / 8
    values: tuple[float | None, ...] = (1.0, 0.0, None, -1.0)
    labels: list[Labels] = [(*(values[v] for v in rng.integers(4, size=13)), None) for _ in range(60)]
    thresholds = images.choose_thresholds(probability, labels)
    assert np.isinf(thresholds[13])
    for label in range(13):
        known = [
            (p, row[label] == 1.0) for p, row in zip(probability[:, label], labels, strict=True) if row[label] != -1
        ]
        scores = {}
        for threshold in {p for p, _ in known}:
            hits = sum(truth for p, truth in known if p >= threshold)
            scores[threshold] = 2 * hits / (sum(p >= threshold for p, _ in known) + sum(truth for _, truth in known))
        assert scores[thresholds[label]] == pytest.approx(max(scores.values()))


def test_a_study_with_two_images_takes_one_report_for_both() -> None:
    labels = (None,) * 14
    pairs = (("a", "1"), ("a", "2"), ("b", "3"))
    found = split.Split("test", "mimic_cxr", tuple(
        split.Study(f"{s}/{d}" if s == "a" else s, Key(s, d), "", labels, b"") for s, d in pairs))  # fmt: skip
    placed = found.place({Key("a"): "both", Key("a", "2"): "second", Key("c"): "stray"})
    assert placed.values == {"a/1": "both", "a/2": "second"}
    assert placed.missing == ("b",) and placed.unexpected == ("c",)


def test_intervals_of_pointing_draw_studies_not_words() -> None:
    def row(study: str, hit: bool) -> LocalizedPhrase:
        score = Localization(hit, 0.5, True, hit, 0.2, hit, 0.5, float("nan"), 0.1, 0.1)
        return LocalizedPhrase(study, "effusion", "effusion", True, score)

    one = localization.score(Located([row("a", True)] * 50 + [row("b", False)] * 50), 200, 0)
    many = localization.score(Located([row(f"{n}", n % 2 == 0) for n in range(100)]), 200, 0)
    assert one["micro"]["point_hit"] == many["micro"]["point_hit"] == 0.5 and one["micro"]["cnr"] is None
    assert one["groundable"]["auc"] is None and list(one["groups"]) == ["blob"]
    width = [found["intervals"]["point_hit"]["high"] - found["intervals"]["point_hit"]["low"] for found in (one, many)]
    assert width[0] == 1.0 and width[1] < 0.3


def test_the_paper_stands_beside_data_of_its_kind() -> None:
    tables = {"reports": {"values": {"bleu_1": 0.4}}, "images": {"fid": {"value": 2.0}}}
    assert [row.paper for row in headline.headlines(tables, "mimic_cxr")] == [0.3793, 1.0916]
    assert [row.paper for row in headline.headlines(tables, "openi")] == [0.4161, 1.5938]


@pytest.mark.parametrize("path", sorted(ABLATIONS.glob("*.yaml")), ids=lambda path: path.stem)
def test_an_ablation_loads_and_its_command_is_one(path: Path) -> None:
    head = {
        line[2:].partition(":")[0]: line.partition(": ")[2] for line in path.read_text().splitlines() if line[0] == "#"
    }
    assert {"Command", "Expected time", "Expected score on phantoms"} <= head.keys()
    python, script, *arguments = head["Command"].split()
    assert python == "python" and (path.parents[3] / script).is_file()
    assert arguments[:2] == ["--config", f"adamatch_ray/presets/ablations/{path.name}"]
    command = parse_command_line(["--config", str(path), *arguments[2:]], "")
    assert command.config.data.source == "phantom"


def test_ablations_come_as_pairs_that_differ_in_one_setting() -> None:
    base = load_config("phantom")
    for first, second, name in (
        ("table5_adapatch_on", "table5_adapatch_off", "adamatch"),
        ("table1_keywords_on", "table1_keywords_off", "llm"),
        ("table3_keypatches_on", "table3_keypatches_off", "llm"),
        ("negatives_global", "negatives_local", "adamatch"),
    ):
        on, off = (load_config(str(ABLATIONS / f"{stem}.yaml")) for stem in (first, second))
        assert section(on, name) == section(base, name) != section(off, name)
    stages = [load_config(str(ABLATIONS / f"table6_stage_{n}.yaml")).adamatch.stage for n in (2, 3, 4)]
    assert stages == [2, 3, 4]
    mixed, both = (load_config(str(ABLATIONS / f"attention_{stem}.yaml")) for stem in ("everywhere", "two_heads"))
    assert mixed.image == both.image and mixed.image.attention_stages == load_config("mimic_cxr").image.attention_stages
    assert (mixed.adamatch.image_heads, both.adamatch.image_heads) == (base.adamatch.image_heads, "both")


def test_phrases_of_ms_cxr_are_placed_where_a_user_has_them(
    job: Callable[[str], Main], root: Path, tiny_yaml: Path, studies: tuple[split.Study, ...], tmp_path: Path
) -> None:
    path = tmp_path / "ms-cxr.csv"
    place = "dicom_id,label_text,category_name,x,y,w,h,image_width,image_height"
    box = "left pleural effusion,Pleural Effusion,10,20,30,40,128,128"
    path.write_text("\n".join([place, f"{studies[3].key.dicom_id},{box}", f"of-another-split,{box}"]))
    only = ("--evaluate.tables", "localization", "--evaluate.phrases")
    evaluate(job, root, tiny_yaml, *only, str(path))
    found = table(root, "localization")
    assert (found["phrases"], found["studies"]) == (1, 1) and list(found["findings"]) == ["Pleural Effusion"]
    with pytest.raises(ValueError, match=r"--evaluate.phrases nowhere.json: no such file"):
        job("evaluate")(["--config", str(tiny_yaml), "--root", str(root), *only, "nowhere.json"])


def test_predictions_of_a_subset_are_scored_as_one_on_request(
    job: Callable[[str], Main], root: Path, tiny_yaml: Path, studies: tuple[split.Study, ...], tmp_path: Path
) -> None:
    some = [studies[number] for number in (9, 2, 5, 12)]
    for study in some:
        (tmp_path / f"{study.id}.png").write_bytes(study.image)
    lines = [{"study_id": study.id, "report": study.report, "image": f"{study.id}.png"} for study in some]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    named = ["--evaluate.predictions", str(tmp_path / "p.jsonl"), "--evaluate.tables", "reports,cycle"]
    evaluate(job, root, tiny_yaml, *named, "--evaluate.subset", "true")
    reports, drawn = table(root, "reports"), table(root, "cycle")["generated_image"]
    assert (reports["studies"], reports["missing"]) == (4, 0) and reports["values"]["rouge_l"] == 1
    assert (drawn["studies"], drawn["missing"]) == (4, 0)
    evaluate(job, root, tiny_yaml, *named)
    assert (table(root, "reports")["studies"], table(root, "reports")["missing"]) == (16, 12)
