"""The models of a root's finished stages, each loaded alone: what a job, an actor or a replica of the service holds.

Each function raises ValueError, naming the job, while its stage is unfinished.
"""

import json

from adamatch_ray.engines.classifying import DiseaseClassifier
from adamatch_ray.engines.embedding import Embedder
from adamatch_ray.engines.generation import GenerationEngine
from adamatch_ray.engines.image_tokens import ImageTokenizer
from adamatch_ray.model_config import GenerationSettings, InstructionConfig, PVTConfig, from_dict
from adamatch_ray.models import place_head
from adamatch_ray.models.llm import INSTRUCTIONS
from adamatch_ray.models.place_head import PlaceHead
from adamatch_ray.models.pvt import PyramidVisionTransformer
from adamatch_ray.models.vqgan import VQGAN
from adamatch_ray.models.vqgan_io import load_pretrained
from adamatch_ray.models.weights import read_weights
from adamatch_ray.storage import Root


def load_embedder(root: Root, device: str = "cpu") -> Embedder:
    """AdaMatch with its tokenizer."""
    stage = root.stage("adamatch")
    stage.require()
    with stage.local("model") as folder:
        return Embedder.from_pretrained(folder, device)


def load_place_head(root: Root, device: str = "cpu") -> PlaceHead | None:
    """The place head; None where there is none. ValueError where it was made for another AdaMatch than the root's."""
    stage = root.stage("place")
    manifest = stage.manifest()
    if manifest is None:
        return None
    if manifest.parents.get("adamatch") != root.stage("adamatch").require().fingerprint:
        raise ValueError(f"{stage.uri} was made for another AdaMatch; run: python jobs/train_place.py --overwrite")
    with stage.local("model") as folder:
        return place_head.load(folder).to(device)


def load_classifier(root: Root, device: str = "cpu") -> DiseaseClassifier:
    """The disease classifier that pre-training the image encoder left in `encoder/`."""
    stage = root.stage("encoder")
    name = f"disease classifier ({stage.require().fingerprint[:8]})"
    with stage.local("model") as folder:
        model = PyramidVisionTransformer(from_dict(PVTConfig, json.loads((folder / "config.json").read_text())))
        model.load_state_dict(read_weights(folder / "model.safetensors"))
    return DiseaseClassifier(model, name, device)


def load_vqgan(root: Root) -> VQGAN:
    """The VQ-GAN, in evaluation mode."""
    stage = root.stage("vqgan")
    stage.require()
    with stage.local("model") as folder:
        return load_pretrained(folder)


def load_tokenizer(root: Root, device: str = "cpu") -> ImageTokenizer:
    """The VQ-GAN as the engine that encodes and decodes canvases."""
    return ImageTokenizer(load_vqgan(root), device)


def load_instructions(root: Root) -> InstructionConfig:
    """What the prompts of the language model held when it was tuned."""
    return from_dict(InstructionConfig, json.loads(root.stage("llm").read_bytes(INSTRUCTIONS)))


def load_generation(root: Root, device: str = "cpu", settings: GenerationSettings | None = None) -> GenerationEngine:
    """The language model with the instructions it was tuned on."""
    stage = root.stage("llm")
    stage.require()
    with stage.local("model") as folder:
        return GenerationEngine.from_pretrained(folder, device, settings, load_instructions(root))
