"""How each model is fitted: what all trainings share, and what only one of them reads.

A section holds the fields that its own training reads and no others, so that no option is accepted and then ignored.
"""

from dataclasses import dataclass
from typing import Literal

from adamatch_ray.model_config import option


@dataclass(frozen=True)
class TrainConfig:
    """How a model is fitted; batch size is per worker."""

    epochs: int = option(15, "passes over the train split")
    max_steps: int = option(0, "stop after so many optimiser steps (0: after the epochs)")
    batch_size: int = option(112, "studies per worker and step")
    optimizer: Literal["lamb", "adamw"] = option("lamb", "optimiser of the weights; lamb is the paper's for AdaMatch")
    lr: float = option(6e-3, "peak learning rate")
    weight_decay: float = option(3e-2, "weight decay (none on biases, norms, position embeddings, temperature)")
    warmup: float = option(0.25, "share of the steps with rising learning rate; cosine decay follows")
    clip: float = option(0.0, "largest gradient norm (0: no clipping besides the optimiser's own)")
    precision: Literal["auto", "fp32", "bf16"] = option("auto", "auto: bf16 on GPUs, fp32 on CPUs")
    threads: int = option(0, "CPU threads of a worker without a GPU (0: its share of the machine's cores)")
    seed: int = option(0, "seed of initial weights, order of studies and crops")
    checkpoint_steps: int = option(0, "also save every so many steps (0: at the end of each epoch only)")
    validate_epochs: int = option(1, "score the validate split every so many epochs (the last always)")


@dataclass(frozen=True)
class ImageTrain(TrainConfig):
    """How the image encoder and AdaMatch are fitted (docs/method.md 1.5)."""

    box_lr: float = option(1.0, "learning rate of what places adaptive patches, as a share of that of the rest")
    released_lamb: bool = option(False, "LAMB as in the authors' code: eps 1e-4, no bias correction, always adapt")
    crop: float = option(0.8, "smallest area of the random resized crop in training (1: no crop)")


@dataclass(frozen=True)
class PlaceTrain(TrainConfig):
    """How the place head is fitted; the paper has none, so these defaults are the project's own."""

    epochs: int = option(4, "passes over the train split")
    batch_size: int = option(16, "studies per worker and step")
    optimizer: Literal["lamb", "adamw"] = option("adamw", "optimiser of the head's weights")
    lr: float = option(4e-3, "peak learning rate")
    warmup: float = option(0.1, "share of the steps with rising learning rate; cosine decay follows")
    clip: float = option(1.0, "largest gradient norm")


@dataclass(frozen=True)
class VQGANTrain(TrainConfig):
    """How the VQ-GAN is fitted; the paper takes a trained one, so these defaults are the project's own."""

    epochs: int = option(20, "passes over the train split")
    batch_size: int = option(8, "studies per worker and step")
    optimizer: Literal["lamb", "adamw"] = option("adamw", "optimiser of both networks")
    lr: float = option(1e-4, "peak learning rate of both networks")
    weight_decay: float = option(0.0, "weight decay (none on biases and norms)")
    warmup: float = option(0.02, "share of the steps with rising learning rate; cosine decay follows")
    crop: float = option(1.0, "smallest area of the random resized crop in training (1: no crop)")
    beta1: float = option(0.5, "decay of the optimisers' first moment; the second's is 0.9")


@dataclass(frozen=True)
class LLMTrain(TrainConfig):
    """How the language model is tuned (docs/method.md 4); batch size counts records, both directions mixed."""

    epochs: int = option(5, "passes over the train split")
    batch_size: int = option(24, "records per worker and step")
    optimizer: Literal["lamb", "adamw"] = option("adamw", "optimiser of the language model, which adamw alone is")
    lr: float = option(5e-6, "peak learning rate")
    weight_decay: float = option(0.0, "weight decay of the layers' matrices")
    warmup: float = option(0.03, "share of the steps with rising learning rate; cosine decay follows")
    clip: float = option(1.0, "largest gradient norm")
    max_minutes: float = option(0.0, "stop after so many minutes, at the end of a step (0: no limit)")
    report_weight: float = option(1.0, "how often a token of a report counts in the loss, for one of an image")
    image_noise: float = option(
        0.0, "share of a drawn training image's tokens that are misread, so that the next must be told by the report"
    )
    muon_lr: float = option(0.0, "peak learning rate of the layers' matrices under Muon (0: AdamW for all weights)")


@dataclass(frozen=True)
class DeepSpeedConfig:
    """How DeepSpeed spreads the model over the workers (docs/method.md 4)."""

    stage: Literal[0, 1, 2, 3] = option(2, "ZeRO stage: 1 splits optimiser states, 2 gradients too, 3 weights too")
    offload_optimizer: Literal["none", "cpu"] = option("none", "where optimiser states are kept")
    offload_weights: Literal["none", "cpu"] = option("none", "where weights are kept (stage 3)")
    accumulate: int = option(1, "steps whose gradients are summed before the weights move")


@dataclass(frozen=True)
class LoRAConfig:
    """Low-rank adapters instead of all weights, for one GPU (peft); merged when the model is exported."""

    rank: int = option(0, "rank of the adapters (0: all weights are tuned)")
    alpha: float = option(16.0, "scale of the adapters")
    dropout: float = option(0.05, "dropout of the adapters")
