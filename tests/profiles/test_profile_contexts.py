"""Contexts of highest contribution: the text around a token, and no repeats."""

import numpy as np
from tests.support.saved import tiny_tokenizer

from moescope.measure.windows import TextWindow
from moescope.profiles.contexts import AROUND, CONTEXT_ROWS, MAX_PER_DOCUMENT, WindowTexts


def window(text: str, doc: str = "a", bos: bool = True) -> TextWindow:
    ids = np.asarray(tiny_tokenizer()(text)["input_ids"], np.int32)
    counted = np.ones(len(ids), np.bool_)
    counted[0] = False
    return TextWindow(doc, "d", 0, 0, ids if bos else ids[1:], counted if bos else counted[1:])


def pick(windows: list[TextWindow], places: list[int]) -> list:
    size = len(places)
    falling = np.linspace(9, 1, size).astype(np.float32)
    texts = WindowTexts(windows, tiny_tokenizer())
    return texts.pick(np.asarray(places), falling, np.full(size, 0.5, np.float32))


def test_text_before_of_and_after_join_to_the_text_without_the_start_token() -> None:
    text = "the old river boils for tea"
    one = window(text)
    for place in range(1, len(one.token_ids)):
        (found,) = pick([one], [place])
        assert found.before + found.token + found.after == text
        assert "<s>" not in found.before
        assert found.token_id == one.token_ids[place]
        assert found.pos == place


def test_at_most_so_many_tokens_are_shown_on_each_side() -> None:
    one = window(" ".join(["tea"] * 60))
    (found,) = pick([one], [30])
    assert found.before.split() == ["tea"] * AROUND
    assert found.after.split() == ["tea"] * AROUND


def raw(ids: list[int], doc: str) -> TextWindow:
    counted = np.arange(len(ids)) > 0
    return TextWindow(doc, "d", 0, 0, np.asarray(ids, np.int32), counted)


def test_the_same_token_between_the_same_neighbours_is_taken_once() -> None:
    windows = [raw([1, 10, 20, 30], "a"), raw([1, 10, 20, 30], "b"), raw([1, 11, 20, 30], "c")]
    assert [c.doc for c in pick(windows, [2, 6, 10])] == ["a", "c"]  # id 20 in each of them
    ends = [raw([1, 20], "a"), raw([1, 20, 5], "b"), raw([1, 20], "c")]
    assert [c.doc for c in pick(ends, [1, 3, 6])] == ["a", "b"]  # the end is a neighbour too


def test_a_document_appears_at_most_twice() -> None:
    one, two = window("the plan covers support for daily living", "one"), window("tea", "two")
    places = [2, 4, 6, 8, 10, len(one.token_ids) + 1]
    found = pick([one, two], places)
    assert [c.doc for c in found].count("one") == MAX_PER_DOCUMENT
    assert found[-1].doc == "two"
    assert [c.contribution for c in found] == sorted((c.contribution for c in found), reverse=True)


def test_a_list_ends() -> None:
    windows = [window(f"value list sum loop {'x' * n}", f"doc{n}") for n in range(40)]
    starts = np.cumsum([0, *(len(w.token_ids) for w in windows)])[:-1]
    places = [int(s + len(w.token_ids) - 1) for s, w in zip(starts, windows, strict=True)]
    assert len(pick(windows, places)) <= CONTEXT_ROWS
