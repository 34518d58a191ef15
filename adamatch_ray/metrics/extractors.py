"""Image features for the Fréchet distance (paper, Table 3): pluggable, each with the name printed beside its number.

No extractor downloads anything: the user names a weights file. Files hold tensors only (safetensors, or a state dict
that `torch.load(weights_only=True)` accepts).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adamatch_ray.models.weights import read_weights


@dataclass(frozen=True)
class NamedExtractor:
    """Any function of uint8 images (B, H, W) with the name and the width of its features.

    The way to plug in the project's own pre-trained classifier. Name the weights too: figures compare only with
    figures of the same name.
    """

    name: str
    dimensions: int
    function: Callable[[Tensor], Tensor]

    @torch.inference_mode()
    def __call__(self, images_BHW: Tensor) -> Tensor:
        if images_BHW.dtype != torch.uint8 or images_BHW.ndim != 3:
            raise ValueError(
                f"extractors take uint8 images (B, H, W), not {images_BHW.dtype} {tuple(images_BHW.shape)}"
            )
        features = self.function(images_BHW)
        if features.shape != (len(images_BHW), self.dimensions):
            raise ValueError(f"{self.name} promises {self.dimensions} features and returns {tuple(features.shape)}")
        return features.float()


def xray_densenet(weights: Path | str, device: str = "cpu") -> NamedExtractor:
    """The published metric's 1,024 features: chest-X-ray DenseNet-121, ReLU, global average, at 224 pixels.

    `weights` is the state dict of torchxrayvision's DenseNet; with that package installed it is written by
    `torch.save(torchxrayvision.models.DenseNet(weights="densenet121-res224-all").state_dict(), path)`. Input is scaled
    to ±1024 as those weights expect. Raises ValueError where the file does not hold such a network.
    """
    from torchvision.models import densenet121

    with torch.device("meta"):  # every tensor comes from the file, so none is drawn first
        network = densenet121(weights=None).features
        network.conv0 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
    state = {
        key.removeprefix("features."): value
        for key, value in read_weights(weights).items()
        if key.startswith("features.")
    }
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{weights} is not the state dict of a one-channel DenseNet-121 (`features.*`)") from error
    network.eval().to(device)

    def features(images_BHW: Tensor) -> Tensor:
        pixels = (images_BHW[:, None].to(device).float() / 255 * 2 - 1) * 1024
        pixels = F.interpolate(pixels, size=(224, 224), mode="bilinear", align_corners=False)
        return F.relu(network(pixels)).mean(dim=(2, 3))

    return NamedExtractor(f"chest-X-ray DenseNet-121 ({Path(weights).stem})", 1024, features)


def inception(weights: Path | str, device: str = "cpu") -> NamedExtractor:
    """The 2,048 features of Inception-v3 that the general image literature uses, through torchmetrics.

    Needs `pip install torch-fidelity` and the path of its weights file; raises ValueError where one is missing.
    """
    from torchmetrics.image.fid import NoTrainInceptionV3

    path = Path(weights)
    if not path.exists():
        raise ValueError(f"there are no Inception weights at {path}; nothing is downloaded, name a file that is there")
    try:
        network = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(path)).to(device)
    except ModuleNotFoundError as error:
        raise ValueError("Inception features need `pip install torch-fidelity`") from error

    def features(images_BHW: Tensor) -> Tensor:
        return network(images_BHW[:, None].expand(-1, 3, -1, -1).to(device))

    return NamedExtractor(f"Inception-v3 pool ({path.stem})", 2048, features)
