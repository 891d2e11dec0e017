"""Counts over a key space too large to hold densely.

A `SparseCounter` keeps only the keys that occurred, as two sorted arrays. New keys wait in a
buffer and are merged when the buffer has grown as large as the table, so that adding N keys one
batch after another costs O(N log N) and memory follows the number of distinct keys. What a counter
holds can go to disk (`SparseCounter.spill`); the counts are the same.
It knows nothing of tokens or experts; callers pack their axes into one int64 key.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from numpy.typing import NDArray

from moescope.run.spill import Counts, Parts, SortedRuns, join

_MIN_BUFFER = 1 << 16


class SparseCounter:
    """How often each int64 key occurred.

    Example:
        >>> counter = SparseCounter()
        >>> counter.add(np.array([5, 3, 5]))
        >>> counter.keys.tolist(), counter.counts.tolist()
        ([3, 5], [1, 2])
    """

    def __init__(
        self,
        keys: Int64[np.ndarray, " n"] | None = None,
        counts: Int64[np.ndarray, " n"] | None = None,
    ) -> None:
        self._keys = np.zeros(0, np.int64) if keys is None else keys
        self._counts = np.zeros(0, np.int64) if counts is None else counts
        self._buffer: list[NDArray[np.int64]] = []
        self._buffered = 0
        self._runs: SortedRuns | None = None

    def add(self, keys: NDArray[np.int64]) -> None:
        """Count every element of ``keys`` once (repeats count as often as they occur)."""
        if keys.size == 0:
            return
        self._buffer.append(keys.reshape(-1))
        self._buffered += keys.size
        if self._buffered > max(_MIN_BUFFER, self._keys.size):
            self._compact()

    def merge(self, other: SparseCounter) -> None:
        """Add the counts of another counter to this one."""
        self._compact()
        self._join(other.keys, other.counts)

    @property
    def keys(self) -> NDArray[np.int64]:
        """Distinct keys, ascending, shape (n,)."""
        return self._whole()[0]

    @property
    def counts(self) -> NDArray[np.int64]:
        """How often each of `keys` occurred, shape (n,)."""
        return self._whole()[1]

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return 16 * self._keys.size + 8 * self._buffered

    def spill(self, folder: Path) -> None:
        """Move what is in memory to the disk of ``folder``, joined with what went there before.

        Raises:
            WriteError: the disk is full.
        """
        self._compact()
        if self._keys.size:
            self._runs = self._runs or SortedRuns(folder)
            self._runs.add(self._keys, self._counts)
            self._keys = self._counts = np.zeros(0, np.int64)

    def chunks(self) -> Iterator[Counts]:
        """Keys with counts, of which a key may have several, not all of them in memory."""
        self._compact()
        if self._runs is not None:
            yield from self._runs.chunks()
        yield self._keys, self._counts

    def stored(self, folder: Path | None) -> tuple[NDArray[np.int64] | Parts, ...]:
        """`keys` and `counts` to be written; after a `spill`, a part at a time."""
        if self._runs is None or folder is None:
            return self._whole()
        self.spill(folder)
        runs = self._runs

        def column(index: int) -> Iterator[NDArray[np.int64]]:
            return (chunk[index] for chunk in runs.chunks())

        whole = np.dtype(np.int64), (runs.settle(),)
        return Parts(*whole, lambda: column(0)), Parts(*whole, lambda: column(1))

    def _whole(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        self._compact()
        if self._runs is None:
            return self._keys, self._counts
        return join(*self.chunks())

    def _compact(self) -> None:
        if not self._buffer:
            return
        keys, counts = np.unique(np.concatenate(self._buffer), return_counts=True)
        self._buffer, self._buffered = [], 0
        self._join(keys, counts.astype(np.int64))

    def _join(self, keys: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
        if self._keys.size == 0:
            self._keys, self._counts = keys, counts
            return
        self._keys, self._counts = join((self._keys, self._counts), (keys, counts))
