"""The image encoder: counts, published weights against a plain reference, stages, and what users get wrong."""

import argparse
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from adamatch_ray.model_config import PVTConfig
from adamatch_ray.models.pvt import PyramidVisionTransformer
from adamatch_ray.models.pvt_published import check_published, load_published, load_published_file, resize_position

SMALL = PVTConfig(
    image_size=64,
    dims=(8, 16, 24, 32),
    depths=(1, 2, 1, 1),
    heads=(1, 2, 3, 4),
    reductions=(8, 4, 2, 1),
    mlp_ratios=(4, 4, 2, 2),
    num_classes=7,
)
PLAIN = replace(SMALL, adapatch_stages=())


def published_shapes(config: PVTConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights in a published file of this configuration."""
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, config.dims[3])}
    for n in range(1, 5):
        dim, grid, hidden = config.dims[n - 1], config.grid(n), int(config.dims[n - 1] * config.mlp_ratios[n - 1])
        channels, patch = (config.in_channels, config.patch_size) if n == 1 else (config.dims[n - 2], 2)
        shapes[f"pos_embed{n}"] = (1, grid**2 + (n == 4), dim)
        embed = f"patch_embed{n}"
        if n in config.adapatch_stages:
            shapes[f"{embed}.offset_predictor.weight"] = (4, dim)
            shapes[f"{embed}.box_coder.wh_bias"] = (2,)
            shapes |= linear_shapes(f"{embed}.output_proj", channels * config.samples**2, dim)
            shapes |= norm_shapes(f"{embed}.norm", dim)
            embed += ".patch_embed"
        shapes |= {f"{embed}.proj.weight": (dim, channels, patch, patch), f"{embed}.proj.bias": (dim,)}
        shapes |= norm_shapes(f"{embed}.norm", dim)
        for i in range(config.depths[n - 1]):
            block = f"block{n}.{i}"
            shapes |= norm_shapes(f"{block}.norm1", dim) | norm_shapes(f"{block}.norm2", dim)
            shapes |= linear_shapes(f"{block}.attn.q", dim, dim) | linear_shapes(f"{block}.attn.kv", dim, 2 * dim)
            shapes |= linear_shapes(f"{block}.attn.proj", dim, dim)
            shapes |= linear_shapes(f"{block}.mlp.fc1", dim, hidden) | linear_shapes(f"{block}.mlp.fc2", hidden, dim)
            r = config.reductions[n - 1]
            if r > 1:
                shapes |= {f"{block}.attn.sr.weight": (dim, dim, r, r), f"{block}.attn.sr.bias": (dim,)}
                shapes |= norm_shapes(f"{block}.attn.norm", dim)
    return shapes | norm_shapes("norm", config.dims[3]) | linear_shapes("head", config.dims[3], config.num_classes)


def linear_shapes(name: str, width: int, out: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, width), f"{name}.bias": (out,)}


def norm_shapes(name: str, dim: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}


def constant_buffers(config: PVTConfig) -> dict[str, Tensor]:
    """What a published adaptive file keeps besides its weights."""
    buffers = {}
    for n in config.adapatch_stages:
        side = config.grid(n - 1)
        buffers[f"patch_embed{n}.box_coder.anchor"] = torch.rand(config.grid(n) ** 2, 2)
        buffers[f"patch_embed{n}.value_spatial_shapes"] = torch.tensor([[side, side]])
        buffers[f"patch_embed{n}.value_level_start_index"] = torch.tensor([0])
    return buffers


def published(config: PVTConfig) -> dict[str, Tensor]:
    """Random weights in float64, small where a LayerNorm reads them, so that its epsilon counts."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, shape in published_shapes(config).items():
        value = torch.randn(shape, generator=generator, dtype=torch.float64)
        if "norm" in name:
            weights[name] = 0.1 * value + (1.0 if name.endswith("weight") else 0.0)
        elif name.endswith("wh_bias"):
            weights[name] = 0.3 + 0.1 * value
        elif len(shape) == 4 or "output_proj" in name or "pos_embed" in name or name == "cls_token":
            weights[name] = value * 3e-3
        else:
            weights[name] = value * 0.2
    return weights


def reference_logits(w: dict[str, Tensor], image: Tensor, config: PVTConfig, embed_eps: float, eps: float) -> Tensor:
    """The encoder once more, plainly, straight from the published names."""

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x: Tensor, name: str, epsilon: float) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + epsilon).sqrt()
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    def shrink(x_map: Tensor, name: str, stride: int) -> Tensor:
        out = F.conv2d(x_map, w[f"{name}.weight"], w[f"{name}.bias"], stride=stride)
        return out.flatten(2).mT

    def as_map(x: Tensor) -> Tensor:
        side = math.isqrt(x.shape[1])
        return x.mT.reshape(len(x), -1, side, side)

    def adapt(x_map: Tensor, name: str) -> Tensor:
        f = F.gelu(norm(shrink(x_map, f"{name}.patch_embed.proj", 2), f"{name}.patch_embed.norm", embed_eps))
        raw = f @ w[f"{name}.offset_predictor.weight"].T
        p, rows = x_map.shape[-1] // 2, []
        for i in range(p):
            for j in range(p):
                r = raw[:, i * p + j]
                cx, cy = (j + 0.5 + r[:, 0].tanh()) / p, (i + 0.5 + r[:, 1].tanh()) / p
                half = F.relu((r[:, 2:] + w[f"{name}.box_coder.wh_bias"]).tanh()) / p
                box = torch.stack([cx - half[:, 0], cy - half[:, 1], cx + half[:, 0], cy + half[:, 1]], -1).clamp(0, 1)
                points = []
                for a in (0.0, 0.5, 1.0):
                    for b in (0.0, 0.5, 1.0):
                        x, y = box[:, 0] * (1 - a) + box[:, 2] * a, box[:, 1] * (1 - b) + box[:, 3] * b
                        at = torch.stack([x, y], -1)[:, None, None] * 2 - 1
                        points.append(F.grid_sample(x_map, at, align_corners=False)[:, :, 0, 0])
                rows.append(torch.cat(points, -1))
        return norm(linear(torch.stack(rows, 1), f"{name}.output_proj"), f"{name}.norm", embed_eps)

    def attention(x: Tensor, name: str, heads: int, reduction: int) -> Tensor:
        source = x
        if reduction > 1:
            source = norm(shrink(as_map(x), f"{name}.sr", reduction), f"{name}.norm", embed_eps)
        q, (k, v) = linear(x, f"{name}.q"), linear(source, f"{name}.kv").chunk(2, -1)
        outs = []
        for qh, kh, vh in zip(*(t.chunk(heads, -1) for t in (q, k, v)), strict=True):
            outs.append((qh @ kh.mT / math.sqrt(qh.shape[-1])).softmax(-1) @ vh)
        return linear(torch.cat(outs, -1), f"{name}.proj")

    x = image
    for n in range(1, 5):
        embed = f"patch_embed{n}"
        if n in config.adapatch_stages:
            x = adapt(x, embed)
        else:
            x = norm(shrink(x, f"{embed}.proj", config.patch_size if n == 1 else 2), f"{embed}.norm", embed_eps)
        if n == 4:
            x = torch.cat([w["cls_token"].expand(len(x), -1, -1), x], 1)
        x = x + w[f"pos_embed{n}"]
        for i in range(config.depths[n - 1]):
            block = f"block{n}.{i}"
            x = x + attention(
                norm(x, f"{block}.norm1", eps), f"{block}.attn", config.heads[n - 1], config.reductions[n - 1]
            )
            x = x + linear(F.gelu(linear(norm(x, f"{block}.norm2", eps), f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
        x = as_map(x) if n < 4 else x
    return linear(norm(x[:, 0], "norm", eps), "head")


def encoder(config: PVTConfig = SMALL) -> PyramidVisionTransformer:
    torch.manual_seed(0)
    return PyramidVisionTransformer(config).eval()


def moved_encoder(config: PVTConfig = SMALL) -> PyramidVisionTransformer:
    """In float64, with boxes that moved."""
    model = encoder(config).double()
    load_published(model, published(config))
    return model


def images(count: int = 2, side: int = 64) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize(("stages", "count"), [((), 44_208_104), ((2, 3, 4), 46_131_758)])
def test_parameter_counts(stages: tuple[int, ...], count: int) -> None:
    config = PVTConfig(adapatch_stages=stages, num_classes=1000)
    with torch.device("meta"):
        model = PyramidVisionTransformer(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert sum(math.prod(shape) for shape in published_shapes(config).values()) == count


@pytest.mark.parametrize("config", [PLAIN, SMALL, replace(SMALL, adapatch_stages=(3,))])
def test_published_weights_give_the_reference_logits(config: PVTConfig) -> None:
    weights, image = published(config), images()
    model = encoder(config).double()
    load_published(model, weights | constant_buffers(config))
    with torch.no_grad():
        logits = model(image)
    torch.testing.assert_close(logits, reference_logits(weights, image, config, 1e-5, 1e-6), rtol=1e-8, atol=1e-8)
    for wrong in ((1e-6, 1e-6), (1e-5, 1e-5), (1e-6, 1e-5)):
        assert (logits - reference_logits(weights, image, config, *wrong)).abs().max() > 1e-5


def test_an_adaptive_file_carries_nine_constant_buffers() -> None:
    assert len(constant_buffers(SMALL)) == 9


def test_loading_names_what_is_missing_unexpected_or_misshapen() -> None:
    weights = published(PLAIN)
    del weights["block2.1.attn.sr.weight"]
    weights["extra.weight"] = torch.zeros(1)
    weights["head.weight"] = torch.zeros(3, 32)
    with pytest.raises(ValueError) as error:
        load_published(encoder(PLAIN), weights)
    for part in ("stages.1.blocks.1.attn.reduce.sr.weight", "extra.weight", "head.weight is (3, 32), not (7, 32)"):
        assert part in str(error.value)
    with pytest.raises(ValueError, match="offsets"):
        load_published(encoder(PLAIN), published(SMALL))


@pytest.mark.parametrize("samples", [2, 3, 4])
def test_a_plain_file_starts_adaptive_patches_that_see_what_it_saw(samples: int) -> None:
    """The paper's recipe: at the start each box has its corners on the pixels of the fixed patch."""
    plain, adaptive = encoder(PLAIN), encoder(replace(SMALL, samples=samples))
    for model in (plain, adaptive):
        load_published(model, published(PLAIN))
        model.double().eval()
    with torch.no_grad():
        torch.testing.assert_close(adaptive(images()), plain(images()), rtol=1e-6, atol=1e-6)
    adaptive(images()).sum().backward()
    learning = {name for name, weight in adaptive.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert {f"stages.{i}.patch_embed.offsets.weight" for i in (1, 2, 3)} <= learning


def test_a_file_that_does_not_fit_is_told_without_a_model(tmp_path: Path) -> None:
    torch.save(published(PLAIN), tmp_path / "plain.pth")
    check_published(str(tmp_path / "plain.pth"), SMALL)
    with pytest.raises(ValueError, match=r"plain\.pth: the weights do not fit this encoder.*stages\.2\.blocks"):
        check_published(str(tmp_path / "plain.pth"), replace(SMALL, depths=(1, 2, 9, 1)))


def test_a_failed_load_changes_nothing() -> None:
    model, fresh = encoder(PLAIN), encoder(PLAIN)
    with pytest.raises(ValueError, match="missing"):
        load_published(model, {name: v for name, v in published(PLAIN).items() if name != "norm.bias"})
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))


@pytest.mark.parametrize("classes", [0, 14])
def test_a_head_of_other_classes_is_dropped_on_request_only(classes: int) -> None:
    model = encoder(replace(PLAIN, num_classes=classes)).double()
    head = {name: value.clone() for name, value in model.named_parameters() if name.startswith("head.")}
    with pytest.raises(ValueError, match="drop_head"):
        load_published(model, published(PLAIN))
    load_published(model, published(PLAIN), drop_head=True)
    torch.testing.assert_close(model.norm.weight.detach(), published(PLAIN)["norm.weight"])
    assert all(torch.equal(value, dict(model.named_parameters())[name]) for name, value in head.items())


def test_position_embeddings_fit_another_image_size() -> None:
    larger = encoder(replace(SMALL, image_size=96)).double()
    weights = published(SMALL)
    load_published(larger, weights | constant_buffers(SMALL))
    position = larger.stages[3].position
    assert isinstance(position, Tensor) and position.shape == (1, 10, 32)
    torch.testing.assert_close(position[:, 0], weights["pos_embed4"][:, 0])
    assert larger(images(1, 96)).shape == (1, 7)


def test_resized_positions_keep_their_axes() -> None:
    row, column = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    table = torch.stack([row, column, torch.ones(8, 8)], dim=-1).reshape(1, 64, 3)
    row, column, one = resize_position(table, 256).reshape(16, 16, 3).unbind(-1)
    torch.testing.assert_close(row, row[:, :1].expand(16, 16))
    torch.testing.assert_close(column, row.T)
    torch.testing.assert_close(one, torch.ones(16, 16))
    torch.testing.assert_close(row[4:12, 0].diff(), torch.full((7,), 0.5))


def test_files_are_read_without_running_them(tmp_path: Path) -> None:
    weights = published(PLAIN)
    torch.save({"model": weights, "epoch": 3}, tmp_path / "wrapped.pth")
    torch.save(weights, tmp_path / "bare.pth")
    for name in ("wrapped.pth", "bare.pth"):
        load_published(encoder(PLAIN), load_published_file(tmp_path / name))
    torch.save({"model": weights, "args": argparse.Namespace(lr=1)}, tmp_path / "objects.pth")
    with pytest.raises(ValueError, match=r"objects\.pth holds more than tensors"):
        load_published_file(tmp_path / "objects.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="not a state dict"):
        load_published_file(tmp_path / "list.pth")


def test_early_stages_do_not_need_the_late_ones() -> None:
    model, image = moved_encoder(), images()
    full = model.forward_stages(image, last_stage=4)
    with torch.no_grad():
        for parameter in model.stages[3].parameters():
            parameter.fill_(float("nan"))
    part = model.forward_stages(image, last_stage=3)
    assert len(full) == 4 and len(part) == 3
    for ours, theirs in zip(part, full, strict=False):
        for name in ours._fields:
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), name


def test_stage_outputs_have_one_token_and_box_a_patch() -> None:
    outputs = moved_encoder(replace(SMALL, adapatch_stages=(3, 4))).forward_stages(images(), last_stage=4)
    for n, output in enumerate(outputs, start=1):
        patches, dim = SMALL.grid(n) ** 2, SMALL.dims[n - 1]
        assert output.tokens_BPC.shape == output.local_tokens_BPC.shape == (2, patches, dim)
        assert output.boxes_BP4.shape == (2, patches, 4) and output.fixed_boxes_P4.shape == (patches, 4)
        assert output.boxes_BP4.dtype == output.fixed_boxes_P4.dtype == torch.float32
        fixed = torch.equal(output.boxes_BP4, output.fixed_boxes_P4.expand(2, -1, -1))
        assert fixed == (n < 3)


def test_local_tokens_come_before_any_mixing() -> None:
    model, image = encoder(SMALL).double(), images(1)
    touched = image.clone()
    touched[..., 4:8, 8:12] += 1  # stage-1 patch of row 1, column 2
    before, after = model.forward_stages(image, 1)[0], model.forward_stages(touched, 1)[0]
    changed = (before.local_tokens_BPC - after.local_tokens_BPC).abs().amax(-1)[0] > 1e-9
    assert changed.nonzero().flatten().tolist() == [1 * 16 + 2]
    assert ((before.tokens_BPC - after.tokens_BPC).abs().amax(-1)[0] > 1e-9).sum() > 1


def test_images_of_a_batch_do_not_meet() -> None:
    model, image, order = moved_encoder(), images(4), torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(model(image[order]), model(image)[order])
    for straight, shuffled in zip(model.forward_stages(image, 4), model.forward_stages(image[order], 4), strict=True):
        torch.testing.assert_close(shuffled.boxes_BP4, straight.boxes_BP4[order])
        torch.testing.assert_close(shuffled.tokens_BPC, straight.tokens_BPC[order])


def test_every_weight_learns() -> None:
    model = encoder().train()
    model(images().float()).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.slow
def test_a_compiled_encoder_is_one_graph() -> None:
    model, image = moved_encoder(), images()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(image), model(image))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 100}, "image_size 100 must be a multiple of 32"),
        ({"dims": (8, 16, 24)}, "dims needs 4"),
        ({"depths": (1, 0, 1, 1)}, "depths needs 4 positive"),
        ({"heads": (1, 2, 5, 4)}, "stage 3: dim 24 must be a multiple of its 5 heads"),
        ({"reductions": (8, 3, 2, 1)}, "stage 2: grid 8 must be a multiple of its reduction 3"),
        ({"reductions": (8, 4, 2, 2)}, "class token"),
        ({"adapatch_stages": (1, 2)}, "adapatch_stages"),
        ({"samples": 1}, "samples must be at least 2"),
        ({"drop_path": 1.0}, "drop_path"),
        ({"num_classes": -1}, "num_classes"),
    ],
)
def test_impossible_shapes_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **change)


def test_calls_that_cannot_be_answered_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3, 32, 32\), the encoder takes \[B, 3, 64, 64\]"):
        encoder()(images(2, 32).float())
    with pytest.raises(ValueError, match="last_stage must be 1 to 4; got 5"):
        encoder().forward_stages(images().float(), last_stage=5)
    with pytest.raises(ValueError, match="no head"):
        encoder(replace(SMALL, num_classes=0))(images().float())
