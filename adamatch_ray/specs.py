"""What the stages are, in one table, and what a finished one says of itself (docs/ray.md).

A stage is a folder below a root. Its row names the job that writes it, the stages it is made from and the sections of
the configuration that decide what comes out; everything else that must know a stage by name reads this table.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from adamatch_ray import __version__
from adamatch_ray.filesystems import digest

if TYPE_CHECKING:
    from adamatch_ray.config import RunConfig


@dataclass(frozen=True)
class StageSpec:
    """One stage.

    trained: made by training workers, whose number sets the global batch and so the result. served: answers of the
    service come from it. unused: the parents that a configuration does without. init: the user's own file of weights
    that training starts from, if any. beside: what else decides its output; a user's own file does by its content.
    """

    name: str
    job: str
    parents: tuple[str, ...] = ()
    sections: tuple[str, ...] = ()
    trained: bool = False
    served: bool = False
    unused: "Callable[[RunConfig], Collection[str]]" = lambda config: ()
    init: "Callable[[RunConfig], str]" = lambda config: ""
    beside: "Callable[[RunConfig], Mapping[str, Any]]" = lambda config: {}

    def parents_of(self, config: "RunConfig") -> list[str]:
        """The stages that it is made from under this configuration."""
        unused = self.unused(config)
        return [name for name in self.parents if name not in unused]


def _not_scored(config: "RunConfig") -> set[str]:
    """Stages that none of the asked tables is made from."""
    tables = set(config.evaluate.tables)
    scored_from = {"studies"}
    if "images" in tables:
        scored_from.add("encoder")
    if "localization" in tables and config.place.head != "none":
        scored_from.add("place")
    if tables & {"retrieval", "localization", "cycle", "memorisation"}:
        scored_from.add("adamatch")
    if tables & {"reports", "images", "cycle", "reading", "memorisation"} and not config.evaluate.predictions:
        scored_from.add("generations")
        scored_from |= {"vqgan"} if tables & {"images", "cycle", "memorisation"} else set()
        scored_from |= {"adamatch", "codebooks", "vqgan", "tokens", "llm"} if "reading" in tables else set()
    return set(STAGES["metrics"].parents) - scored_from


def _scored_files(config: "RunConfig") -> dict[str, str]:
    """Other rows under the same name are other predictions."""
    options = config.evaluate
    named = {"predictions": options.predictions, "phrases": options.phrases, "only": options.only}
    return {name: digest(path, f"evaluate.{name}")[:16] for name, path in named.items() if path}


def _generated_from(config: "RunConfig") -> dict[str, str]:
    path = config.generate.manifest
    return {"table": digest(path, "generate.manifest")} if path else {}


_TABLE = (
    StageSpec("studies", "prepare_data", (), ("data",), served=True),
    StageSpec(
        "encoder",
        "pretrain_encoder",
        ("studies",),
        ("image", "encoder"),
        trained=True,
        init=lambda config: config.encoder.init,
        # the ablation without adaptive patches needs an encoder of its own
        beside=lambda config: {"adapatch": config.adamatch.adapatch},
    ),
    StageSpec(
        "adamatch",
        "train_adamatch",
        ("studies", "encoder"),
        ("image", "text", "adamatch"),
        trained=True,
        served=True,
        unused=lambda config: () if config.adamatch.init == "encoder" else ("encoder",),
        init=lambda config: "" if config.adamatch.init in ("encoder", "none") else config.adamatch.init,
    ),
    StageSpec("codebooks", "build_codebooks", ("studies", "adamatch"), ("codebooks",), served=True),
    StageSpec("place", "train_place", ("studies", "adamatch"), ("place",), trained=True),
    StageSpec(
        "vqgan",
        "train_vqgan",
        ("studies", "encoder"),
        ("vqgan",),
        trained=True,
        served=True,
        unused=lambda config: () if config.vqgan.needs_encoder else ("encoder",),
        init=lambda config: config.vqgan.init,
    ),
    StageSpec(
        "tokens",
        "cache_tokens",
        ("studies", "codebooks", "vqgan"),
        ("tokens",),
        served=True,
        unused=lambda config: () if config.tokens.keypatches else ("codebooks",),
    ),
    StageSpec("llm", "tune_llm", ("studies", "adamatch", "codebooks", "tokens"), ("llm",), trained=True, served=True),
    StageSpec(
        "generations",
        "generate",
        ("studies", "adamatch", "place", "codebooks", "vqgan", "tokens", "llm"),
        ("generate",),
        unused=lambda config: ("place",) if config.place.head == "none" else (),
        beside=_generated_from,
    ),
    StageSpec(
        "metrics",
        "evaluate",
        ("studies", "encoder", "adamatch", "place", "codebooks", "vqgan", "tokens", "llm", "generations"),
        ("evaluate",),
        unused=_not_scored,
        beside=_scored_files,
    ),
)

STAGES = {spec.name: spec for spec in _TABLE}
"""Every stage by name, in the order of the pipeline."""


NEUTRAL: dict[str, Any] = {
    "tokens.kernel": "auto",
    "vqgan.train.box_lr": 1.0,
    "vqgan.train.released_lamb": False,
    "llm.train.box_lr": 1.0,
    "llm.train.released_lamb": False,
    "llm.train.crop": 0.8,
    "llm.train.report_weight": 1.0,
    "llm.train.image_noise": 0.0,
    "llm.image_positions": False,
    "llm.instructions.keyword_groups": "all",
    "llm.instructions.keyword_places": False,
    "llm.instructions.keyword_confidence": [],
    "llm.instructions.keyword_order": "similarity",
    "llm.instructions.keyword_dropout": 0.0,
    "llm.instructions.hints_first": 0,
    "llm.instructions.image_from": 0,
    "llm.instructions.prompt_dropout": 0.0,
    "llm.instructions.image_facts": False,
    "llm.instructions.keypatch_sides": False,
    "generate.image_guidance": 1.0,
    "generate.no_repeat": 0,
    "generate.drop_repeats": False,
    "vqgan.loss.clinical_start": 0,
    "evaluate.judge": "",
    "evaluate.only": "",
    "data.views": "frontal",
}
"""Settings that an earlier version alone had, or lacked, at the values that change nothing: its stages stand."""


@dataclass(frozen=True)
class Manifest:
    """What a finished stage says of itself.

    files: rows of each shard. sizes and digests: bytes and SHA-256 of every file that the stage is made of; empty in
    stages of earlier versions, which stand all the same.
    """

    stage: str
    fingerprint: str
    config: dict[str, Any]
    parents: dict[str, str]
    rows: dict[str, int] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    version: str = __version__
    sizes: dict[str, int] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)

    def is_of(self, config: Mapping[str, Any], parents: Mapping[str, str]) -> bool:
        """Whether the stage was made from these inputs, by this version or by one that had other settings."""
        if self.fingerprint == fingerprint(config, parents):
            return True
        return _telling(self.config) == _telling(config) and self.parents == dict(parents)

    def changes(self, config: Mapping[str, Any], parents: Mapping[str, str]) -> str:
        """What differs between the inputs it was made from and these, the first few of it."""
        changed = [f"parent {name}" for name in parents if parents[name] != self.parents.get(name)]
        before, after = _telling(self.config), _telling(config)
        names = sorted(set(before) | set(after))
        changed += [f"{n}: {before.get(n)!r} -> {after.get(n)!r}" for n in names if before.get(n) != after.get(n)]
        return "; ".join(changed[:4]) or "fingerprint differs"


def _telling(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted name, without the neutral ones."""
    return {name: value for name, value in flatten(config) if (name, value) not in NEUTRAL.items()}


def fingerprint(config: Mapping[str, Any], parents: Mapping[str, str]) -> str:
    """Identity of a stage's output: sha256 over its configuration and its parents' fingerprints."""
    text = json.dumps({"config": config, "parents": dict(parents)}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested settings as (dotted name, value) pairs."""
    rows: list[tuple[str, Any]] = []
    for key, value in values.items():
        rows += flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(prefix + key, value)]
    return rows
