"""Co-activation, flow, repetition, agreement: small cases by hand, and what chance gives."""

import numpy as np
import pytest

from moescope.metrics.agreement import agreement, committee, entropy_bits, mean_jaccard
from moescope.metrics.chance import expected_jaccard, share_any
from moescope.metrics.coactivation import coactivation, flow


def random_sets(tokens: int, experts: int, top_k: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.argsort(rng.random((tokens, experts)), axis=1)[:, :top_k]


def pair_counts(ids: np.ndarray, experts: int) -> np.ndarray:
    hot = np.zeros((len(ids), experts), np.int64)
    np.put_along_axis(hot, ids, 1, axis=1)
    return hot.T @ hot


def test_coactivation_by_hand() -> None:
    # tokens: {0,1} {0,1} {0,2}; N = 3 2 1; N01 = 2, N02 = 1
    both = pair_counts(np.array([[0, 1], [0, 1], [0, 2]]), 3)
    made = coactivation(both, tokens=3, top_k=2)
    assert made.p_j_given_i[0, 1] == pytest.approx(2 / 3)
    assert made.p_j_given_i[1, 0] == 1.0  # asymmetric
    assert made.lift[0, 1] == pytest.approx(2 * 3 / (3 * 2))
    assert np.isnan(made.p_j_given_i[0, 0])


def test_under_random_routing_all_pairs_meet_at_the_chance_level() -> None:
    """Counting only neighbours in rank would give (K−1)/(K(K−1)/2) of it: 2.8 % for 64/8."""
    experts, top_k, tokens = 64, 8, 60_000
    made = coactivation(pair_counts(random_sets(tokens, experts, top_k), experts), tokens, top_k)
    assert made.chance == pytest.approx(7 / 63)
    assert np.nanmean(made.p_j_given_i) == pytest.approx(made.chance, rel=0.01)
    assert np.nanmean(made.lift) == pytest.approx(made.lift_chance, rel=0.01)


def test_an_expert_that_never_ran_is_unknown_not_zero() -> None:
    made = coactivation(pair_counts(np.array([[0, 1]]), 3), tokens=1, top_k=2)
    assert np.isnan(made.p_j_given_i[2]).all()
    assert np.isnan(made.lift[0, 2])


def test_flow_rows_sum_to_k_and_independent_layers_meet_their_chance() -> None:
    a, b = random_sets(20_000, 8, 2, 1), random_sets(20_000, 8, 2, 2)
    hot_a, hot_b = (np.eye(8, dtype=np.int64)[x].sum(1) for x in (a, b))
    made = flow(hot_a.T @ hot_b, hot_a.sum(0), hot_b.sum(0), 20_000)
    assert np.allclose(made.p.sum(1), 2.0)
    assert np.allclose(made.p, made.chance, atol=0.03)


@pytest.mark.parametrize(("experts", "top_k", "percent"), [(8, 2, 46.4), (64, 8, 67.9)])
def test_sharing_any_expert_by_chance(experts: int, top_k: int, percent: float) -> None:
    assert 100 * share_any(experts, top_k) == pytest.approx(percent, abs=0.05)


def test_expected_jaccard_against_monte_carlo() -> None:
    a, b = random_sets(40_000, 12, 3, 1), random_sets(40_000, 12, 3, 2)
    assert agreement(a, b).jaccard.mean() == pytest.approx(expected_jaccard(12, 3), abs=0.003)
    assert agreement(a, b).saturation.mean() == pytest.approx(3 / 12, abs=0.003)


def test_agreement_by_hand() -> None:
    # {3,1,0} and {1,3,5} share 2 of 3; union 4; first choices differ
    made = agreement(np.array([[3, 1, 0]]), np.array([[1, 3, 5]]))
    assert made.saturation[0] == pytest.approx(2 / 3)
    assert made.jaccard[0] == pytest.approx(2 / 4)
    assert made.first[0] == 0.0


def test_committee_is_the_k_best_of_each_domain() -> None:
    member = committee(np.array([[0.5, 0.3, 0.2], [0.4, 0.1, 0.5]]), top_k=2)
    assert member.tolist() == [[True, True, False], [True, False, True]]
    assert mean_jaccard(member) == pytest.approx(1 / 3)


def test_path_entropy_of_four_even_paths_is_two_bits() -> None:
    plain, corrected = entropy_bits(np.array([5, 5, 5, 5]))
    assert plain == pytest.approx(2.0)
    # Miller–Madow adds (4−1)/(2·20·ln 2)
    assert corrected == pytest.approx(2.0 + 3 / (40 * np.log(2)))
