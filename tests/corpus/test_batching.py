"""Every window is in exactly one batch, inside the budget, with little padding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moescope.corpus import Sequence, TokenizedDocument, iter_pools, make_batches
from moescope.errors import BadInputError


def of_lengths(*lengths: int, doc_index: int = 0) -> TokenizedDocument:
    sequences = [
        Sequence(
            doc_index, window, 0, np.arange(1, length + 1, dtype=np.int32), np.arange(length) > 0
        )
        for window, length in enumerate(lengths)
    ]
    counted = sum(max(length - 1, 0) for length in lengths)
    return TokenizedDocument(
        doc_index, str(doc_index), "web", counted, sum(lengths) - counted, sequences
    )


POOLS = st.lists(st.lists(st.integers(1, 40), max_size=6), max_size=12).map(
    lambda pool: [of_lengths(*lengths, doc_index=i) for i, lengths in enumerate(pool)]
)


@given(POOLS, st.integers(1, 200), st.none() | st.integers(1, 5))
def test_batches_hold_each_window_exactly_once_within_the_budget(
    pool: list[TokenizedDocument], budget: int, rows: int | None
) -> None:
    batches = make_batches(pool, budget, rows, pad_id=77)
    places = [(s.doc_index, s.window) for b in batches for s in b.sequences]
    assert sorted(places) == [(s.doc_index, s.window) for d in pool for s in d.sequences]
    for batch in batches:
        size, longest = batch.token_ids.shape
        assert size == len(batch.sequences) <= (rows or size)
        assert size * longest <= budget or size == 1
        assert batch.attention_mask[:, :].any(axis=0).all()
        for row, sequence in enumerate(batch.sequences):
            length = len(sequence.token_ids)
            assert batch.token_ids[row, :length].tolist() == sequence.token_ids.tolist()
            assert (batch.token_ids[row, length:] == 77).all()
            assert batch.attention_mask[row].tolist() == [i < length for i in range(longest)]
            assert batch.counted[row, :length].tolist() == sequence.counted.tolist()
            assert not batch.counted[row, length:].any()


def test_arrays_have_the_promised_types() -> None:
    [batch] = make_batches([of_lengths(3, 2)], 99)
    assert batch.token_ids.dtype == np.int64
    assert batch.attention_mask.dtype == batch.counted.dtype == np.bool_


def test_the_longest_come_first_and_equal_lengths_keep_their_order() -> None:
    batches = make_batches([of_lengths(2, 4), of_lengths(4, 2, 9, doc_index=1)], 8)
    places = [[(s.doc_index, s.window) for s in b.sequences] for b in batches]
    assert places == [[(1, 2)], [(0, 1), (1, 0)], [(0, 0), (1, 1)]]


def test_padding_stays_small_when_a_pool_holds_many_windows() -> None:
    lengths = np.random.default_rng(0).geometric(1 / 200, size=1000).clip(1, 1024)
    batches = make_batches([of_lengths(*map(int, lengths))], 8192)
    padded = sum(b.token_ids.size for b in batches)
    assert 1 - lengths.sum() / padded < 0.07


@given(POOLS, st.integers(1, 100))
def test_pools_are_consecutive_whole_documents_and_close_once_full(
    documents: list[TokenizedDocument], pool_tokens: int
) -> None:
    pools = list(iter_pools(documents, pool_tokens))
    assert [d for pool in pools for d in pool] == documents
    sizes = [[d.num_tokens + d.num_uncounted for d in pool] for pool in pools]
    assert all(sum(size) >= pool_tokens for size in sizes[:-1])
    assert all(sum(size[:-1]) < pool_tokens for size in sizes)


def test_pools_are_made_as_documents_come() -> None:
    taken = []

    def stream() -> list[TokenizedDocument]:
        for i in range(100):
            taken.append(i)
            yield of_lengths(10, doc_index=i)

    next(iter(iter_pools(stream(), 25)))
    assert taken == [0, 1, 2]


def test_limits_below_one_are_refused() -> None:
    with pytest.raises(BadInputError, match="max_batch_tokens must be 1 or more, got 0"):
        make_batches([], 0)
    with pytest.raises(BadInputError, match="max_batch_sequences must be 1 or more, got 0"):
        make_batches([], 8, 0)
    with pytest.raises(BadInputError, match="pool_tokens must be 1 or more, got 0"):
        next(iter_pools([], 0))
