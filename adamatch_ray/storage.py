"""Where a stage's output lives, and how it is committed: the manifest is written last, or not at all.

A root is a local folder or `s3://bucket/prefix`; below it one folder a stage. A stage without `manifest.json` does not
exist for a reader. The manifest names the stage's fingerprint (its configuration and its parents' fingerprints), so a
finished stage is skipped while the fingerprint holds and refused, naming the change, when it does not.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.fs as pafs

from adamatch_ray import __version__

if TYPE_CHECKING:
    from s3fs import S3FileSystem

JOBS = {
    "studies": "prepare_data",
    "encoder": "pretrain_encoder",
    "adamatch": "train_adamatch",
    "codebooks": "build_codebooks",
    "vqgan": "train_vqgan",
    "tokens": "cache_tokens",
    "llm": "tune_llm",
    "generations": "generate",
    "metrics": "evaluate",
}
"""Stage folder -> the job that writes it, in the order of the pipeline."""

LEASE = "lease.json"
"""The one file of a stage that belongs to the run that is making it, not to what it makes."""


@dataclass(frozen=True)
class Manifest:
    """What a finished stage says of itself."""

    stage: str
    fingerprint: str
    config: dict[str, Any]
    parents: dict[str, str]
    rows: dict[str, int] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    version: str = __version__


class Root:
    """A folder of stages on a local disk or in an S3 bucket."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        self.s3: S3FileSystem | None = None
        self.filesystem: pafs.FileSystem = pafs.LocalFileSystem()
        if self.uri.startswith("s3://"):
            self.s3, self.path = s3_filesystem(), self.uri.removeprefix("s3://")
            self.filesystem = pafs.PyFileSystem(pafs.FSSpecHandler(self.s3))
        elif "://" in self.uri:
            raise ValueError(f"--root {self.uri}: only local folders and s3:// are supported")
        else:
            self.path = str(Path(self.uri).resolve())

    def stage(self, name: str) -> "Stage":
        """The stage of this name; it need not exist yet."""
        assert name in JOBS, name
        return Stage(self, name)


class Stage:
    """One stage's folder: read it through its manifest, write it through `commit`."""

    def __init__(self, root: Root, name: str) -> None:
        self.root, self.name = root, name
        self.filesystem = root.filesystem
        self.path = f"{root.path}/{name}"
        self.uri = f"{root.uri}/{name}"

    def manifest(self) -> Manifest | None:
        """The committed manifest, or None while the stage is not finished."""
        text = self.read_text("manifest.json")
        return None if text is None else Manifest(**json.loads(text))

    def require(self) -> Manifest:
        """The committed manifest. Raises ValueError naming the job that makes it."""
        manifest = self.manifest()
        if manifest is None:
            raise ValueError(
                f"{self.uri} is not finished; run: python jobs/{JOBS[self.name]}.py --root {self.root.uri}"
            )
        return manifest

    def is_done(self, fingerprint: str, config: Mapping[str, Any], parents: Mapping[str, str], overwrite: bool) -> bool:
        """True when the stage stands and matches. With `overwrite` it is withdrawn. Raises ValueError if stale."""
        manifest = self.manifest()
        if manifest is None:
            return False
        if overwrite:
            self.remove("manifest.json")
            return False
        if manifest.fingerprint == fingerprint:
            return True
        raise ValueError(f"{self.uri} was made from other inputs ({_difference(manifest, config, parents)}); "
                         "use --overwrite to make it again, or another --root")  # fmt: skip

    def commit(self, manifest: Manifest) -> None:
        """Publish the stage: its manifest appears, whole, as the last file written."""
        self.write_bytes("manifest.json", (json.dumps(asdict(manifest), indent=2) + "\n").encode())

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write one file so that a reader sees all of it or none."""
        if self.root.s3:  # an object appears when its upload ends, and not when it breaks off
            self.root.s3.pipe_file(f"{self.path}/{name}", data)
            return
        with _appearing(Path(self.path) / name) as temporary:
            temporary.write_bytes(data)

    def create_bytes(self, name: str, data: bytes) -> bool:
        """Write one file unless there is one of its name already; whether it was written."""
        try:
            if self.root.s3:
                self.root.s3.pipe_file(f"{self.path}/{name}", data, mode="create")
            else:
                Path(self.path).mkdir(parents=True, exist_ok=True)
                with (Path(self.path) / name).open("xb") as stream:
                    stream.write(data)
        except FileExistsError:
            return False
        return True

    def read_bytes(self, name: str) -> bytes:
        """The content of one file. Raises FileNotFoundError, and OSError where storage is out of reach."""
        if not self.root.s3:
            return (Path(self.path) / name).read_bytes()
        from botocore.exceptions import BotoCoreError

        try:
            return bytes(self.root.s3.cat_file(f"{self.path}/{name}"))
        except BotoCoreError as error:  # no credentials, no such host: the user's to mend
            raise OSError(f"{self.uri}: {error}") from error

    def read_text(self, name: str) -> str | None:
        """The text of one file, or None when there is none."""
        try:
            return self.read_bytes(name).decode()
        except FileNotFoundError:
            return None

    def remove(self, name: str) -> None:
        """Remove one file, if it is there."""
        if self.root.s3:
            self.root.s3.rm_file(f"{self.path}/{name}")
        else:
            (Path(self.path) / name).unlink(missing_ok=True)

    def upload(self, folder: Path, name: str) -> None:
        """Copy a local folder to `name` within the stage, replacing what was there."""
        self.delete(name)
        self.upload_into(folder, name)

    def upload_into(self, folder: Path, name: str) -> None:
        """Copy a local folder's files to `name` within the stage, beside what is there."""
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            target = f"{self.path}/{name}/{file.relative_to(folder).as_posix()}"
            if self.root.s3:
                self.root.s3.put_file(str(file), target)
            else:
                with _appearing(Path(target)) as temporary:
                    shutil.copyfile(file, temporary)

    def download(self, name: str, folder: Path) -> Path:
        """Copy a folder `name` of the stage into a local folder (or return it where it already is local)."""
        if not self.root.s3:
            return Path(self.path) / name
        (folder / name).mkdir(parents=True, exist_ok=True)
        pafs.copy_files(f"{self.path}/{name}", str(folder / name), source_filesystem=self.filesystem)
        return folder / name

    def keep_only(self, names: Collection[str]) -> None:
        """Remove every file of the stage that is not named: what an earlier run with other settings left behind."""
        selector = pafs.FileSelector(self.path, recursive=True, allow_not_found=True)
        for info in self.filesystem.get_file_info(selector):
            name = info.path.removeprefix(f"{self.path}/")
            if info.type == pafs.FileType.File and name != LEASE and name not in names:
                self.filesystem.delete_file(info.path)

    def delete(self, name: str) -> None:
        """Remove a folder within the stage, if it is there."""
        if self.filesystem.get_file_info(f"{self.path}/{name}").type == pafs.FileType.Directory:
            self.filesystem.delete_dir(f"{self.path}/{name}")


def fingerprint(config: Mapping[str, Any], parents: Mapping[str, str]) -> str:
    """Identity of a stage's output: sha256 over its configuration and its parents' fingerprints."""
    text = json.dumps({"config": config, "parents": dict(parents)}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def s3_filesystem() -> "S3FileSystem":
    """S3 as every part of the project opens it; endpoint, region and credentials come from the environment (AWS_…).

    Listings are not cached, because other machines write too. Failed requests are repeated after growing pauses, which
    outlasts an outage of about half a minute.
    """
    import s3fs

    retries = {"mode": "standard", "max_attempts": 12}
    return s3fs.S3FileSystem(use_listings_cache=False, config_kwargs={"retries": retries})


@contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """A temporary file that takes the target's name when the block ends well, and vanishes when it does not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=".partial-")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _difference(old: Manifest, config: Mapping[str, Any], parents: Mapping[str, str]) -> str:
    changed = [f"parent {name}" for name in parents if parents[name] != old.parents.get(name)]
    before, after = dict(flatten(old.config)), dict(flatten(config))
    names = sorted(set(before) | set(after))
    changed += [f"{n}: {before.get(n)!r} -> {after.get(n)!r}" for n in names if before.get(n) != after.get(n)]
    return "; ".join(changed[:4]) or "fingerprint differs"


def flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested settings as (dotted name, value) pairs."""
    rows: list[tuple[str, Any]] = []
    for key, value in values.items():
        rows += flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(prefix + key, value)]
    return rows
