"""Windows in, padded batches out, within a budget of tokens.

A pool is a run of consecutive documents. Inside a pool the windows are sorted by length, so that
rows of one batch are nearly of one length and little is spent on padding; across pools the order
of the corpus is kept, so that a run can stop and resume between two pools. This module knows no
tokenizer and no model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from moescope.corpus.tokenize import Sequence, TokenizedDocument
from moescope.errors import BadInputError


class Batch(NamedTuple):
    """Rows of nearly one length, padded on the right.

    Attributes:
        token_ids: int64, shape (B, S); ``pad_id`` beyond the end of a row.
        attention_mask: bool, shape (B, S); False on padding.
        counted: bool, shape (B, S); False on padding and on tokens that do not count.
        sequences: the windows, one per row.
    """

    token_ids: npt.NDArray[np.int64]
    attention_mask: npt.NDArray[np.bool_]
    counted: npt.NDArray[np.bool_]
    sequences: list[Sequence]


def iter_pools(
    documents: Iterable[TokenizedDocument], pool_tokens: int, most_documents: int | None = None
) -> Iterator[list[TokenizedDocument]]:
    """Group consecutive whole documents until a pool holds ``pool_tokens`` tokens or more.

    Args:
        documents: in the order of the corpus.
        pool_tokens: tokens after which a pool is closed, those that do not count included.
        most_documents: documents of a pool at most; None for no limit.

    Yields:
        Lists of documents, none empty. Documents without any window travel along.

    Raises:
        BadInputError: ``pool_tokens`` is below 1.
    """
    _require_positive("pool_tokens", pool_tokens)
    pool: list[TokenizedDocument] = []
    held = 0
    for document in documents:
        pool.append(document)
        held += document.num_tokens + document.num_uncounted
        if held >= pool_tokens or len(pool) == most_documents:
            yield pool
            pool, held = [], 0
    if pool:
        yield pool


def make_batches(
    pool: Iterable[TokenizedDocument],
    max_batch_tokens: int,
    max_batch_sequences: int | None = None,
    *,
    pad_id: int = 0,
) -> list[Batch]:
    """Sort the windows of a pool by length and fill batches of a token budget.

    The longest come first, so memory peaks in the first batch; equal lengths keep their order.
    Rows × longest row exceeds ``max_batch_tokens`` only for a single window that does by itself.

    Args:
        pool: documents, as ``iter_pools`` yields them.
        max_batch_tokens: the budget, padding included.
        max_batch_sequences: the most rows of a batch; None for no limit.
        pad_id: any id of the vocabulary; padding is masked.

    Returns:
        The batches; every window of the pool is a row of exactly one.

    Raises:
        BadInputError: a limit is below 1.

    Example:
        >>> row = Sequence(0, 0, 0, np.array([5, 6], np.int32), np.array([False, True]))
        >>> [batch] = make_batches([TokenizedDocument(0, "a", "web", 1, 1, [row])], 8)
        >>> batch.token_ids.tolist(), batch.counted.tolist()
        ([[5, 6]], [[False, True]])
    """
    return list(iter_batches(pool, max_batch_tokens, max_batch_sequences, pad_id=pad_id))


def iter_batches(
    pool: Iterable[TokenizedDocument],
    max_batch_tokens: int,
    max_batch_sequences: int | None = None,
    *,
    pad_id: int = 0,
) -> Iterator[Batch]:
    """The batches of `make_batches`, each laid out when it is asked for."""
    _require_positive("max_batch_tokens", max_batch_tokens)
    _require_positive("max_batch_sequences", max_batch_sequences)
    sequences = [s for document in pool for s in document.sequences if len(s.token_ids)]
    sequences.sort(key=lambda s: -len(s.token_ids))
    begin = 0
    while begin < len(sequences):
        rows = max(1, max_batch_tokens // len(sequences[begin].token_ids))
        rows = min(rows, max_batch_sequences or rows)
        yield _pad(sequences[begin : begin + rows], pad_id)
        begin += rows


def _pad(sequences: list[Sequence], pad_id: int) -> Batch:
    """Lay rows of descending length into rectangles."""
    shape = (len(sequences), len(sequences[0].token_ids))
    token_ids = np.full(shape, pad_id, dtype=np.int64)
    attention_mask = np.zeros(shape, dtype=np.bool_)
    counted = np.zeros(shape, dtype=np.bool_)
    for row, sequence in enumerate(sequences):
        length = len(sequence.token_ids)
        token_ids[row, :length] = sequence.token_ids
        attention_mask[row, :length] = True
        counted[row, :length] = sequence.counted
    return Batch(token_ids, attention_mask, counted, sequences)


def _require_positive(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise BadInputError(f"{name} must be 1 or more, got {value}")
