"""Pages that people and comments point to are there: sections of docs/method.md, and links between pages."""

import re
from pathlib import Path

from adamatch_ray.config import describe

ROOT = Path(__file__).resolve().parents[1]
CODE = ("adamatch_ray", "benchmarks", "jobs", "serve", "tests")
POINTER = re.compile(r"docs/method\.md,? (\d(?:\.\d)?(?:(?:, | and |-)\d(?:\.\d)?)*)(?: ([a-z])\b)?")
MISTAKE = re.compile(r"[Mm]istakes? ([a-i](?:(?:, | and )[a-i])*) of docs/method\.md 6")


def _sources() -> list[Path]:
    files = [path for folder in CODE for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".cpp", ".yaml")]
    return [path for path in files if path.name != "test_docs.py"]


def _sections() -> set[str]:
    """Numbers of the page's headings, and `6 a` for each mistake listed."""
    text = (ROOT / "docs/method.md").read_text()
    numbers = set(re.findall(r"^##+ (\d(?:\.\d)?) ", text, re.MULTILINE))
    return numbers | {f"6 {letter}" for letter in re.findall(r"^\* \*\*([a-z])\*\* ", text, re.MULTILINE)}


def test_every_pointer_to_the_method_names_a_section_that_exists() -> None:
    sections, pointers = _sections(), []
    for path in _sources():
        text = path.read_text()
        for numbers, mistake in POINTER.findall(text):
            pointers += [(path.name, number) for number in re.findall(r"\d(?:\.\d)?", numbers)]
            pointers += [(path.name, f"6 {mistake}")] if numbers == "6" and mistake in "abcdefghi" and mistake else []
        for mistakes in MISTAKE.findall(text):
            pointers += [(path.name, f"6 {letter}") for letter in re.findall(r"\b[a-i]\b", mistakes)]
    assert len(pointers) > 70
    assert [pointer for pointer in pointers if pointer[1] not in sections] == []


def test_every_option_on_the_pages_exists() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "cluster/README.md"]
    named = {(page.name, name) for page in pages for name in re.findall(r"--(\w+(?:\.\w+)+)", page.read_text())}
    assert len(named) > 10 and {name for _, name in named} <= {name for name, *_ in describe()}, named


def test_every_test_that_a_page_names_is_there() -> None:
    pages = [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"]
    named = [pair for page in pages for pair in re.findall(r"(tests/\w+\.py)::(\w+)", page.read_text())]
    assert len(named) > 10
    assert [pair for pair in named if f"def {pair[1]}(" not in (ROOT / pair[0]).read_text()] == []


def test_every_named_page_and_link_leads_to_a_file() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "cluster/README.md"]
    links = [(page, target) for page in pages for target in re.findall(r'(?:\]\(|src=")([^)":#\s]+)', page.read_text())]
    named = [(ROOT / "x", name) for path in _sources() for name in re.findall(r"docs/\w+\.md", path.read_text())]
    assert len(links) > 10
    assert [(page.name, target) for page, target in links + named if not (page.parent / target).exists()] == []
    assert len((ROOT / "README.md").read_text().splitlines()) <= 100
