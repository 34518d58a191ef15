"""The gallery: marks lie on the original image, the page needs nothing else, and everything on it is said as it is."""

import io
import os
import re
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from adamatch_ray.codebooks import VisualCodebook
from adamatch_ray.data import loading
from adamatch_ray.data.images import Decoded, encode_png, to_canvas
from adamatch_ray.engines.matching import Keypatch, MatchingEngine
from adamatch_ray.geometry import CanvasImage
from adamatch_ray.pages.drawing import SIDE, draw_study
from adamatch_ray.pages.gallery import render_page
from adamatch_ray.pages.layout import COLOURS, place_labels
from adamatch_ray.pages.view import DRAWN, Mark, Reference, Segment, StudyView, picture, spotlight, view_studies
from adamatch_ray.storage import Root, Stage

SIZES = [(900, 300), (300, 900), (50, 40), (5000, 4000), (64, 64)]


def mark(text: str = "effusion", score: float = 0.5, box: tuple[float, ...] = (10, 20, 30, 40)) -> Mark:
    x0, y0, x1, y1 = box
    return Mark(text, score, (x0, y0, x1, y1), (x0 + 20, y0, x1 + 30, y1))


def view_of(height: int, width: int, box: tuple[float, float, float, float], phantom: bool = True) -> StudyView:
    """A black image with a white rectangle where `box` is, which is also its one word, keyword and known place."""
    pixels = np.zeros((height, width), np.uint8)
    pixels[round(box[1]) : round(box[3]), round(box[0]) : round(box[2])] = 255
    image = CanvasImage(to_canvas(Decoded(pixels, height, width), 128), height, width)
    told = Mark("effusion", 0.5, box, (0.0, 0.0, width / 8, height / 8))
    crop = Reference(Keypatch("effusion", 3, 0.4, "train-7", box), encode_png(pixels[:8, :8]))
    report = [Segment("Small ", None), Segment("effusion", told), Segment(" <seen> & noted.", None)]
    return StudyView("case-1", phantom, image, report, [told], [crop], [("effusion", box)])


def figures(page: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


@pytest.fixture(scope="module")
def phantom_views(cycle_root: Path) -> list[StudyView]:
    root = Root(str(cycle_root))
    studies = next(loading.read_split(root.stage("studies"), "test")).slice(0, 5).to_pylist()
    return view_studies(MatchingEngine.load(root), with_crops(root.stage("codebooks")), studies)


def with_crops(stage: Stage) -> VisualCodebook:
    """The codebook of the tests, which has no crops, with the same gray one everywhere."""
    codebook = VisualCodebook.load(stage, crops=True)
    crop = encode_png(np.full((4, 4), 99, np.uint8))
    number = codebook.table.column_names.index("crop")
    table = codebook.table.set_column(number, "crop", [[crop] * len(codebook)])
    return VisualCodebook(table, codebook.feature_KD, codebook.model)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_page_draws_boxes_in_pixels_of_the_original(height: int, width: int) -> None:
    """Mistakes d and i of docs/method.md 6: a box of one canvas on a picture of another, or of another crop."""
    box = (0.25 * width, 0.5 * height, 0.5 * width, 0.75 * height)
    for figure in figures(render_page([view_of(height, width, box)], "t")):
        assert figure.attrib["viewBox"] == f"0 0 {width} {height}"
        image = figure.find("image")
        assert image is not None and (image.attrib["width"], image.attrib["height"]) == (str(width), str(height))
        drawn = [r.attrib for r in figure.iter("rect") if r.attrib["class"] == "box"]
        assert len(drawn) == 2, "the mark and the known place"
        for rect in drawn:
            found = [float(rect[name]) for name in ("x", "y", "width", "height")]
            np.testing.assert_allclose(found, [box[0], box[1], width / 4, height / 4], atol=0.1)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_padding_of_the_canvas_is_not_shown(height: int, width: int) -> None:
    """The white rectangle of the picture fills the box's share of it, so the crop is that of the original."""
    box = (0.25 * width, 0.5 * height, 0.5 * width, 0.75 * height)
    shown = np.asarray(picture(view_of(height, width, box).image).convert("L")) > 127
    rows, columns = np.flatnonzero(shown.any(1)), np.flatnonzero(shown.any(0))
    assert shown.shape[0] / shown.shape[1] == pytest.approx(height / width, rel=0.05)
    np.testing.assert_allclose(
        [columns[0] / shown.shape[1], (columns[-1] + 1) / shown.shape[1]], [0.25, 0.5], atol=0.05
    )
    np.testing.assert_allclose([rows[0] / shown.shape[0], (rows[-1] + 1) / shown.shape[0]], [0.5, 0.75], atol=0.05)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_png_draws_the_box_around_what_it_means(height: int, width: int) -> None:
    box = (0.25 * width, 0.5 * height, 0.5 * width, 0.75 * height)
    view = view_of(height, width, box)._replace(truth=[])
    png = Image.open(io.BytesIO(draw_study(view, view.words, "words"))).convert("RGB")
    scale = SIDE / max(height, width)
    assert png.height == round(height * scale) + 30 and png.width >= round(width * scale)
    red, green, blue = (int(COLOURS[0][i : i + 2], 16) for i in (1, 3, 5))
    near = np.abs(np.asarray(png, int) - (red, green, blue)).max(-1) < 25
    x0, y0, x1, y1 = (value * scale for value in box)
    for x, y in (((x0 + x1) / 2, y1), (x0, (y0 + y1) / 2), (x1, (y0 + y1) / 2)):
        spot = near[max(0, round(y) - 4) : round(y) + 5, max(0, round(x) - 4) : round(x) + 5]
        assert spot.any(), (x, y)


def test_the_page_needs_no_other_file_and_escapes_what_it_is_given() -> None:
    view = view_of(100, 100, (10, 10, 40, 40))._replace(study_id='<b>"x"</b>')
    page = render_page([view], "<script>")
    assert "<title>&lt;script&gt;</title>" in page and "&lt;b&gt;&#34;x&#34;&lt;/b&gt;" in page
    assert "&lt;seen&gt; &amp; noted." in page
    links = re.findall(r'(?:href|src)="([^"]*)"', page)
    assert links and all(link.startswith("data:image/png;base64,") for link in links)
    assert not re.search(r"https?://|@import|url\(|<link|<script src", page)


def test_phantoms_are_called_phantoms_and_all_is_research_only() -> None:
    box = (10.0, 10.0, 40.0, 40.0)
    phantom, real = (render_page([view_of(100, 100, box, phantom=p)], "t") for p in (True, False))
    assert "Research use only" in phantom and "Research use only" in real
    assert "synthetic phantom" in phantom and "phantom" not in real.lower()


def test_every_word_can_be_reached_and_has_its_box(phantom_views: list[StudyView]) -> None:
    page = render_page(phantom_views, "t")
    for view, article in zip(phantom_views, page.split("<article")[1:], strict=True):
        for kind, marks in (("w", view.words), ("k", view.keywords)):
            for n in range(len(marks)):
                assert article.count(f'data-mark="{kind}{n}"') == 2, "a word and its box"
        assert article.count('tabindex="0"') == 2, "one tab stop for the report, one for the keywords"
        assert article.count('class="mark top"') <= 2 * DRAWN
        for reference in view.references:
            assert reference.keypatch.study_id in article


def test_the_report_stands_on_the_page_word_by_word(phantom_views: list[StudyView], cycle_root: Path) -> None:
    table = next(loading.read_split(Root(str(cycle_root)).stage("studies"), "test"))
    reports = dict(zip(table["study_id"].to_pylist(), table["report"].to_pylist(), strict=True))
    for view in phantom_views:
        assert "".join(segment.text for segment in view.report) == reports[view.study_id]
        assert len(view.words) > 5


def test_the_words_that_are_drawn_say_something_and_hide_none() -> None:
    marks = [
        mark("the", 0.9, (0, 0, 9, 9)),
        mark("effusion", 0.8, (10, 10, 20, 20)),
        mark("Effusion", 0.7, (50, 50, 60, 60)),
        mark("pleural", 0.6, (10, 10, 20, 21)),
        mark("heart", 0.5, (30, 30, 40, 40)),
    ]
    assert spotlight(marks) == [1, 4]
    assert spotlight([mark("nodule", 0.5, (5, 5, 5, 5)), mark("mass ", 0.4, (5, 5, 6, 5))]) == [0], (
        "nor boxes of no area"
    )
    assert spotlight(marks, frozenset({"heart", "the"})) == [0, 4]


def test_labels_stay_on_the_picture_and_off_each_other() -> None:
    boxes = [(0.0, 0.0, 10.0, 10.0), (90.0, 0.0, 100.0, 10.0), (92.0, 2.0, 100.0, 12.0), (40.0, 90.0, 60.0, 100.0)]
    labels = place_labels(boxes, [30, 30, 30, 30], 8, (100, 100))
    for i, a in enumerate(labels):
        assert a.x >= 0 and a.y >= 0 and a.x + a.width <= 100 and a.y + a.height <= 100
        for b in labels[:i]:
            assert a.x >= b.x + b.width or b.x >= a.x + a.width or a.y >= b.y + b.height or b.y >= a.y + a.height


def test_a_box_of_no_area_is_still_seen() -> None:
    view = view_of(100, 100, (10, 10, 40, 40))
    point = Mark("nodule", 0.5, (50.0, 50.0, 50.0, 50.0), (50.0, 50.0, 50.0, 50.0))
    figure = figures(render_page([view._replace(report=[Segment("nodule", point)], truth=[])], "t"))[0]
    rect = next(r.attrib for r in figure.iter("rect") if r.attrib["class"] == "box")
    assert float(rect["width"]) > 0.5
    assert next(figure.iter("line"), None) is None, "what did not move has no arrow"
    assert draw_study(view, [point], "words")


def test_the_outline_of_a_region_is_drawn_as_one_shape_beside_its_box() -> None:
    view = view_of(100, 100, (10, 10, 40, 40))._replace(truth=[], keywords=[])
    shape = ((60.0, 60.0), (90.0, 60.0), (75.0, 90.0))
    region = view.words[0]._replace(outline=(shape,))
    page = render_page([view._replace(report=[Segment("effusion", region)])], "t")
    outlines = [p.attrib["points"] for p in figures(page)[0].iter("polygon") if p.get("class") == "outline"]
    assert outlines == ["60.0,60.0 90.0,60.0 75.0,90.0"]
    assert "region of a word" in page and "region of a word" not in render_page([view], "t")
    plain, outlined = (
        np.asarray(Image.open(io.BytesIO(draw_study(view, [one], "words"))), int) for one in (view.words[0], region)
    )
    rows, columns = np.nonzero(np.abs(plain - outlined).max(-1) > 60)
    scale = SIDE / 100
    np.testing.assert_allclose([columns.min(), columns.max()], [60 * scale, 90 * scale], atol=4)
    np.testing.assert_allclose([rows.min(), rows.max()], [60 * scale, 90 * scale], atol=6)


def test_a_blank_image_and_an_empty_report_are_drawn_without_marks(phantom_views: list[StudyView]) -> None:
    image = CanvasImage(np.zeros((64, 64), np.uint8), 100, 50)
    view = StudyView("empty", False, image, [], [], [], [])
    page = render_page([view], "t")
    assert "nothing was matched" in page and "No word of this report" in page
    assert Image.open(io.BytesIO(draw_study(view, [], "words"))).height == SIDE + 30


def test_the_job_draws_the_first_studies_of_a_split(
    cycle_root: Path, tmp_path: Path, job: Any, tiny_yaml: Path
) -> None:
    for stage in ("studies", "adamatch", "codebooks"):
        shutil.copytree(cycle_root / stage, tmp_path / stage)
    arguments = ["--root", str(tmp_path), "--config", str(tiny_yaml), "--gallery.studies", "2"]
    codebooks = Root(str(tmp_path)).stage("codebooks")
    with_crops(codebooks).save(codebooks)
    answer = job("draw_gallery")(arguments)
    assert answer["studies"] == 2 and answer["output"].endswith("gallery/index.html")
    names = sorted(path.name for path in (tmp_path / "gallery").iterdir())
    assert names == ["001-keywords.png", "001-words.png", "002-keywords.png", "002-words.png", "index.html"]


@pytest.mark.slow
def test_pointing_at_a_word_or_moving_to_it_lights_its_box(phantom_views: list[StudyView], tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="the page is tested with playwright")
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("no chromium on this machine")
    path = tmp_path / "index.html"
    path.write_text(render_page(phantom_views, "t"))
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(path.as_uri())
        study = page.locator(".study").first
        word = study.locator("p.says .word:not(.top)").first
        box = study.locator(f'g[data-mark="{word.get_attribute("data-mark")}"]')
        assert not box.is_visible()
        word.hover()
        assert box.is_visible()
        page.mouse.move(1, 1)
        assert not box.is_visible()
        page.keyboard.press("Tab")
        page.keyboard.press("ArrowRight")
        assert page.evaluate("document.activeElement.dataset.mark") == "w1"
        assert study.locator('g[data-mark="w1"]').is_visible()
        assert not complaints
        browser.close()
