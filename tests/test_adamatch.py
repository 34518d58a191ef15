"""AdaMatch as a whole: what comes out under each setting, where its boxes are, and that a saved model is the same."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from adamatch_ray.engines.embedding import Embedder, embed_split
from adamatch_ray.geometry import Geometry
from adamatch_ray.losses.contrastive import contrastive_loss
from adamatch_ray.models import adamatch, text_encoder
from adamatch_ray.models.adamatch import AdaMatch, AdaMatchSizes, Embeddings


def build(sizes: AdaMatchSizes, tokenizer: PreTrainedTokenizerBase, **changes: Any) -> AdaMatch:
    torch.manual_seed(0)
    sizes = replace(sizes, adamatch=replace(sizes.adamatch, **changes))
    return adamatch.build(sizes, tokenizer).eval()


def embed(model: AdaMatch, tokenizer: PreTrainedTokenizerBase, reports: tuple[str, ...]) -> Embeddings:
    image = torch.rand(len(reports), 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return model(image, text_encoder.tokenize(tokenizer, reports, 32))


SETTINGS: list[dict[str, Any]] = [
    {},
    {"stage": 2},
    {"stage": 4},
    {"adapatch": False},
    {"image_heads": "local"},
    {"image_heads": "both"},
    {"projection": "conv", "image_heads": "both"},
    {"dim": 20, "stage": 2, "adapatch": False},
]


@pytest.mark.parametrize("changes", SETTINGS, ids=str)
def test_every_setting_gives_unit_vectors_of_its_size_and_trains(
    changes: dict[str, Any],
    tiny_sizes: AdaMatchSizes,
    tokenizer: PreTrainedTokenizerBase,
    reports: tuple[str, ...],
) -> None:
    model = build(tiny_sizes, tokenizer, **changes).train()
    config = model.sizes.adamatch
    found = embed(model, tokenizer, reports)
    patches = model.sizes.image.grid(config.stage) ** 2
    assert len(found.image.heads) == len(model.head_names) == (2 if config.image_heads == "both" else 1)
    for head in found.image.heads:
        assert head.shape == (4, patches, config.dim)
        torch.testing.assert_close(head.norm(dim=-1), torch.ones(4, patches))
    assert found.image.boxes_BP4.shape == (4, patches, 4) and found.image.fixed_boxes_P4.shape == (patches, 4)
    word, mask = found.text
    assert word.shape == (4, *mask.shape[1:], config.dim)
    torch.testing.assert_close(word.norm(dim=-1), torch.ones(mask.shape))
    assert found.temperature.item() == pytest.approx(0.07)
    contrastive_loss(found, torch.arange(4)).loss.backward()
    used = [*(f"image_heads.{name}." for name in model.head_names), "text_head.", "text.bert.encoder", "log_temp"]
    used += [f"image.stages.{config.stage - 1}.patch_embed", "image.stages.0."]
    for prefix in used:
        gradients = [p.grad for name, p in model.named_parameters() if name.startswith(prefix)]
        assert any(g is not None and bool((g != 0).any()) for g in gradients), prefix


def test_the_stage_after_the_matched_one_is_not_run(
    tiny_sizes: AdaMatchSizes, tokenizer: PreTrainedTokenizerBase, reports: tuple[str, ...]
) -> None:
    model = build(tiny_sizes, tokenizer, stage=2)
    before = embed(model, tokenizer, reports).image.heads[0]
    with torch.no_grad():
        for stage in model.image.stages[2:]:
            for parameter in stage.parameters():
                parameter.fill_(torch.nan)
    torch.testing.assert_close(embed(model, tokenizer, reports).image.heads[0], before)


def test_without_adaptive_patches_every_box_is_its_cell(
    tiny_sizes: AdaMatchSizes, tokenizer: PreTrainedTokenizerBase, reports: tuple[str, ...]
) -> None:
    fixed = embed(build(tiny_sizes, tokenizer, adapatch=False), tokenizer, reports).image
    torch.testing.assert_close(fixed.boxes_BP4, fixed.fixed_boxes_P4.expand(4, -1, -1))
    model = build(tiny_sizes, tokenizer)
    with torch.no_grad():
        model.image.get_parameter("stages.2.patch_embed.offsets.weight").normal_()
    moved = embed(model, tokenizer, reports).image
    assert (moved.boxes_BP4 - moved.fixed_boxes_P4).abs().max() > 0.01
    assert moved.boxes_BP4.min() >= 0 and moved.boxes_BP4.max() <= 1


def test_a_patch_box_lies_on_the_original_where_the_patch_was_read(
    tiny_sizes: AdaMatchSizes, tokenizer: PreTrainedTokenizerBase, reports: tuple[str, ...]
) -> None:
    boxes = embed(build(tiny_sizes, tokenizer, adapatch=False), tokenizer, reports).image.fixed_boxes_P4
    geometry = Geometry(2000, 1000, 64)  # portrait: a quarter of the canvas is padding on either side
    found = geometry.to_original(boxes.numpy()).reshape(4, 4, 4)  # rows and columns of a 4 x 4 grid of patches
    np.testing.assert_allclose(found[0, 1], [0, 0, 500, 500])
    np.testing.assert_allclose(found[3, 2], [500, 1500, 1000, 2000])
    assert found[2, 0, 2] - found[2, 0, 0] == 0, "a patch over padding alone covers nothing of the image"


@pytest.mark.parametrize("changes", [{}, {"image_heads": "both", "projection": "conv"}, {"adapatch": False}], ids=str)
@pytest.mark.parametrize("unit", ["wordpiece", "word"])
def test_a_saved_model_comes_back_with_the_same_outputs(
    changes: dict[str, Any],
    unit: Any,
    tiny_sizes: AdaMatchSizes,
    tokenizer: PreTrainedTokenizerBase,
    reports: tuple[str, ...],
    tmp_path: Path,
) -> None:
    model = build(replace(tiny_sizes, text=replace(tiny_sizes.text, unit=unit)), tokenizer, **changes)
    with torch.no_grad():  # nothing may rest on an initial value
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
        for buffer in (b for n, b in model.named_buffers() if n.endswith(("running_mean", "running_var"))):
            buffer.add_(0.1)
    adamatch.save(model, tokenizer, tmp_path)
    again, loaded_tokenizer = adamatch.load(tmp_path)
    assert not again.training and again.sizes == model.sizes
    with torch.inference_mode():
        first, second = embed(model, tokenizer, reports), embed(again, loaded_tokenizer, reports)
    for a, b in zip(first.image.heads, second.image.heads, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(first.image.boxes_BP4, second.image.boxes_BP4)
    assert all(torch.equal(a, b) for a, b in zip(first.text, second.text, strict=True))
    assert torch.equal(first.temperature, second.temperature)


def test_a_model_from_a_local_bert_is_loaded_without_that_folder(
    tiny_sizes: AdaMatchSizes, tokenizer: PreTrainedTokenizerBase, reports: tuple[str, ...], tmp_path: Path
) -> None:
    folder = tmp_path / "bert"
    text_encoder.new_bert(replace(tiny_sizes.text, layers=3), len(tokenizer)).save_pretrained(folder)
    model = build(replace(tiny_sizes, text=replace(tiny_sizes.text, name_or_path=str(folder), layers=2)), tokenizer)
    assert len(model.text.bert.encoder.layer) == 2
    adamatch.save(model, tokenizer, tmp_path / "model")
    folder.rename(tmp_path / "elsewhere")
    again, loaded_tokenizer = adamatch.load(tmp_path / "model")
    with torch.inference_mode():
        first, second = embed(model, tokenizer, reports), embed(again, loaded_tokenizer, reports)
    assert torch.equal(first.text.word_BND, second.text.word_BND)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{tmp_path} is not an AdaMatch model folder: no image\.json"):
        adamatch.load(tmp_path)


def test_a_learnt_temperature_stays_within_bounds(
    tiny_sizes: AdaMatchSizes, tokenizer: PreTrainedTokenizerBase, reports: tuple[str, ...]
) -> None:
    model = build(tiny_sizes, tokenizer)
    for value, wanted in ((-20.0, 0.01), (5.0, 1.0)):
        with torch.no_grad():
            model.log_temperature.fill_(value)
        assert embed(model, tokenizer, reports).temperature.item() == pytest.approx(wanted)


def test_embedding_a_split_is_batch_by_batch_what_it_is_at_once(
    tiny_sizes: AdaMatchSizes, studies_root: Path, tmp_path: Path
) -> None:
    from adamatch_ray.data import loading
    from adamatch_ray.storage import Root

    stage = Root(str(studies_root)).stage("studies")
    texts = [r for table in loading.read_split(stage, "validate", ["report"]) for r in table["report"].to_pylist()]
    text_encoder.train_tokenizer(texts, 200, tmp_path)
    tokenizer = text_encoder.load_tokenizer(tmp_path)
    model = build(replace(tiny_sizes, text=replace(tiny_sizes.text, max_tokens=64)), tokenizer)
    small, large = (embed_split(model, tokenizer, stage, "validate", size) for size in (3, 16))
    assert small.reports == large.reports == tuple(texts) and len(set(small.study_ids)) == 16
    assert torch.equal(small.mask_IN, large.mask_IN)
    torch.testing.assert_close(small.heads[0], large.heads[0], rtol=1e-4, atol=1e-5)
    mask = small.mask_IN
    torch.testing.assert_close(small.word_IND[mask], large.word_IND[mask], rtol=1e-4, atol=1e-5)
    one = Embedder(model, tokenizer, torch.device("cpu")).reports(small.reports[:1])
    torch.testing.assert_close(one.word_BND[one.mask_BN], small.word_IND[0][mask[0]], rtol=1e-4, atol=1e-5)


def test_the_parts_are_named_as_they_are_saved(tiny_sizes: AdaMatchSizes, tokenizer: PreTrainedTokenizerBase) -> None:
    """Saved weights are looked up by these names, so a renamed part makes old files unreadable."""
    model = build(tiny_sizes, tokenizer, image_heads="both")
    tops = {name.split(".")[0] for name in model.state_dict()}
    assert tops == {"image", "text", "image_heads", "text_head", "log_temperature"}
    assert {"image_heads.mixed.norm.weight", "image_heads.local.project.weight"} <= model.state_dict().keys()
    assert not [name for name in model.state_dict() if "continuation" in name or "special" in name]
    assert isinstance(model.text_head, nn.Linear)


def test_the_auxiliary_term_judges_the_patches_that_are_matched(
    tiny_sizes: AdaMatchSizes, tokenizer: PreTrainedTokenizerBase, reports: tuple[str, ...]
) -> None:
    sizes = replace(tiny_sizes, image=replace(tiny_sizes.image, pooling="patches"))
    assert embed(build(sizes, tokenizer), tokenizer, reports).finding_BL is None
    model = build(sizes, tokenizer, finding_weight=1.0).train()
    found = embed(model, tokenizer, reports)
    assert found.finding_BL is not None and found.finding_BL.shape == (4, 14)
    loss = contrastive_loss(found, torch.arange(4)).loss + found.finding_BL.sum()
    loss.backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    with pytest.raises(ValueError, match=r"--image\.pooling patches"):
        build(tiny_sizes, tokenizer, finding_weight=1.0)
