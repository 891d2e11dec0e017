"""Checkpoint files: which tensor lies where, and how stored tensors make a parameter.

Old checkpoints hold one tensor for each expert; the modules hold them stacked. The two conversions
that nearly every family takes (stack the experts; join gate and up) are carried out here, straight
into the memory of the parameter. It knows files and shapes, not models.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from moescope.errors import ModelError
from moescope.models.config_files import json_object
from moescope.words import counted, said_by

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


def checkpoint_files(folder: Path) -> dict[str, Path]:
    """Which safetensors file holds each tensor of a checkpoint folder.

    Raises:
        ModelError: no safetensors, a file that is damaged, a shard that the index names but that
            is not there, or a tensor that the shard does not hold.
    """
    single, index = folder / SINGLE, folder / INDEX
    if single.is_file():  # as transformers does, also where there is an index beside it
        return dict.fromkeys(_names_in(single), single)
    if not index.is_file():
        raise ModelError(f"{folder} holds no {SINGLE} and no {INDEX}; only safetensors are read")
    named = weight_map(index)
    for name in sorted(set(named.values())):
        if not (folder / name).is_file():
            raise ModelError(
                f"{folder}: the index names the shard {name}, which is not there; fetch the whole "
                "checkpoint"
            )
        here = {key for key, file in named.items() if file == name}
        absent = here - set(_names_in(folder / name))
        if absent:
            raise ModelError(
                f"{name} does not hold {min(absent)}, which the index says it does; fetch the "
                "whole checkpoint"
            )
    return {key: folder / name for key, name in named.items()}


def _names_in(path: Path) -> list[str]:
    """The tensors of a file whose header is whole: the library checks places and sizes."""
    with opened(path) as handle:
        return list(handle.keys())


def weight_map(index: Path) -> dict[str, str]:
    """Which file holds each tensor; files of the same folder only.

    Raises:
        ModelError: it cannot be read, or names no file beside it.
    """
    named = json_object(index, str(index)).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise ModelError(f"{index}: weight_map names no tensor; fetch the whole checkpoint")
    for key, name in named.items():
        if not isinstance(name, str) or not name or name != Path(name).name:
            raise ModelError(
                f"{index}: {key} is said to lie in {name!r}, expected the name of a file beside "
                "the index"
            )
    return named


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A safetensors file, with what goes wrong in it as one line."""
    try:
        with safe_open(path, framework="pt") as handle:
            yield handle
    except (SafetensorError, OSError) as error:
        reason = said_by(error, 120)
        raise ModelError(f"{path} cannot be read ({reason}); fetch the file again") from error


class Stored(NamedTuple):
    """A tensor in a file: its shape, first byte, length in bytes, and dtype where it is known."""

    shape: tuple[int, ...]
    begin: int
    length: int
    dtype: torch.dtype | None


def read_header(path: Path) -> dict[str, Stored]:
    """Shapes and places of all tensors of a file, without reading them."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read ({said_by(error, 120)})") from error
    found = {}
    for key, entry in header.items():
        if key != "__metadata__":
            begin, end = entry["data_offsets"]
            dtype = _DTYPES.get(entry["dtype"])
            found[key] = Stored(tuple(entry["shape"]), 8 + size + begin, end - begin, dtype)
    return found


class _Reader:
    """Reads tensors of an open file into memory of their own.

    The library maps a file, and every page that was touched counts as this process's memory until
    the file is closed: a layer would count twice.
    """

    def __init__(self, path: Path, handle: Any, header: dict[str, Stored], file: int) -> None:
        self._path, self._handle, self._header, self._file = path, handle, header, file
        self.get_slice = handle.get_slice

    def get_tensor(self, key: str) -> torch.Tensor:
        """The tensor of this name."""
        entry = self._header.get(key)
        if entry is None or entry.dtype is None or not entry.shape:
            return self._handle.get_tensor(key)  # type: ignore[no-any-return]
        made = torch.empty(entry.shape, dtype=entry.dtype)
        view = _bytes_of(made)
        if len(view) != entry.length:
            raise ModelError(f"{self._path}: {key} has another size than its header says")
        self._read(view, entry.begin, key)
        return made

    def elements(self, key: str, flat: Sequence[int]) -> torch.Tensor:
        """Some elements of a tensor by their flat index; no more than those is read."""
        entry = self._header[key]
        if entry.dtype is None:
            return self._handle.get_tensor(key).reshape(-1)[list(flat)]  # type: ignore[no-any-return]
        made = torch.empty(len(flat), dtype=entry.dtype)
        view, size = _bytes_of(made), entry.dtype.itemsize
        for n, index in enumerate(flat):
            self._read(view[n * size : (n + 1) * size], entry.begin + index * size, key)
        return made

    def _read(self, view: memoryview, begin: int, key: str) -> None:
        done = 0
        while done < len(view):
            count = _read_at(self._file, view[done:], begin + done)
            if not count:
                raise ModelError(f"{self._path} ends in the middle of {key}; fetch it again")
            done += count


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.view(torch.uint8).reshape(-1).numpy().data)


def _read_at(file: int, view: memoryview, begin: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(file, [view[: 1 << 30]], begin)  # some systems read no more at a time
    os.lseek(file, begin, os.SEEK_SET)
    found = os.read(file, len(view))
    view[: len(found)] = found
    return len(found)


@contextlib.contextmanager
def reading(path: Path, header: dict[str, Stored], *, scattered: bool = False) -> Iterator[_Reader]:
    """A safetensors file of which nothing stays in memory but what is asked for.

    Args:
        path: the file.
        header: what `read_header` found in it.
        scattered: little is read, here and there: the system is asked not to read ahead.
    """
    with opened(path) as handle:
        file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        try:
            if scattered and hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
            yield _Reader(path, handle, header, file)
        finally:
            os.close(file)


@dataclass
class Target:
    """One parameter or buffer, and the checkpoint tensors that it is made of, in order."""

    converter: Any = None
    sources: list[tuple[str, str]] = field(default_factory=list)


def copy_into(held: torch.Tensor, found: torch.Tensor, name: str, key: str) -> None:
    """Copy a stored tensor to its place, converting the dtype; another shape is refused."""
    if found.shape != held.shape:
        refuse_shape(key, tuple(found.shape), tuple(held.shape), name)
    held.copy_(found)


def refuse_shape(
    key: str, found: tuple[int, ...], expected: tuple[int, ...], name: str
) -> NoReturn:
    """Say which stored tensor does not fit."""
    raise ModelError(
        f"{key} has shape {found}, expected {expected} for {name}; the checkpoint does not fit its "
        "config"
    )


def check_stack(
    name: str, shape: tuple[int, ...], dim: int, stored: list[Any], patterns: list[str]
) -> None:
    """Do these experts' tensors make exactly this stack?"""
    reach = 0
    for pattern in patterns:
        shapes = [(key, found) for key, found, p in stored if p == pattern]
        if len(shapes) != shape[0]:
            raise ModelError(
                f"{name}: the checkpoint has {len(shapes)} experts ({pattern}), expected "
                f"{shape[0]}; it does not fit its config"
            )
        side = shapes[0][1][dim - 1]
        expected = (*shape[1:dim], side, *shape[dim + 1 :])
        for key, found in shapes:
            if found != expected:
                refuse_shape(key, found, expected, name)
        reach += side
    if reach != shape[dim]:
        raise ModelError(
            f"{name}: the experts' tensors together have {counted(reach, 'row')}, expected "
            f"{shape[dim]}; the checkpoint does not fit its config"
        )


def stacked_side(converter: Any) -> int | None:
    """For "stack experts, then join along a side": that side (in the stack); else None."""
    kinds = [type(op).__name__ for op in converter.operations]
    if kinds == ["MergeModulelist"] and converter.operations[0].dim == 0:
        return 1
    if kinds == ["MergeModulelist", "Concatenate"] and converter.operations[0].dim == 0:
        return int(converter.operations[1].dim)
    return None


def assemble(held: torch.Tensor, converter: Any, reads: list[Any], dim: int, name: str) -> None:
    """Copy per-expert tensors straight to their places in the stack, one at a time."""
    for experts, begin, end in places(converter, reads, dim):
        for number, (key, handle) in enumerate(experts):
            place = held[number].narrow(dim - 1, begin, end - begin)
            copy_into(place, handle.get_tensor(key), name, key)


def places(
    converter: Any, reads: list[Any], dim: int
) -> list[tuple[list[tuple[str, Any]], int, int]]:
    """For each joined part: its experts in order, and where it begins and ends along the side."""
    parts, begin = [], 0
    for pattern in converter.source_patterns:
        experts = [(key, handle) for key, handle, p in reads if p == pattern]
        key, handle = experts[0]
        end = begin + int(handle.get_slice(key).get_shape()[dim - 1])
        parts.append((experts, begin, end))
        begin = end
    return parts


def pick_stacked(flat: torch.Tensor, shape: Any, parts: Any, dim: int) -> torch.Tensor:
    """Elements of a stack of experts by their flat index, from the experts' own tensors."""
    picked = []
    for place in zip(*np.unravel_index(flat.numpy(), tuple(shape)), strict=True):
        experts, begin, end = next(p for p in parts if p[1] <= place[dim] < p[2])
        key, reader = experts[place[0]]
        own = (*shape[1:dim], end - begin, *shape[dim + 1 :])
        within = (*place[1:dim], place[dim] - begin, *place[dim + 1 :])
        picked.append(reader.elements(key, [int(np.ravel_multi_index(within, own))]))
    return torch.cat(picked)
