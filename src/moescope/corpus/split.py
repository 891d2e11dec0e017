"""Which half and which shard of a corpus a document belongs to, decided by its id alone.

A document is in "test" or in "train" by a hash of the seed and its id, so the answer never
depends on the order of the documents, on how many there are, or on the machine; adding documents
to a corpus moves none of the old ones. Ids that share a prefix are hashed like any others: parts
of one file may fall on both sides. Shards are cut in the same way by a hash of their own, so that
every shard holds both halves. This module knows nothing of files or tokenizers.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import Literal, NamedTuple

from moescope.errors import BadInputError

Split = Literal["train", "test"]

_SHARD = re.compile(r"\s*([0-9]{1,9})\s*/\s*([0-9]{1,9})\s*")
_PERSON = b"moescope-shard"
"""Makes the hash of shards independent of the hash of splits."""


class Shard(NamedTuple):
    """One of ``total`` parts of a corpus; the first has ``number`` 1."""

    number: int
    total: int

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"


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


def parse_shard(text: str) -> Shard:
    """Read ``i/n``.

    Raises:
        BadInputError: another form, or an i outside 1 … n.

    Example:
        >>> parse_shard("3/16")
        Shard(number=3, total=16)
    """
    match = _SHARD.fullmatch(text)
    shard = Shard(int(match[1]), int(match[2])) if match else Shard(0, 0)
    if not 1 <= shard.number <= shard.total:
        raise BadInputError(
            f"shard {text!r} is not i/n with i from 1 to n; the shards of 16 are 1/16 to 16/16"
        )
    return shard


def in_shard(doc_id: str, shard: Shard | None) -> bool:
    """Say whether a document belongs to a shard.

    The id's hash, read as a number in [0, 1), falls into one of n equal intervals. So every
    document is in exactly one of n shards, and shard i of n holds what shards 2i − 1 and 2i of 2n
    hold. How many documents a shard gets is binomial: of 10,000 documents in 16 shards expect
    625 ± 24.

    Args:
        doc_id: the id of the document.
        shard: which part; None holds every document.

    Example:
        >>> [in_shard("doc-1", Shard(i, 3)) for i in (1, 2, 3)]
        [False, True, False]
    """
    if shard is None:
        return True
    key = doc_id.encode("utf-8", "surrogatepass")
    place = int.from_bytes(blake2b(key, digest_size=8, person=_PERSON).digest(), "big")
    return (place * shard.total) >> 64 == shard.number - 1
