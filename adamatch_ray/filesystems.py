"""Files on a local disk, in S3, or wherever else fsspec reaches; what is written appears whole or not at all."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from fsspec import AbstractFileSystem, url_to_fs
from fsspec.implementations.local import LocalFileSystem

if TYPE_CHECKING:
    from s3fs import S3FileSystem


PARTIAL = ".partial-"
"""How the name of a local file begins while it is written."""


class WholeFiles(LocalFileSystem):
    """Local files that appear whole or not at all, as an object in S3 does; folders are made as they are needed."""

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        """Write a file. Mode "create" raises FileExistsError where there is one, and shows it while it is written."""
        if mode == "create":
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            with Path(path).open("xb") as stream:
                stream.write(value)
            return
        with _appearing(Path(path)) as temporary:
            temporary.write_bytes(value)

    def put_file(self, lpath: str, rpath: str, callback: Any = None, **kwargs: Any) -> None:
        """Copy a file to its place."""
        with _appearing(Path(rpath)) as temporary:
            shutil.copyfile(lpath, temporary)


def open_filesystem(uri: str) -> tuple[AbstractFileSystem, str]:
    """The filesystem of a local path or a URL, and the path within it."""
    if uri.startswith("s3://"):
        return s3_filesystem(), uri.removeprefix("s3://")
    if "://" in uri:
        filesystem, path = url_to_fs(uri)
        return filesystem, str(path)
    return WholeFiles(), str(Path(uri).expanduser().resolve())


def s3_filesystem() -> "S3FileSystem":
    """S3 as every part of the project opens it; endpoint, region and credentials come from the environment (AWS_…).

    Listings are not cached, because other machines write too. Failed requests are repeated after growing pauses, which
    outlasts an outage of about half a minute.
    """
    import s3fs

    retries = {"mode": "standard", "max_attempts": 12}
    return s3fs.S3FileSystem(use_listings_cache=False, config_kwargs={"retries": retries})


def at_hand(name: str | Path) -> str:
    """A model's folder or file as a local path, an s3:// one fetched once a machine; any other name as it is.

    Copies lie beside the hub's (HF_HOME) under the digest of what the folder holds, so what has changed is fetched
    anew. Raises ValueError where there is nothing.
    """
    uri = str(name).rstrip("/")
    if not uri.startswith("s3://"):
        return str(name)
    files, path = open_filesystem(uri)
    found = {file: info for file, info in sorted(files.find(path, detail=True).items()) if info["size"]}
    if not found:
        raise ValueError(f"{uri}: there is nothing; copy the model's files there, or name another folder")
    state = repr([(file, info["size"], info.get("ETag")) for file, info in found.items()])
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser() / "adamatch_ray"
    target = home / hashlib.sha256(state.encode()).hexdigest()[:16]
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):  # the workers of a machine all ask at once
        if not target.is_dir():
            with tempfile.TemporaryDirectory(dir=home) as folder:
                for file in found:
                    local = Path(folder, "whole", file.removeprefix(path).lstrip("/") or Path(file).name)
                    local.parent.mkdir(parents=True, exist_ok=True)
                    files.get_file(file, str(local))
                Path(folder, "whole").rename(target)
    return str(target / Path(path).name if path in found else target)


def digest(uri: str, option: str) -> str:
    """SHA-256 of a user's own file, which may change while its name stays.

    Raises ValueError, naming the option that gave it, where there is none.
    """
    filesystem, path = open_filesystem(uri)
    try:
        with filesystem.open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        raise ValueError(f"--{option} {uri}: no such file") from None


@contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """A temporary file that takes the target's name when the block ends well, and vanishes when it does not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=PARTIAL)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
