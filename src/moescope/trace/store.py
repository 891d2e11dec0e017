"""The run folder: atomic writes, the manifest, and reading it back.

Everything is written to a temporary name, flushed to disk and renamed; only then does the manifest
name it, with its checksum. So whatever the manifest names is whole, whenever the process died.
This module knows files; what the numbers mean is for others.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moescope.errors import RunError, WriteError
from moescope.trace.spill import Parts, load_arrays, save_arrays

__all__ = [
    "MANIFEST",
    "SCHEMA_VERSION",
    "Manifest",
    "Merged",
    "MergedPart",
    "Stored",
    "copy_stored",
    "read_json",
    "read_manifest",
    "read_parquet",
    "read_tensors",
    "write_bytes",
    "write_manifest",
    "write_parquet",
    "write_tensors",
]

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"


class Stored(BaseModel):
    """A file that the manifest vouches for."""

    model_config = ConfigDict(extra="forbid")
    file: str
    sha256: str
    tokens: int = 0
    documents: int = 0


class MergedPart(BaseModel):
    """One of the runs that a merged run was joined from."""

    model_config = ConfigDict(extra="forbid")
    shard: str | None
    corpus: str
    fingerprint: str
    documents: int
    tokens: int
    created: str
    state_sha256: str


class Merged(BaseModel):
    """What a merged run was joined from, in the order in which sums were added.

    ``shards``: into how many the corpus was cut; None when the parts are runs of different texts.
    ``missing``: shards that were not there. ``each_part``: settings that every part applied by
    itself: with n parts up to n times as many tokens as a single run would take.
    """

    model_config = ConfigDict(extra="forbid")
    shards: int | None
    missing: list[int] = Field(default_factory=list)
    each_part: dict[str, int | None] = Field(default_factory=dict)
    parts: list[MergedPart]


class Manifest(BaseModel):
    """``manifest.json``: what was run, how far it came, and which files are whole.

    ``model``, ``corpus``, ``options`` and ``source`` identify the run: ``--resume`` refuses others.
    ``source`` is empty for a trace. For a run imported from what a serving engine captured it holds
    ``engine``, ``engine_version``, ``files`` (name, bytes and sha256 of each), ``domain``,
    ``ordered``, ``on_error``, ``notes``, and ``absent``: what the run does not know, and why.
    """

    model_config = ConfigDict(extra="forbid")
    schema_version: int = SCHEMA_VERSION
    status: Literal["running", "complete"] = "running"
    created: str = ""
    versions: dict[str, str] = Field(default_factory=dict)
    model: dict[str, Any]
    corpus: dict[str, Any]
    options: dict[str, Any]
    source: dict[str, Any] = Field(default_factory=dict)
    domains: list[str] = Field(default_factory=list)
    progress: dict[str, Any] = Field(default_factory=dict)
    coverage: dict[str, Any] = Field(default_factory=dict)
    merged: Merged | None = None
    state: Stored | None = None
    documents: list[Stored] = Field(default_factory=list)
    shards: list[Stored] = Field(default_factory=list)
    sample: Stored | None = None
    vocabulary: Stored | None = None


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[Path]:
    """Yield a temporary path; on success flush it to disk and rename it into place."""
    temporary = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        reason = "the disk is full" if error.errno == errno.ENOSPC else str(error)
        raise WriteError(
            f"cannot write {path}: {reason}; what was finished before is whole: make room and run "
            "the same command with --resume"
        ) from error


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def write_bytes(path: Path, content: bytes) -> str:
    """Write a file atomically; returns its sha256.

    Raises:
        WriteError: disk full or no permission.
    """
    with _writing(path) as temporary:
        temporary.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def write_tensors(path: Path, arrays: Mapping[str, NDArray[Any] | Parts]) -> str:
    """Write arrays as safetensors, atomically; returns the sha256."""
    with _writing(path) as temporary:
        save_arrays(temporary, arrays)
    return _sha256(path)


def write_parquet(path: Path, table: pa.Table) -> str:
    """Write a table as zstd Parquet, atomically; returns the sha256."""
    with _writing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    return _sha256(path)


def write_manifest(run: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` atomically: the commit of everything that it names."""
    text = json.dumps(manifest.model_dump(mode="json"), indent=1, ensure_ascii=False)
    write_bytes(run / MANIFEST, text.encode())


def read_manifest(run: Path) -> Manifest:
    """Read and validate ``manifest.json``.

    Raises:
        RunError: no run there, an unreadable manifest, or one of another schema version.
    """
    path = run / MANIFEST
    if not path.is_file():
        raise RunError(
            f"{run} is no run: it has no {MANIFEST}; make one with: moescope analyze MODEL CORPUS "
            f"-o {run}"
        )
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        version = data.get("schema_version") if isinstance(data, dict) else None
        if version != SCHEMA_VERSION:
            raise RunError(
                f"{path}: schema version {version!r}, expected {SCHEMA_VERSION}; read it with the "
                "moescope that wrote it, or trace again"
            )
        return Manifest.model_validate(data)
    except (json.JSONDecodeError, UnicodeDecodeError, ValidationError) as error:
        first = str(error).splitlines()[0]
        raise RunError(f"{path} is damaged ({first}); trace again into a new folder") from error


def _checked(run: Path, stored: Stored) -> Path:
    path = run / stored.file
    if not path.is_file():
        raise RunError(
            f"{path} is missing, though the manifest names it; trace again or restore it"
        )
    found = _sha256(path)
    if found != stored.sha256:
        raise RunError(
            f"{path} was truncated or altered: sha256 {found[:12]}…, expected "
            f"{stored.sha256[:12]}…; restore it or trace again"
        )
    return path


def copy_stored(run: Path, stored: Stored, target: Path, *, link: bool = False) -> None:
    """Copy a file of a run to another place, atomically, after checking its checksum.

    Args:
        run: the run that the file belongs to.
        stored: the file.
        target: where the copy goes.
        link: share the bytes on disk instead, where the file system can; files of a run are never
            changed in place.

    Raises:
        RunError: the file is missing, truncated or altered.
        WriteError: disk full or no permission.
    """
    source = _checked(run, stored)
    with _writing(target) as temporary:
        temporary.unlink(missing_ok=True)
        if link:
            with contextlib.suppress(OSError):
                os.link(source, temporary)
        if not temporary.exists():
            shutil.copyfile(source, temporary)


def read_tensors(run: Path, stored: Stored) -> dict[str, NDArray[Any]]:
    """Read arrays after checking their checksum.

    Raises:
        RunError: the file is missing, truncated or altered.
    """
    return load_arrays(_checked(run, stored))


def read_json(run: Path, stored: Stored) -> Any:
    """Read JSON after checking its checksum.

    Raises:
        RunError: the file is missing, truncated or altered.
    """
    return json.loads(_checked(run, stored).read_text(encoding="utf-8"))


def read_parquet(run: Path, stored: Stored) -> pa.Table:
    """Read a table after checking its checksum.

    Raises:
        RunError: the file is missing, truncated or altered.
    """
    return pq.read_table(_checked(run, stored))
