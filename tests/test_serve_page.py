"""The page in a real browser, over models that are not there: upload, read, point, go back, and what can go wrong."""

import io
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fake_models import REPORT, FakeModels, fake_app
from PIL import Image

from adamatch_ray.data.phantom import generate

playwright = pytest.importorskip("playwright.sync_api", reason="the page is tested with playwright")
pytestmark = pytest.mark.slow

ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip
SHOTS = os.environ.get("ADAMATCH_SHOTS", "")
"""A folder for screenshots, for whoever wants to look at them."""


def browser_path() -> str:
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not path:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    return path


@pytest.fixture(scope="module")
def models() -> FakeModels:
    return FakeModels()


@pytest.fixture(scope="module")
def url(models: FakeModels) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(fake_app(models=models), port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}/"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=browser_path(), args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any, url: str, models: FakeModels) -> Iterator[Any]:
    """Opens the page at a size; whatever the console says against it fails the test."""
    complaints: list[str] = []
    contexts = []

    def opened(width: int = 1280, height: int = 860, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, reduced_motion="reduce", **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(url)
        return page

    opened.complaints = complaints  # type: ignore[attr-defined]
    yield opened
    for context in contexts:
        context.close()
    models.failing.clear()
    models.delay = models.pace = 0.0
    assert not complaints


def ready(page: Any) -> None:
    page.wait_for_selector("#exhibit[data-state=ready]")


def shot(page: Any, name: str) -> None:
    if SHOTS:
        page.screenshot(path=str(Path(SHOTS) / f"{name}.png"), full_page=True)


def png() -> dict[str, Any]:
    stream = io.BytesIO()
    Image.fromarray(generate(2, 3, 300).image).save(stream, "PNG")
    return {"name": "x.png", "mimeType": "image/png", "buffer": stream.getvalue()}


def test_at_first_sight_a_word_points_at_its_region(open_page: Any) -> None:
    page = open_page()
    ready(page)
    assert page.inner_text("#words") == REPORT
    assert page.inner_text(".word.lit").startswith("effusion")
    assert page.locator("path.mark").count() == 1, "one shape"
    assert page.locator("rect.patch").count() == page.locator("rect.cell").count() == 1
    assert page.locator("#leader.on").count() == 1
    assert "Research use only" in page.inner_text(".notice")
    shot(page, "desktop")


def test_pointing_at_a_word_lights_its_region_and_back(open_page: Any) -> None:
    page = open_page()
    ready(page)
    word = page.locator(".word", has_text="heart")
    word.hover()
    assert "heart" in page.inner_text("#caption") and page.inner_text(".word.lit") == "heart"
    box = page.locator("path.mark").bounding_box()
    region = page.locator("rect.region").nth(0)
    region.hover(force=True)
    assert "This region matches" in page.inner_text("#caption")
    assert page.locator(".word.lit").count() >= 1 and box is not None
    page.locator(".chip", has_text="pleural effusion").first.hover()
    assert "Keyword" in page.inner_text("#caption")


def test_a_denied_word_says_so_and_lights_nothing(open_page: Any) -> None:
    page = open_page()
    ready(page)
    page.locator(".word", has_text="normal").hover()
    assert "absent" in page.inner_text("#caption") and page.inner_text(".word.lit") == "normal"
    assert page.locator(".marks *").count() == 0 and page.locator("#leader.on").count() == 0


def test_an_upload_is_read_and_drawn_back(open_page: Any, models: FakeModels) -> None:
    page = open_page()
    ready(page)
    models.delay = 0.1
    page.set_input_files("#file", png())
    page.locator("#exhibit[data-state=loading]").wait_for()
    ready(page)
    page.click("#back")
    page.wait_for_selector("#return:not([hidden]) img")
    assert page.locator("#pair figure").count() == 2 and page.locator("#patches li").count() == 1
    shot(page, "desktop-back")
    page.click("#again")
    page.locator("#words", has_text="Draft 1").wait_for()


def test_words_appear_while_the_report_is_written(open_page: Any, models: FakeModels) -> None:
    page = open_page()
    ready(page)
    models.pace = 0.3
    page.set_input_files("#file", png())
    page.locator("#words .plain").nth(3).wait_for()
    assert page.get_attribute("#exhibit", "data-state") == "loading"
    written = page.inner_text("#words")
    assert REPORT.startswith(written) and len(written) < len(REPORT)
    shot(page, "desktop-writing")
    models.pace = 0.0
    ready(page)
    assert page.inner_text("#words") == REPORT


def test_a_report_is_drawn_and_read_back(open_page: Any) -> None:
    page = open_page()
    ready(page)
    page.click("#tab-draw")
    page.click("#report-samples button >> nth=0")
    page.click("text=Draw the X-ray")
    ready(page)
    assert page.locator("rect.region").count() > 3
    page.click("#back")
    page.wait_for_selector("#pair blockquote")
    shot(page, "desktop-draw")


def test_the_keyboard_is_enough(open_page: Any) -> None:
    page = open_page()
    ready(page)
    page.focus("#words .word")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.innerText") == "large"
    assert page.inner_text(".word.lit") == "large"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "chip"
    page.focus("#tab-read")
    page.keyboard.press("ArrowRight")
    assert page.get_attribute("#tab-draw", "aria-selected") == "true"
    assert page.is_visible("#report-text")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(open_page: Any, scheme: str) -> None:
    page = open_page(390, 844, color_scheme=scheme, has_touch=True)
    ready(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator(".word", has_text="heart").tap()
    assert "heart" in page.inner_text("#caption")
    shot(page, f"phone-{scheme}")


def test_a_failure_is_told_and_can_be_tried_again(open_page: Any, models: FakeModels) -> None:
    page = open_page()
    ready(page)
    page.set_input_files("#file", {"name": "x.png", "mimeType": "image/png", "buffer": b"no image"})
    page.wait_for_selector("#problem:not([hidden])")
    assert "cannot be used" in page.inner_text("#problem")
    shot(page, "desktop-error")
    page.locator("#samples button").first.click()
    ready(page)
    assert page.is_hidden("#problem")
    # the browser itself reports the refused request
    open_page.complaints[:] = [said for said in open_page.complaints if "415" not in said]


def test_loading_and_empty_are_states_of_their_own(open_page: Any, models: FakeModels) -> None:
    models.delay = 0.6
    page = open_page()
    page.wait_for_selector("#exhibit[data-state=loading]")
    assert page.get_attribute("#exhibit", "aria-busy") == "true" and page.is_disabled("#back")
    shot(page, "desktop-loading")
    ready(page)
    page.click("#tab-draw")
    assert page.get_attribute("#exhibit", "data-state") == "empty"
    shot(page, "desktop-empty")


AUDIT = """() => {
  const faults = [];
  const name = (e) => e.getAttribute("aria-label") || e.labels?.[0]?.innerText || e.alt || e.innerText?.trim()
    || (e.getAttribute("aria-labelledby") || "").split(" ").map((id) => document.getElementById(id)?.innerText).join("")
    || e.querySelector?.("img")?.alt;
  const seen = (e) => e.checkVisibility();
  for (const e of document.querySelectorAll("button, a, input, textarea, [role], [tabindex]"))
    if (seen(e) && e.id !== "problem" && e.getAttribute("role") !== "status" && !name(e))
      faults.push(`no name: ${e.outerHTML.slice(0, 80)}`);
  for (const e of document.querySelectorAll("img")) if (!e.hasAttribute("alt")) faults.push("image without alt");
  const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
  if (new Set(ids).size !== ids.length) faults.push("an id twice");
  for (const e of document.querySelectorAll("[aria-controls], [aria-labelledby]"))
    for (const id of `${e.getAttribute("aria-controls") || ""} ${e.getAttribute("aria-labelledby") || ""}`.split(" "))
      if (id && !document.getElementById(id)) faults.push(`no such id: ${id}`);
  const rgb = (text) => { const c = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    c.fillStyle = text; c.fillRect(0, 0, 1, 1); return [...c.getImageData(0, 0, 1, 1).data]; };
  const light = ([r, g, b]) => [r, g, b].map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
    if (c[3] > 250) return c; } return [255, 255, 255]; };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const e = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !seen(e) || e.closest(":disabled")) continue;
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) faults.push(`contrast ${ratio.toFixed(2)}: ${texts.currentNode.data.trim().slice(0, 40)}`);
  }
  if (document.querySelectorAll("h1").length !== 1) faults.push("not one h1");
  for (const e of document.querySelectorAll("button, [role=tab], .chip")) {
    const box = e.getBoundingClientRect();
    if (seen(e) && !e.matches(".word") && Math.min(box.height, box.width) < 24) faults.push(`small: ${e.innerText}`);
  }
  return faults;
}"""


def faults(page: Any) -> list[str]:
    """What our own audit and axe-core hold against the page as it stands."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return page.evaluate(AUDIT) + [f"{one['id']}: {one['nodes'][0]['html'][:120]}" for one in found]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_everyone_can_use_it(open_page: Any, scheme: str, width: int) -> None:
    """axe-core; names, ids, headings, contrast of 4.5 and targets of 24 px; on the page at work and after a cycle."""
    page = open_page(width, color_scheme=scheme)
    ready(page)
    assert faults(page) == []
    page.click("#back")
    page.wait_for_selector("#return:not([hidden])")
    assert faults(page) == []
    page.click("#tab-draw")
    assert faults(page) == []


def test_the_documentation_page_lists_every_endpoint(open_page: Any, url: str) -> None:
    page = open_page()
    page.goto(f"{url}docs")
    page.wait_for_selector(".endpoint")
    assert page.locator(".endpoint").count() >= 10
    assert faults(page) == []
    shot(page, "docs")
