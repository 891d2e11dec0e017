"""Rows of numbers for several items, in memory or in a file, so that outputs need not fit.

It knows nothing of what the numbers are.
"""

from __future__ import annotations

import errno
import math
import tempfile
from pathlib import Path
from typing import IO, Any

import torch

from moescope.errors import WriteError


class RowStore:
    """A (items, rows, width) array, in memory or in a file that vanishes with the process.

    The file is read and written by plain calls, not mapped, so that what is read counts as this
    process's memory only while it is used.

    Args:
        shape: items, rows, width.
        dtype: of the values.
        folder: where the file lies; None keeps everything in memory.
    """

    def __init__(
        self, shape: tuple[int, int, int], dtype: torch.dtype = torch.float32,
        folder: Path | None = None,
    ) -> None:  # fmt: skip
        self.shape, self.dtype = shape, dtype
        self._memory = torch.empty(shape, dtype=dtype) if folder is None else None
        self._file: IO[bytes] | None = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115

    @property
    def in_memory(self) -> bool:
        """Is there no file?"""
        return self._file is None

    def write(self, item: int, start: int, rows_RD: torch.Tensor) -> None:
        """Put rows at their place.

        Raises:
            WriteError: the disk is full.
        """
        if self._memory is not None:
            self._memory[item, start : start + rows_RD.shape[0]] = rows_RD
            return
        assert self._file is not None
        self._file.seek(self._offset(item, start))
        content = _raw(rows_RD.to("cpu", self.dtype).contiguous())
        try:
            while len(content):
                content = content[self._file.write(content) :]
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            size = math.prod(self.shape) * self.dtype.itemsize / 1e9
            raise WriteError(
                f"the disk is full: the outputs of a layer need {size:,.1f} GB beside the results; "
                "make room, give another folder with -o, or fewer `tokens`"
            ) from error

    def read(self, item: int, start: int, stop: int) -> torch.Tensor:
        """Rows start … stop − 1 of one item, (R, D); of a file a copy, else the rows themselves."""
        if self._memory is not None:
            return self._memory[item, start:stop]
        assert self._file is not None
        rows = torch.empty((stop - start, self.shape[2]), dtype=self.dtype)
        content = _raw(rows)
        self._file.seek(self._offset(item, start))
        while len(content):
            count = self._file.readinto(content)  # type: ignore[attr-defined]
            if not count:
                raise ValueError(f"rows {start} to {stop} of item {item} were never written")
            content = content[count:]
        return rows

    def _offset(self, item: int, start: int) -> int:
        _, rows, width = self.shape
        return (item * rows + start) * width * self.dtype.itemsize

    def close(self) -> None:
        """Give the memory or the disk space back."""
        self._memory = None
        if self._file is not None:
            self._file.close()


def _raw(tensor: torch.Tensor) -> memoryview:
    array: Any = tensor.numpy()
    return memoryview(array).cast("B")
