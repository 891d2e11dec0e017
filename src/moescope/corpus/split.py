"""Which half of a corpus a document belongs to, decided by its id alone.

A document is in "test" or in "train" by a hash of the seed and its id, so the answer never
depends on the order of the documents, on how many there are, or on the machine; adding documents
to a corpus moves none of the old ones. Ids that share a prefix are hashed like any others: parts
of one file may fall on both sides. This module knows nothing of files or tokenizers.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Literal

__all__ = ["Split", "in_split"]

Split = Literal["train", "test"]


def in_split(doc_id: str, split: Split | None, test_share: float = 0.2, seed: int = 0) -> bool:
    """Say whether a document belongs to a split.

    ``test`` holds a document when blake2b(seed, id), read as a number in [0, 1), is below
    ``test_share``; ``train`` holds the others. The share that comes out is binomial around
    ``test_share``: with 100 documents and a share of 0.2, expect 20 ± 4.

    Args:
        doc_id: the id of the document.
        split: "train", "test", or None for everything.
        test_share: the share of documents in "test", in [0, 1].
        seed: another seed gives another, independent split.

    Returns:
        True when the document belongs to the split. None holds every document.

    Example:
        >>> [in_split("doc-1", "train"), in_split("doc-1", "test")]
        [True, False]
        >>> in_split("doc-1", None)
        True
    """
    if split is None:
        return True
    key = f"{seed}\0{doc_id}".encode("utf-8", "surrogatepass")
    position = int.from_bytes(blake2b(key, digest_size=8).digest(), "big") / 2**64
    return (position < test_share) == (split == "test")
