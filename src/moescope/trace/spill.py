"""Sorted counts on disk, and arrays that are written a part at a time.

What a run counts by token id can grow past the memory that was promised. A `SortedRun` is the part
of a counter that went to disk: an unnamed file, so that nothing is left of it whatever ends the
process. `Parts` is an array for a file that is never in memory as a whole. It knows no keys.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moescope.files import write_error

__all__ = ["Parts", "SortedRun", "join", "load_arrays", "save_arrays"]

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


class SortedRun:
    """Distinct keys with their counts, ascending, on disk.

    Args:
        folder: on the disk that is to hold them.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 -- lives as long as the run
        self.size = 0

    def append(self, keys: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
        """Add keys behind the last one."""
        entries = np.empty(keys.size, _ENTRY)
        entries["key"], entries["count"] = keys, counts
        try:
            self._file.write(entries.tobytes())
            self._file.flush()
        except OSError as error:
            raise write_error(self._folder / "the sums of the run", error) from error
        self.size += keys.size

    def chunks(self) -> Iterator[Counts]:
        """All entries, some at a time."""
        step = _AT_A_TIME * _ENTRY.itemsize
        for begin in range(0, self.size * _ENTRY.itemsize, step):
            data = os.pread(self._file.fileno(), step, begin)
            entries = np.frombuffer(data, _ENTRY)
            yield entries["key"].copy(), entries["count"].copy()

    def merged(self, keys: NDArray[np.int64], counts: NDArray[np.int64]) -> SortedRun:
        """A new run of these entries and one's own."""
        made, at = SortedRun(self._folder), 0
        for mine, times in self.chunks():
            end = int(np.searchsorted(keys, mine[-1], side="right"))
            made.append(*join((mine, times), (keys[at:end], counts[at:end])))
            at = end
        if at < keys.size:
            made.append(keys[at:], counts[at:])
        return made


def join(one: Counts, other: Counts) -> Counts:
    """Distinct keys of both, ascending, with the sums of their counts."""
    keys = np.concatenate([one[0], other[0]])
    counts = np.concatenate([one[1], other[1]])
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
