"""Scores and rules, by hand."""

import numpy as np
import pytest

from moescope.adapt.scores import SCORES, Rule, Sums, scored
from moescope.errors import BadInputError

SIZES = [3, 2]
# two layers of 3 and 2 experts, 10 tokens inside and 20 outside, one choice each
INSIDE = Sums(np.array([5.0, 4, 1, 8, 2]), np.array([2.0, 1, 1, 6, 2]), np.array([10.0]))
OUTSIDE = Sums(np.array([4.0, 4, 12, 16, 4]), np.zeros(5), np.array([20.0]))
NOISE = np.array([0.1, 0.3, 0.6, 0.5, 0.5])


def by(score: str) -> tuple[list[float], list[float]]:
    value, share = scored(score, INSIDE, OUTSIDE, SIZES, NOISE)
    return value.tolist(), share.tolist()


def test_token_is_the_share_of_the_assignments() -> None:
    value, share = by("token")
    assert value == share == pytest.approx([0.5, 0.4, 0.1, 0.8, 0.2])


def test_gate_is_the_share_of_the_gate_mass() -> None:
    value, share = by("gate")
    assert value == share == pytest.approx([0.5, 0.25, 0.25, 0.75, 0.25])


def test_the_difference_of_rates_counts_where_it_is_above_zero() -> None:
    value, share = by("risk-difference")
    # 5/10 − 4/20, 4/10 − 4/20, 1/10 − 12/20; 8/10 − 16/20, 2/10 − 4/20
    assert value == pytest.approx([0.3, 0.2, -0.5, 0.0, 0.0])
    assert share == pytest.approx([0.6, 0.4, 0, 0, 0])


def test_lift_is_a_quotient_with_halves_and_its_share_is_of_the_logarithm() -> None:
    value, share = by("lift")
    first, second = (5.5 / 11) / (4.5 / 21), (4.5 / 11) / (4.5 / 21)
    assert value[:2] == pytest.approx([first, second])
    whole = np.log2(first) + np.log2(second)
    assert share[:3] == pytest.approx([np.log2(first) / whole, np.log2(second) / whole, 0])


def test_least_ranks_the_least_used_first_and_random_by_its_numbers() -> None:
    value, share = by("least")
    assert value == pytest.approx([-0.5, -0.4, -0.1, -0.8, -0.2])
    assert share == pytest.approx([0, 0.2, 0.8, 0, 1])
    assert by("random")[0] == pytest.approx(NOISE)


@pytest.mark.parametrize("score", SCORES)
def test_a_new_order_of_experts_is_a_new_order_of_scores(score: str) -> None:
    order = [2, 0, 1, 4, 3]
    moved = [Sums(s.counts[order], s.mass[order], s.tokens) for s in (INSIDE, OUTSIDE)]
    made = scored(score, *moved, SIZES, NOISE[order])
    for mine, theirs in zip(scored(score, INSIDE, OUTSIDE, SIZES, NOISE), made, strict=True):
        assert theirs == pytest.approx(mine[order])


@pytest.mark.parametrize("score", SCORES)
def test_many_resamples_are_scored_as_each_alone(score: str) -> None:
    both = [Sums(*(np.stack([v, 2 * v + 1]) for v in s)) for s in (INSIDE, OUTSIDE)]
    made = scored(score, *both, SIZES, NOISE)
    second = [Sums(*(2 * v + 1 for v in s)) for s in (INSIDE, OUTSIDE)]
    for stacked, alone in zip(made, scored(score, *second, SIZES, NOISE), strict=True):
        assert stacked[1] == pytest.approx(alone)


def test_who_has_no_share_is_not_chosen_whatever_the_rule() -> None:
    share = np.array([0.6, 0.4, 0, 0, 0])
    for rule in (Rule(per_layer=2), Rule(budget=0.9), Rule(top_p=0.99)):
        assert rule.choose(share, SIZES).nonzero()[0].tolist() == [0, 1]


def test_a_rule_says_what_it_cannot_do() -> None:
    for rule, said in (
        (Rule(), "none was given"),
        (Rule(per_layer=1, top_p=0.5), "got `per_layer`, `top_p`"),
        (Rule(per_layer=2), "give 1 to 1"),
        (Rule(budget=0.1), "of 5 experts is none; one is 20%"),
    ):
        with pytest.raises(BadInputError, match=said):
            rule.require("token", SIZES)
    with pytest.raises(BadInputError, match="did you mean token"):
        Rule(per_layer=1).require("tokens", SIZES)
