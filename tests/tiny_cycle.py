"""Every stage from AdaMatch to the language model, untrained and tiny, as if the jobs had made it, but without Ray.

Answers mean nothing; that they come, stay the same and carry everything they should is what tests ask.
"""

import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F

from adamatch_ray.codebooks import Entity, TextualCodebook, VisualCodebook
from adamatch_ray.config import load_config
from adamatch_ray.data import loading
from adamatch_ray.data.images import decode_png, encode_png
from adamatch_ray.engines.embedding import Embedder
from adamatch_ray.engines.image_tokens import fingerprint, save_pretrained
from adamatch_ray.engines.keypatch_tokens import FILE, keypatch_tokens
from adamatch_ray.geometry import Geometry
from adamatch_ray.instructions import INSTRUCTIONS, PREAMBLE
from adamatch_ray.model_config import InstructionConfig, LLMConfig, VQGANConfig, to_json
from adamatch_ray.models import adamatch, text_encoder
from adamatch_ray.models.llm import build_llm, save_llm
from adamatch_ray.models.llm_tokens import train_bpe_tokenizer
from adamatch_ray.models.vqgan import VQGAN
from adamatch_ray.pipeline.tokens import TokenCache
from adamatch_ray.schema import KEYPATCH
from adamatch_ray.storage import Manifest, Root

VQGAN_SIZE = VQGANConfig(
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
LLM_SIZE = LLMConfig(name_or_path="", hidden_size=48, layers=2, heads=3, context=640, dtype="float32")
ENTITIES = (
    Entity("left lung", "Biological_structure", 40),
    Entity("heart", "Biological_structure", 38),
    Entity("small", "Detailed_description", 20),
    Entity("pneumonia", "Disease_disorder", 9),
    Entity("nodule", "Disease_disorder", 7),
    Entity("pleural effusion", "Sign_symptom", 12),
)


class _Study(NamedTuple):
    """What the visual codebook takes of a train study."""

    study_id: str
    dicom_id: str
    image: bytes
    height: int
    width: int


def finish_stages(root: Path, yaml: Path) -> None:
    """Add adamatch, codebooks, vqgan, tokens and llm to a root whose `studies/` is finished."""
    stages = Root(str(root))
    reports = [r for table in loading.read_split(stages.stage("studies"), "train") for r in table["report"].to_pylist()]
    embedder = _add_adamatch(stages, root, yaml, reports)
    _add_codebooks(stages, embedder, _first_studies(stages, 6))
    model = add_vqgan(root)
    _add_tokens(stages, model)
    add_llm(root, fingerprint(model), reports)


def add_vqgan(root: Path, seed: int = 0) -> VQGAN:
    """An untrained VQ-GAN as a finished stage; its codes lie among latents, so that many are used."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VQGAN(VQGAN_SIZE)
        with torch.no_grad():
            noise = torch.rand(1, 1, 64, 64) * 2 - 1
            latents = model.quant_conv(model.encoder(noise)).permute(0, 2, 3, 1).reshape(-1, VQGAN_SIZE.code_dim)
            model.quantize.embedding.weight.copy_(latents[torch.randperm(len(latents))[: VQGAN_SIZE.codes]])
    save_pretrained(model, root / "vqgan" / "model")
    Root(str(root)).stage("vqgan").commit(Manifest("vqgan", f"vqgan-{seed}", {}, {}))
    return model


def add_llm(root: Path, quantizer: str, reports: list[str]) -> None:
    """A language model with random weights, large enough to give different answers to different prompts."""
    folder = root / "llm" / "model"
    tokenizer = train_bpe_tokenizer([*reports, *instruction_texts()], 640, folder)
    grid = (VQGAN_SIZE.grid, VQGAN_SIZE.grid)
    model = build_llm(LLM_SIZE, tokenizer, VQGAN_SIZE.codes, grid, quantizer)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    save_llm(model, tokenizer, folder)
    stage = Root(str(root)).stage("llm")
    stage.write_bytes("instructions.json", to_json(InstructionConfig(keywords=4, keypatches=3)).encode())
    stage.commit(Manifest("llm", "llm-tiny", {}, {}))


def _add_adamatch(stages: Root, root: Path, yaml: Path, reports: list[str]) -> Embedder:
    config = load_config(str(yaml))
    text_encoder.train_tokenizer(reports, config.text.vocab_size, root / "adamatch" / "model" / "text")
    tokenizer = text_encoder.load_tokenizer(root / "adamatch" / "model" / "text")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = adamatch.build(adamatch.AdaMatchSizes(config.image, config.text, config.adamatch), tokenizer).eval()
    adamatch.save(model, tokenizer, root / "adamatch" / "model")
    stages.stage("adamatch").commit(Manifest("adamatch", "adamatch-tiny", {}, {}))
    return Embedder(model, tokenizer, torch.device("cpu"))


def _first_studies(stages: Root, count: int) -> list[_Study]:
    table = next(loading.read_split(stages.stage("studies"), "train", list(_Study._fields)))
    return [_Study(**row) for row in table.slice(0, count).to_pylist()]


def _add_codebooks(stages: Root, embedder: Embedder, studies: list[_Study]) -> None:
    """Two patches of each study under words of reports, the visual codebook's rows in their order."""
    stage = stages.stage("codebooks")
    words = embedder.reports([entity.text for entity in ENTITIES])
    feature_KD = F.normalize((words.word_BND * words.mask_BN[..., None]).sum(1), dim=-1)
    TextualCodebook(ENTITIES, feature_KD, "adamatch-tiny").save(stage)
    images = embedder.images(np.stack([decode_png(study.image) for study in studies]))
    rows: list[dict[str, Any]] = []
    for number, study in enumerate(studies):
        geometry = Geometry(study.height, study.width, 64)
        for word, patch in ((ENTITIES[number].text.split()[-1], 5), ("normal", 10)):
            box = geometry.to_original(images.boxes_BP4[number, patch].numpy())
            row = {**study._asdict(), "word": word, "patch": patch, "crop": encode_png(decode_png(study.image)[:8, :8])}
            row |= {"similarity": 0.9 - 0.02 * len(rows), "feature": images.heads[0][number, patch].tolist()}
            rows.append(row | dict(zip(("x0", "y0", "x1", "y1"), box.tolist(), strict=True)))
    table = pa.Table.from_pylist(rows, schema=KEYPATCH)
    VisualCodebook.of(table, feature_KD.shape[1], "adamatch-tiny").save(stage)
    stage.commit(Manifest("codebooks", "codebooks-tiny", {}, {"adamatch": "adamatch-tiny"}, {"keypatches": len(rows)}))


def _add_tokens(stages: Root, model: VQGAN) -> None:
    """Tokens of all images and of the keypatches."""
    stage = stages.stage("tokens")
    cache = TokenCache(stages.uri)
    files = {name: cache.make(name).rows for name in sorted(stages.stage("studies").require().files)}
    shards = (pq.read_table(f"{stage.path}/{name}") for name in files if name.startswith("train/"))
    visual = VisualCodebook.load(stages.stage("codebooks")).table
    buffer = io.BytesIO()
    pq.write_table(keypatch_tokens(visual, shards, VQGAN_SIZE.grid, VQGAN_SIZE.image_size), buffer)
    stage.write_bytes(FILE, buffer.getvalue())
    parents = {"vqgan": "vqgan-0", "codebooks": "codebooks-tiny"}
    stage.commit(Manifest("tokens", "tokens-tiny", {}, parents, {}, files, {"model": fingerprint(model)}))


def instruction_texts() -> list[str]:
    """Every fixed wording of a prompt: a tokenizer trained on them keeps prompts short."""
    fixed = [PREAMBLE, "Input:", "Keyword:", "Reference:"]
    return fixed + [wording for wordings in INSTRUCTIONS.values() for wording in wordings]
