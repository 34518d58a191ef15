"""The DeepSpeed dictionary: what each setting becomes, and which contradict each other."""

from dataclasses import replace

import pytest

from adamatch_ray.config import DeepSpeedConfig, LLMStage, LLMTrain
from adamatch_ray.train.deepspeed_config import deepspeed_config, uses_bf16

STAGE = LLMStage(train=LLMTrain(batch_size=6, lr=5e-6, weight_decay=0.1, clip=0.5))


def test_batches_agree_with_the_workers() -> None:
    made = deepspeed_config(replace(STAGE, deepspeed=DeepSpeedConfig(accumulate=4)), 3, "cpu")
    assert made["train_micro_batch_size_per_gpu"] == 6 and made["gradient_accumulation_steps"] == 4
    assert made["train_batch_size"] == 6 * 4 * 3
    assert made["gradient_clipping"] == 0.5


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_zero_stage_optimises_with_plain_adamw(stage: int) -> None:
    made = deepspeed_config(replace(STAGE, deepspeed=DeepSpeedConfig(stage=stage)), 1, "cpu")  # type: ignore[arg-type]
    assert made["zero_optimization"]["stage"] == stage
    assert "offload_optimizer" not in made["zero_optimization"] and "offload_param" not in made["zero_optimization"]
    params = made["optimizer"]["params"]
    assert made["optimizer"]["type"] == "AdamW" and params["torch_adam"] is True
    assert (params["lr"], params["weight_decay"]) == (5e-6, 0.1)


def test_muon_is_for_the_layers_and_adamw_for_the_rest() -> None:
    made = deepspeed_config(replace(STAGE, train=replace(STAGE.train, muon_lr=0.02, clip=0.0)), 1, "cpu")["optimizer"]
    assert made["type"] == "Muon"
    assert (made["params"]["muon_lr"], made["params"]["adam_lr"], "lr" in made["params"]) == (0.02, 5e-6, False)


def test_offloading_needs_pinned_memory_on_a_gpu_and_deepspeeds_optimiser() -> None:
    spread = DeepSpeedConfig(stage=3, offload_optimizer="cpu", offload_weights="cpu")
    made = deepspeed_config(replace(STAGE, deepspeed=spread), 8, "cuda")
    assert made["zero_optimization"]["offload_optimizer"] == {"device": "cpu", "pin_memory": True}
    assert made["zero_optimization"]["offload_param"] == {"device": "cpu", "pin_memory": True}
    assert made["optimizer"]["params"]["torch_adam"] is False
    assert made["zero_optimization"]["overlap_comm"] is True


def test_bf16_is_for_gpus_unless_asked_for() -> None:
    assert [uses_bf16("auto", device) for device in ("cpu", "cuda")] == [False, True]
    assert uses_bf16("bf16", "cpu") and not uses_bf16("fp32", "cuda")
    assert deepspeed_config(STAGE, 1, "cuda")["bf16"] == {"enabled": True}
    assert deepspeed_config(STAGE, 1, "cpu")["bf16"] == {"enabled": False}


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (replace(STAGE, train=replace(STAGE.train, optimizer="lamb")), "tuned with adamw"),
        (replace(STAGE, train=replace(STAGE.train, muon_lr=0.02)), "with ZeRO stage 2: set --llm.train.clip 0"),
        (replace(STAGE, deepspeed=DeepSpeedConfig(stage=2, offload_weights="cpu")), "needs stage 3, not 2"),
        (replace(STAGE, deepspeed=DeepSpeedConfig(stage=0, offload_optimizer="cpu")), "needs stage 1, 2 or 3"),
        (replace(STAGE, deepspeed=DeepSpeedConfig(accumulate=0)), "at least 1"),
    ],
)
def test_contradictions_are_refused(stage: LLMStage, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        deepspeed_config(stage, 1, "cpu")
