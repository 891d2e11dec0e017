import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moescope.metrics.balance import balance, cv_by_chance


def test_a_lopsided_layer_by_hand() -> None:
    # counts 6 2 0 0: mean 2, deviations 4 0 -2 -2, variance (16+0+4+4)/4 = 6, cv = √6/2
    # load 3/4 1/4 0 0: H = 0.75·ln(4/3) + 0.25·ln 4, over ln 4
    # gini: ascending 0 0 1/4 3/4, Σ(2i−n−1)x = (1·1/4 + 3·3/4), over n = 4 → 2.5/4
    made = balance(np.array([6, 2, 0, 0]))
    assert made.cv == pytest.approx(6**0.5 / 2)
    assert made.gini == pytest.approx(0.625)
    assert made.max_over_mean == pytest.approx(3.0)
    entropy = (0.75 * np.log(4 / 3) + 0.25 * np.log(4)) / np.log(4)
    assert made.entropy == pytest.approx(entropy)
    assert made.dead_share == made.cold_share == 0.5


def test_dead_and_cold_are_different_floors() -> None:
    # of 100,000: 50 is 0.05 % (dead), 300 is 0.3 % (cold only)
    made = balance(np.array([99_650, 50, 300]))
    assert made.dead_share == pytest.approx(1 / 3)
    assert made.cold_share == pytest.approx(2 / 3)


def test_nothing_counted_is_unknown_not_even() -> None:
    assert np.isnan(balance(np.zeros(4, np.int64))).all()


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=40).filter(any), st.randoms())
def test_renaming_experts_changes_nothing(counts: list[int], rnd) -> None:  # type: ignore[no-untyped-def]
    shuffled = counts[:]
    rnd.shuffle(shuffled)
    assert np.allclose(balance(np.array(counts)), balance(np.array(shuffled)))


def test_random_routing_has_the_cv_that_chance_predicts() -> None:
    rng = np.random.default_rng(0)
    tokens, experts, top_k = 4000, 16, 4
    drawn = [
        balance(
            np.bincount(
                np.argsort(rng.random((tokens, experts)), axis=1)[:, :top_k].ravel(),
                minlength=experts,
            )
        ).cv
        for _ in range(40)
    ]
    # Var of a count = T·(K/E)·(1−K/E); E[cv²] is that over (T·K/E)², the population form
    assert np.sqrt(np.mean(np.square(drawn))) == pytest.approx(
        cv_by_chance(tokens, experts, top_k), rel=0.08
    )
