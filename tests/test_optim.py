"""The learning rate over a run, what is decayed, and LAMB under the released flags."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from adamatch_ray.models import adamatch
from adamatch_ray.train.optim import build_optimizer, clip_gradients, lr_at, peak_lr, set_lr
from adamatch_ray.training_config import ImageTrain


def test_the_rate_rises_over_the_warm_up_and_falls_as_a_half_cosine() -> None:
    rates = [lr_at(step, 100, 0.25) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 25) and rates[24] == 1.0 and max(rates) == 1.0
    assert all(b > a for a, b in itertools.pairwise(rates[:25]))
    assert all(b < a for a, b in itertools.pairwise(rates[25:]))
    assert rates[25] == pytest.approx(1.0)
    assert rates[62] == pytest.approx(0.5 * (1 + math.cos(math.pi * 37 / 75)))
    assert 0 < rates[99] < 0.001


@pytest.mark.parametrize("total", [1, 2, 7])
@pytest.mark.parametrize("warmup", [0.0, 0.25, 1.0])
def test_short_runs_have_a_usable_rate_at_every_step(total: int, warmup: float) -> None:
    assert all(0 < lr_at(step, total, warmup) <= 1 for step in range(total))


def test_biases_norms_positions_and_temperature_are_not_decayed(
    tiny_sizes: adamatch.AdaMatchSizes, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = adamatch.build(tiny_sizes, tokenizer).requires_grad_(True)  # the stage behind the matched one too
    optimizer = build_optimizer(model, ImageTrain(weight_decay=0.03), 256)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, kept = (
        {names[id(p)] for group in optimizer.param_groups if group["weight_decay"] == rate for p in group["params"]}
        for rate in (0.03, 0.0)
    )
    assert decayed | kept == set(names.values()) and not decayed & kept
    assert {f"image.stages.{i}.position" for i in range(4)} <= kept
    assert {"log_temperature", "image.cls_token", "text.bert.embeddings.position_embeddings.weight"} <= kept
    norms = {name for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)}
    assert {f"{name}.{part}" for name in norms for part in ("weight", "bias")} <= kept
    assert {name for name in names.values() if name.endswith("bias")} <= kept
    assert {"text_head.weight", "image_heads.mixed.project.weight", "image.stages.2.blocks.0.attn.q.weight"} <= decayed


def test_frozen_parameters_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    optimizer = build_optimizer(model, ImageTrain(), 8)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2


def test_the_released_run_changes_lamb_and_scales_the_rate() -> None:
    model = nn.Linear(3, 3)
    paper = build_optimizer(model, ImageTrain(), 1024).param_groups[0]
    released = build_optimizer(model, ImageTrain(released_lamb=True), 1024).param_groups[0]
    assert (paper["lr"], paper["betas"], paper["bias_correction"]) == (6e-3, (0.9, 0.999), True)
    assert (released["eps"], released["bias_correction"]) == (1e-4, False)
    assert released["max_grad_norm"] is None and released["always_adapt"] is True
    assert released["lr"] == pytest.approx(6e-3 * 2)
    assert peak_lr(ImageTrain(released_lamb=True), 64) == pytest.approx(3e-3)
    assert isinstance(build_optimizer(model, ImageTrain(optimizer="adamw"), 8), torch.optim.AdamW)


def test_setting_the_rate_reaches_every_group_and_moves_weights_by_it() -> None:
    model = nn.Linear(4, 4)
    optimizer = build_optimizer(model, ImageTrain(), 8)
    set_lr(optimizer, 0.0)
    assert [group["lr"] for group in optimizer.param_groups] == [0.0, 0.0]
    before = model.weight.detach().clone()
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    assert torch.equal(model.weight, before)
    set_lr(optimizer, 0.1)
    optimizer.step()
    assert not torch.equal(model.weight, before)


def test_gradients_are_clipped_to_the_limit_and_left_alone_without_one() -> None:
    model = nn.Linear(4, 4)
    (model(torch.full((1, 4), 100.0)).sum()).backward()
    gradient = model.weight.grad
    assert gradient is not None
    before = gradient.clone()
    clip_gradients(model, 0.0)
    assert torch.equal(gradient, before)
    clip_gradients(model, 2.0)
    norm = math.sqrt(sum(float((p.grad**2).sum()) for p in model.parameters() if p.grad is not None))
    assert norm == pytest.approx(2.0, rel=1e-4)


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_what_places_adaptive_patches_learns_at_its_share_of_the_rate(
    tiny_sizes: adamatch.AdaMatchSizes, tokenizer: PreTrainedTokenizerBase, name: Any
) -> None:
    model = adamatch.build(tiny_sizes, tokenizer)
    optimizer = build_optimizer(model, ImageTrain(optimizer=name, box_lr=0.1), 8)
    set_lr(optimizer, 2e-3)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    slow = {names[id(p)] for group in optimizer.param_groups if group["lr"] < 2e-3 for p in group["params"]}
    assert {name.rpartition("patch_embed.")[2].split(".")[0] for name in slow} == {"predictor", "offsets", "size_bias"}
    assert len({name.split(".patch_embed")[0] for name in slow}) == 2  # stages 2 and 3; 4 is behind the matched one
    assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx([2e-4, 2e-3])
