"""The cycle: rows do not depend on each other, failures keep their place, and parts that do not fit are refused."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from tiny_cycle import add_llm, add_vqgan

from adamatch_ray.data import loading
from adamatch_ray.data.images import decode_png
from adamatch_ray.engines.cycle import (
    CycleEngine,
    ImageAnswer,
    ReportAnswer,
    as_canvas,
    image_request,
    row_seed,
    second_seed,
)
from adamatch_ray.engines.generation import ImageResult, ReportRequest, ReportResult
from adamatch_ray.engines.image_tokens import fingerprint
from adamatch_ray.geometry import CanvasImage
from adamatch_ray.instructions import spell_keywords
from adamatch_ray.model_config import GenerationSettings, InstructionConfig
from adamatch_ray.storage import Manifest, Root

Answer = ReportAnswer | ImageAnswer
GREEDY = GenerationSettings(report_temperature=0, image_temperature=0, report_tokens=24)
SAMPLED = GenerationSettings(report_tokens=24, batch_size=3)


class Studies(NamedTuple):
    """The test split of the tiny root."""

    images: list[CanvasImage]
    reports: list[str]


@pytest.fixture(scope="module")
def studies(cycle_root: Path) -> Studies:
    columns = ["image", "height", "width", "report"]
    rows = next(loading.read_split(Root(str(cycle_root)).stage("studies"), "test", columns)).to_pylist()
    images = [CanvasImage(decode_png(row["image"]), row["height"], row["width"]) for row in rows]
    return Studies(images, [row["report"] for row in rows])


@pytest.fixture(scope="module")
def engine(cycle_root: Path) -> CycleEngine:
    return CycleEngine.load(Root(str(cycle_root)), settings=GREEDY)


@pytest.fixture
def root(cycle_root: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(cycle_root, tmp_path / "root"))


def same(one: Answer, other: Answer) -> bool:
    """Equal, but for the last bits of a similarity, which a batch of another shape may round differently."""
    if isinstance(one, ReportAnswer) and isinstance(other, ReportAnswer):
        found = [(k.text, k.group, k.patch) for k in one.keywords] == [
            (k.text, k.group, k.patch) for k in other.keywords
        ]
        return one.report == other.report and found and _same_tail(one, other)
    assert isinstance(one, ImageAnswer) and isinstance(other, ImageAnswer)
    found = [k.entry for k in one.keypatches] == [k.entry for k in other.keypatches]
    return np.array_equal(one.image, other.image) and found and _same_tail(one, other)  # type: ignore[arg-type]


def same_pair(one: tuple[Answer, Answer], other: tuple[Answer, Answer]) -> bool:
    """Both halves of a cycle."""
    return same(one[0], other[0]) and same(one[1], other[1])


def _same_tail(one: Answer, other: Answer) -> bool:
    return one.status == other.status and np.array_equal(one.image_tokens, other.image_tokens)


def test_answers_carry_what_they_were_made_from(engine: CycleEngine, studies: Studies) -> None:
    answers = engine.image_cycle(studies.images[:3], [1, 2, 3])
    tokens = engine.tokenizer.encode(np.stack([image.pixels for image in studies.images[:3]]))
    for (written, drawn), image, read in zip(answers, studies.images, tokens, strict=False):
        assert np.array_equal(written.image_tokens, read)
        assert 0 < len(written.keywords) <= 4 and written.report
        for keyword in written.keywords:
            x0, y0, x1, y1 = keyword.box
            assert 0 <= x0 <= x1 <= image.width and 0 <= y0 <= y1 <= image.height
        assert drawn.status == "ok" and drawn.image is not None
        assert np.array_equal(drawn.image, engine.tokenizer.decode(drawn.image_tokens[None])[0])
        assert len(drawn.keypatches) <= 3
    assert len({written.report for written, _ in answers}) > 1


def test_second_half_is_the_other_direction_of_the_first(engine: CycleEngine, studies: Studies) -> None:
    (drawn, written), *_ = engine.report_cycle(studies.reports[:2], [5, 6])
    assert drawn.image is not None
    assert same(written, engine.reports([as_canvas(drawn.image)], [second_seed(5)])[0])
    assert drawn.keypatches and {k.study_id for k in drawn.keypatches}
    (first, second), *_ = engine.image_cycle(studies.images[:2], [5, 6])
    assert same(second, engine.images([first.report], [second_seed(5)])[0])


def test_a_probe_takes_away_the_keywords_or_the_image_and_nothing_else(engine: CycleEngine, studies: Studies) -> None:
    images, seeds = studies.images[:3], [1, 2, 3]
    without, other = engine.probe_reports(images, seeds)
    answers = engine.reports(images, seeds)
    for row in range(3):
        own, behind = answers[row], answers[(row + 1) % 3]
        hints = spell_keywords(own.keywords, engine.instructions)
        asked = [ReportRequest(own.image_tokens, (), seeds[row]), ReportRequest(behind.image_tokens, hints, seeds[row])]
        assert [without[row], other[row]] == [result.text for result in engine.generation.cxr_to_report(asked)]
    plain = [answer.report for answer in answers]
    assert without != plain and other != plain and without != other


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_row_does_not_depend_on_the_rows_beside_it(
    cycle_root: Path, studies: Studies, settings: GenerationSettings
) -> None:
    engine = CycleEngine.load(Root(str(cycle_root)), settings=settings)
    seeds = [row_seed(0, str(i), "any") for i in range(5)]
    forth = engine.image_cycle(studies.images[:5], seeds)
    back = engine.report_cycle(studies.reports[:5], seeds)
    for i in (4, 0, 2):
        alone = engine.image_cycle([studies.images[i]], [seeds[i]])[0]
        assert same_pair(alone, forth[i])
        alone_back = engine.report_cycle([studies.reports[i]], [seeds[i]])[0]
        assert same_pair(alone_back, back[i])


OTHER_PROCESS = """
import hashlib, sys
from adamatch_ray.storage import Root
from adamatch_ray.engines.cycle import CycleEngine
from adamatch_ray.model_config import GenerationSettings
settings = GenerationSettings(report_temperature=0, image_temperature=0, report_tokens=24)
drawn, written = CycleEngine.load(Root(sys.argv[1]), settings=settings).report_cycle([sys.argv[2]], [7])[0]
print(hashlib.sha256(drawn.image.tobytes() + written.report.encode()).hexdigest())
"""


@pytest.mark.slow
def test_another_process_gives_the_same(engine: CycleEngine, cycle_root: Path, studies: Studies) -> None:
    import hashlib

    drawn, written = engine.report_cycle(studies.reports[:4], [7] * 4)[1]
    assert drawn.image is not None
    mine = hashlib.sha256(drawn.image.tobytes() + written.report.encode()).hexdigest()
    command = [sys.executable, "-c", OTHER_PROCESS, str(cycle_root), studies.reports[1]]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1] == mine


def test_a_report_too_long_is_an_error_of_its_row_alone(engine: CycleEngine, studies: Studies) -> None:
    reports = [studies.reports[0], "effusion " * 10_000, studies.reports[1]]
    answers = engine.report_cycle(reports, [1, 2, 3])
    drawn, written = answers[1]
    assert drawn.status.startswith("error: a prompt of 1") and "exceed the context of 640" in drawn.status
    assert drawn.image is None and drawn.image_tokens.size == 0
    assert written.status == "error: there is no X-ray to report on" and written.report == ""
    for index in (0, 2):
        assert same_pair(answers[index], engine.report_cycle([reports[index]], [index + 1])[0])


def test_empty_reports_and_blank_images_are_answered(engine: CycleEngine) -> None:
    (drawn,) = engine.images([""], [0])
    assert drawn.status == "ok" and drawn.keypatches == []
    (written,) = engine.reports([CanvasImage(np.zeros((64, 64), np.uint8), 64, 64)], [0])
    assert not written.status.startswith("error")
    assert engine.image_cycle([], []) == [] and engine.report_cycle([], []) == []


def test_a_report_that_fails_leaves_nothing_to_draw(
    engine: CycleEngine, studies: Studies, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = [ReportResult("", [], "error: no"), ReportResult("no finding", [1], "truncated: no end")]
    monkeypatch.setattr(engine.generation, "cxr_to_report", lambda requests: failing)
    first, second = engine.image_cycle(studies.images[:2], [1, 2])
    assert first[1].status == "error: there is no report to draw from" and first[1].image is None
    assert second[1].status == "ok" and second[1].image is not None


def test_an_image_of_another_size_is_refused(engine: CycleEngine) -> None:
    with pytest.raises(ValueError, match="32x32, this VQ-GAN reads 64x64"):
        engine.reports([CanvasImage(np.zeros((32, 32), np.uint8), 32, 32)], [0])


def test_without_hints_the_prompt_holds_none(
    engine: CycleEngine, studies: Studies, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = CycleEngine(
        engine.matching,
        engine.tokenizer,
        engine.generation,
        engine.keypatch_tokens,
        replace(InstructionConfig(), keywords=0, keypatches=0),
    )
    asked: list[Any] = []

    def write(requests: list[Any]) -> list[ReportResult]:
        asked.extend(requests)
        return [ReportResult("", [], "ok")]

    def draw(requests: list[Any]) -> list[ImageResult]:
        asked.extend(requests)
        return [ImageResult(np.zeros(0, np.uint16), "error: none")]

    monkeypatch.setattr(bare.generation, "cxr_to_report", write)
    monkeypatch.setattr(bare.generation, "report_to_cxr", draw)
    assert bare.reports(studies.images[:1], [0])[0].keywords == []
    assert bare.images(studies.reports[:1], [0])[0].keypatches == []
    assert list(asked[0].keywords) == []
    assert list(asked[1].keypatch_tokens) == []


def test_requests_hold_hints_best_first(engine: CycleEngine, studies: Studies) -> None:
    keywords = engine.matching.keywords(studies.images[:1], 4)[0]
    assert spell_keywords(keywords, InstructionConfig()) == [k.text for k in keywords]
    keypatches = engine.matching.keypatches(studies.reports[:1], 3)[0]
    request = image_request("report", keypatches, engine.keypatch_tokens, 9)
    each = [list(engine.keypatch_tokens.codes([k.entry])) for k in keypatches]
    assert list(request.keypatch_tokens) == [code for codes_ in each for code in codes_]  # type: ignore[arg-type]
    assert (request.report, request.seed) == ("report", 9)


def test_seeds_of_rows_are_told_apart_and_do_not_change() -> None:
    assert row_seed(0, "s1", "cxr_to_report") == 8595877513335367706
    seeds = {row_seed(s, i, d) for s in (0, 1) for i in ("s1", "s2") for d in ("cxr_to_report", "report_to_cxr")}
    assert len(seeds) == 8 and all(0 <= seed < 2**63 for seed in seeds)
    assert second_seed(7) not in (7, second_seed(8))


def test_a_vqgan_that_the_language_model_does_not_know_is_refused(root: Path) -> None:
    add_vqgan(root, seed=1)
    tokens = Root(str(root)).stage("tokens")
    tokens.commit(replace(tokens.require(), parents={"vqgan": "vqgan-1", "codebooks": "codebooks-tiny"}))
    with pytest.raises(ValueError, match=r"VQ-GAN [0-9a-f]+\).*the model expects.*VQ-GAN [0-9a-f]+\)"):
        CycleEngine.load(Root(str(root)))


def test_keypatch_tokens_of_another_vqgan_are_refused(root: Path, studies: Studies) -> None:
    quantizer = fingerprint(add_vqgan(root, seed=1))
    shutil.rmtree(root / "llm")
    add_llm(root, quantizer, studies.reports)
    with pytest.raises(ValueError, match=r"tokens was made from vqgan vqgan-0, but vqgan is vqgan-1"):
        CycleEngine.load(Root(str(root)))


def test_codebooks_of_another_adamatch_are_refused(root: Path) -> None:
    Root(str(root)).stage("adamatch").commit(Manifest("adamatch", "another", {}, {}))
    with pytest.raises(ValueError, match=r"(?=.*adamatch-tiny)(?=.*another)"):
        CycleEngine.load(Root(str(root)))


@pytest.mark.parametrize(("stage", "job"), [("vqgan", "train_vqgan"), ("tokens", "cache_tokens"), ("llm", "tune_llm")])
def test_an_unfinished_stage_names_its_job(root: Path, stage: str, job: str) -> None:
    (root / stage / "manifest.json").unlink()
    with pytest.raises(ValueError, match=rf"{job}\.py"):
        CycleEngine.load(Root(str(root)))
