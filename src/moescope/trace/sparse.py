"""Counts over a key space too large to hold densely.

A `SparseCounter` keeps only the keys that occurred, as two sorted arrays. New keys wait in a
buffer and are merged when the buffer has grown as large as the table, so that adding N keys one
batch after another costs O(N log N) and memory follows the number of distinct keys.
It knows nothing of tokens or experts; callers pack their axes into one int64 key.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64
from numpy.typing import NDArray

__all__ = ["SparseCounter"]

_MIN_BUFFER = 1 << 18


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
        self._compact()
        return self._keys

    @property
    def counts(self) -> NDArray[np.int64]:
        """How often each of `keys` occurred, shape (n,)."""
        self._compact()
        return self._counts

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
        both = np.concatenate([self._keys, keys])
        weights = np.concatenate([self._counts, counts])
        order = np.argsort(both, kind="stable")
        both, weights = both[order], weights[order]
        first = np.flatnonzero(np.concatenate([[True], both[1:] != both[:-1]]))
        self._keys = both[first]
        self._counts = np.add.reduceat(weights, first)
