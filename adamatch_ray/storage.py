"""Where a stage's output lives: a root is a local folder or `s3://bucket/prefix`, below it one folder a stage.

Files appear whole or not at all. A stage without `manifest.json`, the last file written, does not exist for a reader.
The manifest names each file's size and SHA-256; a reader that meets other bytes says which file and what mends it.
"""

import contextlib
import hashlib
import io
import json
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from adamatch_ray.filesystems import PARTIAL, WholeFiles, open_filesystem
from adamatch_ray.specs import STAGES, Manifest

LEASE = "lease.json"
"""The one file of a stage that belongs to the run that is making it, not to what it makes."""

MANIFEST = "manifest.json"
BORROWED = "borrowed.json"
_AT_ONCE = 8
"""Files that are digested, or asked for at S3, at a time."""


class Root:
    """A folder of stages on a local disk or in an S3 bucket.

    `files` writes and reads single files; `filesystem` is the same place for pyarrow, which reads tables.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        if "://" in self.uri and not self.uri.startswith("s3://"):
            raise ValueError(f"--root {self.uri}: only local folders and s3:// are supported")
        self.files, self.path = open_filesystem(self.uri)
        local = isinstance(self.files, WholeFiles)  # pyarrow reads local tables without Python in between
        self.filesystem = pafs.LocalFileSystem() if local else pafs.PyFileSystem(pafs.FSSpecHandler(self.files))

    def stage(self, name: str) -> "Stage":
        """The stage of this name, where it is; it need not exist yet."""
        assert name in STAGES, name
        return Stage(Root(self.borrowed[name]), name) if name in self.borrowed else Stage(self, name)

    @cached_property
    def borrowed(self) -> dict[str, str]:
        """The roots of the stages that are another root's (`jobs/borrow.py`), by name."""
        try:
            found: dict[str, str] = json.loads(self.read(BORROWED))
        except (FileNotFoundError, NotADirectoryError):
            return {}
        return found

    def read(self, name: str) -> bytes:
        """The content of a file by its path within the root. Raises OSError, one line, whatever was in the way."""
        try:
            return bytes(self.files.cat_file(f"{self.path}/{name}"))
        except OSError:
            raise
        except Exception as error:  # the S3 client's own, such as no credentials: the user's to mend
            raise OSError(f"{self.uri}: {error}") from error

    def borrow(self, stages: Mapping[str, str]) -> None:
        """From now on, read these stages where they are."""
        self.files.pipe_file(f"{self.path}/{BORROWED}", json.dumps(dict(stages), indent=2).encode())
        self.borrowed = dict(stages)


class Stage:
    """One stage's folder: read it through its manifest, write it through `commit`."""

    def __init__(self, root: Root, name: str) -> None:
        self.root, self.name = root, name
        self.files, self.filesystem = root.files, root.filesystem
        self.path = f"{root.path}/{name}"
        self.uri = f"{root.uri}/{name}"
        self._local = isinstance(self.files, WholeFiles)
        self._digests: dict[str, str] | None = None

    def manifest(self) -> Manifest | None:
        """The committed manifest, or None while the stage is not finished."""
        text = self.read_text(MANIFEST)
        return None if text is None else Manifest(**json.loads(text))

    def require(self) -> Manifest:
        """The committed manifest. Raises ValueError naming the job that makes it."""
        manifest = self.manifest()
        if manifest is None:
            job = STAGES[self.name].job
            command = f"python jobs/{job}.py --root {self.root.uri}"
            raise ValueError(f"{self.uri} is not finished; run: {command} (and the --config that is meant)")
        return manifest

    def is_done(self, config: Mapping[str, Any], parents: Mapping[str, str], overwrite: bool) -> bool:
        """True when the stage stands and matches. With `overwrite` it is withdrawn. Raises ValueError if stale."""
        manifest = self.manifest()
        if manifest is None:
            return False
        if overwrite:
            self._withdraw(manifest)
            return False
        if manifest.is_of(config, parents):
            return True
        raise ValueError(f"{self.uri} was made from other inputs ({manifest.changes(config, parents)}); "
                         "use --overwrite to make it again, or another --root")  # fmt: skip

    def commit(self, manifest: Manifest) -> None:
        """Publish the stage: its manifest appears, whole, as the last file written."""
        self.write_bytes(MANIFEST, (json.dumps(asdict(manifest), indent=2) + "\n").encode())
        self._digests = None

    def contents(self) -> tuple[dict[str, int], dict[str, str]]:
        """Size and SHA-256 of every file that the stage is made of; checkpoints and the lease are not among them."""
        selector = pafs.FileSelector(self.path, recursive=True, allow_not_found=True)
        found = [info for info in self.filesystem.get_file_info(selector) if info.type == pafs.FileType.File]
        sizes = {info.path.removeprefix(f"{self.path}/"): info.size for info in found}
        names = sorted(n for n in sizes if n not in (LEASE, MANIFEST) and not n.startswith("training/"))
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return {name: sizes[name] for name in names}, dict(zip(names, pool.map(self._sha256, names), strict=True))

    def damage(self, name: str, manifest: Manifest, read: bool = True) -> str:
        """What is wrong with a file that the manifest names, in a word; empty when nothing is.

        Without `read`, S3 is believed about objects that were written from here.
        """
        info = self.filesystem.get_file_info(f"{self.path}/{name}")
        if info.type != pafs.FileType.File:
            return "lost"
        if name in manifest.sizes and info.size != manifest.sizes[name]:
            return f"{info.size} bytes instead of {manifest.sizes[name]}"
        if name in manifest.digests and self._sha256(name, read) != manifest.digests[name]:
            return "other bytes than were written"
        return ""

    def mend(self) -> str:
        """The command that makes what is lost or damaged again; what is whole is kept where it can be."""
        return f"python jobs/{STAGES[self.name].job}.py --root {self.root.uri} --overwrite"

    def check(self, name: str) -> None:
        """Raises ValueError, naming file and job, where a finished stage's file is not what was written."""
        if (manifest := self.manifest()) and name in manifest.digests and (what := self.damage(name, manifest)):
            raise ValueError(
                f"{self.uri}/{name} is damaged ({what}); run: {self.mend()} (and the --config that is meant)"
            )

    def sweep(self) -> None:
        """Remove what a killed run had half written; for the one run that makes the stage now."""
        if self._local:
            for path in Path(self.path).rglob(f"{PARTIAL}*"):
                path.unlink(missing_ok=True)

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write one file so that a reader sees all of it or none."""
        self.files.pipe_file(f"{self.path}/{name}", data, **self._mark(hashlib.sha256(data).hexdigest))

    def create_bytes(self, name: str, data: bytes) -> bool:
        """Write one file unless there is one of its name already; whether it was written."""
        try:
            self.files.pipe_file(f"{self.path}/{name}", data, mode="create")
        except FileExistsError:
            return False
        return True

    def read_bytes(self, name: str) -> bytes:
        """The content of one file.

        Raises FileNotFoundError, OSError where storage is out of reach, and ValueError when the file is damaged.
        """
        if name in (MANIFEST, LEASE):
            return self.root.read(f"{self.name}/{name}")
        with self._checked(name):
            data = self.root.read(f"{self.name}/{name}")
        self._compare(name, hashlib.sha256(data).hexdigest)
        return data

    def read_text(self, name: str) -> str | None:
        """The text of one file, or None when there is none."""
        try:
            return self.read_bytes(name).decode()
        except FileNotFoundError:
            return None

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """A parquet file, or some of its columns. Raises as `read_bytes`; what is read is checked page by page."""
        with self._checked(name):
            path = f"{self.path}/{name}"
            return pq.read_table(path, columns=columns, filesystem=self.filesystem, page_checksum_verification=True)

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write a table as a parquet file; equal tables give equal bytes."""
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
        self.write_bytes(name, buffer.getvalue())

    def remove(self, name: str) -> None:
        """Remove one file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self.files.rm_file(f"{self.path}/{name}")

    def upload(self, folder: Path, name: str) -> None:
        """Copy a local folder to `name` within the stage, replacing what was there."""
        self.delete(name)
        self.upload_into(folder, name)

    def upload_into(self, folder: Path, name: str) -> None:
        """Copy a local folder's files to `name` within the stage, beside what is there."""
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            target = f"{self.path}/{name}/{file.relative_to(folder).as_posix()}"
            self.files.put_file(str(file), target, **self._mark(partial(_sha256_of, file)))

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """A folder of the stage as a local one, to be read within the block; what was fetched is removed after it.

        Raises ValueError when one of its files is damaged.
        """
        with contextlib.ExitStack() as stack:
            folder = Path(self.path) / name
            files = [file for file in self._said() if file.startswith(f"{name}/")]
            if not self._local:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                with self._checked(*files):
                    pafs.copy_files(f"{self.path}/{name}", str(folder), source_filesystem=self.filesystem)
            for file in files:
                self._compare(file, partial(_sha256_of, folder / file.removeprefix(f"{name}/")))
            yield folder

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

    def _withdraw(self, manifest: Manifest) -> None:
        """Take the manifest away; damaged files first, as a rerun keeps shards by what their footers say."""
        for name in manifest.digests:
            if self.damage(name, manifest, read=False):
                self.remove(name)
        self.remove(MANIFEST)
        self._digests = None

    def _said(self) -> dict[str, str]:
        """The digests of the manifest, which is read once."""
        if self._digests is None:
            manifest = self.manifest()
            self._digests = manifest.digests if manifest else {}
        return self._digests

    def _compare(self, name: str, found: Callable[[], str]) -> None:
        """Check a file whose bytes were read, unless they are the manifest's; that may be another by now."""
        if (said := self._said().get(name)) is not None:
            with self._checked(name):
                whole = found() == said
            if not whole:
                self.check(name)

    @contextmanager
    def _checked(self, *names: str) -> Iterator[None]:
        """When reading files fails, and because one is damaged, say so."""
        try:
            yield
        except (OSError, pa.ArrowException):
            for name in names:
                self.check(name)
            raise

    def _mark(self, sha256: Callable[[], str]) -> dict[str, Any]:
        """What S3 is asked to keep beside an object, so that the manifest needs no second download."""
        return {} if self._local else {"Metadata": {"sha256": sha256()}}

    def _sha256(self, name: str, read: bool = False) -> str:
        path = f"{self.path}/{name}"
        if not self._local and not read and (kept := self.files.metadata(path).get("sha256")):
            return str(kept)
        with self.files.open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()


def _sha256_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
