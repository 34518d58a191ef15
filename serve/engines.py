"""The parts of a root's cycle, each loaded alone: a replica holds one of them."""

import json
import tempfile
from pathlib import Path

from adamatch_ray.engines.generation import GenerationEngine
from adamatch_ray.engines.image_tokens import ImageTokenizer, load_pretrained
from adamatch_ray.model_config import InstructionConfig, from_dict
from adamatch_ray.models.llm import load_llm
from adamatch_ray.storage import Root


def load_instructions(root: Root) -> InstructionConfig:
    """What the prompts of the language model held when it was tuned."""
    return from_dict(InstructionConfig, json.loads(root.stage("llm").read_bytes("instructions.json")))


def load_tokenizer(root: Root, device: str) -> ImageTokenizer:
    """The VQ-GAN of a root."""
    with tempfile.TemporaryDirectory() as folder:
        return ImageTokenizer(load_pretrained(root.stage("vqgan").download("model", Path(folder))), device)


def load_generation(root: Root, device: str) -> GenerationEngine:
    """The language model of a root, with the settings that offline generation has by default."""
    with tempfile.TemporaryDirectory() as folder:
        # bf16 is slower than fp32 on most CPUs, and answers are to equal the offline engine's
        llm = load_llm(root.stage("llm").download("model", Path(folder)), "float32" if device == "cpu" else "auto")
    return GenerationEngine(llm.model, llm.tokenizer, llm.layout, device, instructions=load_instructions(root))
