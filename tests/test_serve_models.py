"""The deployments over the tiny cycle: the same answers as the offline engine, token for token, alone or in a crowd."""

import asyncio
import base64
import io
import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from PIL import Image
from ray import serve as ray_serve
from starlette.testclient import TestClient

from adamatch_ray.data.phantom import generate
from adamatch_ray.engines.cycle import CycleEngine
from adamatch_ray.geometry import CanvasImage
from adamatch_ray.storage import Manifest, Root
from serve.app import make_app
from serve.artifacts import check
from serve.builder import build
from serve.composition import Composition
from serve.deployments import ImageTokens, LanguageModel, Matcher
from serve.images import read_image
from serve.measures import Measures
from serve.settings import Settings, resolve

REPORT = "The heart is enlarged. There is a small left pleural effusion."


@pytest.fixture(scope="module")
def settings(cycle_root: Path) -> Settings:
    return resolve(Settings(root=str(cycle_root), index_studies=12))


@pytest.fixture(scope="module")
def client(settings: Settings) -> Iterator[TestClient]:
    """The deployments in this process, each in its own thread as in a replica, under the real HTTP layer."""

    def local(kind: type, name: str) -> ray_serve.handle.DeploymentHandle:
        bound = ray_serve.deployment(name=name, max_ongoing_requests=64)(kind).bind(settings)
        return ray_serve.run(bound, name=name, route_prefix=None, _local_testing_mode=True)

    matcher, tokens = local(Matcher, "m"), local(ImageTokens, "t")
    writer, drawer = local(LanguageModel, "w"), local(LanguageModel, "d")
    measures = Measures()
    models = check(Root(settings.root))
    with TestClient(
        make_app(settings, models, Composition(matcher, tokens, writer, drawer, measures), measures)
    ) as client:
        yield client


@pytest.fixture(scope="module")
def engine(cycle_root: Path) -> CycleEngine:
    return CycleEngine.load(Root(str(cycle_root)))


def upload(index: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(generate(index, 9, 200).image).save(stream, "PNG")
    return stream.getvalue()


def canvas(index: int, engine: CycleEngine) -> CanvasImage:
    return read_image(upload(index), engine.canvas, 10**7)


def post_image(client: TestClient, path: str, index: int, **fields: object) -> dict:
    data = {name: str(value) for name, value in fields.items()}
    answer = client.post(path, files={"image": ("x", upload(index))}, data=data)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_a_report_equals_the_offline_one(client: TestClient, engine: CycleEngine) -> None:
    for seed in (0, 7):
        served = post_image(client, "/v1/report", 3, seed=seed)
        (offline,) = engine.reports([canvas(3, engine)], [seed])
        assert served["image_tokens"] == offline.image_tokens.tolist()
        assert (served["report"], served["status"]) == (offline.report, offline.status)
        assert [k["text"] for k in served["keywords"]] == [k.text for k in offline.keywords]
        assert np.allclose([k["box"] for k in served["keywords"]], [k.box for k in offline.keywords])


def test_the_words_of_a_streamed_report_are_the_unstreamed_one(client: TestClient, engine: CycleEngine) -> None:
    def streamed(index: int) -> tuple[list[str], str]:
        data = {"image": ("x", upload(index))}, {"seed": str(index)}, {"Accept": "text/event-stream"}
        answer = client.post("/v1/report", files=data[0], data=data[1], headers=data[2])
        events = re.findall(r"event: (\w+)\ndata: (.*)\n\n", answer.text)
        assert [events[0][0], events[-1][0]] == ["keywords", "report"], answer.text
        return [json.loads(said) for name, said in events if name == "word"], json.loads(events[-1][1])["report"]

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(streamed, range(6)))
    for index, (words, report) in enumerate(found):
        assert "".join(words) == report == engine.reports([canvas(index, engine)], [index])[0].report
    assert max(len(words) for words, _ in found) > 3, "words come one after another, not all at once"


def test_a_client_that_leaves_gives_its_place_in_the_batch_free(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adamatch_ray.engines import local_backend

    writer, steps, left = LanguageModel(settings), 0, threading.Event()
    choose, tokens = local_backend.choose, check(Root(settings.root)).image_tokens

    def slow(*arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        assert steps < 20 or left.wait(20), "nobody left"
        return choose(*arguments)

    monkeypatch.setattr(local_backend, "choose", slow)

    async def ask() -> tuple[str, str]:
        words = writer.words([1] * tokens, [], 3)
        async for told, status in words:
            assert told and not status
            break
        await words.aclose()
        left.set()
        return await writer.report([2] * tokens, [], 3)

    report, status = asyncio.run(ask())
    assert report and not status.startswith("error")
    alone, steps = steps, 0
    assert asyncio.run(writer.report([2] * tokens, [], 3)) == (report, status)
    assert alone - steps < 25, "the report that nobody waited for was written to its end"


def test_an_image_equals_the_offline_one(client: TestClient, engine: CycleEngine) -> None:
    served = client.post("/v1/image", json={"report": REPORT, "seed": 5}).json()
    (offline,) = engine.images([REPORT], [5])
    assert offline.image is not None and served["image_tokens"] == offline.image_tokens.tolist()
    assert [k["entry"] for k in served["keypatches"]] == [k.entry for k in offline.keypatches]
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(served["png"]))))
    assert np.array_equal(shown, offline.image)


def test_cycles_equal_the_offline_ones(client: TestClient, engine: CycleEngine) -> None:
    there = post_image(client, "/v1/cycle", 4, seed=2)
    ((report, image),) = engine.image_cycle([canvas(4, engine)], [2])
    assert there["report"]["report"] == report.report
    assert there["image"]["image_tokens"] == image.image_tokens.tolist()
    back = client.post("/v1/cycle", json={"report": REPORT, "seed": 2}).json()
    ((image, report),) = engine.report_cycle([REPORT], [2])
    assert back["image"]["image_tokens"] == image.image_tokens.tolist()
    assert back["report"]["report"] == report.report


def test_a_crowd_gets_the_answers_each_would_get_alone(client: TestClient, engine: CycleEngine) -> None:
    with ThreadPoolExecutor(12) as pool:
        served = list(pool.map(lambda i: post_image(client, "/v1/report", i, seed=i)["report"], range(12)))
    offline = [engine.reports([canvas(i, engine)], [i])[0].report for i in range(12)]
    assert served == offline


def test_words_point_at_regions_of_the_upload(client: TestClient) -> None:
    match = post_image(client, "/v1/match", 3, report=REPORT)
    width, height = match["image"]["width"], match["image"]["height"]
    assert [REPORT[w["start"] : w["end"]].lower() for w in match["words"]] == [
        w["text"].lower() for w in match["words"]
    ]
    boxes = np.array(match["boxes"])
    assert (boxes >= 0).all() and (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()
    for word, row in zip(match["words"], match["similarity"], strict=True):
        assert word["patch"] == int(np.argmax(row)) and word["box"] == match["boxes"][word["patch"]]
    assert match["phrases"]
    for phrase in match["phrases"]:
        assert phrase["denied"] == (phrase["region"] < 0)
        assert all(match["words"][n]["region"] == phrase["region"] for n in phrase["words"])
    for region in match["regions"]:
        points = np.array([point for ring in region["outline"] for point in ring])
        assert (points >= -1).all() and (points <= [width + 1, height + 1]).all()


def test_retrieval_ranks_as_the_scores_do(client: TestClient, engine: CycleEngine, cycle_root: Path) -> None:
    from adamatch_ray.engines.embedding import embed_split
    from adamatch_ray.metrics.retrieval import score_pairs

    found = client.post("/v1/retrieve", json={"report": REPORT, "k": 4}).json()
    embedder = engine.matching.embedder
    split = embed_split(embedder.model, embedder.tokenizer, Root(str(cycle_root)).stage("studies"), "test", 8)
    text = embedder.reports([REPORT])
    scores = score_pairs([head[:12] for head in split.heads], text.word_BND, text.mask_BN).text_to_image[0]
    best = np.argsort(-scores, kind="stable")[:4]
    assert found["indexed"] == 12
    assert [hit["study_id"] for hit in found["hits"]] == [split.study_ids[i] for i in best]
    reports = post_image(client, "/v1/retrieve", 3, k=3)["hits"]
    assert len(reports) == 3 and reports[0]["score"] >= reports[1]["score"] >= reports[2]["score"]


def test_odd_but_legal_input_is_answered(client: TestClient) -> None:
    blank = io.BytesIO()
    Image.new("L", (64, 64)).save(blank, "PNG")
    answer = client.post("/v1/report", files={"image": ("x", blank.getvalue())}, data={"explain": "true"})
    assert answer.status_code == 200 and answer.json()["keywords"] == []
    for text in ("1 2 3", "肺", "a" * 3000, "lung\u200b", "### End"):
        answer = client.post("/v1/image", json={"report": text})
        assert answer.status_code in (200, 422), text


def test_missing_artifacts_name_the_command_at_once(tmp_path: Path) -> None:
    from serve import config

    with pytest.raises(click.ClickException, match=r"run: python jobs/prepare_data\.py --root .*nothing"):
        config(Settings(root=str(tmp_path / "nothing")))


def test_artifacts_that_do_not_fit_name_the_command(cycle_root: Path, tmp_path: Path) -> None:
    import shutil
    from dataclasses import replace

    root = tmp_path / "other"
    shutil.copytree(cycle_root, root, ignore=shutil.ignore_patterns("train", "model"))
    stage = Root(str(root)).stage("adamatch")
    manifest = stage.manifest()
    assert isinstance(manifest, Manifest)
    stage.commit(replace(manifest, fingerprint="another"))
    with pytest.raises(ValueError, match=r"codebooks was made from another adamatch; run: python jobs/build_codebooks"):
        check(Root(str(root)))


def test_the_application_names_what_config_yaml_scales(settings: Settings) -> None:
    from ray.serve._private.build_app import build_app

    app = build(settings, check(Root(settings.root)))
    names = {deployment.name for deployment in build_app(app, name="x").deployments}
    assert names == {"Ingress", "Matcher", "ImageTokens", "ReportWriter", "ImageDrawer"}
