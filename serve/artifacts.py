"""Are the artifacts there, and do they belong together? Asked before anything starts, answered in one line."""

import json

from adamatch_ray.model_config import VQGANConfig, from_dict
from adamatch_ray.specs import STAGES
from adamatch_ray.storage import Root
from serve.protocol import Model, ModelsResponse


def check(root: Root) -> ModelsResponse:
    """Read the manifests of a root. Raises ValueError naming the command that makes what is missing or stale."""
    manifests = {name: root.stage(name).require() for name, spec in STAGES.items() if spec.served}
    for name, manifest in manifests.items():
        for parent, fingerprint in manifest.parents.items():
            if parent in manifests and manifests[parent].fingerprint != fingerprint:
                raise ValueError(
                    f"{root.uri}/{name} was made from another {parent}; "
                    f"run: python jobs/{STAGES[name].job}.py --root {root.uri} --overwrite"
                )
    vqgan = from_dict(VQGANConfig, json.loads(root.stage("vqgan").read_bytes("model/config.json")))
    return ModelsResponse(
        models=[
            Model(name=name, fingerprint=manifest.fingerprint, version=manifest.version)
            for name, manifest in manifests.items()
            if name != "studies"
        ],
        trained_on=str(manifests["studies"].config.get("data", {}).get("source", "unknown")),
        canvas=vqgan.image_size,
        image_tokens=vqgan.tokens,
    )
