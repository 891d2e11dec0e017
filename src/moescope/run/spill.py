"""Sorted counts on disk, and arrays that are written a part at a time.

What a run counts by token id can grow past the memory that was promised. `SortedRuns` are the part
of a counter that went to disk: an unnamed file, so that nothing is left of it whatever ends the
process. `Parts` is an array for a file that is never in memory as a whole. It knows no keys.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from moescope.files import write_error

_ENTRY = np.dtype([("key", np.int64), ("count", np.int64)])
_AT_A_TIME = 1 << 16
_NAMES = {
    "bool": "BOOL", "int8": "I8", "uint8": "U8", "int16": "I16", "uint16": "U16", "float16": "F16",
    "int32": "I32", "uint32": "U32", "float32": "F32", "int64": "I64", "uint64": "U64",
    "float64": "F64",
}  # fmt: skip

Counts = tuple[NDArray[np.int64], NDArray[np.int64]]


class Parts:
    """An array of known shape whose parts, along the first axis, are made when they are written."""

    def __init__(
        self,
        dtype: np.dtype[Any],
        shape: tuple[int, ...],
        parts: Callable[[], Iterator[NDArray[Any]]],
    ) -> None:
        self.dtype, self.shape, self.parts = dtype, shape, parts
        self.ndim = len(shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.concatenate([np.zeros((0, *self.shape[1:]), self.dtype), *self.parts()])


class SortedRuns:
    """Counts on disk: runs of distinct keys, ascending, in one file, each shorter than the last.

    A run that is added is merged with those before it that are no longer than what there is to
    merge by then. So a count is written again when the run that it is in has doubled, and not
    whenever something is added.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = self._new()
        self._sizes: list[int] = []

    def add(self, keys: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
        """Add distinct keys, ascending, with their counts.

        Raises:
            WriteError: the disk is full.
        """
        first, together = len(self._sizes), keys.size
        while first and self._sizes[first - 1] <= together:
            first -= 1
            together += self._sizes[first]
        self._put(first, merged([*self._runs(first), iter([(keys, counts)])]))

    def settle(self) -> int:
        """Make one run of all; returns how many keys it has.

        Raises:
            WriteError: the disk is full.
        """
        if len(self._sizes) > 1:
            self._put(0, self.chunks())
        return sum(self._sizes)

    def chunks(self) -> Iterator[Counts]:
        """All keys, ascending, each once, some at a time."""
        return merged(self._runs(0))

    def _runs(self, first: int) -> list[Iterator[Counts]]:
        begins = [sum(self._sizes[:n]) for n in range(len(self._sizes))]
        return [_read(self._file, b, s) for b, s in zip(begins, self._sizes, strict=True)][first:]

    def _put(self, first: int, chunks: Iterator[Counts]) -> None:
        """Write these in place of the runs from ``first`` on, which they may be made of."""
        begin = sum(self._sizes[:first])
        if first < len(self._sizes):
            made = self._new()
            size = self._write(made, chunks)
            if first:  # what is before stays where it is
                self._file.seek(begin * _ENTRY.itemsize)
                self._file.truncate()
                self._write(self._file, _read(made, 0, size))
            else:
                self._file = made
        else:
            size = self._write(self._file, chunks)
        self._sizes[first:] = [size]

    def _new(self) -> IO[bytes]:
        return tempfile.TemporaryFile(dir=self._folder)  # lives as long as its counts

    def _write(self, file: IO[bytes], chunks: Iterator[Counts]) -> int:
        size = 0
        for keys, counts in chunks:
            entries = np.empty(keys.size, _ENTRY)
            entries["key"], entries["count"] = keys, counts
            try:
                file.write(entries.tobytes())
                file.flush()
            except OSError as error:
                raise write_error(self._folder / "the sums of the run", error) from error
            size += keys.size
        return size


def _read(file: IO[bytes], begin: int, size: int) -> Iterator[Counts]:
    """So many entries of a file, some at a time."""
    for at in range(begin, begin + size, _AT_A_TIME):
        some = min(_AT_A_TIME, begin + size - at)
        data = os.pread(file.fileno(), some * _ENTRY.itemsize, at * _ENTRY.itemsize)
        entries = np.frombuffer(data, _ENTRY)
        yield entries["key"].copy(), entries["count"].copy()


def merged(sources: list[Iterator[Counts]]) -> Iterator[Counts]:
    """The keys of all, ascending, each once with the sum of its counts.

    Args:
        sources: each gives distinct keys, ascending, some at a time.
    """
    waiting = [(chunk, source) for source in sources for chunk in islice(source, 1)]
    while waiting:
        # every key up to here is in memory
        bound = min(keys[-1] for (keys, _), _ in waiting)
        made: list[Counts] = []
        left = []
        for (keys, counts), source in waiting:
            end = int(np.searchsorted(keys, bound, side="right"))
            made.append((keys[:end], counts[:end]))
            rest = (keys[end:], counts[end:]) if end < keys.size else next(source, None)
            if rest is not None:
                left.append((rest, source))
        yield join(*made)
        waiting = left


def join(*some: Counts) -> Counts:
    """Distinct keys of all, ascending, with the sums of their counts."""
    keys = np.concatenate([keys for keys, _ in some])
    counts = np.concatenate([counts for _, counts in some])
    if not keys.size:
        return keys, counts
    order = np.argsort(keys, kind="stable")
    keys, counts = keys[order], counts[order]
    first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    return keys[first], np.add.reduceat(counts, first)


def save_arrays(path: Path, arrays: Mapping[str, NDArray[Any] | Parts]) -> None:
    """Write arrays as safetensors; no more than a part of one is copied in memory."""
    # wider types first, so that each array begins at a multiple of its type's size
    order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    header, end = {}, 0
    for name in order:
        array = arrays[name]
        begin, end = end, end + int(np.prod(array.shape)) * array.dtype.itemsize
        header[name] = {
            "dtype": _NAMES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            array = arrays[name]
            for part in array.parts() if isinstance(array, Parts) else [array]:
                file.write(np.ascontiguousarray(part).data)


def load_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read what `save_arrays` wrote, or another safetensors file; nothing is in memory twice.

    Raises:
        LookupError, TypeError, ValueError: it is no such file, or promises more than it holds.
    """
    types = {name: np.dtype(kind) for kind, name in _NAMES.items()}
    with path.open("rb") as file:
        size, whole = int.from_bytes(file.read(8), "little"), path.stat().st_size
        if 8 + size > whole:
            raise ValueError(f"a header of {size} bytes in a file of {whole}")
        header = json.loads(file.read(size))
        found: dict[str, NDArray[Any]] = {}
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = (8 + size + int(offset) for offset in entry["data_offsets"])
                kind, count = types[entry["dtype"]], math.prod(entry["shape"])
                if not 8 + size <= begin <= end <= whole or count * kind.itemsize != end - begin:
                    raise ValueError(f"{name} of {entry['shape']} is not what the file holds")
                file.seek(begin)
                values = np.fromfile(file, kind, count)
                found[name] = values.reshape(entry["shape"])
    return found
