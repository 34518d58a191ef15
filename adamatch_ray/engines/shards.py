"""Output shards that are there whole or not at all, and that say what they were made from.

A shard's footer holds its identity, so a rerun keeps those of the same inputs and replaces the others.
"""

import hashlib
import io
import json
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from adamatch_ray.artifacts import Stage


class MadeShard(NamedTuple):
    """A shard that is there: its name within the stage, its rows, and whether an earlier run had made it."""

    file: str
    rows: int
    reused: bool


def identity_of(*parts: Any) -> str:
    """Identity of an output: a digest over everything that decides it (plain values)."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def write_shard(stage: Stage, name: str, table: pa.Table, identity: str) -> None:
    """Write a table as a shard of this identity, beside what its schema already says."""
    footer = {**(table.schema.metadata or {}), b"identity": identity.encode()}
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(footer), buffer, compression="zstd")
    stage.write_bytes(name, buffer.getvalue())


def rows_of(stage: Stage, name: str, identity: str) -> int | None:
    """The rows of the shard of this name if it is there with this identity."""
    path = f"{stage.path}/{name}"
    if stage.filesystem.get_file_info(path).type != pafs.FileType.File:
        return None
    metadata = pq.read_metadata(path, filesystem=stage.filesystem)
    found: dict[bytes, bytes] = metadata.metadata or {}
    return int(metadata.num_rows) if found.get(b"identity") == identity.encode() else None
