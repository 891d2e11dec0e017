"""The files of a run: written as a whole, and read back only when they are what was written.

Everything is written to a temporary name, flushed to disk and renamed; only then does the manifest
name it, with its checksum. So whatever the manifest names is whole, whenever the process died.
This module knows files; what the numbers mean is for others.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors import SafetensorError

from moescope.errors import RunError
from moescope.files import checksum_of, replacing, sha256_of
from moescope.run.manifest import Stored
from moescope.run.spill import Parts, load_arrays, save_arrays
from moescope.words import said_by


def write_tensors(path: Path, arrays: Mapping[str, NDArray[Any] | Parts]) -> str:
    """Write arrays as safetensors, atomically; returns the sha256."""
    with replacing(path) as temporary:
        save_arrays(temporary, arrays)
    return checksum_of(path)


def write_parquet(path: Path, table: pa.Table) -> str:
    """Write a table as zstd Parquet, atomically; returns the sha256."""
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    return checksum_of(path)


def _checked(run: Path, stored: Stored) -> Path:
    path = run / stored.file
    if not path.is_file():
        raise RunError(
            f"{path} is missing, though the manifest names it; trace again or restore it"
        )
    found = sha256_of(path)
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
    with replacing(target) as temporary:
        temporary.unlink(missing_ok=True)
        if link:
            with contextlib.suppress(OSError):
                os.link(source, temporary)
        if not temporary.exists():
            shutil.copyfile(source, temporary)


@contextlib.contextmanager
def understood(where: Path | str) -> Iterator[None]:
    """What cannot be understood of a file or folder is one line that names it.

    Raises:
        RunError: another form than a run has.
    """
    try:
        yield
    except (
        ArithmeticError, AttributeError, LookupError, MemoryError, OSError, RecursionError,
        SafetensorError, TypeError, ValueError,
    ) as error:  # fmt: skip
        what = f"{type(error).__name__}: {said_by(error, 120)}"
        raise RunError(
            f"{where} is damaged or was written by something else ({what}); restore it, or trace "
            "again into a new folder"
        ) from error


def read_tensors(run: Path, stored: Stored) -> dict[str, NDArray[Any]]:
    """Read arrays after checking their checksum.

    Raises:
        RunError: the file is missing, truncated or altered, or holds no arrays.
    """
    path = _checked(run, stored)
    with understood(path):
        return load_arrays(path)


def read_json(run: Path, stored: Stored) -> Any:
    """Read JSON after checking its checksum.

    Raises:
        RunError: the file is missing, truncated or altered, or is not JSON.
    """
    path = _checked(run, stored)
    with understood(path):
        return json.loads(path.read_text(encoding="utf-8"))


def read_parquet(run: Path, stored: Stored) -> pa.Table:
    """Read a table after checking its checksum.

    Raises:
        RunError: the file is missing, truncated or altered, or is not a table.
    """
    path = _checked(run, stored)
    with understood(path), pq.ParquetFile(path) as file:  # pq.read_table would import pandas too
        return file.read()
