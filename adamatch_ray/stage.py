"""What a job does around its work: resolve, skip or refuse, show the plan, and commit (docs/ray.md)."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from adamatch_ray.cli import CommandLine
from adamatch_ray.config import section, to_yaml
from adamatch_ray.filesystems import open_filesystem
from adamatch_ray.lease import Lease
from adamatch_ray.plan import default_hardware, describe_plan, expected_counts
from adamatch_ray.specs import STAGES, Manifest, fingerprint, flatten
from adamatch_ray.storage import Root


class StageRun:
    """One job's work on one stage: `begin`, the work itself, `finish`."""

    def __init__(self, command: CommandLine, name: str) -> None:
        self.command, self.config = command, command.config
        self.root = Root(command.root)
        self.stage = self.root.stage(name)
        self.name, self.spec = name, STAGES[name]
        self.init = ""
        self.settings: dict[str, Any] = {}
        self.parents: dict[str, str] = {}
        self.started = time.monotonic()
        self._lease: Lease | None = None

    @property
    def fingerprint(self) -> str:
        """Identity of what this run would make."""
        return fingerprint(self.settings, self.parents)

    def begin(self, check_init: Callable[[str], None] | None = None) -> dict[str, Any] | None:
        """None when the work is to be done; otherwise the job's answer (skipped, or a plan printed).

        `check_init` is given the weights to start from, if any, before parents are made. Raises ValueError: they are
        refused or not there, the stage was made from other inputs and `--overwrite` is not given, a parent failed, or
        another run is making the stage.
        """
        names = self.spec.parents_of(self.config)
        if self.command.dry_run:
            return self._show_plan(names)
        if self.stage.root.uri != self.root.uri:
            return self._borrowed()
        # First what is told at once, a file that is not there or a stage made otherwise, before hours go into parents.
        self.init, self.settings = self._init(), self._settings()
        if self.init and check_init:
            check_init(self.init)
        overwrite = self.command.overwrite
        if not overwrite and (made := self.stage.manifest()):
            self.stage.is_done(self.settings, made.parents, overwrite=False)
        self.parents = {name: self._parent(name).fingerprint for name in names}
        if overwrite or not self._is_done(overwrite=False):
            self._lease = Lease(self.stage, self.command.run_name)
            if not self._is_done(overwrite):  # asked again: another run may have finished it in between
                self.stage.sweep()
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
        sizes, digests = self.stage.contents()
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
                sizes=sizes,
                digests=digests,
            )
        )
        self._lease.release()
        answer = {"stage": self.name, "status": "done", "output": self.stage.uri, "seconds": seconds}
        return {**answer, **(dict(rows) if rows else {}), **figures}

    def _borrowed(self) -> dict[str, Any]:
        """The answer for a stage that is another root's, which is only read. Raises ValueError for `--overwrite`."""
        self.stage.require()
        if self.command.overwrite:
            raise ValueError(f"{self.name} is borrowed from {self.stage.uri}: make it anew on that --root")
        print(f"{self.name}: borrowed from {self.stage.uri}, skipped", file=sys.stderr)
        return {"stage": self.name, "status": "skipped", "output": self.stage.uri, "seconds": 0.0}

    def _is_done(self, overwrite: bool) -> bool:
        return self.stage.is_done(self.settings, self.parents, overwrite)

    def _parent(self, name: str) -> Manifest:
        """A parent as it stands; it is made first when it is missing. What this command says of it must hold."""
        stage = self.root.stage(name)
        manifest = stage.manifest()
        if manifest is None:
            print(f"{self.name}: {stage.uri} is missing, making it first", file=sys.stderr)
            run_job(STAGES[name].job, self.command.for_parent())
            manifest = stage.require()
        committed, asked = dict(flatten(manifest.config)), dict(flatten(self._sections(name)))
        for key in self.command.overrides:
            if key in asked and committed.get(key) != asked[key]:
                raise ValueError(
                    f"{stage.uri} was made with {key} {committed.get(key)!r}, not {asked[key]!r}; "
                    f"run jobs/{STAGES[name].job}.py with --overwrite, or use another --root"
                )
        return manifest

    def _init(self) -> str:
        """The weights that training starts from, as workers in another folder find them; empty where there are none."""
        given = self.spec.init(self.config)
        if not given:
            return ""
        files, path = open_filesystem(given)
        if not files.isfile(path):
            raise ValueError(f"--{self.name}.init {given}: no such file; nothing is downloaded, name one that is there")
        return given if "://" in given else path

    def _settings(self) -> dict[str, Any]:
        """All that decides what this run would make, besides its parents."""
        workers = {"workers": self.config.scale.workers_of(self.name)} if self.spec.trained else {}
        return {**self._sections(self.name), **self.spec.beside(self.config), **workers}

    def _sections(self, stage: str) -> dict[str, Any]:
        return {name: section(self.config, name) for name in STAGES[stage].sections}

    def _show_plan(self, parents: list[str]) -> dict[str, Any]:
        from adamatch_ray.stage_plans import plan_stage  # builds models, which --help does without

        scale = self.config.scale
        print(to_yaml(self.config), end="")
        print(f"# stage {self.name} -> {self.stage.uri}")
        for name in parents:
            done = self.root.stage(name).manifest()
            state = f"finished, rows {done.rows}" if done else f"missing: python jobs/{STAGES[name].job}.py"
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
