"""What a job does around its work: resolve, skip or refuse, show the plan, and commit (docs/ray.md)."""

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adamatch_ray.cli import CommandLine
from adamatch_ray.config import EvaluateConfig, section, to_yaml
from adamatch_ray.lease import Lease
from adamatch_ray.plan import default_hardware, describe_plan, expected_counts
from adamatch_ray.storage import JOBS, Manifest, Root, fingerprint, flatten

PARENTS = {
    "studies": (),
    "encoder": ("studies",),
    "adamatch": ("studies", "encoder"),
    "codebooks": ("studies", "adamatch"),
    "vqgan": ("studies", "encoder"),
    "tokens": ("studies", "codebooks", "vqgan"),
    "llm": ("studies", "adamatch", "codebooks", "tokens"),
    "generations": ("studies", "adamatch", "codebooks", "vqgan", "tokens", "llm"),
    "metrics": ("studies", "encoder", "adamatch", "generations"),
}
"""The stages a stage is made from."""

SECTIONS = {
    "studies": ("data",),
    "encoder": ("image", "encoder"),
    "adamatch": ("image", "text", "adamatch"),
    "codebooks": ("codebooks",),
    "vqgan": ("vqgan",),
    "tokens": ("tokens",),
    "llm": ("llm",),
    "generations": ("generate",),
    "metrics": ("evaluate",),
}
"""The sections of the configuration that decide a stage's output, besides its parents."""


class StageRun:
    """One job's work on one stage: `begin`, the work itself, `finish`."""

    def __init__(self, command: CommandLine, name: str) -> None:
        self.command, self.config = command, command.config
        self.root = Root(command.root)
        self.stage = self.root.stage(name)
        self.name = name
        self.settings: dict[str, Any] = {key: section(command.config, key) for key in SECTIONS[name]}
        if name == "encoder":  # the ablation without adaptive patches needs its own encoder
            self.settings["adapatch"] = command.config.adamatch.adapatch
        if name in ("encoder", "adamatch", "vqgan", "llm"):  # they set the global batch
            self.settings["workers"] = command.config.scale.workers_of(name)
        self.parents: dict[str, str] = {}
        self.started = time.monotonic()
        self._lease: Lease | None = None

    @property
    def fingerprint(self) -> str:
        """Identity of what this run would make."""
        return fingerprint(self.settings, self.parents)

    def begin(self) -> dict[str, Any] | None:
        """None when the work is to be done; otherwise the job's answer (skipped, or a plan printed).

        Raises ValueError: the stage was made from other inputs and `--overwrite` is not given, a parent failed, or
        another run is making the stage.
        """
        names = [name for name in PARENTS[self.name] if not self._without(name)]
        if self.command.dry_run:
            return self._show_plan(names)
        self.parents = {name: self._parent(name).fingerprint for name in names}
        overwrite = self.command.overwrite
        if overwrite or not self._is_done(overwrite=False):
            self._lease = Lease(self.stage, self.command.run_name)
            if not self._is_done(overwrite):  # asked again: another run may have finished it in between
                return None
            self._lease.release()
        print(f"{self.name}: finished before with these inputs, skipped", file=sys.stderr)
        return {"stage": self.name, "status": "skipped", "output": self.stage.uri, "seconds": 0.0}

    def finish(
        self, figures: Mapping[str, Any], rows: Mapping[str, int] | None = None, files: Mapping[str, int] | None = None
    ) -> dict[str, Any]:
        """Commit the manifest, give the stage free and return the job's answer."""
        assert self._lease is not None, "finish comes after a begin that returned None"
        self._lease.check()
        seconds = round(time.monotonic() - self.started, 1)
        self.stage.commit(
            Manifest(
                stage=self.name,
                fingerprint=self.fingerprint,
                config=self.settings,
                parents=self.parents,
                rows=dict(rows or {}),
                files=dict(files or {}),
                figures=dict(figures),
                seconds=seconds,
            )
        )
        self._lease.release()
        answer = {"stage": self.name, "status": "done", "output": self.stage.uri, "seconds": seconds}
        return {**answer, **(dict(rows) if rows else {}), **figures}

    def _is_done(self, overwrite: bool) -> bool:
        return self.stage.is_done(self.fingerprint, self.settings, self.parents, overwrite)

    def _parent(self, name: str) -> Manifest:
        """A parent as it stands; it is made first when it is missing. What this command says of it must hold."""
        stage = self.root.stage(name)
        manifest = stage.manifest()
        if manifest is None:
            print(f"{self.name}: {stage.uri} is missing, making it first", file=sys.stderr)
            run_job(JOBS[name], self.command.for_parent())
            manifest = stage.require()
        made, wanted = (
            dict(flatten(manifest.config)),
            dict(flatten({k: section(self.config, k) for k in SECTIONS[name]})),
        )
        for key in self.command.overrides:
            if key in wanted and made.get(key) != wanted[key]:
                raise ValueError(
                    f"{stage.uri} was made with {key} {made.get(key)!r}, not {wanted[key]!r}; "
                    f"run jobs/{JOBS[name]}.py with --overwrite, or use another --root"
                )
        return manifest

    def _without(self, parent: str) -> bool:
        """Whether the configuration does without a parent."""
        if self.name == "metrics":
            return parent not in _scored_from(self.config.evaluate)
        if parent == "encoder":
            uses = {"adamatch": self.config.adamatch.init == "encoder", "vqgan": self.config.vqgan.needs_encoder}
            return not uses[self.name]
        return (self.name, parent) == ("tokens", "codebooks") and not self.config.tokens.keypatches

    def _show_plan(self, parents: list[str]) -> dict[str, Any]:
        from adamatch_ray.stage_plans import plan_stage  # builds models, which --help does without

        scale = self.config.scale
        print(to_yaml(self.config), end="")
        print(f"# stage {self.name} -> {self.stage.uri}")
        for name in parents:
            done = self.root.stage(name).manifest()
            state = f"finished, rows {done.rows}" if done else f"missing: python jobs/{JOBS[name]}.py"
            print(f"# parent {name}: {state}")
        kind = "GPU" if scale.gpu else "CPU"
        workers = scale.workers_of(self.name)
        print(f"# {workers} {kind} worker(s), {scale.cpus_per_worker} CPUs each, {scale.loaders} loader(s) each")
        studies, done = self.root.stage("studies").manifest(), self.stage.manifest()
        hardware = default_hardware(self.config)
        try:
            counts = expected_counts(self.config, studies.rows if studies else None)
            plan = plan_stage(self.name, self.config, counts, hardware)
        except ValueError as error:  # a plan that cannot be reckoned is no mistake of the user's
            print(f"# no prediction: {error}")
        else:
            print("\n".join(f"# {line}" for line in describe_plan(plan, hardware, done.seconds if done else None)))
        return {"stage": self.name, "status": "planned", "output": self.stage.uri, "seconds": 0.0}


def _scored_from(options: EvaluateConfig) -> set[str]:
    """The stages that the asked tables are made from."""
    tables = set(options.tables)
    needed = {"studies"}
    if "images" in tables:
        needed.add("encoder")
    if tables & {"retrieval", "localization", "cycle"}:
        needed.add("adamatch")
    if tables & {"reports", "images", "cycle"} and not options.predictions:
        needed.add("generations")
    return needed


def run_job(job: str, arguments: list[str]) -> dict[str, Any]:
    """Run another job beside this one, in a process of its own; returns its answer, raises ValueError if it fails."""
    script = Path(sys.argv[0]).resolve().with_name(f"{job}.py")
    done = subprocess.run([sys.executable, str(script), *arguments], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise ValueError(
            f"{job} failed (exit {done.returncode}); go on with: python jobs/{job}.py {' '.join(arguments)}"
        )
    # Libraries may print as the job's process ends, after its answer.
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    answer: dict[str, Any] = json.loads(lines[-1])
    return answer
