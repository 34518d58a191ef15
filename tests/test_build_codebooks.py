"""Building the codebooks: from the train split alone, the same bytes however the work was split, boxes that belong."""

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from adamatch_ray.codebooks import GROUPS, TextualCodebook, VisualCodebook
from adamatch_ray.data.images import Decoded, decode_png, encode_png, to_canvas
from adamatch_ray.engines.embedding import whole_words
from adamatch_ray.engines.loader import load_embedder
from adamatch_ray.geometry import Geometry
from adamatch_ray.model_config import AdaMatchConfig
from adamatch_ray.models import adamatch, text_encoder
from adamatch_ray.models.adamatch import AdaMatchSizes
from adamatch_ray.pipeline import codebooks as building
from adamatch_ray.pipeline.codebooks import EntityCounts, KeypatchCandidates
from adamatch_ray.schema import KEYPATCH
from adamatch_ray.shards import MadeShard
from adamatch_ray.storage import Manifest, Root

FILES = ("textual.json", "textual.safetensors", "visual.parquet")
LEXICON = ("lexicon", "", 0.7)


def add_adamatch(root: Path, sizes: AdaMatchSizes, name: str = "adamatch-0") -> None:
    """An untrained AdaMatch as a finished stage; its adaptive boxes have moved and grown by chance."""
    folder = root / "adamatch" / "model"
    reports = [report for table in train_tables(root) for report in table["report"].to_pylist()]
    text_encoder.train_tokenizer(reports, 120, folder / "text")
    tokenizer = text_encoder.load_tokenizer(folder / "text")
    torch.manual_seed(0)
    model = adamatch.build(sizes, tokenizer)
    with torch.no_grad():
        for part, parameter in model.named_parameters():
            if part.endswith("offsets.weight"):
                parameter.add_(torch.randn_like(parameter) * 0.1)
    adamatch.save(model, tokenizer, folder)
    Root(str(root)).stage("adamatch").commit(Manifest("adamatch", name, {}, {}))


def train_files(root: Path) -> list[str]:
    return sorted(name for name in Root(str(root)).stage("studies").require().files if name.startswith("train/"))


def train_tables(root: Path) -> list[pa.Table]:
    return [pq.read_table(root / "studies" / name) for name in train_files(root)]


@pytest.fixture
def sizes(tiny_sizes: AdaMatchSizes) -> AdaMatchSizes:
    return replace(tiny_sizes, adamatch=AdaMatchConfig(dim=12, image_heads="both"))


@pytest.fixture
def root(studies_root: Path, tmp_path: Path, sizes: AdaMatchSizes) -> Path:
    shutil.copytree(studies_root / "studies", tmp_path / "studies")
    add_adamatch(tmp_path, sizes)
    return tmp_path


def candidates(root: Path, words: Sequence[str] = ("effusion", "lung", "right"), **settings: Any) -> KeypatchCandidates:
    defaults: dict[str, Any] = {"keypatches": 50, "per_word": 9, "batch_size": 8}
    return KeypatchCandidates(str(root), words, **{**defaults, **settings})


def build(root: Path, files: Sequence[str], keypatches: int = 50, per_word: int = 9) -> list[MadeShard]:
    """What the job does, without Ray."""
    stages = Root(str(root))
    stage = stages.stage("codebooks")
    counted = [EntityCounts(str(root), *LEXICON).make(file) for file in files]
    counts = building.merge_counts(stage, [shard.file for shard in counted])
    said = {"backend": "lexicon"}
    textual = building.build_textual(
        load_embedder(stages), "adamatch-0", counts, per_group=8, min_count=2, provenance=said
    )
    textual.save(stage)
    maker = candidates(root, textual.provenance["words"], keypatches=keypatches, per_word=per_word)
    found = [maker.make(file) for file in files]
    visual = building.merge_candidates(
        stage, [shard.file for shard in found], "adamatch-0", 12, keypatches=keypatches, per_word=per_word
    )
    visual.save(stage)
    stage.commit(Manifest("codebooks", "c", {}, {}))
    return [*counted, *found]


def digests(root: Path) -> dict[str, str]:
    return {name: hashlib.sha256((root / "codebooks" / name).read_bytes()).hexdigest() for name in FILES}


def replace_reports(root: Path, split: str, report: str) -> None:
    for name in Root(str(root)).stage("studies").require().files:
        if name.startswith(f"{split}/"):
            table = pq.read_table(root / "studies" / name)
            column = table.column_names.index("report")
            texts = pa.array([report] * table.num_rows)
            pq.write_table(table.set_column(column, "report", texts), root / "studies" / name)


def test_only_the_train_split_is_read(root: Path) -> None:
    """docs/method.md 6 h: another test or validation report changes no byte, another train report changes all."""
    build(root, train_files(root))
    before = digests(root)
    for split in ("test", "validate"):
        replace_reports(root, split, "Large right pneumothorax with a calcified granuloma of the spleen.")
    shutil.rmtree(root / "codebooks")
    build(root, train_files(root))
    assert digests(root) == before
    replace_reports(root, "train", "Large right pneumothorax with a calcified granuloma of the spleen.")
    shutil.rmtree(root / "codebooks")
    build(root, train_files(root))
    assert not set(digests(root).values()) & set(before.values())


def test_order_of_shards_leaves_no_trace(root: Path) -> None:
    build(root, train_files(root))
    before = digests(root)
    shutil.rmtree(root / "codebooks")
    build(root, train_files(root)[::-1])
    assert digests(root) == before


def test_finished_shards_are_kept_until_their_inputs_change(root: Path) -> None:
    files = train_files(root)
    assert not any(shard.reused for shard in build(root, files))
    before = digests(root)
    (root / "codebooks" / "candidates" / files[1]).unlink()
    again = build(root, files)
    assert [shard.reused for shard in again] == [True] * len(files) + [name != files[1] for name in files]
    assert digests(root) == before
    Root(str(root)).stage("adamatch").commit(Manifest("adamatch", "adamatch-1", {}, {}))
    assert [shard.reused for shard in build(root, files)] == [True] * len(files) + [False] * len(files)


def test_textual_codebook_counts_reports_and_encodes_each_text_alone(root: Path) -> None:
    build(root, train_files(root))
    book = TextualCodebook.load(Root(str(root)).stage("codebooks"))
    reports = [report.lower() for table in train_tables(root) for report in table["report"].to_pylist()]
    counts = {entity.text: entity.count for entity in book.entities}
    assert counts["pneumothorax"] == sum("pneumothorax" in report for report in reports)
    assert {entity.group for entity in book.entities} == set(GROUPS)
    assert max(sum(entity.group == group for entity in book.entities) for group in GROUPS) == 8
    embedder = load_embedder(Root(str(root)))
    for number in (0, 5, len(book) - 1):
        alone = embedder.reports([book.entities[number].text])
        mean = torch.nn.functional.normalize(alone.word_BND[0][alone.mask_BN[0]].mean(0), dim=0)
        torch.testing.assert_close(book.feature_KD[number], mean, atol=1e-6, rtol=0)


def test_a_codebook_of_any_size_is_encoded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = load_embedder(Root(str(root)))
    texts = [f"opacity {number}" for number in range(700)]
    features = building.encode_texts(embedder, texts)
    assert features.shape == (700, 12)
    monkeypatch.setattr(building, "TEXTS_AT_ONCE", 7)
    torch.testing.assert_close(building.encode_texts(embedder, texts), features, atol=1e-6, rtol=0)
    assert building.encode_texts(embedder, []).shape == (0, 12)


def test_each_keypatch_is_the_best_patch_of_its_word_with_its_own_box(root: Path) -> None:
    """docs/method.md 6 e: the box belongs to the patch, the patch to the study, also after ranking across batches."""
    studies = {row["dicom_id"]: row for table in train_tables(root) for row in table.to_pylist()}
    build(root, train_files(root))
    book = VisualCodebook.load(Root(str(root)).stage("codebooks"), crops=True)
    embedder = load_embedder(Root(str(root)))
    rows = book.table.to_pylist()
    assert len(rows) == 50 and [row["similarity"] for row in rows] == sorted(r["similarity"] for r in rows)[::-1]
    for row, feature_D in list(zip(rows, book.feature_KD, strict=True))[::3]:
        study = studies[row["dicom_id"]]
        canvas = decode_png(study["image"])
        images = embedder.images(canvas[None])
        local = embedder.model.head_names.index("local")
        torch.testing.assert_close(feature_D, images.heads[local][0, row["patch"]], atol=1e-5, rtol=0)
        place = Geometry(study["height"], study["width"], 64)
        box = place.to_original(images.boxes_BP4[0, row["patch"]].double().numpy())
        np.testing.assert_allclose([row[corner] for corner in ("x0", "y0", "x1", "y1")], box, atol=1e-2)
        said = [word for word in embedder.words([study["report"]])[0] if word.text.lower() == row["word"]]
        vectors = whole_words(embedder.reports([study["report"]]).word_BND[0], said)
        similarity_P = (vectors @ images.heads[local][0].T).max(0).values
        assert row["similarity"] == pytest.approx(float(similarity_P[row["patch"]]), abs=1e-5)
        assert row["study_id"] == study["study_id"] and (row["height"], row["width"]) == (
            study["height"],
            study["width"],
        )
        x0, y0, x1, y1 = place.to_canvas(box) * 64
        height, width = decode_png(row["crop"]).shape
        assert abs(height - (y1 - y0)) <= 1.5 and abs(width - (x1 - x0)) <= 1.5


def test_a_word_said_twice_is_one_keypatch_of_a_study(root: Path) -> None:
    study = train_tables(root)[0].slice(0, 1).to_pylist()[0]
    study["report"] = "Effusion in the right lung. Small right effusion. Effusion."
    assert sorted(candidates(root).table([study])["word"].to_pylist()) == ["effusion", "lung", "right"]


@pytest.mark.parametrize("unit", ["wordpiece", "word"])
def test_keypatches_are_of_whole_words(root: Path, sizes: AdaMatchSizes, unit: Any) -> None:
    add_adamatch(root, replace(sizes, text=replace(sizes.text, unit=unit)))
    study = train_tables(root)[0].slice(0, 1).to_pylist()[0]
    study["report"] = "Unheard-of rightward effusions; RIGHT Onlung effusion, e f f"
    tokenizer = load_embedder(Root(str(root))).tokenizer
    assert len(tokenizer.tokenize("onlung")) > 1
    words = candidates(root, ("effusion", "lung", "right", "onlung", "heard", "f")).table([study])["word"].to_pylist()
    assert sorted(words) == ["effusion", "f", "onlung", "right"]


@pytest.mark.parametrize(("height", "width"), [(1000, 450), (450, 1000), (30, 17), (3000, 2500)])
def test_boxes_and_crops_lie_on_the_original_image(root: Path, height: int, width: int) -> None:
    """docs/method.md 6 d: pixels of the original, never of the canvas, and never in the padding."""
    pixels = np.random.default_rng(0).integers(100, 255, (height, width)).astype(np.uint8)
    canvas = to_canvas(Decoded(pixels, height, width), 64)
    study = train_tables(root)[0].slice(0, 1).to_pylist()[0]
    study |= {"image": encode_png(canvas), "height": height, "width": width, "report": "right lung effusion"}
    rows = candidates(root).table([study]).to_pylist()
    assert len(rows) == 3
    for row in rows:
        assert 0 <= row["x0"] < row["x1"] <= width and 0 <= row["y0"] < row["y1"] <= height
        assert decode_png(row["crop"]).min() > 0, "no padding in a crop"


def test_nothing_to_match_gives_an_empty_codebook(root: Path) -> None:
    study = train_tables(root)[0].slice(0, 1).to_pylist()[0]
    for report in ("", "...", "zzz unknown words only"):
        assert candidates(root).table([{**study, "report": report}]).equals(KEYPATCH.empty_table())
    assert candidates(root).table([]).num_rows == 0
    stage = Root(str(root)).stage("codebooks")
    empty = building.merge_candidates(stage, [], "adamatch-0", 12, keypatches=5, per_word=5)
    empty.save(stage)
    assert len(empty) == 0 and empty.feature_KD.shape == (0, 12)


def test_reports_without_an_entity_are_a_clear_error(root: Path) -> None:
    replace_reports(root, "train", "")
    with pytest.raises(ValueError, match=r"no entity is found.*codebooks\.min_count"):
        build(root, train_files(root))


def test_missing_adamatch_names_its_job(root: Path) -> None:
    (root / "adamatch" / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"train_adamatch\.py"):
        candidates(root)


@pytest.mark.ray
@pytest.mark.slow
def test_job_makes_the_same_bytes_with_one_worker_or_four_and_another_test_split(
    job: Callable[[str], Any],
    root: Path,
    tiny_yaml: Path,
    ray_session: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    arguments = ["--config", str(tiny_yaml), "--root", str(root), "--codebooks.backend", "lexicon"]
    arguments += ["--codebooks.keypatches", "60", "--codebooks.per_word", "5", "--scale.workers"]
    answer = job("build_codebooks")([*arguments, "1"])
    assert answer["status"] == "done" and answer["keypatches"] == 60 and answer["reused"] == 0
    assert answer["keywords"] == sum(answer["groups"].values()) and "pneumothorax" in answer["top"]["Disease_disorder"]
    assert "Disease_disorder: " in capsys.readouterr().err
    assert {path.name for path in (root / "codebooks").rglob("*") if path.is_file()} == {*FILES, "manifest.json"}
    before = digests(root)
    TextualCodebook.load(Root(str(root)).stage("codebooks")).require("adamatch-0", 12)
    shutil.rmtree(root / "codebooks")
    replace_reports(root, "test", "Large right pneumothorax with a calcified granuloma of the spleen.")
    job("build_codebooks")([*arguments, "4"])
    assert digests(root) == before
    assert job("build_codebooks")([*arguments, "4"])["status"] == "skipped"
