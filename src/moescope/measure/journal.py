"""What was measured so far, one JSON line each, so that an interrupted measurement goes on.

The first line says what is being measured; another measurement is refused. Every further line is
flushed to the disk before the next is begun, and floats are written so that they come back bit for
bit. A line ends in a tab and the CRC-32 of what is before it. It knows nothing of what the lines
mean.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from moescope.errors import RunError
from moescope.files import claim, nothing_of_bad_input, own, write_error

__all__ = ["ABLATION_KIND", "Journal", "open_journal"]

ABLATION_KIND = "ablation"
"""The kind of result whose folder holds a journal."""

_FILE = "measured.jsonl"

Record = dict[str, Any]


@contextlib.contextmanager
def open_journal(
    folder: Path | None, identity: Mapping[str, Any], *, resume: bool = False
) -> Iterator[Journal]:
    """The journal of a folder, which is held while the block runs; without one, in memory only.

    Raises:
        RunError: the folder holds something else, or see `Journal`.
        BusyError: another process is measuring there.
        WriteError: disk full or no permission.
    """
    if folder is None:
        yield Journal(None, identity)
        return
    with claim(folder, ABLATION_KIND) as place:
        journal: Journal | None = None
        with nothing_of_bad_input(place, unless=lambda: journal is None or journal.has_records):
            journal = Journal(own(place / _FILE), identity, resume=resume)
            yield journal


class Journal:
    """Records by key, kept in a file where a path is given.

    Args:
        path: the file; None keeps records in memory only.
        identity: everything that decides the numbers, as JSON.
        resume: go on with a file that is there.

    Raises:
        RunError: a file is there and ``resume`` is off, or it is of another measurement (says
            what differs).
        WriteError: disk full or no permission.
    """

    def __init__(
        self, path: Path | None, identity: Mapping[str, Any], *, resume: bool = False
    ) -> None:
        self._path = path
        self._records: dict[tuple[Any, ...], Record] = {}
        wanted = json.loads(json.dumps(identity))
        if path is None:
            return
        if path.is_file() and path.stat().st_size:
            if not resume:
                raise RunError(
                    f"{path.parent} already holds a measurement; resume it, or give another folder"
                )
            self._read(path, wanted)
        if not path.is_file() or not path.stat().st_size:
            self._write({"identity": wanted}, "w")

    def _read(self, path: Path, wanted: Record) -> None:
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]  # a killed process may leave half a line
        try:
            lines = [_read_line(line) for line in whole.splitlines()]
            found = lines[0]["identity"] if lines else wanted
            self._records = {_key(line["key"]): line for line in lines[1:]}
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"{path} is damaged ({str(error)[:80]}); remove it and measure again"
            ) from error
        for name in sorted({*found, *wanted}):
            if found.get(name) != wanted.get(name):
                raise RunError(
                    f"{path.parent} holds another measurement ({name}: it has "
                    f"{_short(found.get(name))}, now {_short(wanted.get(name))}); resume it with "
                    "what it was started with, or give another folder"
                )
        if len(whole) < len(data):
            with path.open("r+b") as handle:
                handle.truncate(len(whole))

    @property
    def has_records(self) -> bool:
        """Was anything measured?"""
        return bool(self._records)

    def find(self, *key: str | int) -> Record | None:
        """The record of this key, if it was measured."""
        return self._records.get(key)

    def add(self, *key: str | int, **record: Any) -> Record:
        """Keep a record; when this returns it is on the disk.

        Returns:
            The record as it would be read back.
        """
        line = json.dumps({"key": key, **record}, allow_nan=False)
        if self._path is not None:
            self._write(line, "a")
        kept: Record = json.loads(line)
        self._records[key] = kept
        return kept

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


def _key(listed: list[Any]) -> tuple[Any, ...]:
    return tuple(listed)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "…"
