"""Regions of words and phrases: what is read of a map and of patches, whose words they are, and how the head learns."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from adamatch_ray.config import load_config
from adamatch_ray.data import loading
from adamatch_ray.data.labeler import RuleLabeler
from adamatch_ray.engines.embedding import Embedder
from adamatch_ray.engines.loader import load_embedder
from adamatch_ray.engines.localizing import canvas_image
from adamatch_ray.engines.matching import Match, MatchingEngine
from adamatch_ray.engines.phrases import same_finding
from adamatch_ray.engines.regions import MASK, MapReader, soft_point
from adamatch_ray.geometry import CanvasImage
from adamatch_ray.losses.placing import place_loss
from adamatch_ray.metrics.localization import roc_auc
from adamatch_ray.models import place_head
from adamatch_ray.models.place_head import PlaceHead, PlaceSizes
from adamatch_ray.models.pvt import PyramidVisionTransformer
from adamatch_ray.storage import Root
from adamatch_ray.train.distributed import Worker
from adamatch_ray.train.fit_place import PlaceFitter, best_cut, lacking
from adamatch_ray.train.loop import TrainSettings

if TYPE_CHECKING:
    from adamatch_ray.models.adamatch import AdaMatchSizes

FLAT = CanvasImage(np.full((64, 64), 99, np.uint8), 640, 640)
"""A square image ten times its canvas, without an edge."""


@pytest.fixture(scope="module")
def embedder(cycle_root: Path) -> Embedder:
    return load_embedder(Root(str(cycle_root)))


@pytest.fixture(scope="module")
def studies(cycle_root: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = next(loading.read_split(Root(str(cycle_root)).stage("studies"), "test")).to_pylist()
    return rows


def head_for(embedder: Embedder) -> PlaceHead:
    torch.manual_seed(1)
    sizes = embedder.model.sizes
    return PlaceHead(PlaceSizes.of(sizes.image, sizes.adamatch.dim, 8, 8)).eval()


def said(match: Match) -> dict[str, bool]:
    return {phrase.finding: phrase.denied for phrase in match.phrases}


# --- which words


@pytest.mark.parametrize("with_head", [False, True])
def test_a_phrase_has_a_region_on_the_image_and_a_denied_one_none(embedder: Embedder, with_head: bool) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    image = CanvasImage(pixels, 900, 300)
    engine = MatchingEngine(embedder, place=head_for(embedder) if with_head else None)
    report = "There is a small left pleural effusion. No pneumothorax or focal consolidation. The heart is enlarged."
    match = engine.match([image], [report])[0]
    assert said(match) == {
        "pleural effusion": False,
        "pneumothorax": True,
        "consolidation": True,
        "cardiomegaly": False,
    }
    assert len(match.regions) == len(match.words)
    for phrase in match.phrases:
        assert all(match.regions[n] is phrase.region for n in phrase.words)
        if phrase.denied:
            assert phrase.region is None and not phrase.groundable
            continue
        assert phrase.region is not None and 0 <= phrase.confidence <= 1
        x0, y0, x1, y1 = phrase.region.box
        assert 0 <= x0 < x1 <= 300 and 0 <= y0 < y1 <= 900
        assert phrase.region.mask.shape == (MASK, MASK) and phrase.region.mask.any()
    heart = next(phrase for phrase in match.phrases if phrase.finding == "cardiomegaly")
    assert [match.words[n] for n in heart.words] == ["heart", "enlarged"]


def test_two_mentions_of_a_finding_are_seen_at_one_place(embedder: Embedder, studies: list[dict[str, Any]]) -> None:
    report = "There is a left effusion. Impression: small pleural effusion."
    phrases = MatchingEngine(embedder).match([canvas_image(studies[0])], [report])[0].phrases
    assert [phrase.text for phrase in phrases] == ["effusion", "pleural effusion"]
    assert phrases[0].region is phrases[1].region


def test_what_a_report_denies_at_a_place() -> None:
    labeler = RuleLabeler()
    report = "The lungs are clear,\nno consolidation. There is a nodule; it may be a granuloma. No change in edema."
    values = {w: labeler.value_at(report, s := report.index(w), s + len(w)) for w in ("consolidation", "nodule")}
    assert values == {"consolidation": 0.0, "nodule": 1.0}
    start = report.index("granuloma")
    assert labeler.value_at(report, start, start + 9) == -1.0
    start = report.index("edema")
    assert labeler.value_at(report, start, start + 5) == 1.0, "no change is no denial"


def test_terms_of_which_one_is_more_precise_are_not_told_apart() -> None:
    assert same_finding("fracture", "rib fracture") and same_finding("rib fracture", "fracture")
    assert not same_finding("chest tube", "enteric tube")


# --- reading


def test_a_map_is_read_as_the_places_around_its_maximum() -> None:
    """Places of 20 pixels: a square of 4 x 6 at column 8 and row 4, and a weaker one far from it."""
    probability = np.zeros((32, 32))
    probability[4:10, 8:12], probability[20:30, 20:30], probability[5, 9] = 0.8, 0.7, 0.9
    region = MapReader(FLAT, 32, steps=0).region(probability)
    assert region.box == pytest.approx((160, 80, 240, 200))
    assert region.point == pytest.approx((190, 110))
    assert region.mask.mean() == pytest.approx(24 / 32**2)
    ring = region.outline(640, 640)[0]
    assert np.array(ring).min(0) == pytest.approx([160, 80], abs=8)
    assert np.array(ring).max(0) == pytest.approx([240, 200], abs=8)


def test_a_region_grows_to_the_edge_of_what_it_lies_on() -> None:
    pixels = np.zeros((64, 64), np.uint8)
    pixels[16:40, 16:40] = 200
    probability = np.zeros((32, 32))
    probability[10:16, 10:16] = 0.9
    image = CanvasImage(pixels, 64, 64)
    before, after = (MapReader(image, 32, steps).region(probability).mask for steps in (0, 6))
    assert after.sum() > 1.3 * before.sum()
    drawn = np.zeros((MASK, MASK), bool)
    drawn[16:40, 16:40] = True
    assert (after & ~drawn).sum() < 0.1 * after.sum()


def test_pieces_that_nearly_touch_are_one_region() -> None:
    probability = np.zeros((32, 32))
    probability[4:8, 8:12], probability[11:15, 8:12], probability[24:28, 8:12] = 0.9, 0.8, 0.8
    assert MapReader(FLAT, 32, steps=0).region(probability).box == pytest.approx((160, 80, 240, 300))


def test_nothing_is_seen_on_the_padding() -> None:
    probability = np.full((32, 32), 0.2)
    probability[:, :4] = 1.0
    wide = CanvasImage(np.full((64, 64), 99, np.uint8), 640, 320)
    region = MapReader(wide, 32, steps=0).region(probability)
    assert region.box == pytest.approx((0, 0, 320, 640)) and region.mask.all()


def test_a_soft_point_lies_among_the_best_patches_and_not_between_two_places() -> None:
    boxes = np.array([[0.1, 0.1, 0.2, 0.2], [0.2, 0.1, 0.3, 0.2], [0.8, 0.8, 0.9, 0.9]])
    region = soft_point(np.array([0.9, 0.9, 0.89]), boxes, 0.125, FLAT)
    assert region.point == pytest.approx((0.2 * 640, 0.15 * 640))
    x0, _, x1, y1 = region.box
    assert x0 < 100 < 150 < x1 and y1 < 300


def test_sixteen_more_views_of_an_image_tell_of_the_same_place(
    embedder: Embedder, studies: list[dict[str, Any]]
) -> None:
    """Boxes are moved back: were they not, the points of a shifted view would lie aside by its shift."""
    image = canvas_image(studies[0])
    plain = MatchingEngine(embedder)._placer
    shifted = MatchingEngine(embedder, shifted=True)._placer
    look = embedder.look(image.pixels[None])
    one, many = (placer.sights([image], look)[0] for placer in (plain, shifted))
    assert len(many.boxes_V4) > 12 * len(one.boxes_V4)
    centres = (many.boxes_V4[:, :2] + many.boxes_V4[:, 2:]) / 2
    assert np.abs(centres.mean(0) - 0.5).max() < 0.03


# --- learning


def test_the_head_learns_places_from_words_alone(tiny_sizes: "AdaMatchSizes") -> None:
    """Squares and bars at random places, each image with one word: told only which image shows which, it finds them."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    local = replace(tiny_sizes.image, attention_stages=(4,))  # attention would tell every place what is in the image
    encoder = PyramidVisionTransformer(local).eval()
    head = PlaceHead(PlaceSizes.of(tiny_sizes.image, 12, 16, 16))
    words = torch.nn.functional.normalize(torch.randn(2, 12), dim=-1)
    optimizer = torch.optim.AdamW(head.parameters(), lr=8e-3)

    def batch(count: int) -> tuple[torch.Tensor, list[Any], list[tuple[int, int, int]]]:
        image, drawn = torch.full((count, 3, 64, 64), -1.0), []
        for b in range(count):
            kind, x, y = int(rng.integers(2)), int(rng.integers(4, 44)), int(rng.integers(4, 44))
            height, width = ((12, 12), (4, 16))[kind]
            image[b, :, y : y + height, x : x + width] = 1.0
            drawn.append((kind, x + width // 2, y + height // 2))
        with torch.no_grad():
            return image, encoder.forward_stages(image, 3), drawn

    for _ in range(80):
        image, stages, drawn = batch(8)
        own = [words[kind : kind + 1] for kind, _, _ in drawn]
        others = [words[1 - kind : 2 - kind] for kind, _, _ in drawn]
        loss = place_loss(head, head(image, stages), own, others).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    image, stages, drawn = batch(32)
    hits = []
    with torch.no_grad():
        for feature, (kind, x, y) in zip(head(image, stages), drawn, strict=True):
            best = int(head.logits(feature, words[kind : kind + 1]).argmax())
            hits.append(abs(best // 32 * 2 - y) <= 8 and abs(best % 32 * 2 - x) <= 10)
    assert np.mean(hits) > 0.6, "chance is one in twelve"


def test_no_box_can_reach_the_training(cycle_root: Path, tiny_yaml: Path, studies: list[dict[str, Any]]) -> None:
    """What a step reads of a study are its image and its report: no column of places is even loaded."""
    assert "boxes" not in loading.COLUMNS
    settings = TrainSettings("place", "auc", str(cycle_root), load_config(str(tiny_yaml)), total_steps=1)
    fitter = PlaceFitter(settings, Worker(0, 1, torch.device("cpu"), False))
    batch = {
        "image": np.stack([canvas_image(study).pixels for study in studies[:6]]),
        "report": np.array([study["report"] for study in studies[:6]], dtype=object),
    }
    loss, _ = fitter.loss(batch, torch.Generator().manual_seed(0))
    loss.backward()
    assert torch.isfinite(loss) and fitter.model.query.weight.grad is not None
    assert all(parameter.grad is None for parameter in fitter.embedder.model.parameters()), "AdaMatch is frozen"
    with torch.inference_mode():
        scores = fitter.scores()
    assert 0 <= scores["auc"] <= 1 and float(fitter.model.shown_from) == pytest.approx(scores["shown_from"])


def test_an_image_is_told_of_nothing_that_its_report_names() -> None:
    vector = torch.ones(2)
    own = [{"rib fracture": vector}, {"fracture": vector, "nodule": 2 * vector}, {}]
    generator = torch.Generator().manual_seed(0)
    assert [float(word[0]) for word in lacking(own, 0, 4, generator)] == [2.0]
    assert len(lacking(own, 2, 2, generator)) == 2


def test_the_threshold_and_the_area_under_the_curve_by_hand() -> None:
    assert best_cut([3.0, 2.0, 4.0], [0.0, 1.0, 2.5]) == 2.0
    assert roc_auc([3.0, 2.0], [1.0, 2.0]) == pytest.approx(0.875)
    assert np.isnan(roc_auc([1.0], []))


def test_a_saved_head_is_the_same_head(embedder: Embedder, tmp_path: Path) -> None:
    head = head_for(embedder)
    head.shown_from.fill_(1.5)
    place_head.save(head, tmp_path)
    again = place_head.load(tmp_path)
    assert float(again.shown_from) == 1.5
    assert all(torch.equal(a, b) for a, b in zip(head.parameters(), again.parameters(), strict=True))
    with pytest.raises(ValueError, match="train_place"):
        place_head.load(tmp_path / "none")
