"""The encoder that keeps to the place: blocks mix neighbours only, and findings are seen in single patches."""

from dataclasses import replace

import pytest
import torch

from adamatch_ray.model_config import PVTConfig
from adamatch_ray.models.pvt import PyramidVisionTransformer

LOCAL = PVTConfig(
    image_size=128,
    dims=(8, 16, 24, 32),
    depths=(1, 1, 1, 1),
    heads=(1, 2, 3, 4),
    reductions=(8, 4, 2, 1),
    mlp_ratios=(2, 2, 2, 2),
    drop_path=0.0,
    num_classes=3,
    attention_stages=(4,),
    pooling="patches",
)


def encoder(config: PVTConfig = LOCAL) -> PyramidVisionTransformer:
    torch.manual_seed(0)
    return PyramidVisionTransformer(config).eval()


def changed_patches(config: PVTConfig) -> torch.Tensor:
    """Which patches of stage 3 notice a change in the upper left corner, [8, 8]."""
    model = encoder(config)
    image = torch.randn(1, 3, 128, 128)
    other = image.clone()
    other[..., :8, :8] += 1
    with torch.no_grad():
        before, after = (model.forward_stages(x)[-1].tokens_BPC for x in (image, other))
    return (before - after).abs().amax(-1).view(8, 8) > 0


def test_without_attention_a_patch_sees_what_is_near() -> None:
    near = changed_patches(LOCAL)
    assert near[0, 0]
    assert not near[5:].any()
    assert not near[:, 5:].any()
    assert changed_patches(replace(LOCAL, attention_stages=(1, 2, 3, 4))).all()


def test_a_class_is_judged_by_its_strongest_patch() -> None:
    model = encoder()
    image = torch.randn(2, 3, 128, 128)
    with torch.no_grad():
        judged = model.judge(image)
        patch_BPD = model.norm(model.forward_stages(image)[-1].tokens_BPC)
        assert model.head is not None
        evidence_BPL = model.head(patch_BPD)
    torch.testing.assert_close(judged.feature_BD, patch_BPD.mean(1))
    torch.testing.assert_close(judged.logit_BL, evidence_BPL.exp().mean(1).log())
    torch.testing.assert_close(judged.logit_BL, model(image))


def test_the_sharper_the_pooling_the_more_the_strongest_patch_counts() -> None:
    image = torch.randn(2, 3, 128, 128)
    mild, sharp, hard = (encoder(replace(LOCAL, sharpness=value)) for value in (1.0, 4.0, 1e4))
    with torch.no_grad():
        assert mild.head is not None
        evidence_BPL = mild.head(mild.norm(mild.forward_stages(image)[-1].tokens_BPC))
        logits = [model(image) for model in (mild, sharp, hard)]
    torch.testing.assert_close(logits[1], (4 * evidence_BPL).exp().mean(1).log() / 4)
    torch.testing.assert_close(logits[2], evidence_BPL.amax(1), atol=1e-3, rtol=0)
    assert (logits[0] < logits[1]).all() and (logits[1] < logits[2]).all()
    with pytest.raises(ValueError, match="sharpness must be above 0"):
        replace(LOCAL, sharpness=0.0)


def test_every_weight_that_trains_learns() -> None:
    model = encoder().train()
    model.freeze_unread()
    model(torch.randn(2, 3, 128, 128)).sum().backward()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert not [name for name in trained if model.get_parameter(name).grad is None]
    assert not [name for name in trained if name.startswith(("stages.3", "cls_token"))]


def test_the_paper_keeps_all_of_its_weights_trainable() -> None:
    model = encoder(replace(LOCAL, pooling="token", attention_stages=(1, 2, 3, 4)))
    model.freeze_unread()
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("stages", [(1, 2, 3), (1, 5), ()])
def test_stage_4_always_attends(stages: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="4 included"):
        replace(LOCAL, attention_stages=stages)
