"""Ids are known again, whatever array their hash has settled in."""

from __future__ import annotations

from moescope.corpus.seen import SeenIds


def test_each_id_is_new_once() -> None:
    seen = SeenIds(buffer_size=8)
    assert all(seen.add(f"doc-{i}") for i in range(1000))
    assert not any(seen.add(f"doc-{i}") for i in range(1000))


def test_there_are_few_arrays_to_look_through() -> None:
    seen = SeenIds(buffer_size=4)
    for i in range(4096):
        seen.add(str(i))
    assert len(seen._sorted) <= 10
    assert sum(len(array) for array in seen._sorted) == 4096
