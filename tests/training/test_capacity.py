"""The queue equals a plain loop, never overfills an expert, and never looks ahead."""

from __future__ import annotations

import doctest
import math
from inspect import unwrap
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moescope.errors import BadInputError
from moescope.training import capacity as module
from moescope.training.capacity import (
    Assignment,
    Choice,
    Overflow,
    assign,
    dropped_share_by_position,
    expert_capacity,
    explain,
)


class Case(NamedTuple):
    ids: Tensor
    scores: Tensor
    capacity: int
    num_experts: int
    groups: int


def plain_assign(case: Case, overflow: str) -> Assignment:
    """The rule as a person would carry it out, one choice at a time."""
    tokens, top_k = case.ids.shape
    final = torch.full((tokens, top_k), case.num_experts)
    place = torch.full((tokens, top_k), -1)
    dropped = torch.zeros(tokens, top_k, dtype=torch.bool)
    rerouted = torch.zeros(tokens, top_k, dtype=torch.bool)
    for t in range(tokens):
        if t % (tokens // case.groups) == 0:
            queue = [0] * case.num_experts
        for k in range(top_k):
            wanted = int(case.ids[t, k])
            if wanted == case.num_experts:
                continue
            expert: int | None = wanted
            if queue[wanted] == case.capacity:
                expert = None
                if overflow == "reroute":
                    held = set(final[t, :k].tolist())
                    still_wanted = set(case.ids[t, k + 1 :].tolist())
                    free = [
                        e
                        for e in range(case.num_experts)
                        if queue[e] < case.capacity and e not in held | still_wanted
                    ]
                    expert = max(free, key=lambda e: (case.scores[t, e], -e), default=None)
            if expert is None:
                dropped[t, k] = True
                continue
            final[t, k], place[t, k] = expert, queue[expert]
            rerouted[t, k] = expert != wanted
            queue[expert] += 1
    return Assignment(final, dropped, rerouted, place)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    num_experts = draw(st.integers(1, 7))
    top_k = draw(st.integers(1, num_experts))
    groups, length = draw(st.integers(1, 3)), draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    popular = draw(st.floats(0, 3)) * rng.normal(size=num_experts)
    scores = rng.normal(size=(groups * length, num_experts)) + popular
    if draw(st.booleans()):
        scores = scores.round()  # ties
    ids = np.argsort(-scores, axis=1, kind="stable")[:, :top_k].copy()
    ids[rng.random(ids.shape) < draw(st.sampled_from([0.0, 0.2]))] = num_experts
    capacity = draw(st.integers(1, length * top_k))
    return Case(torch.from_numpy(ids), torch.from_numpy(scores), capacity, num_experts, groups)


def run(case: Case, overflow: Overflow) -> Assignment:
    return assign(
        case.ids,
        case.scores,
        case.capacity,
        num_experts=case.num_experts,
        overflow=overflow,
        groups=case.groups,
    )


both = pytest.mark.parametrize("overflow", ["drop", "reroute"])


def test_the_examples_in_the_docstrings_hold() -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


# --- how large a capacity is


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((64, 8, 2, 1.25), 20),  # 64·1.25·2/8 = 20
        ((64, 8, 2, 1.0), 16),  # even routing fits exactly: 64·2/8
        ((100, 8, 1, 1.25), 15),  # 15.625, cut
        ((100, 1, 1, 1.15), 100),  # 115, but no more than the 100 tokens there are
        ((100, 2, 2, 1.15), 100),
        ((200, 2, 1, 1.15), 115),  # 200·1.15/2 = 115, which binary floats make 114.99…
        ((16, 64, 2, 1.25), 4),  # 0.625, but at least 4
        ((2, 8, 2, 2.0), 4),  # the floor holds even above the number of tokens
        ((0, 8, 2, 1.0), 4),
        ((16, 64, 2, 1.25, 1), 1),
    ],
)
def test_capacity_follows_the_formula(arguments: tuple, expected: int) -> None:
    assert expert_capacity(*arguments) == expected


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((64, 8, 2, 0.0), "capacity factor: got 0.0, expected a number above 0"),
        ((64, 8, 2, -1.0), "capacity factor"),
        ((64, 8, 2, math.nan), "capacity factor: got nan"),
        ((64, 8, 2, math.inf), "capacity factor: got inf"),
        ((64, 8, 9, 1.0), "top_k: got 9, expected 1 to 8"),
        ((64, 8, 0, 1.0), "top_k: got 0"),
        ((-1, 8, 2, 1.0), "num_tokens: got -1"),
        ((3, 8, 1, 1.0, 0), "capacity: got 0, expected at least 1"),  # ⌊3/8⌋ = 0
    ],
)
def test_an_impossible_capacity_is_refused(arguments: tuple, said: str) -> None:
    with pytest.raises(BadInputError, match=said):
        expert_capacity(*arguments)


# --- the queue


@both
@settings(max_examples=150, deadline=None)
@given(case=cases())
def test_assign_equals_the_plain_loop(overflow: Overflow, case: Case) -> None:
    for made, expected in zip(run(case, overflow), plain_assign(case, overflow), strict=True):
        assert made.dtype == expected.dtype
        assert made.tolist() == expected.tolist()


@both
@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_no_expert_gets_more_than_its_capacity_in_any_group(overflow: Overflow, case: Case) -> None:
    made = run(case, overflow)
    ids, places = (x.view(case.groups, -1) for x in (made.topk_ids_TK, made.positions_TK))
    for group in range(case.groups):
        for expert in range(case.num_experts):
            seats = places[group][ids[group] == expert]
            assert seats.tolist() == list(range(len(seats)))  # a queue without gaps
            assert len(seats) <= case.capacity


@both
@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_every_choice_is_kept_or_rerouted_or_dropped(overflow: Overflow, case: Case) -> None:
    made = run(case, overflow)
    empty = case.ids == case.num_experts
    kept = (made.topk_ids_TK == case.ids) & ~empty
    fates = torch.stack([empty, kept, made.dropped_TK, made.rerouted_TK]).sum(0)
    assert (fates == 1).all()
    assert ((made.positions_TK == -1) == (made.topk_ids_TK == case.num_experts)).all()
    for row in made.topk_ids_TK.tolist():
        held = [e for e in row if e != case.num_experts]
        assert len(held) == len(set(held))


@both
@settings(max_examples=60, deadline=None)
@given(case=cases(), data=st.data())
def test_what_a_token_gets_does_not_depend_on_later_tokens(
    overflow: Overflow, case: Case, data: st.DataObject
) -> None:
    one = case._replace(groups=1)
    known = data.draw(st.integers(0, len(case.ids)))
    seed = data.draw(st.integers(0, 1000))
    later = torch.rand(case.scores.shape, generator=torch.Generator().manual_seed(seed)).double()
    scores = torch.where(torch.arange(len(later))[:, None] < known, case.scores, later)
    ids = torch.where(
        torch.arange(len(later))[:, None] < known,
        case.ids,
        later.topk(case.ids.shape[1], dim=-1).indices,
    )
    before, after = run(one, overflow), run(one._replace(ids=ids, scores=scores), overflow)
    for was, is_now in zip(before, after, strict=True):
        assert torch.equal(was[:known], is_now[:known])


@both
@settings(max_examples=40, deadline=None)
@given(case=cases())
def test_groups_do_not_touch_each_other(overflow: Overflow, case: Case) -> None:
    together, length = run(case, overflow), len(case.ids) // case.groups
    for start in range(0, len(case.ids), length):
        part = slice(start, start + length)
        alone = run(Case(case.ids[part], case.scores[part], *case[2:4], groups=1), overflow)
        for whole, piece in zip(together, alone, strict=True):
            assert torch.equal(whole[part], piece)


@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_rerouting_drops_only_when_no_expert_is_left_for_the_token(case: Case) -> None:
    made = run(case._replace(groups=1), "reroute")
    full = torch.bincount(made.topk_ids_TK.flatten(), minlength=case.num_experts + 1)
    for token in made.dropped_TK.any(-1).nonzero().flatten().tolist():
        held = set(made.topk_ids_TK[token].tolist())
        others = set(range(case.num_experts)) - held
        assert all(int(full[e]) == case.capacity for e in others)


@both
def test_room_for_everyone_changes_nothing(overflow: Overflow) -> None:
    scores = torch.rand(30, 6, generator=torch.Generator().manual_seed(0))
    ids = scores.topk(2, -1).indices
    made = assign(ids, scores, 30, num_experts=6, overflow=overflow)
    assert torch.equal(made.topk_ids_TK, ids)
    assert not made.dropped_TK.any()
    assert not made.rerouted_TK.any()


def test_even_routing_fits_a_factor_of_one_and_collapsed_routing_loses_all_but_the_capacity() -> (
    None
):
    size = expert_capacity(32, 4, 2, 1.0)  # 32·2/4 = 16
    even = torch.stack([torch.arange(32) % 4, (torch.arange(32) + 1) % 4], -1)
    scores = torch.zeros(32, 4)
    assert not assign(even, scores, size, num_experts=4).dropped_TK.any()
    collapsed = torch.tensor([[0, 1]]).repeat(32, 1)
    made = assign(collapsed, scores, size, num_experts=4)
    assert made.dropped_TK.sum(0).tolist() == [16, 16]
    assert made.dropped_TK[:16].sum() == 0  # the first tokens are served, the last are not
    rerouted = assign(collapsed, scores, size, num_experts=4, overflow="reroute")
    assert not rerouted.dropped_TK.any()
    assert rerouted.topk_ids_TK[16:].tolist() == [[2, 3]] * 16


def test_rerouting_by_hand() -> None:
    # capacity 1, E = 4, K = 2. Scores of every token: E0 4, E1 3, E2 2, E3 1.
    # token 0 wants 0 1: both free.                              queues 1 1 0 0
    # token 1 wants 0 2: E0 full; next by score E1 full, E2 is its own second choice, so E3.
    #                    Then its second choice, E2: free.       queues 1 1 1 1
    # token 2 wants 3 1: everything full, both dropped.
    ids = torch.tensor([[0, 1], [0, 2], [3, 1]])
    scores = torch.tensor([[4.0, 3, 2, 1]] * 3)
    made = assign(ids, scores, 1, num_experts=4, overflow="reroute")
    assert made.topk_ids_TK.tolist() == [[0, 1], [3, 2], [4, 4]]
    assert made.rerouted_TK.tolist() == [[False, False], [True, False], [False, False]]
    assert made.dropped_TK.tolist() == [[False, False], [False, False], [True, True]]
    assert made.positions_TK.tolist() == [[0, 0], [0, 0], [-1, -1]]


def test_two_overflows_of_one_token_go_to_two_experts() -> None:
    # token 1 finds both its experts full: the first goes to E2 (score 2), the second to E3
    ids, scores = torch.tensor([[0, 1], [0, 1]]), torch.tensor([[4.0, 3, 2, 1]] * 2)
    made = assign(ids, scores, 1, num_experts=4, overflow="reroute")
    assert made.topk_ids_TK.tolist() == [[0, 1], [2, 3]]


def test_a_token_is_seated_with_all_its_choices_before_the_next_one() -> None:
    # In GShard's order token 1's first choice (E1) would come before token 0's second (E1).
    ids, scores = torch.tensor([[0, 1], [1, 2]]), torch.zeros(2, 3)
    made = assign(ids, scores, 1, num_experts=3)
    assert made.topk_ids_TK.tolist() == [[0, 1], [3, 2]]
    assert made.positions_TK.tolist() == [[0, 0], [-1, 0]]


@both
def test_empty_slots_stay_empty_and_take_no_place(overflow: Overflow) -> None:
    ids, scores = torch.tensor([[3, 0], [3, 3], [0, 3]]), torch.zeros(3, 3)
    made = assign(ids, scores, 2, num_experts=3, overflow=overflow)
    assert torch.equal(made.topk_ids_TK, ids)
    assert not made.dropped_TK.any()
    assert made.positions_TK.tolist() == [[-1, 0], [-1, -1], [1, -1]]


@both
def test_no_tokens_at_all_are_no_trouble(overflow: Overflow) -> None:
    none = torch.zeros(0, 2, dtype=torch.int64)
    made = assign(none, torch.zeros(0, 4), 1, num_experts=4, overflow=overflow)
    assert made.topk_ids_TK.shape == made.dropped_TK.shape == (0, 2)


@both
def test_the_choices_that_were_given_are_left_as_they_are(overflow: Overflow) -> None:
    ids, scores = torch.zeros(9, 1, dtype=torch.int64), torch.zeros(9, 3, requires_grad=True)
    made = assign(ids, scores, 2, num_experts=3, overflow=overflow)
    assert made.dropped_TK.any()
    assert (ids == 0).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"capacity": 0}, "capacity: got 0, expected at least 1"),
        ({"overflow": "queue"}, "overflow: got 'queue', expected one of drop, reroute"),
        ({"groups": 2}, "groups: got 2, expected a divisor of 3"),
        ({"groups": 0}, "groups: got 0"),
        ({"num_experts": 3}, r"selection_scores: got shape \(3, 4\), expected \(3, 3\)"),
        ({"topk_ids_TK": torch.tensor([[0], [5], [1]])}, "got ids 0 to 5, expected 0 to 3, or 4"),
        ({"topk_ids_TK": torch.tensor([[0], [-1], [1]])}, "got ids -1 to 1"),
    ],
)
def test_impossible_arguments_are_refused_with_what_was_expected(change: dict, said: str) -> None:
    given = {
        "topk_ids_TK": torch.zeros(3, 1, dtype=torch.int64),
        "selection_scores_TE": torch.zeros(3, 4),
        "capacity": 1,
        "num_experts": 4,
    }
    with pytest.raises(BadInputError, match=said):
        unwrap(assign)(**(given | change))  # without the shape checks that tests may turn on


# --- where drops fall


def test_shares_of_dropped_by_position_by_hand() -> None:
    # two sequences of 4, K = 2; positions 0 1 | 2 3 in two bins of 2·2·2 = 8 slots each
    dropped = torch.zeros(8, 2, dtype=torch.bool)
    dropped[3] = True  # sequence 0, position 3: 2 slots
    dropped[6, 1] = True  # sequence 1, position 2: 1 slot
    dropped[5, 0] = True  # sequence 1, position 1: 1 slot
    assert dropped_share_by_position(dropped, 4, 2).tolist() == [1 / 8, 3 / 8]
    assert dropped_share_by_position(dropped, 4, 4).tolist() == [0, 1 / 4, 1 / 4, 2 / 4]
    assert dropped_share_by_position(dropped, 4, 1).tolist() == [4 / 16]


def test_bins_that_do_not_divide_the_sequence_are_uneven_and_complete() -> None:
    # ⌊s·2/5⌋ over s = 0 … 4 is 0 0 0 1 1
    dropped = torch.tensor([[False], [False], [True], [True], [False]])
    assert dropped_share_by_position(dropped, 5, 2).tolist() == pytest.approx([1 / 3, 1 / 2])


def test_drops_fall_at_the_end_of_the_sequence() -> None:
    scores = torch.rand(8 * 64, 4, generator=torch.Generator().manual_seed(0))
    size = expert_capacity(64, 4, 1, 0.75)
    made = assign(scores.topk(1, -1).indices, scores, size, num_experts=4, groups=8)
    shares = dropped_share_by_position(made.dropped_TK, 64, 4)
    assert shares[0] == 0
    assert (np.diff(shares) >= 0).all()
    assert shares[3] > 0.4


def test_positions_without_tokens_are_unknown() -> None:
    none = torch.zeros(0, 2, dtype=torch.bool)
    assert np.isnan(dropped_share_by_position(none, 4, 2)).all()


@pytest.mark.parametrize(("length", "bins"), [(3, 1), (0, 1), (4, 5), (4, 0)])
def test_impossible_bins_are_refused(length: int, bins: int) -> None:
    with pytest.raises(BadInputError, match="expected"):
        dropped_share_by_position(torch.zeros(8, 2, dtype=torch.bool), length, bins)


# --- told token by token

TEXTBOOK = torch.tensor([[2], [2], [2], [2], [2]])
TEXTBOOK_SCORES = torch.tensor([[0.0, 1.0, 9.0, 5.0]] * 5)


def test_the_textbook_case_with_rerouting() -> None:
    words = ["the", "cat", "sat", "down", "there"]
    rows = explain(TEXTBOOK, TEXTBOOK_SCORES, 3, words, 4, "reroute")
    assert [row.text for row in rows] == words
    assert [row.note for row in rows[:3]] == [""] * 3
    assert rows[3] == Choice(3, "down", (2,), (3,), "E2 full (3 of 3) → E3")


def test_the_textbook_case_with_dropping() -> None:
    rows = explain(TEXTBOOK, TEXTBOOK_SCORES, 3, list("abcde"), 4, "drop")
    assert rows[0] == Choice(0, "a", (2,), (2,), "")
    note = "E2 full (3 of 3), dropped: passes on through the residual"
    assert rows[4] == Choice(4, "e", (2,), (None,), note)


def test_a_token_that_keeps_one_of_its_experts_does_not_pass_on_through_the_residual_alone() -> (
    None
):
    ids, scores = torch.tensor([[0, 1], [0, 2], [0, 1]]), torch.zeros(3, 3)
    rows = explain(ids, scores, 1, ["a", "b", "c"], 3)
    assert rows[1].got == (None, 2)
    assert rows[1].note == "E0 full (1 of 1), dropped"
    assert rows[2].note == (
        "E0 full (1 of 1), dropped; E1 full (1 of 1), dropped: passes on through the residual"
    )


def test_when_no_expert_has_room_the_note_says_so() -> None:
    ids, scores = torch.tensor([[0], [0], [0]]), torch.tensor([[1.0, 0.0]] * 3)
    last = explain(ids, scores, 1, ["a", "b", "c"], 2, "reroute")[-1]
    assert last.note == (
        "E0 full (1 of 1), no other has room for it, dropped: passes on through the residual"
    )


def test_empty_slots_are_not_told() -> None:
    row = explain(torch.tensor([[2, 0]]), torch.zeros(1, 2), 1, ["a"], 2)[0]
    assert row == Choice(0, "a", (0,), (0,), "")


def test_texts_must_be_as_many_as_tokens() -> None:
    with pytest.raises(BadInputError, match="got 1 text, expected 5"):
        explain(TEXTBOOK, TEXTBOOK_SCORES, 3, ["a"], 4)
