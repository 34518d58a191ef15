"""The matching engine: keywords, keypatches and word-box similarities, with boxes of the right image and place."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from adamatch_ray.codebooks import Entity, TextualCodebook, VisualCodebook
from adamatch_ray.data import loading
from adamatch_ray.engines.embedding import Embedder, whole_words
from adamatch_ray.engines.loader import load_embedder
from adamatch_ray.engines.localizing import canvas_image
from adamatch_ray.engines.matching import Keypatch, Keyword, MatchingEngine
from adamatch_ray.geometry import CanvasImage, box_iou, place_of
from adamatch_ray.models import adamatch
from adamatch_ray.models.adamatch import AdaMatchSizes
from adamatch_ray.storage import Root

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@pytest.fixture(scope="module")
def engine(cycle_root: Path) -> MatchingEngine:
    return MatchingEngine.load(Root(str(cycle_root)))


@pytest.fixture(scope="module")
def studies(cycle_root: Path) -> list[dict[str, Any]]:
    """Six test studies of different sizes."""
    table = next(loading.read_split(Root(str(cycle_root)).stage("studies"), "test"))
    rows: list[dict[str, Any]] = table.slice(0, 6).to_pylist()
    return rows


def images_of(studies: list[dict[str, Any]]) -> list[CanvasImage]:
    return [canvas_image(study) for study in studies]


def reports_of(studies: list[dict[str, Any]]) -> list[str]:
    return [study["report"] for study in studies]


def same_keywords(a: list[Keyword], b: list[Keyword]) -> None:
    assert [(k.text, k.group, k.patch) for k in a] == [(k.text, k.group, k.patch) for k in b]
    np.testing.assert_allclose([k.box for k in a], [k.box for k in b], atol=1e-3)
    np.testing.assert_allclose([k.score for k in a], [k.score for k in b], atol=1e-5)


def test_keywords_are_ranked_and_each_is_the_most_similar_patch_of_its_entity(
    engine: MatchingEngine, studies: list[dict[str, Any]]
) -> None:
    found = engine.keywords(images_of(studies)[:1], 4)[0]
    assert len(found) == 4 and len({k.text for k in found}) == 4
    assert [k.score for k in found] == sorted((k.score for k in found), reverse=True)
    assert engine.textual is not None
    patches = engine.embedder.images(images_of(studies)[0].pixels[None]).heads[0][0]
    for keyword in found:
        k = [e.text for e in engine.textual.entities].index(keyword.text)
        similarity_P = patches @ engine.textual.feature_KD[k]
        assert keyword.score == pytest.approx(float(similarity_P[keyword.patch]), abs=1e-5)


def test_with_two_heads_both_rank_and_the_local_one_tells_the_place(
    reports: tuple[str, ...], tokenizer: "PreTrainedTokenizerBase", tiny_sizes: AdaMatchSizes
) -> None:
    torch.manual_seed(3)
    sizes = replace(tiny_sizes, adamatch=replace(tiny_sizes.adamatch, image_heads="both"))
    embedder = Embedder(adamatch.build(sizes, tokenizer).eval(), tokenizer, torch.device("cpu"))
    feature_KD = torch.nn.functional.normalize(torch.randn(5, sizes.adamatch.dim), dim=-1)
    entities = tuple(Entity(f"entity {k}", "Sign_symptom", 1) for k in range(5))
    image = CanvasImage(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8), 64, 64)
    engine = MatchingEngine(embedder, TextualCodebook(entities, feature_KD, "m"))
    mixed, local = (head[0] for head in embedder.images(image.pixels[None]).heads)
    mean_K = ((mixed @ feature_KD.T).amax(0) + (local @ feature_KD.T).amax(0)) / 2
    found = engine.keywords([image], 5)[0]
    assert [keyword.text for keyword in found] == [f"entity {k}" for k in mean_K.argsort(descending=True)]
    for keyword in found:
        k = int(keyword.text.split()[-1])
        assert keyword.patch == int((local @ feature_KD[k]).argmax())
        assert keyword.score == pytest.approx(float(mean_K[k]), abs=1e-5)
    similarity = engine.match([image], [reports[0]])[0].similarity_NP
    words = whole_words(embedder.reports([reports[0]]).word_BND[0], embedder.words([reports[0]])[0])
    np.testing.assert_allclose(similarity, words @ local.T, atol=1e-5)


def test_pooling_the_best_entities_of_each_patch_gives_the_same_keywords(
    engine: MatchingEngine, studies: list[dict[str, Any]]
) -> None:
    """The procedure as the paper words it: top-k of each patch, pooled by similarity, repetitions dropped, cut."""
    count, image = 3, images_of(studies)[1]
    assert engine.textual is not None
    similarity_PK = engine.embedder.images(image.pixels[None]).heads[0][0] @ engine.textual.feature_KD.T
    top = similarity_PK.topk(count, dim=1)
    pooled = [
        (float(value), engine.textual.entities[int(k)].text)
        for values, ks in zip(top.values, top.indices, strict=True)
        for value, k in zip(values, ks, strict=True)
    ]
    expected = list(dict.fromkeys(text for _, text in sorted(pooled, reverse=True)))[:count]
    assert [keyword.text for keyword in engine.keywords([image], count)[0]] == expected


def test_repetitions_are_dropped_before_the_cut_and_leave_the_order(
    engine: MatchingEngine, studies: list[dict[str, Any]]
) -> None:
    """Mistake g of docs/method.md 6: a set between ranking and cut keeps whichever words it likes."""
    assert engine.textual is not None
    twice = TextualCodebook(
        engine.textual.entities * 2, torch.cat([engine.textual.feature_KD] * 2), engine.textual.model
    )
    doubled = MatchingEngine(engine.embedder, twice)
    for once, again in zip(
        engine.keywords(images_of(studies), 5), doubled.keywords(images_of(studies), 5), strict=True
    ):
        same_keywords(once, again)


def test_a_box_belongs_to_its_own_image_whatever_the_batch(
    engine: MatchingEngine, studies: list[dict[str, Any]]
) -> None:
    """Mistake e of docs/method.md 6: boxes left behind when rows were reordered, so that they were another image's."""
    images = images_of(studies)
    alone = [engine.keywords([image], 5)[0] for image in images]
    assert len({keywords[0].box for keywords in alone}) > 1
    order = [4, 0, 5, 2, 1, 3]
    together = engine.keywords([images[n] for n in order], 5)
    for n, keywords in zip(order, together, strict=True):
        same_keywords(keywords, alone[n])
        height, width = studies[n]["height"], studies[n]["width"]
        assert all(0 <= k.box[0] <= k.box[2] <= width and 0 <= k.box[1] <= k.box[3] <= height for k in keywords)


def test_canvases_of_two_sizes_may_share_a_batch(engine: MatchingEngine, studies: list[dict[str, Any]]) -> None:
    images = images_of(studies)
    images[1] = images[1]._replace(pixels=np.repeat(np.repeat(images[1].pixels, 2, 0), 2, 1))
    alone = [engine.keywords([image], 5)[0] for image in images]
    for together, single in zip(engine.keywords(images, 5), alone, strict=True):
        same_keywords(together, single)


@pytest.mark.parametrize(("height", "width"), [(900, 300), (300, 900), (40, 64), (4000, 3000), (64, 64)])
def test_boxes_lie_on_the_original_not_on_the_canvas(engine: MatchingEngine, height: int, width: int) -> None:
    """Mistakes d and i of docs/method.md 6: boxes of one canvas read on another, or on another crop.

    Expected from the picture itself: the long side fills the canvas of 64, the short one is centred.
    """
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    image = CanvasImage(pixels, height, width)
    match, seen = engine.match([image], ["small left effusion"])[0], engine.embedder.images(pixels[None])
    scale = 64 / max(height, width)
    padding = np.array([(64 - round(width * scale)) // 2, (64 - round(height * scale)) // 2] * 2)
    for found, unit in ((match.boxes_P4, seen.boxes_BP4[0]), (match.fixed_boxes_P4, seen.fixed_boxes_P4)):
        expected = np.clip((unit.numpy() * 64 - padding) / scale, 0, [width, height, width, height])
        np.testing.assert_allclose(found, expected, atol=0.02 * max(height, width))
    for keyword in engine.keywords([image], 6)[0]:
        np.testing.assert_allclose(keyword.box, match.boxes_P4[keyword.patch], atol=1e-3)


def test_patches_on_the_padding_show_nothing(engine: MatchingEngine) -> None:
    pixels = np.zeros((64, 64), np.uint8)
    pixels[:, 24:40] = np.random.default_rng(0).integers(0, 255, (64, 16), dtype=np.uint8)
    image = CanvasImage(pixels, 640, 160)
    match = engine.match([image], ["effusion"])[0]
    beside = np.array([column in (0, 3) for _ in range(4) for column in range(4)])
    assert (match.similarity_NP[:, beside] == -1).all()
    assert (match.similarity_NP[:, ~beside] > -1).all()
    assert all(keyword.patch % 4 in (1, 2) for keyword in engine.keywords([image], 6)[0])


def test_keypatches_are_ranked_distinct_and_the_best_of_their_words(
    engine: MatchingEngine, studies: list[dict[str, Any]]
) -> None:
    report = reports_of(studies)[0]
    assert engine.visual is not None
    found = engine.keypatches([report], 5)[0]
    assert found and len({patch.entry for patch in found}) == len({p.word.lower() for p in found}) == len(found)
    assert [p.score for p in found] == sorted((p.score for p in found), reverse=True)
    rows = engine.visual.table.to_pylist()
    for patch in found:
        row = rows[patch.entry]
        assert patch.study_id == row["study_id"]
        assert patch.box == (row["x0"], row["y0"], row["x1"], row["y1"])
        assert patch.word.lower() in report.lower()
    for i, a in enumerate(found):
        for b in found[:i]:
            assert a.study_id != b.study_id or box_iou(np.array([a.box]), np.array([b.box]))[0, 0] < 0.5


def test_words_that_denote_no_entity_have_no_keypatch(engine: MatchingEngine) -> None:
    assert engine.textual is not None
    told = replace(engine.textual, provenance={"words": ["effusion", "heart"]})
    found = MatchingEngine(engine.embedder, told, engine.visual).keypatches(
        ["The Heart is seen; no effusion.", "Seen."]
    )
    assert {patch.word for patch in found[0]} <= {"Heart", "effusion"} and found[0]
    assert found[1] == []


def test_a_word_can_ask_for_keypatches_of_its_side(engine: MatchingEngine) -> None:
    for side in ("left", "right"):
        found = engine.keypatches([f"Small {side} pleural effusion."], 5, sided=True)[0]
        assert found and engine.visual is not None
        rows = engine.visual.table.take([patch.entry for patch in found]).to_pylist()
        assert {
            place_of(patch.box, r["height"], r["width"]).split()[0] for patch, r in zip(found, rows, strict=True)
        } == {side}


def test_the_same_place_is_given_once(engine: MatchingEngine, studies: list[dict[str, Any]]) -> None:
    """A codebook of one place only, under many entries, has one keypatch to give."""
    assert engine.visual is not None
    table = engine.visual.table.take([0] * len(engine.visual))
    visual = VisualCodebook(table, engine.visual.feature_KD, engine.visual.model)
    answers = MatchingEngine(engine.embedder, visual=visual).keypatches(reports_of(studies), 5)
    assert [len(found) for found in answers] == [1] * len(studies)


def test_a_report_has_the_keypatches_it_has_alone(engine: MatchingEngine, studies: list[dict[str, Any]]) -> None:
    reports = reports_of(studies)
    for together, report in zip(engine.keypatches(reports, 5), reports, strict=True):
        alone = engine.keypatches([report], 5)[0]
        assert [(p.word, p.entry, p.study_id, p.box) for p in together] == [
            (p.word, p.entry, p.study_id, p.box) for p in alone
        ]


def test_match_gives_whole_words_and_padding_takes_no_part(
    engine: MatchingEngine, studies: list[dict[str, Any]]
) -> None:
    """Mistake a of 6 of the method: what is masked took part, as beside a longer report."""
    short, image = "Mild edema; heart normal.", images_of(studies)[0]
    alone = engine.match([image], [short])[0]
    beside = engine.match([image, image], [short, reports_of(studies)[0] * 2])[0]
    assert alone.words == ("Mild", "edema", ";", "heart", "normal", ".")
    assert alone.similarity_NP.shape == (6, 16) and alone.boxes_P4.shape == (16, 4)
    assert beside.words == alone.words
    np.testing.assert_allclose(beside.similarity_NP, alone.similarity_NP, atol=1e-5)


def test_threads_get_the_answers_of_one_after_another(engine: MatchingEngine, studies: list[dict[str, Any]]) -> None:
    reports = [*reports_of(studies), "Edema.", "No acute process in clear lungs."]
    one_by_one = [engine.keypatches([report], 3)[0] for report in reports]

    def ask(number: int) -> list[Keypatch]:
        return engine.keypatches([reports[number], *reports], 3)[0]

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, [n % len(reports) for n in range(96)]))
    for n, answer in enumerate(answers):
        assert [(p.word, p.entry) for p in answer] == [(p.word, p.entry) for p in one_by_one[n % len(reports)]]


@pytest.mark.parametrize("report", ["", "   ", "漢字 漢字", "1. 2; ...", "☃"])
def test_a_report_without_a_known_word_has_no_keypatch(
    engine: MatchingEngine, studies: list[dict[str, Any]], report: str
) -> None:
    answers = engine.keypatches([report, reports_of(studies)[0]], 3)
    assert answers[0] == [] and answers[1]
    assert engine.match(images_of(studies)[:1], [report])[0].similarity_NP.shape[1] == 16


def test_an_empty_report_matches_with_no_word(engine: MatchingEngine, studies: list[dict[str, Any]]) -> None:
    match = engine.match(images_of(studies)[:1], [""])[0]
    assert match.words == () and match.similarity_NP.shape == (0, 16)


@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_blank_image_shows_nothing(engine: MatchingEngine, studies: list[dict[str, Any]], value: int) -> None:
    """Also where the padding beside it is of another gray; its neighbour in the batch is not disturbed."""
    pixels = np.zeros((64, 64), np.uint8)
    pixels[:, 16:48] = value
    blank, other = CanvasImage(pixels, 600, 300), images_of(studies)[0]
    answers = engine.keywords([blank, other], 4)
    assert answers[0] == []
    same_keywords(answers[1], engine.keywords([other], 4)[0])
    matches = engine.match([blank, other], reports_of(studies)[:2])
    assert matches[0].words == () and len(matches[1].words) > 3


def test_nothing_asked_is_nothing_answered(engine: MatchingEngine) -> None:
    assert engine.keywords([]) == [] and engine.keypatches([]) == [] and engine.match([], []) == []


def test_an_empty_codebook_has_empty_answers(engine: MatchingEngine, studies: list[dict[str, Any]]) -> None:
    assert engine.visual is not None
    nothing = torch.zeros(0, engine.embedder.model.sizes.adamatch.dim)
    textual = TextualCodebook((), nothing, "m")
    visual = VisualCodebook(engine.visual.table.slice(0, 0), nothing, "m")
    empty = MatchingEngine(engine.embedder, textual, visual)
    assert empty.keywords(images_of(studies)[:2]) == [[], []]
    assert empty.keypatches(reports_of(studies)[:2]) == [[], []]


def test_without_a_codebook_the_job_that_makes_it_is_named(
    engine: MatchingEngine, studies: list[dict[str, Any]]
) -> None:
    bare = MatchingEngine(engine.embedder)
    with pytest.raises(ValueError, match="build_codebooks"):
        bare.keywords(images_of(studies))
    with pytest.raises(ValueError, match="build_codebooks"):
        bare.keypatches(reports_of(studies))


def test_a_codebook_of_other_dimensions_or_of_another_model_is_refused(engine: MatchingEngine) -> None:
    narrow = TextualCodebook((Entity("heart", "Biological_structure", 1),), torch.ones(1, 3), "m")
    with pytest.raises(ValueError, match="3 dimensions"):
        MatchingEngine(engine.embedder, narrow)
    assert engine.textual is not None and engine.visual is not None
    other = TextualCodebook(engine.textual.entities, engine.textual.feature_KD, "another")
    with pytest.raises(ValueError, match="another"):
        MatchingEngine(engine.embedder, other, engine.visual)


def test_loading_refuses_codebooks_of_an_earlier_adamatch(cycle_root: Path, tmp_path: Path) -> None:
    for stage in ("adamatch", "codebooks"):
        shutil.copytree(cycle_root / stage, tmp_path / stage)
    manifest = tmp_path / "adamatch" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("adamatch-tiny", "adamatch-new"))
    with pytest.raises(ValueError, match=r"adamatch-tiny.*adamatch-new.*build_codebooks"):
        MatchingEngine.load(Root(str(tmp_path)))


def test_an_unfinished_stage_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="train_adamatch"):
        MatchingEngine.load(Root(str(tmp_path)))
    with pytest.raises(ValueError, match="train_adamatch"):
        load_embedder(Root(str(tmp_path)))
