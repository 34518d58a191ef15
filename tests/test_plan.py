"""The plan's arithmetic: parameters and operations are those of the models, bytes and hours those of a calculator."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel, GPTNeoXConfig, GPTNeoXForCausalLM

from adamatch_ray import arithmetic, planning
from adamatch_ray.config import load_config
from adamatch_ray.model_config import LLMConfig, PVTConfig, TextEncoderConfig, VQGANConfig
from adamatch_ray.models.pvt import PyramidVisionTransformer
from adamatch_ray.models.vqgan import VQGAN
from adamatch_ray.stage_plans import PLANS, plan_stage, zero_bytes

A100 = planning.HARDWARE["a100-40gb"]
MIMIC = load_config("mimic_cxr")
COUNTS = planning.expected_counts(MIMIC)

TINY_PVT = PVTConfig(
    image_size=64, dims=(8, 16, 24, 32), depths=(1, 2, 1, 1), heads=(1, 2, 3, 4), reductions=(4, 2, 1, 1)
)
TINY_VQGAN = VQGANConfig(
    image_size=64, in_channels=1, ch=8, groups=4, ch_mult=(1, 2, 2), attn_resolutions=(16,), z_channels=8, codes=40,
    code_dim=4, num_res_blocks=1,
)  # fmt: skip


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("config", "known"),
    [
        (PVTConfig(num_classes=1000, adapatch_stages=()), 44_208_104),
        (PVTConfig(num_classes=1000), 46_131_758),
        (replace(TINY_PVT, attention_stages=(1, 4), adapatch_stages=(2, 4), num_classes=14), 0),
    ],
)
def test_the_image_encoder_has_as_many_parameters_as_planned(config: PVTConfig, known: int) -> None:
    with torch.device("meta"):
        built = parameters(PyramidVisionTransformer(config))
    assert arithmetic.pvt_parameters(config) == built and known in (0, built)


def test_text_models_have_as_many_parameters_as_planned() -> None:
    size = arithmetic.Transformer(90, 16, 2, 2, 64, 32)
    sizes: dict[str, Any] = {"vocab_size": 90, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
             "intermediate_size": 64, "max_position_embeddings": 32}  # fmt: skip
    assert arithmetic.bert_parameters(size) == parameters(BertModel(BertConfig(**sizes), add_pooling_layer=False))
    assert arithmetic.neox_parameters(size) == parameters(GPTNeoXForCausalLM(GPTNeoXConfig(**sizes)))


def test_published_sizes_are_those_of_the_papers() -> None:
    dolly = arithmetic.llm_sizes(LLMConfig(), 1024)
    assert dolly is not None and dolly.vocab == 51_305
    # 32 layers of 12 x 2560^2 + 13 x 2560, twice 51,305 rows of 2,560, a norm
    assert arithmetic.neox_parameters(dolly) == 32 * 78_676_480 + 2 * 51_305 * 2_560 + 5_120 == 2_780_334_080
    clinical = arithmetic.text_sizes(TextEncoderConfig())
    assert clinical is not None and round(arithmetic.bert_parameters(clinical) / 1e6, 1) == 107.7
    assert arithmetic.text_sizes(TextEncoderConfig(name_or_path="some/other")) is None


def operations(call: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def test_the_vqgan_is_reckoned_as_it_computes() -> None:
    assert round(arithmetic.vqgan_parameters(VQGANConfig()) / 1e6, 1) == 72.1
    assert round(arithmetic.encode_operations(VQGANConfig()) / 1e9) in (138, 139)
    assert round(arithmetic.decode_operations(VQGANConfig()) / 1e9) == 253
    with torch.device("meta"):
        model = VQGAN(TINY_VQGAN)
        image, latent = torch.zeros(1, 1, 64, 64), torch.zeros(1, 4, 16, 16)
        encode = operations(lambda: model.quant_conv(model.encoder(image)))
        decode = operations(lambda: model.decode(latent))
    assert arithmetic.vqgan_parameters(TINY_VQGAN) == parameters(model)
    distances = 2 * 256 * 40 * 4
    assert arithmetic.encode_operations(TINY_VQGAN) - distances == pytest.approx(encode, rel=0.03)
    assert arithmetic.decode_operations(TINY_VQGAN) == pytest.approx(decode, rel=0.03)


def test_the_image_encoder_is_reckoned_as_it_computes() -> None:
    config = replace(TINY_PVT, adapatch_stages=())
    with torch.device("meta"):
        model = PyramidVisionTransformer(config)
        counted = operations(lambda: model.forward_stages(torch.zeros(1, 3, 64, 64), last_stage=4))
    planned = sum(stage.operations for stage in arithmetic.pvt_stages(config))
    assert planned == pytest.approx(counted, rel=0.05)
    # 6.7 G multiply-adds is what is published of PVT-medium at 224 pixels
    medium = sum(stage.operations for stage in arithmetic.pvt_stages(PVTConfig(adapatch_stages=())))
    assert medium / 2 == pytest.approx(6.7e9, rel=0.02)
    assert [stage.patches for stage in arithmetic.pvt_stages(PVTConfig())] == [3136, 784, 196, 49]


def test_a_transformer_costs_two_operations_a_weight_and_token() -> None:
    size = arithmetic.Transformer(90, 16, 2, 2, 64, 32)
    assert arithmetic.transformer_operations(size, 10) == 2 * (2 * 10 * (4 * 256 + 2 * 1024) + 4 * 100 * 16)


@pytest.mark.parametrize(
    ("stage", "gigabytes"),
    # 2.78 G parameters on 8 GPUs: 16; 4 + 12/8; 2 + 14/8; 16/8 bytes each
    [(0, 44.49), (1, 15.29), (2, 10.43), (3, 5.56)],
)
def test_zero_splits_what_it_says(stage: int, gigabytes: float) -> None:
    assert zero_bytes(2_780_334_080, 8, stage) / 1e9 == pytest.approx(gigabytes, abs=0.01)


def test_mimic_is_counted_by_its_frontal_images() -> None:
    assert COUNTS.all == 147_173 + 96_161 == 243_334
    assert (COUNTS.validate, COUNTS.test) == (1_930, 3_329)
    counted = planning.expected_counts(MIMIC, {"train": 5, "validate": 2, "test": 1})
    assert counted.all == 8 and counted.source == "counted in studies/"
    with pytest.raises(ValueError, match=r"prepare_data\.py"):
        planning.expected_counts(load_config("mimic_cxr", {"data.source": "manifest"}))


def test_the_paper_fits_its_gpus_and_its_times_can_be_checked() -> None:
    plans = {stage: plan_stage(stage, MIMIC, COUNTS, A100) for stage in PLANS}
    assert all(plan.worker_bytes < 40e9 for plan in plans.values())
    # 265 steps x 15 epochs; 3 x 39.44 G x 112 / (312 T x 0.3) each
    assert 238_075 // 896 == 265
    assert plans["adamatch"].seconds == pytest.approx(265 * 15 * 3 * 39.44e9 * 112 / (312e12 * 0.3), rel=1e-3)
    # 2,479 steps x 5 epochs; 6 x 2.780 G x 456 x 24 / (312 T x 0.45) each
    assert plans["llm"].seconds == pytest.approx(2_479 * 5 * 6 * 2.780334e9 * 456 * 24 / (312e12 * 0.45), rel=1e-6)
    # 243,334 images of 138.56 G on 8 x 19.5 T x 0.4
    assert plans["tokens"].seconds == pytest.approx(243_334 * 138.563e9 / (8 * 19.5e12 * 0.4), rel=1e-3)
    assert plans["tokens"].stored_bytes == 243_334 * 612
    alone = load_config("mimic_cxr", {"scale.workers": "1"})
    assert plan_stage("llm", alone, COUNTS, A100).worker_bytes > 40e9, "all of the optimiser on one GPU"
    adapters = load_config("mimic_cxr", {"scale.workers": "1", "llm.lora.rank": "16"})
    # 2 B x 2,780.3 M + 14 B x (16 x 16 x 2,560 x 32 + 2 x 51,305 x 2,560) = 9.53 GB, activations and logits as before
    more = plans["llm"].worker_bytes - zero_bytes(2_780_334_080, 8, 2)
    assert plan_stage("llm", adapters, COUNTS, A100).worker_bytes - more == pytest.approx(9.532e9, rel=1e-3)


def test_an_unknown_language_model_is_said_to_be_unknown() -> None:
    config = load_config("mimic_cxr", {"llm.name_or_path": "some/model"})
    with pytest.raises(ValueError, match="sizes of some/model are not known"):
        plan_stage("llm", config, COUNTS, A100)


def test_what_was_measured_stands_beside_the_prediction() -> None:
    plan = planning.Plan("tokens", 100.0, 41e9, 2e6, "arithmetic", ("a line",))
    text = "\n".join(planning.describe_plan(plan, A100, measured=250.0))
    assert "= time     100 s; measured 4.17 min (2.5x)" in text
    assert "41 GB a worker of 40 GB (A100-40GB): DOES NOT FIT" in text and "= storage  2 MB" in text


Main = Callable[[Sequence[str]], "dict[str, Any] | None"]


def test_a_plan_of_every_preset_is_printed_and_touches_nothing(
    job: Callable[[str], Main], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = str(tmp_path / "run")
    for preset in ("phantom", "openi", "mimic_cxr", "released"):
        answer = job("plan")(["--config", preset, "--root", root])
        assert answer is not None and answer["predicted_hours"] > 0
        out = capsys.readouterr().out
        assert all(f"\n{stage}\n" in out for stage in PLANS)
        assert answer["fits"] == (preset != "openi"), "one GPU does not hold dolly with its optimiser"
    assert not (tmp_path / "run").exists()
    assert job("plan")(["h200", "--config", "mimic_cxr", "--root", root])
    assert "one H200 each" in capsys.readouterr().out


def test_a_dry_run_ends_with_its_stage_s_plan(
    job: Callable[[str], Main], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job("cache_tokens")(["--config", "mimic_cxr", "--root", str(tmp_path / "run"), "--dry-run"])
    assert "#   = time     9.01 min" in capsys.readouterr().out
    job("prepare_data")(["--root", str(tmp_path), "--data.source", "manifest", "--dry-run"])
    assert "# no prediction: how many studies a table of your own has" in capsys.readouterr().out
