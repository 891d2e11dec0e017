"""A document's half is decided by its id."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from moescope.corpus import in_split

IDS = [f"web.jsonl:{i}" for i in range(2000)]


@given(st.text(), st.floats(0.0, 1.0), st.integers())
def test_every_document_is_in_exactly_one_half(doc_id: str, share: float, seed: int) -> None:
    assert in_split(doc_id, "train", share, seed) != in_split(doc_id, "test", share, seed)


def test_no_split_holds_everything() -> None:
    assert all(in_split(doc_id, None) for doc_id in IDS)


def test_the_share_of_test_comes_out() -> None:
    # binomial with n = 2000, p = 0.2: 400 ± 18 (one standard deviation); 4 of them are 72
    assert abs(sum(in_split(doc_id, "test") for doc_id in IDS) - 400) < 72


def test_the_bounds_of_the_share_hold_none_and_all() -> None:
    assert not any(in_split(doc_id, "test", 0.0) for doc_id in IDS)
    assert all(in_split(doc_id, "test", 1.0) for doc_id in IDS)


def test_a_larger_share_keeps_what_a_smaller_one_held() -> None:
    small = {doc_id for doc_id in IDS if in_split(doc_id, "test", 0.1)}
    assert small < {doc_id for doc_id in IDS if in_split(doc_id, "test", 0.3)}


def test_another_seed_splits_otherwise() -> None:
    assert [in_split(i, "test", seed=0) for i in IDS] != [in_split(i, "test", seed=1) for i in IDS]


def test_the_split_is_the_same_on_every_machine_and_in_every_version() -> None:
    assert [i for i in range(20) if in_split(f"doc-{i}", "test")] == [12, 18]
