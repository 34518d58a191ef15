"""The DeepSpeed dictionary of the language model's tuning (docs/method.md 4)."""

from typing import Any

from adamatch_ray.config import LLMStage, LLMTrain

BUCKET = 50_000_000
"""Gradients reduced together, in elements; DeepSpeed's own default would reserve 2 GB a worker."""


def deepspeed_config(stage: LLMStage, world: int, device: str, universal: bool = False) -> dict[str, Any]:
    """What `deepspeed.initialize` is given for `world` workers on `device` ("cpu" or "cuda"). A pure function.

    `universal`: it will continue a converted checkpoint. ValueError where the choices contradict each other.
    """
    train, spread = stage.train, stage.deepspeed
    _check(stage)
    offload = spread.offload_optimizer == "cpu"
    place = {"device": "cpu", "pin_memory": device == "cuda"}
    zero: dict[str, Any] = {
        "stage": spread.stage,
        "overlap_comm": device == "cuda",
        "contiguous_gradients": True,
        "reduce_bucket_size": BUCKET,
        "allgather_bucket_size": BUCKET,
    }
    if train.muon_lr > 0 and spread.stage == 3:
        zero["reduce_scatter"] = False  # Muon needs the gradient of a whole matrix
    if offload:
        zero["offload_optimizer"] = place
    if spread.offload_weights == "cpu":
        zero["offload_param"] = place
    return {
        "train_micro_batch_size_per_gpu": train.batch_size,
        "gradient_accumulation_steps": spread.accumulate,
        "train_batch_size": train.batch_size * spread.accumulate * world,
        "optimizer": _optimizer(train, offload),
        "gradient_clipping": train.clip,
        "bf16": {"enabled": uses_bf16(train.precision, device)},
        "zero_optimization": zero,
        "checkpoint": {"load_universal": universal},
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
    }


def _optimizer(train: LLMTrain, offload: bool) -> dict[str, Any]:
    """AdamW for all weights, or Muon for the matrices within the layers and AdamW for the rest."""
    shared: dict[str, Any] = {
        "betas": [0.9, 0.999],
        "eps": 1e-8,
        "weight_decay": train.weight_decay,
        # DeepSpeed's own kernels have to be compiled, for a GPU with a CUDA toolkit; only offloading needs one.
        "torch_adam": not offload,
    }
    if train.muon_lr == 0:
        return {"type": "AdamW", "params": {"lr": train.lr, **shared}}
    return {"type": "Muon", "params": {"adam_lr": train.lr, "muon_lr": train.muon_lr, **shared}}


def uses_bf16(precision: str, device: str) -> bool:
    """Whether weights are bf16 with an fp32 copy in the optimiser: on a GPU, unless told otherwise."""
    return precision == "bf16" or (precision == "auto" and device == "cuda")


def _check(stage: LLMStage) -> None:
    train, spread = stage.train, stage.deepspeed
    if train.optimizer != "adamw":
        raise ValueError(f"--llm.train.optimizer {train.optimizer}: the language model is tuned with adamw")
    if train.muon_lr > 0 and train.clip > 0 and spread.stage > 0:
        # DeepSpeed would clip what Muon has made of the gradient, whose norm is many times the gradient's.
        raise ValueError(f"--llm.train.muon_lr {train.muon_lr} with ZeRO stage {spread.stage}: set --llm.train.clip 0")
    if spread.offload_weights == "cpu" and spread.stage < 3:
        raise ValueError(f"--llm.deepspeed.offload_weights cpu needs stage 3, not {spread.stage}")
    if spread.offload_optimizer == "cpu" and spread.stage < 1:
        raise ValueError("--llm.deepspeed.offload_optimizer cpu needs stage 1, 2 or 3, not 0")
    if spread.accumulate < 1:
        raise ValueError(f"--llm.deepspeed.accumulate {spread.accumulate} must be at least 1")
