"""Which ids were seen already, in eight bytes each."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import numpy.typing as npt


class SeenIds:
    """A set of ids that keeps a 64-bit hash of each.

    New hashes gather in a small set; full sets become sorted arrays, and arrays of like size are
    merged, so that there are never more than a few to look through. Two different ids share a
    hash once in 2**64 pairs: the caller compares the ids themselves before it complains.
    """

    def __init__(self, buffer_size: int = 1 << 15) -> None:
        self._buffer_size = buffer_size
        self._recent: set[int] = set()
        self._sorted: list[npt.NDArray[np.uint64]] = []

    def add(self, doc_id: str) -> bool:
        """Add an id.

        Returns:
            False when it, or an id of the same hash, was there before.
        """
        digest = blake2b(doc_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        value = int.from_bytes(digest, "big")
        if value in self._recent or any(_holds(array, value) for array in self._sorted):
            return False
        self._recent.add(value)
        if len(self._recent) >= self._buffer_size:
            self._settle()
        return True

    def _settle(self) -> None:
        array = np.fromiter(self._recent, dtype=np.uint64, count=len(self._recent))
        array.sort()
        self._recent = set()
        while self._sorted and len(self._sorted[-1]) <= 2 * len(array):
            array = np.concatenate([self._sorted.pop(), array])
            array.sort(kind="stable")
        self._sorted.append(array)


def _holds(array: npt.NDArray[np.uint64], value: int) -> bool:
    key = np.uint64(value)
    index = int(np.searchsorted(array, key))
    return index < len(array) and bool(array[index] == key)
