"""The disease classifier of the `encoder` stage as an engine: canvases in, features and probabilities out."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from adamatch_ray.models.inputs import model_input
from adamatch_ray.models.pvt import POOLED_STAGE, PyramidVisionTransformer
from adamatch_ray.schema import CHEXPERT_LABELS


class Judgement(NamedTuple):
    """What the classifier sees in B images: pooled features [B, D] and probabilities of the 14 labels [B, 14].

    `across_BL`: how far from the left edge of the canvas each label is seen, as a share of its width; NaN for a
    classifier that judges an image as a whole.
    """

    feature_BD: NDArray[np.float32]
    probability_BL: NDArray[np.float32]
    across_BL: NDArray[np.float32]


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
        image = model_input(canvas_BHW, self.model.config.image_size, self.device)
        if self.model.config.pooling == "token":
            seen = self.model.judge(image)
            across_BL = torch.full_like(seen.logit_BL, torch.nan)
        else:
            patches = self.model.forward_stages(image, POOLED_STAGE)[-1]
            seen, share_BPL = self.model.judge_patches(patches.tokens_BPC), self.model.shares(patches.tokens_BPC)
            across_BL = (share_BPL * patches.boxes_BP4[..., 0::2].mean(-1, keepdim=True)).sum(1)
        parts = (seen.feature_BD, seen.logit_BL.sigmoid(), across_BL)
        return Judgement(*(part.float().cpu().numpy() for part in parts))
