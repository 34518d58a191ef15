"""The disease classifier of the `encoder` stage as an engine: canvases in, features and probabilities out."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from adamatch_ray.models.inputs import model_input
from adamatch_ray.models.pvt import PyramidVisionTransformer
from adamatch_ray.schema import CHEXPERT_LABELS


class Judgement(NamedTuple):
    """What the classifier sees in B images: pooled features [B, D] and probabilities of the 14 labels [B, 14]."""

    feature_BD: NDArray[np.float32]
    probability_BL: NDArray[np.float32]


class DiseaseClassifier:
    """A frozen classifier on its device. `name` tells two trainings apart and is printed beside every figure."""

    def __init__(self, model: PyramidVisionTransformer, name: str, device: str = "cpu") -> None:
        if model.head is None or model.head.out_features != len(CHEXPERT_LABELS):
            raise ValueError(f"a disease classifier has {len(CHEXPERT_LABELS)} outputs, one for each CheXpert label")
        self.name, self.dimensions, self.device = name, model.config.pooled_dim, torch.device(device)
        self.model = model.to(self.device).eval().requires_grad_(False)

    @torch.inference_mode()
    def __call__(self, canvas_BHW: NDArray[np.uint8]) -> Judgement:
        """Judge uint8 canvases [B, S, S]."""
        seen = self.model.judge(model_input(canvas_BHW, self.model.config.image_size, self.device))
        return Judgement(seen.feature_BD.float().cpu().numpy(), seen.logit_BL.float().sigmoid().cpu().numpy())
