"""Nulls are not rejected more often than stated, intervals cover, planted truth is found."""

import numpy as np
import pytest

from moescope.metrics.rates import rate_interval
from moescope.metrics.specialization import domain_specialization, jensen_shannon, token_baseline
from moescope.metrics.statistics import (
    add_q,
    benjamini_hochberg,
    permutation_p,
    permutation_test,
    permutations_for,
)


def null_counts(seed: int, documents: int = 40, cells: int = 64) -> tuple:
    """Documents of very different length, each with its own mood: clustered, but no domain."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(5, 400, documents)
    rates = rng.dirichlet(np.full(cells, 2.0), documents)  # strong clustering within documents
    counts = np.stack([rng.multinomial(2 * t, r) for t, r in zip(tokens, rates, strict=True)])
    domain = rng.permutation(np.arange(documents) % 3)
    return counts, tokens, domain


def test_under_the_null_discoveries_stay_below_the_stated_rate() -> None:
    """Benjamini–Hochberg at 5 %: with no true effect a false one appears in ≤ 5 % of the runs."""
    runs_with_any, share = 0, []
    for seed in range(100):
        counts, tokens, domain = null_counts(seed)
        made = domain_specialization(counts, tokens, domain, 3, seed, permutations=999)
        hits = made.q < 0.05
        runs_with_any += bool(hits.any())
        share.append(hits.mean())
    assert np.mean(share) <= 0.05
    assert runs_with_any <= 11  # 5 expected; P(≥ 12 | 5 %) is below 0.5 %


def test_p_values_are_uniform_under_the_null() -> None:
    p = np.concatenate(
        [
            permutation_test(*null_counts(s), 3, np.random.default_rng(s), 199).p.ravel()
            for s in range(20)
        ]
    )
    for level in (0.05, 0.2, 0.5):
        assert (p <= level).mean() == pytest.approx(level, abs=0.03)


def test_shuffling_tokens_instead_would_have_found_things_that_are_not_there() -> None:
    """The trap that documents as units avoid: tokens of one document are alike."""
    counts, tokens, domain = null_counts(3)
    pooled = [np.stack([counts[domain == d].sum(0), counts[domain != d].sum(0)]) for d in range(3)]
    from scipy.stats import chi2_contingency

    assert all(chi2_contingency(t).pvalue < 1e-6 for t in pooled)
    made = domain_specialization(counts, tokens, domain, 3, 0)
    assert not (made.q < 0.05).any()


def test_a_planted_domain_expert_is_found_and_only_it() -> None:
    others = 0
    for seed in range(5, 15):
        counts, tokens, domain = null_counts(seed)
        inside = domain == 1
        counts[inside, 7] += (0.5 * tokens[inside]).astype(np.int64)
        made = domain_specialization(counts, tokens, domain, 3, seed, permutations=4999)
        assert made.q[1, 7] < 0.05
        assert made.p_max[1, 7] < 0.05
        assert made.lift_low[1, 7] > 1.5
        others += int(((made.q < 0.05) & (made.lift_over_others > 1)).sum()) - 1
    assert others <= 3  # one in twenty findings is stated


def test_the_interval_covers_the_true_rate_about_as_often_as_stated() -> None:
    rng, covered = np.random.default_rng(1), 0
    for _ in range(200):
        own = rng.beta(2, 6, 60)  # every document has its own rate, mean 1/4
        tokens = np.full(60, 50)
        counts = rng.binomial(tokens, own)[:, None]
        ends = rate_interval(counts, tokens)
        covered += bool(ends.low[0] <= 0.25 <= ends.high[0])
    assert covered >= 180  # 190 stated; a token bootstrap covers far less


def test_few_documents_give_no_interval_and_no_p() -> None:
    counts, tokens = np.ones((8, 2), np.int64), np.full(8, 4)
    domain = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    made = domain_specialization(counts, tokens, domain, 2)
    assert np.isnan(made.p).all()
    assert np.isnan(made.ci_low).all()
    assert (made.value == 0.25).all()


def test_one_domain_has_a_value_but_nothing_to_compare_with() -> None:
    made = domain_specialization(np.full((6, 2), 3), np.full(6, 6), np.zeros(6, np.int64), 1)
    assert (made.value == 0.5).all()
    assert np.isnan(made.lift_over_others).all()
    assert np.isnan(made.q).all()


def test_values_by_hand() -> None:
    # domain 0: 3 of 10 tokens; domain 1: 6 of 40
    counts = np.array([[1], [2], [6]])
    made = domain_specialization(counts, np.array([4, 6, 40]), np.array([0, 0, 1]), 2)
    assert made.value[:, 0].tolist() == [0.3, 0.15]
    assert made.others[:, 0].tolist() == [0.15, 0.3]
    assert made.lift_over_others[:, 0].tolist() == pytest.approx([2.0, 0.5])


def test_documents_without_tokens_change_nothing() -> None:
    counts, tokens, domain = null_counts(2)
    padded = (np.vstack([counts, np.zeros_like(counts[:3])]), np.append(tokens, [0, 0, 0]),
              np.append(domain, [0, 1, 2]))  # fmt: skip
    a = permutation_test(counts, tokens, domain, 3, np.random.default_rng(0), 99).p
    b = permutation_test(*padded, 3, np.random.default_rng(0), 99).p
    assert np.array_equal(a, b)


def test_enough_permutations_for_a_lone_discovery_to_survive_correction() -> None:
    assert 1 / (1 + permutations_for(384, 60)) * 384 <= 0.05
    assert permutations_for(10, 10) == 999


def test_unknown_p_values_are_no_part_of_the_family() -> None:
    q = benjamini_hochberg(np.array([0.02, np.nan, 0.5]))
    assert q[0] == pytest.approx(0.04)
    assert np.isnan(q[1])


def test_token_baseline_sees_through_a_difference_of_words() -> None:
    """Expert 0 serves token 0, expert 1 serves token 1, in every domain alike."""
    counts = np.zeros((2, 2, 2), np.int64)
    counts[0] = [[90, 0], [0, 10]]
    counts[1] = [[20, 0], [0, 80]]
    made = token_baseline(counts, top_k=1)
    assert made.by_token[0].tolist() == [0.9, 0.1]  # the words alone say so
    assert made.beyond_token[0].tolist() == [0.0, 0.0]
    assert made.shared.tolist() == [1.0, 1.0]


def test_token_baseline_leaves_the_domain_itself_out() -> None:
    counts = np.zeros((2, 1, 2), np.int64)
    counts[0, 0], counts[1, 0] = [30, 10], [5, 15]
    made = token_baseline(counts, top_k=1)
    assert made.by_token[0, 0] == 0.25
    assert made.beyond_token[0, 0] == pytest.approx(0.75 - 0.25)


def test_jensen_shannon_ends() -> None:
    peak = np.array([1.0, 0.0, 0.0, 0.0])
    assert jensen_shannon(peak, peak) == 0.0
    # two disjoint peaks: JSD = log 2, room = log 4 − 0
    assert jensen_shannon(peak, peak[::-1].copy()) == pytest.approx(0.5)
    even = np.full(4, 0.25)
    assert np.isnan(jensen_shannon(even, even))


class TestPermutationP:
    def test_it_is_the_share_of_draws_at_least_as_large_by_hand(self) -> None:
        drawn = [np.array([[1.0, 9.0], [2.0, 9.0]]), np.array([[3.0, 9.0]])]
        # of 3 draws, 2 are at least 2, all are at least 5; the observed counts as one more
        assert permutation_p(np.array([2.0, 5.0]), drawn).tolist() == [0.75, 1.0]
        assert float(permutation_p(2.0, [np.array([1.0, 2.0, 3.0])], exact=True)) == 2 / 3

    def test_what_ties_but_for_rounding_is_as_extreme(self) -> None:
        tied = [np.array([0.1 + 0.2])]
        assert float(permutation_p(0.3 + 1e-15, tied)) == 1.0
        assert float(permutation_p(0.3 + 1e-15, tied, slack=0.0)) == 0.5

    def test_an_unknown_statistic_has_no_p(self) -> None:
        """Nothing is at least NaN, which is no proof of anything."""
        assert np.isnan(permutation_p(np.nan, [np.zeros(99)]))


def test_rows_are_corrected_together() -> None:
    rows: list[dict[str, float]] = [{"p": 0.01}, {"p": 0.04}, {"p": 0.03}, {"p": np.nan}]
    add_q(rows)  # by hand: 0.01·3/1, 0.04·3/3, 0.03·3/2 but no more than the next
    assert [round(row["q"], 6) for row in rows[:3]] == [0.03, 0.04, 0.04]
    assert np.isnan(rows[3]["q"])
