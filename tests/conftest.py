"""What several test files share: a tiny phantom `studies/` stage, tiny models, and one Ray for all that need it."""

import importlib.util
import logging
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

# Read when torch, tokenizers and Ray are first imported or started, which is after this file.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(
    HF_HUB_OFFLINE="1",
    RAY_AUTH_MODE="disabled",
    RAY_ENABLE_UV_RUN_RUNTIME_ENV="0",
    RAY_TRAIN_V2_ENABLED="1",
    RAY_USAGE_STATS_ENABLED="0",
    TOKENIZERS_PARALLELISM="false",
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from adamatch_ray.models.adamatch import AdaMatchSizes

REPORTS = (
    "The heart is enlarged. There is a small left pleural effusion.",
    "No pneumothorax. The lungs are clear.",
    "A nodule in the right upper zone.",
    "Mild edema; cardiomegaly is unchanged.",
)

TINY_YAML = """\
data: {source: phantom, phantoms: 96, canvas: 64, rows_per_shard: 32}
image:
  image_size: 64
  dims: [8, 16, 24, 32]
  depths: [1, 1, 1, 1]
  heads: [1, 2, 3, 4]
  reductions: [4, 2, 1, 1]
  mlp_ratios: [2, 2, 2, 2]
  drop_path: 0.0
text: {name_or_path: "", max_tokens: 48, layers: 1, hidden_size: 16, heads: 2, vocab_size: 300}
encoder:
  train: {epochs: 1, batch_size: 16, optimizer: adamw, lr: 1.0e-3, crop: 0.8, validate_epochs: 1}
adamatch:
  dim: 16
  image_heads: mixed
  train: {epochs: 2, batch_size: 16, optimizer: lamb, lr: 6.0e-3, crop: 0.8, validate_epochs: 1}
evaluate: {batch_size: 16}
scale: {workers: 1, cpus_per_worker: 0.5}
"""


@pytest.fixture(scope="session")
def tiny_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration file of phantoms and models so small that an epoch takes a second."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(TINY_YAML)
    return path


@pytest.fixture(scope="session")
def studies_root(tmp_path_factory: pytest.TempPathFactory, tiny_yaml: Path) -> Path:
    """A root whose `studies/` is finished: 96 phantoms for train in three shards, 16 each to validate and test.

    Made without Ray. Read only: a test that writes other stages copies it.
    """
    from adamatch_ray.config import load_config, section
    from adamatch_ray.pipeline import studies as preparing
    from adamatch_ray.storage import Manifest, Root

    config = load_config(str(tiny_yaml))
    wanted = Counter({"train": 96, "validate": 16, "test": 16})
    rows = []
    for row in preparing.list_rows(config.data):
        if wanted[row["split"]] > 0:
            wanted[row["split"]] -= 1
            rows.append(row)
    root = tmp_path_factory.mktemp("runs") / "tiny"
    shards, _ = preparing.plan(rows, config.data)
    files = {shard.file: preparing.StudyShards(config.data, str(root)).make(shard).rows for shard in shards}
    counts = Counter(dict.fromkeys(("train", "validate", "test"), 0))
    for name, accepted in files.items():
        counts[name.split("/")[0]] += accepted
    settings = {"data": section(config, "data")}
    Root(str(root)).stage("studies").commit(Manifest("studies", "tiny", settings, {}, dict(counts), files))
    return root


@pytest.fixture(scope="session")
def cycle_root(tmp_path_factory: pytest.TempPathFactory, studies_root: Path, tiny_yaml: Path) -> Path:
    """A root with every stage from `studies/` to `llm/` finished: untrained, tiny, made without Ray.

    Read only: a test that writes to it copies it.
    """
    from tiny_cycle import finish_stages

    root = tmp_path_factory.mktemp("runs") / "cycle"
    shutil.copytree(studies_root, root)
    finish_stages(root, tiny_yaml)
    return root


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> "PreTrainedTokenizerBase":
    """A WordPiece tokenizer trained on `REPORTS`; some words of theirs come out in pieces."""
    from adamatch_ray.models import text_encoder

    folder = tmp_path_factory.mktemp("tokenizer")
    text_encoder.train_tokenizer(REPORTS, 60, folder)
    return text_encoder.load_tokenizer(folder)


@pytest.fixture(scope="session")
def reports() -> tuple[str, ...]:
    """Four reports of different lengths."""
    return REPORTS


@pytest.fixture(scope="session")
def tiny_sizes() -> "AdaMatchSizes":
    """The smallest AdaMatch that has every part: 64-pixel images, sixteen patches in stage 3, one BERT layer."""
    from adamatch_ray.model_config import AdaMatchConfig, PVTConfig, TextEncoderConfig
    from adamatch_ray.models.adamatch import AdaMatchSizes

    image = PVTConfig(
        image_size=64,
        dims=(8, 16, 24, 32),
        depths=(1, 1, 1, 1),
        heads=(1, 2, 3, 4),
        reductions=(4, 2, 1, 1),
        mlp_ratios=(2, 2, 2, 2),
        drop_path=0.0,
    )
    text = TextEncoderConfig(name_or_path="", max_tokens=32, layers=1, hidden_size=16, heads=2)
    return AdaMatchSizes(image, text, AdaMatchConfig(dim=12))


Main = Callable[[Sequence[str]], "dict[str, Any] | None"]


@pytest.fixture(scope="session")
def job() -> Callable[[str], Main]:
    """The `main(arguments)` of a job by its name, to be called in this process."""
    folder = Path(__file__).resolve().parents[1] / "jobs"

    def load(name: str) -> Main:
        spec = importlib.util.spec_from_file_location(f"jobs_{name}", folder / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        main: Main = module.main
        return main

    return load


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """The one Ray of the test session, four logical CPUs; jobs called in this process join it."""
    # Its sockets lie in this folder, and the path of a socket may not be long.
    folder = tempfile.mkdtemp(prefix="rt-", dir="/tmp" if Path("/tmp").is_dir() else None)
    os.environ["RAY_TMPDIR"] = folder
    import ray

    ray.init(
        address="local",
        num_cpus=4,
        object_store_memory=300_000_000,
        include_dashboard=True,  # Ray Train asks its state service whether a run is still alive
        logging_level=logging.WARNING,
    )
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
