"""The pieces of a measurement that are finished, so that an interrupted one goes on with the next.

    FOLDER/measured.jsonl   what is measured, then a line for each piece
    FOLDER/measured/        tables of pieces that have some

Every line is flushed to the disk before the next piece is begun, and floats are written so that
they come back bit for bit. A line ends in a tab and the CRC-32 of what is before it, and holds the
checksums of its tables, so a piece is whole or not there. The journal knows nothing of what pieces
mean.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from moescope.errors import RunError
from moescope.files import (
    claim,
    nothing_of_bad_input,
    own,
    owned,
    remove,
    sha256_of,
    write_error,
)
from moescope.result import RESULT, read_result, refuse_finished
from moescope.run.same import require_same
from moescope.run.store import write_parquet

JOURNAL = "measured.jsonl"

_TABLES = "measured"

Record = dict[str, Any]


@contextlib.contextmanager
def open_journal(
    folder: str | Path | None, kind: str, identity: Mapping[str, Any], *, resume: bool = False
) -> Iterator[Journal]:
    """The journal of a folder, which is held while the block runs; without one, in memory only.

    Args:
        folder: of the result.
        kind: of result.
        identity: everything that decides the numbers, as JSON.
        resume: go on with what the folder holds.

    Raises:
        RunError: the folder holds something else, or see `Journal`.
        BusyError: another process is measuring there.
        WriteError: disk full or no permission.
    """
    if folder is None:
        yield Journal(None, identity)
        return
    with claim(folder, kind) as place:
        journal: Journal | None = None
        _refuse_begun(place, resume)
        if not (place / JOURNAL).is_file():
            _require_unfinished(place, identity)
        with nothing_of_bad_input(place, unless=lambda: journal is None or journal.has_records):
            journal = Journal(place, identity, resume=resume)
            yield journal


@contextlib.contextmanager
def hold(
    folder: str | Path | None, kind: str, *, reads: Sequence[str] = (), resume: bool = False
) -> Iterator[Path | None]:
    """Hold the folder of a measurement, before its model is read; None keeps nothing.

    Args:
        folder: of the result.
        kind: of result.
        reads: what the work reads.
        resume: go on with what the folder holds.

    Raises:
        RunError: the folder holds something else, or work that was not asked to go on.
        BusyError: another process is measuring there.
    """
    if folder is None:
        yield None
        return
    with claim(folder, kind, reads=reads) as place:
        _refuse_begun(place, resume)
        with nothing_of_bad_input(place, unless=lambda: is_begun(place)):
            yield place


def is_begun(folder: Path) -> bool:
    """Is there a measurement, finished or not?"""
    return any((folder / name).is_file() for name in (JOURNAL, RESULT))


def _refuse_begun(folder: Path, resume: bool) -> None:
    path = folder / JOURNAL
    if not resume and path.is_file() and path.stat().st_size:
        raise RunError(
            f"{folder} already holds a measurement; resume it, or give another folder, such "
            f"as `out={folder}-2`"
        )
    if not path.is_file():
        refuse_finished(folder, resume)


def _require_unfinished(folder: Path, identity: Mapping[str, Any]) -> None:
    """A result that is whole is replaced by nothing but the same one, and only when asked for."""
    if (folder / RESULT).is_file():
        kept = read_result(folder).identity
        if kept.keys() == identity.keys():  # a sweep's own is not that of the steering around it
            require_same(folder, {"": kept}, {"": json.loads(json.dumps(identity))})


def drop_journal(folder: Path) -> None:
    """Remove the journal of a held folder: its result is whole, and everything is in it."""
    for name in owned(folder):
        if name == JOURNAL or name.startswith(f"{_TABLES}/"):
            remove(folder / name)


class Journal:
    """Records by key, kept in a folder where one is given.

    Args:
        folder: is held; None keeps records in memory only.
        identity: everything that decides the numbers, as JSON.
        resume: go on with a journal that is there.

    Raises:
        RunError: a journal is there and ``resume`` is off, or it is of another measurement (says
            what differs).
        WriteError: disk full or no permission.
    """

    def __init__(
        self, folder: Path | None, identity: Mapping[str, Any], *, resume: bool = False
    ) -> None:
        self._folder = folder
        self._path = None if folder is None else own(folder / JOURNAL)
        self._records: dict[tuple[Any, ...], Record] = {}
        self._tables: dict[tuple[Any, ...], dict[str, pa.Table]] = {}
        wanted = json.loads(json.dumps(identity))
        if self._path is None:
            return
        if self._path.is_file() and self._path.stat().st_size:
            _refuse_begun(self._path.parent, resume)
            self._read(self._path, wanted)
        if not self._path.is_file() or not self._path.stat().st_size:
            self._write({"identity": wanted}, "w")

    def _read(self, path: Path, wanted: Record) -> None:
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]  # a killed process may leave half a line
        try:
            lines = [_read_line(line) for line in whole.splitlines()]
            found = lines[0]["identity"] if lines else wanted
            self._records = {tuple(line["key"]): line for line in lines[1:]}
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"{path} is damaged ({str(error)[:80]}); remove it and measure again"
            ) from error
        require_same(path.parent, {"": found}, {"": wanted})
        if len(whole) < len(data):
            with path.open("r+b") as handle:
                handle.truncate(len(whole))

    @property
    def has_records(self) -> bool:
        """Was anything measured?"""
        return bool(self._records)

    def find(self, *key: str | int) -> Record | None:
        """The record of this key, if it was measured and is whole."""
        record = self._records.get(key)
        if record is None or self._folder is None:
            return record
        sums = record.get("tables", {}).items()
        files = [(self._file(key, name), sha256) for name, sha256 in sums]
        if all(file.is_file() and sha256_of(file) == sha256 for file, sha256 in files):
            return record
        return None

    def tables(self, *key: str | int) -> dict[str, pa.Table]:
        """The tables of a record that `find` found."""
        if self._folder is None:
            return self._tables.get(key, {})
        names = self._records[key].get("tables", {})
        return {name: pq.read_table(self._file(key, name)) for name in names}

    def add(
        self, *key: str | int, tables: Mapping[str, pa.Table] | None = None, **record: Any
    ) -> Record:
        """Keep a record; when this returns it is on the disk.

        Args:
            key: of the record.
            tables: that belong to it, by name.
            record: JSON values.

        Returns:
            The record as it would be read back.
        """
        if tables and self._folder is None:
            self._tables[key] = dict(tables)
        elif tables:
            files = {name: (self._file(key, name), table) for name, table in tables.items()}
            record["tables"] = {name: write_parquet(*file) for name, file in files.items()}
        line = json.dumps({"key": key, **record})
        if self._path is not None:
            self._write(line, "a")
        kept: Record = json.loads(line)
        self._records[key] = kept
        return kept

    def _file(self, key: tuple[str | int, ...], name: str) -> Path:
        assert self._folder is not None
        return self._folder / _TABLES / f"{'-'.join(map(str, key))}-{name}.parquet"

    def _write(self, line: Record | str, mode: str) -> None:
        assert self._path is not None
        text = line if isinstance(line, str) else json.dumps(line)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open(mode, encoding="utf-8") as handle:
                handle.write(f"{text}\t{zlib.crc32(text.encode()):08x}\n")
                handle.flush()
                os.fsync(handle.fileno())
        except OSError as error:
            raise write_error(self._path, error) from error


def _read_line(line: bytes) -> Record:
    text, _, checksum = line.rpartition(b"\t")
    if f"{zlib.crc32(text):08x}".encode() != checksum:
        raise ValueError(f"the line {text[:40].decode('utf-8', 'replace')}… was altered")
    record: Record = json.loads(text)
    return record
