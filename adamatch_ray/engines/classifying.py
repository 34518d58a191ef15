"""The disease classifier of the `encoder` stage as an engine: canvases in, features and probabilities out."""

import json
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from adamatch_ray.model_config import PVTConfig, from_dict
from adamatch_ray.models.inputs import model_input
from adamatch_ray.models.pvt import PyramidVisionTransformer
from adamatch_ray.schema import CHEXPERT_LABELS
from adamatch_ray.storage import Root


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

    @classmethod
    def load(cls, root: Root, device: str = "cpu") -> "DiseaseClassifier":
        """The classifier of a finished `encoder/`. Raises ValueError naming the job while it is unfinished."""
        stage = root.stage("encoder")
        fingerprint = stage.require().fingerprint
        with tempfile.TemporaryDirectory() as temporary:
            folder = stage.download("model", Path(temporary))
            model = PyramidVisionTransformer(from_dict(PVTConfig, json.loads((folder / "config.json").read_text())))
            model.load_state_dict(load_file(folder / "model.safetensors"))
        return cls(model, f"this run's disease classifier ({fingerprint[:8]})", device)

    @torch.inference_mode()
    def __call__(self, canvas_BHW: NDArray[np.uint8]) -> Judgement:
        """Judge uint8 canvases [B, S, S]."""
        seen = self.model.judge(model_input(canvas_BHW, self.model.config.image_size, self.device))
        return Judgement(seen.feature_BD.float().cpu().numpy(), seen.logit_BL.float().sigmoid().cpu().numpy())
