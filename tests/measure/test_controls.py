"""Controls are different plans of the same size and like load, and their chance level is honest."""

import itertools

import numpy as np
import pytest
from scipy.stats import binom

from moescope.axes import ExpertRef
from moescope.errors import BadInputError
from moescope.measure.controls import CALIPER, draw_controls, exceed_chance


def refs(layer: int, *experts: int) -> tuple[ExpertRef, ...]:
    return tuple(ExpertRef(layer, e) for e in experts)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


COUNTS = {0: np.array([100, 10, 95, 90, 400, 105, 20, 30])}


def test_a_plan_without_experts_has_no_controls() -> None:
    with pytest.raises(BadInputError, match=r"^the plan names no expert"):
        draw_controls([], COUNTS, 3, rng())


class TestWhichAreDrawn:
    def test_the_matched_ones_of_all_that_there_are(self) -> None:
        """By hand: 100 against 95, 90 and 105 is within 1.25; 400, 10, 20 and 30 are not."""
        made = draw_controls(refs(0, 0), COUNTS, 3, rng())
        assert {plan[0].expert for plan in made.plans} == {2, 3, 5}
        assert made.possible == 7
        assert made.matched
        found = {p[0].expert: r for p, r in zip(made.plans, made.ratios, strict=True)}
        assert found[2] == pytest.approx(100.5 / 95.5)
        assert found[5] == pytest.approx(100.5 / 105.5)

    def test_fewer_come_where_too_few_are_matched(self) -> None:
        """A control of another load would show what load does, not what these experts do."""
        made = draw_controls(refs(0, 0), COUNTS, 5, rng())
        assert {plan[0].expert for plan in made.plans} == {2, 3, 5}
        assert made.matched

    def test_a_single_heavy_expert_has_no_like_partner(self) -> None:
        made = draw_controls(refs(0, 4), COUNTS, 5, rng())
        assert made.plans == ()
        assert made.possible == 7

    def test_pairs_agree_with_an_enumeration(self) -> None:
        """All pairs of others whose sum is within 1.25 of the plan's 110, and no other."""
        counts = COUNTS[0]
        others = [e for e in range(8) if e not in (0, 1)]
        within = {
            pair
            for pair in itertools.combinations(others, 2)
            if 1 / CALIPER <= 110.5 / (counts[list(pair)].sum() + 0.5) <= CALIPER
        }
        assert len(within) > 3
        made = draw_controls(refs(0, 0, 1), COUNTS, len(within), rng())
        assert {tuple(r.expert for r in plan) for plan in made.plans} == within

    def test_each_is_different_and_has_none_of_the_plan(self) -> None:
        counts = {n: rng(n).integers(50, 150, 32) for n in (2, 5)}
        plan = refs(2, 1, 4, 9) + refs(5, 0, 7)
        made = draw_controls(plan, counts, 40, rng())
        assert len(set(made.plans)) == 40
        for control in made.plans:
            assert not set(control) & set(plan)
            assert [r.layer_idx for r in control] == [2, 2, 2, 5, 5]
            assert len(set(control)) == 5

    def test_every_layer_is_matched_not_only_the_total(self) -> None:
        """Heavy experts in one layer must not make up for light ones in another."""
        counts = {
            0: np.array([100] * 8 + [300] * 8 + [900] * 16),
            1: np.array([900] * 8 + [300] * 8 + [100] * 16),
        }
        plan = refs(0, 0, 1) + refs(1, 0, 1)
        made = draw_controls(plan, counts, 20, rng())
        for control in made.plans:
            assert all(counts[r.layer_idx][r.expert] in (100, 900) for r in control)
            assert {counts[r.layer_idx][r.expert] for r in control if r.layer_idx == 0} == {100}
        assert made.worst == pytest.approx(np.ones(20))

    def test_few_possible_ones_all_come_once(self) -> None:
        made = draw_controls(refs(0, 0), COUNTS, 20, rng(), by_load=False)
        assert len(made.plans) == made.possible == 7

    def test_size_alone_takes_any(self) -> None:
        drawn = {
            plan[0].expert
            for seed in range(30)
            for plan in draw_controls(refs(0, 0), COUNTS, 2, rng(seed), by_load=False).plans
        }
        assert drawn == {1, 2, 3, 4, 5, 6, 7}

    def test_the_same_seed_draws_the_same(self) -> None:
        counts = {0: rng(1).integers(50, 150, 64)}
        plan = refs(0, 3, 8, 21, 40)
        first, again, other = (draw_controls(plan, counts, 20, rng(s)) for s in (4, 4, 5))
        assert first.plans == again.plans
        assert first.plans != other.plans

    def test_experts_that_were_never_chosen_can_be_matched(self) -> None:
        made = draw_controls(refs(0, 0), {0: np.array([0, 0, 0, 500, 500])}, 2, rng())
        assert {plan[0].expert for plan in made.plans} == {1, 2}
        assert made.ratios.tolist() == [1.0, 1.0]

    def test_a_plan_of_more_than_half_a_layer_is_refused_in_one_line(self) -> None:
        with pytest.raises(BadInputError, match=r"layer 0: the plan takes 5 of 8.*`controls=0`"):
            draw_controls(refs(0, 0, 1, 2, 3, 4), COUNTS, 20, rng())


class TestTheChanceLevel:
    def test_controls_without_a_common_expert_give_the_plain_level(self) -> None:
        plan, controls = refs(0, 0), [refs(0, e) for e in range(1, 21)]
        assert exceed_chance(plan, controls, 0) == pytest.approx([k / 21 for k in range(1, 22)])

    def test_controls_that_are_nearly_the_same_are_like_one(self) -> None:
        """Three controls of 9 common experts and one of their own: hardly more than one coin."""
        common = refs(0, *range(10, 19))
        controls = [common + refs(0, e) for e in (19, 20, 21)]
        level = exceed_chance(refs(0, *range(10)), controls, 0)[0]
        # with correlation 0.9 among the controls, P(plan above all three) is near 0.4, not 1/4
        assert 0.36 < level < 0.48

    def test_a_null_plan_lies_beyond_its_controls_as_often_as_is_said(self) -> None:
        """Plans of 6 of 24 experts, importance drawn at random: the plain level is exceeded, the
        stated one is not (both by exact binomial bounds at 0.5 %)."""
        plans, times, beyond, stated = 30, 20, 0, []
        for seed in range(plans):
            draw = rng(seed)
            counts = {0: draw.integers(80, 120, 24)}
            plan = refs(0, *sorted(draw.choice(24, 6, replace=False).tolist()))
            made = draw_controls(plan, counts, 20, draw)
            stated.append(exceed_chance(plan, made.plans, seed)[0])
            for _ in range(times):
                harm = draw.standard_normal(24)
                own, *others = (sum(harm[r.expert] for r in p) for p in (plan, *made.plans))
                beyond += own > max(others)
        runs, level = plans * times, float(np.mean(stated))
        assert beyond > binom.isf(0.005, runs, 1 / 21)  # the trap: it is not 1/21
        assert level > 1.5 / 21
        assert binom.ppf(0.005, runs, level) <= beyond <= binom.isf(0.005, runs, level)
