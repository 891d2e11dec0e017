"""A document's half and its shard are decided by its id."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moescope.corpus import Shard, in_shard, in_split, parse_shard
from moescope.errors import BadInputError

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


@given(st.text(), st.integers(1, 50))
def test_every_document_is_in_exactly_one_shard(doc_id: str, total: int) -> None:
    assert sum(in_shard(doc_id, Shard(n, total)) for n in range(1, total + 1)) == 1


@given(st.text(), st.integers(1, 10**6), st.data())
def test_a_shard_holds_what_its_two_halves_hold(
    doc_id: str, total: int, data: st.DataObject
) -> None:
    number = data.draw(st.integers(1, total))
    halves = (Shard(2 * number - 1, 2 * total), Shard(2 * number, 2 * total))
    assert in_shard(doc_id, Shard(number, total)) == any(in_shard(doc_id, h) for h in halves)


def test_shards_are_about_equal() -> None:
    # binomial with n = 2000, p = 1/8: 250 ± 15 (one standard deviation); 4 of them are 60
    sizes = [sum(in_shard(doc_id, Shard(n, 8)) for doc_id in IDS) for n in range(1, 9)]
    assert sum(sizes) == 2000
    assert max(abs(size - 250) for size in sizes) < 60


def test_every_shard_holds_both_halves_of_a_split_in_their_shares() -> None:
    # 2000 / 4 = 500 documents of a shard, a fifth of them in "test": 100 ± 9; 4 of them are 36
    for n in range(1, 5):
        mine = [doc_id for doc_id in IDS if in_shard(doc_id, Shard(n, 4))]
        expected = len(mine) / 5
        assert abs(sum(in_split(doc_id, "test") for doc_id in mine) - expected) < 36


def test_no_shard_holds_everything() -> None:
    assert all(in_shard(doc_id, None) for doc_id in IDS)


def test_the_shards_are_the_same_on_every_machine_and_in_every_version() -> None:
    assert [i for i in range(20) if in_shard(f"doc-{i}", Shard(2, 5))] == [11, 19]


@pytest.mark.parametrize("text", ["3/16", " 03 / 016 "])
def test_a_shard_is_read_as_people_write_it(text: str) -> None:
    assert parse_shard(text) == Shard(3, 16)
    assert str(parse_shard(text)) == "3/16"


@pytest.mark.parametrize("text", ["", "3", "0/4", "5/4", "1/0", "-1/4", "1/4/2", "a/b", "1.5/4"])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(BadInputError, match=r"is not i/n .* 1/16 to 16/16"):
        parse_shard(text)
