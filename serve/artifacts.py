"""Are the artifacts there, and do they belong together? Asked before anything starts, answered in one line."""

import json

from adamatch_ray.model_config import VQGANConfig, from_dict
from adamatch_ray.storage import JOBS, Root
from serve.protocol import Model, ModelsResponse

SERVED = ("studies", "adamatch", "codebooks", "vqgan", "tokens", "llm")
"""Stages that answers come from."""


def check(root: Root) -> ModelsResponse:
    """Read the manifests of a root. Raises ValueError naming the command that makes what is missing or stale."""
    manifests = {name: root.stage(name).require() for name in SERVED}
    for name, manifest in manifests.items():
        for parent, fingerprint in manifest.parents.items():
            if parent in manifests and manifests[parent].fingerprint != fingerprint:
                raise ValueError(
                    f"{root.uri}/{name} was made from another {parent}; "
                    f"run: python jobs/{JOBS[name]}.py --root {root.uri} --overwrite"
                )
    vqgan = from_dict(VQGANConfig, json.loads(root.stage("vqgan").read_bytes("model/config.json")))
    return ModelsResponse(
        models=[
            Model(name=name, fingerprint=manifests[name].fingerprint, version=manifests[name].version)
            for name in SERVED[1:]
        ],
        data=str(manifests["studies"].config.get("data", {}).get("source", "unknown")),
        canvas=vqgan.image_size,
        image_tokens=vqgan.tokens,
    )
