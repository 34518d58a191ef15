"""The token cache: exactly once, the same bytes however it was made, and only what is missing."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from adamatch_ray.data import loading
from adamatch_ray.data.images import decode_png
from adamatch_ray.engines.image_tokens import ImageTokenizer, fingerprint, load_pretrained
from adamatch_ray.model_config import VQGANConfig
from adamatch_ray.models.vqgan import VQGAN
from adamatch_ray.models.vqgan_io import save_pretrained
from adamatch_ray.pipeline.tokens import TokenCache
from adamatch_ray.schema import TOKENS
from adamatch_ray.storage import Manifest, Root

SIZE = VQGANConfig(
    image_size=64,
    in_channels=1,
    ch=8,
    groups=4,
    ch_mult=(1, 1, 2, 2),
    num_res_blocks=1,
    attn_resolutions=(),
    z_channels=8,
    codes=40,
    code_dim=4,
)


def add_vqgan(root: Path, seed: int = 0) -> None:
    """An untrained VQ-GAN as a finished stage; its codes lie among latents, so that many are used."""
    torch.manual_seed(seed)
    model = VQGAN(SIZE)
    with torch.no_grad():
        latents = model.quant_conv(model.encoder(torch.rand(1, 1, 64, 64) * 2 - 1)).permute(0, 2, 3, 1).reshape(-1, 4)
        model.quantize.embedding.weight.copy_(latents[torch.randperm(64)[:40]])
    save_pretrained(model, root / "vqgan" / "model")
    Root(str(root)).stage("vqgan").commit(Manifest("vqgan", f"vqgan-{seed}", {}, {}))


@pytest.fixture
def root(studies_root: Path, tmp_path: Path) -> Path:
    shutil.copytree(studies_root / "studies", tmp_path / "studies")
    add_vqgan(tmp_path)
    return tmp_path


def shard_names(root: Path) -> list[str]:
    return sorted(Root(str(root)).stage("studies").require().files)


def digests(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root / "tokens").as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((root / "tokens").glob("*/*.parquet"))
    }


def test_rows_are_those_of_the_studies_with_their_tokens(root: Path) -> None:
    cache = TokenCache(str(root))
    made = [cache.make(name) for name in shard_names(root)]
    model = load_pretrained(root / "vqgan" / "model")
    tokenizer = ImageTokenizer(model)
    for shard in made:
        studies = pq.read_table(root / "studies" / shard.file)
        tokens = pq.read_table(root / "tokens" / shard.file)
        assert tokens.schema.equals(TOKENS) and shard.rows == tokens.num_rows == studies.num_rows
        for name in ("study_id", "dicom_id", "split"):
            assert tokens[name].to_pylist() == studies[name].to_pylist()
        images = np.stack([decode_png(data) for data in studies["image"].to_pylist()])
        assert np.array_equal(np.array(tokens["tokens"].to_pylist()), tokenizer.encode(images))
        assert set(tokens["model"].to_pylist()) == {fingerprint(model)}
    assert {shard.file.split("/")[0] for shard in made} == {"train", "validate", "test"}


def test_finished_shards_are_kept_and_the_rest_made(root: Path) -> None:
    names = shard_names(root)
    TokenCache(str(root)).make(names[0])
    stamp = (root / "tokens" / names[0]).stat().st_mtime_ns
    again = TokenCache(str(root))
    assert [again.make(name).reused for name in names] == [True] + [False] * (len(names) - 1)
    assert (root / "tokens" / names[0]).stat().st_mtime_ns == stamp


def test_another_model_or_other_studies_replace_a_shard(root: Path) -> None:
    name = shard_names(root)[0]
    TokenCache(str(root)).make(name)
    before = digests(root)
    add_vqgan(root, seed=1)
    assert not TokenCache(str(root)).make(name).reused
    assert digests(root) != before
    add_vqgan(root)
    assert not TokenCache(str(root)).make(name).reused
    assert digests(root) == before
    stage = Root(str(root)).stage("studies")
    manifest = stage.require()
    stage.commit(Manifest(**{**manifest.__dict__, "fingerprint": "other"}))
    assert not TokenCache(str(root)).make(name).reused


def test_order_and_chunks_of_work_leave_no_trace(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = shard_names(root)
    first = TokenCache(str(root))
    for name in names:
        first.make(name)
    before = digests(root)
    shutil.rmtree(root / "tokens")
    monkeypatch.setattr("adamatch_ray.pipeline.tokens.CHUNK", 5)
    second = TokenCache(str(root), threads=1)
    for name in reversed(names):
        second.make(name)
    assert digests(root) == before


def test_unfinished_vqgan_names_its_job(root: Path) -> None:
    (root / "vqgan" / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"train_vqgan\.py"):
        TokenCache(str(root))


KILLED = """
import sys
from adamatch_ray.pipeline.tokens import TokenCache
cache = TokenCache(sys.argv[1])
for name in sys.argv[2:]:
    cache.make(name)
"""


def test_killed_in_the_middle_leaves_whole_shards_only(root: Path) -> None:
    names = shard_names(root)
    whole = TokenCache(str(root))
    for name in names:
        whole.make(name)
    before = digests(root)
    shutil.rmtree(root / "tokens")
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(root), *names])
    while len(digests(root)) < 2 and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = digests(root)
    assert left.items() <= before.items() and len(left) >= 2
    assert sum(whole.make(name).reused for name in names) == len(left)
    assert digests(root) == before


@pytest.mark.ray
@pytest.mark.slow
def test_job_makes_the_same_rows_with_one_worker_or_four(
    job: Callable[[str], Any], root: Path, tiny_yaml: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    arguments = ["--config", str(tiny_yaml), "--root", str(root), "--tokens.keypatches", "false", "--scale.workers"]
    answer = job("cache_tokens")([*arguments, "1"])
    assert answer["status"] == "done" and answer["images"] == 128 and answer["reused"] == 0
    before = digests(root)
    shutil.rmtree(root / "tokens")
    job("cache_tokens")([*arguments, "4"])
    assert digests(root) == before
    tables = [table for split in ("train", "validate", "test")
              for table in loading.read_split(Root(str(root)).stage("tokens"), split)]  # fmt: skip
    ids = [name for table in tables for name in table["dicom_id"].to_pylist()]
    assert len(ids) == len(set(ids)) == 128
    assert job("cache_tokens")([*arguments, "4"])["status"] == "skipped"
