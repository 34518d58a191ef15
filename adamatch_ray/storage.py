"""Where a stage's output lives: a root is a local folder or `s3://bucket/prefix`, below it one folder a stage.

Files appear whole or not at all. A stage without `manifest.json`, the last file written, does not exist for a reader.
"""

import contextlib
import io
import json
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from adamatch_ray.filesystems import WholeFiles, open_filesystem
from adamatch_ray.specs import STAGES, Manifest

LEASE = "lease.json"
"""The one file of a stage that belongs to the run that is making it, not to what it makes."""


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
        """The stage of this name; it need not exist yet."""
        assert name in STAGES, name
        return Stage(self, name)


class Stage:
    """One stage's folder: read it through its manifest, write it through `commit`."""

    def __init__(self, root: Root, name: str) -> None:
        self.root, self.name = root, name
        self.files, self.filesystem = root.files, root.filesystem
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
            self.remove("manifest.json")
            return False
        if manifest.is_of(config, parents):
            return True
        raise ValueError(f"{self.uri} was made from other inputs ({manifest.changes(config, parents)}); "
                         "use --overwrite to make it again, or another --root")  # fmt: skip

    def commit(self, manifest: Manifest) -> None:
        """Publish the stage: its manifest appears, whole, as the last file written."""
        self.write_bytes("manifest.json", (json.dumps(asdict(manifest), indent=2) + "\n").encode())

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write one file so that a reader sees all of it or none."""
        self.files.pipe_file(f"{self.path}/{name}", data)

    def create_bytes(self, name: str, data: bytes) -> bool:
        """Write one file unless there is one of its name already; whether it was written."""
        try:
            self.files.pipe_file(f"{self.path}/{name}", data, mode="create")
        except FileExistsError:
            return False
        return True

    def read_bytes(self, name: str) -> bytes:
        """The content of one file. Raises FileNotFoundError, and OSError where storage is out of reach."""
        try:
            return bytes(self.files.cat_file(f"{self.path}/{name}"))
        except OSError:
            raise
        except Exception as error:  # the S3 client's own, such as no credentials: the user's to mend
            raise OSError(f"{self.uri}: {error}") from error

    def read_text(self, name: str) -> str | None:
        """The text of one file, or None when there is none."""
        try:
            return self.read_bytes(name).decode()
        except FileNotFoundError:
            return None

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """A parquet file, or some of its columns."""
        return pq.read_table(f"{self.path}/{name}", columns=columns, filesystem=self.filesystem)

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write a table as a parquet file; equal tables give equal bytes."""
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
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
            self.files.put_file(str(file), f"{self.path}/{name}/{file.relative_to(folder).as_posix()}")

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """A folder of the stage as a local one, to be read within the block; what was fetched is removed after it."""
        if isinstance(self.files, WholeFiles):
            yield Path(self.path) / name
            return
        with tempfile.TemporaryDirectory() as folder:
            pafs.copy_files(f"{self.path}/{name}", folder, source_filesystem=self.filesystem)
            yield Path(folder)

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
