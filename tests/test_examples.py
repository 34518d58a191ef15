"""Each example runs as it is written, on tiny stages; and each model loads in one line, from a folder or a hub name."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest

from adamatch_ray.engines.embedding import Embedder
from adamatch_ray.engines.generation import GenerationEngine, ImageRequest
from adamatch_ray.engines.image_tokens import ImageTokenizer
from adamatch_ray.engines.loader import load_embedder, load_generation, load_tokenizer
from adamatch_ray.storage import Root

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "says", "file"),
    [
        ("retrieve", "X-rays for: There is a large right pleural effusion.", ""),
        ("explain", "What the report says of it:", "explained.png"),
        ("write_report", "What was drawn:", ""),
        ("draw", "Read back as:", "drawn.png"),
        ("score", "finding F1", "predictions.csv"),
    ],
)
def test_an_example_runs_as_written(cycle_root: Path, tmp_path: Path, name: str, says: str, file: str) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "phantom").symlink_to(cycle_root)
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / f"{name}.py")],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert says in done.stdout and (not file or (tmp_path / file).stat().st_size > 100)


def test_every_example_is_run() -> None:
    assert len(list((ROOT / "examples").glob("*.py"))) == 5


def published(folder: Path, name: str, cache: Path) -> str:
    """Put a model folder where the hub's cache has a download of that name."""
    place = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, place / "snapshots" / ("0" * 40))
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0" * 40)
    return name


@pytest.mark.parametrize("by_name", [False, True])
def test_a_model_loads_in_one_line_and_answers_as_in_its_root(
    cycle_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_name: bool
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))

    def given(stage: str) -> str:
        folder = cycle_root / stage / "model"
        assert "Research use only" in (folder / "README.md").read_text()
        return published(folder, f"someone/{stage}", tmp_path) if by_name else str(folder)

    root = Root(str(cycle_root))
    pixels = np.random.default_rng(0).integers(0, 256, (1, 64, 64), dtype=np.uint8)
    embedder, ours = Embedder.from_pretrained(given("adamatch")), load_embedder(root)
    assert embedder.images(pixels).heads[0].equal(ours.images(pixels).heads[0])
    assert embedder.reports(["No effusion."]).word_BND.equal(ours.reports(["No effusion."]).word_BND)
    tokenizer = ImageTokenizer.from_pretrained(given("vqgan"))
    assert np.array_equal(tokenizer.encode(pixels), load_tokenizer(root).encode(pixels))
    name = given("llm")
    if by_name:
        with pytest.raises(ValueError, match=r"has no instructions\.json"):
            GenerationEngine.from_pretrained(name)
        (snapshot,) = (tmp_path / "models--someone--llm" / "snapshots").iterdir()
        shutil.copy(cycle_root / "llm" / "instructions.json", snapshot)
    asked = [ImageRequest("No effusion.", [1, 2], 3)]
    (drawn,) = GenerationEngine.from_pretrained(name).report_to_cxr(asked)
    assert np.array_equal(drawn.image_tokens, load_generation(root).report_to_cxr(asked)[0].image_tokens)


def test_what_is_neither_a_folder_nor_a_model_is_said_in_one_line(tmp_path: Path) -> None:
    for name in ("someone/nothing", str(tmp_path / "nothing"), "a name"):
        with pytest.raises(ValueError, match="is no folder here and no model on the hub") as raised:
            Embedder.from_pretrained(name)
        assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match="is not an AdaMatch model folder"):
        Embedder.from_pretrained(tmp_path)
