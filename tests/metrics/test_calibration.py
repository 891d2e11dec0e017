"""The domain test has the size that it states, and intervals cover; small versions of
benchmarks/calibration.py, with bounds that the plain difference and percentile intervals break."""

import sys
from pathlib import Path

import numpy as np
import pytest

from moescope.metrics.agreement import unseen_entropy
from moescope.metrics.intervals import Interval, mean_interval
from moescope.metrics.rates import difference_interval, rate_interval
from moescope.metrics.specialization import split_halves
from moescope.metrics.vocabulary import vocabulary_specialization

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import calibration

UNLIKE = [
    "20 of 20 tokens, 72 of about 400",
    "40 of 15 tokens, 40 of 400, no icc",
    "10 of 20 tokens, 60 of 300",
    "6 of icc .1, 60 of icc .02",
]


@pytest.mark.parametrize("name", UNLIKE)
def test_unlike_lengths_and_spreads_are_no_difference(name: str) -> None:
    row = calibration.test_row(name, 12, 1.0, np.random.default_rng(3))
    assert row["p_below_05"] < 0.075  # 1,152 cells
    assert row["plain_p_below_05"] > 0.09  # what was tested before
    assert row["any_q_below_05"] <= 2 / 12


def test_a_lift_in_short_documents_is_found_beside_long_ones() -> None:
    row = calibration.test_row("20 of 2,000 tokens, 200 of 20", 6, 1.5, np.random.default_rng(4))
    assert row["p_below_05"] > 0.6
    assert row["plain_p_below_05"] < 0.4


@pytest.mark.parametrize("documents", [5, 10, 20])
@pytest.mark.parametrize("lengths", ["equal", "unequal"])
def test_intervals_cover_with_few_documents(documents: int, lengths: str) -> None:
    row = calibration.coverage_row(documents, lengths, 0.1, 150, np.random.default_rng(5))
    assert row["coverage"] > 0.925
    assert row["percentile_bootstrap"] < 0.92


def test_no_hit_has_an_upper_end_and_all_hits_a_lower_one() -> None:
    tokens = np.full(8, 25)
    counts = np.stack([np.zeros(8), tokens], axis=1)
    ends = rate_interval(counts, tokens)
    assert ends.low[0] == 0
    assert 3 / 200 < ends.high[0] < 0.1  # the rule of three, and a little more
    assert ends.high[1] == 1
    assert 0.9 < ends.low[1] < 1 - 3 / 200


def test_the_interval_of_a_mean_is_that_of_the_t_distribution() -> None:
    """Equal lengths, by hand: 0.1, 0.2, 0.3, 0.4, 0.5 have sd 0.158; t(4) = 2.776."""
    ends = mean_interval(np.arange(1.0, 6.0)[:, None], np.full(5, 10))
    assert ends.low[0] == pytest.approx(0.3 - 2.7764 * 0.15811 / np.sqrt(5), abs=1e-4)
    assert ends.high[0] == pytest.approx(0.3 + 2.7764 * 0.15811 / np.sqrt(5), abs=1e-4)


def test_the_difference_of_newcombe_by_hand() -> None:
    """His example: 56/70 − 48/80 = 0.2, with Wilson ends 0.0524 to 0.3339."""
    a, b = np.array([56 / 70]), np.array([48 / 80])
    one = (np.array([0.6919]), np.array([0.8773]))
    other = (np.array([0.4904]), np.array([0.7004]))
    ends = difference_interval(a, Interval(*one), b, Interval(*other))
    assert ends.low[0] == pytest.approx(0.0524, abs=5e-4)
    assert ends.high[0] == pytest.approx(0.3339, abs=5e-4)


@pytest.mark.parametrize(("experts", "top_k"), [(2, 1), (3, 2), (4, 1), (4, 2), (8, 2)])
def test_excess_is_zero_by_chance_at_few_experts(experts: int, top_k: int) -> None:
    """K different experts, whatever the token; independent experts as a null gave up to 0.012."""
    rng, found = np.random.default_rng(0), []
    for seed in range(10):
        times = np.maximum(10, rng.zipf(1.5, 300).clip(max=1500))
        logits = rng.gumbel(size=(times.sum(), experts)) + rng.normal(size=experts) * 0.5
        ids = np.argpartition(-logits, top_k - 1, axis=1)[:, :top_k]
        counts = np.zeros((times.size, experts), np.int64)
        np.add.at(counts, (np.repeat(np.arange(times.size), times)[:, None], ids), 1)
        found.append(vocabulary_specialization(counts, top_k, seed).excess)
    assert abs(np.mean(found)) < 0.0045


def test_halves_of_one_domain_are_as_far_apart_as_noise() -> None:
    rng = np.random.default_rng(1)
    counts = rng.multinomial(200, [0.5, 0.3, 0.1, 0.1, 0, 0, 0, 0], size=40)
    counts[20:] += rng.multinomial(200, np.r_[np.full(4, 0.25), np.zeros(4)], size=20)
    halves = split_halves(counts, np.repeat([0, 1], 20), np.array([0, 1]), rng)
    assert (halves < 0.01).all()
    assert np.isnan(split_halves(counts[:4], np.zeros(4, np.int64), np.array([0]), rng)).all()


def test_entropy_of_what_was_not_seen_is_estimated() -> None:
    """200 draws from 1,000 even things: as counted log 200 at most, in truth log 1,000."""
    rng, plain, found = np.random.default_rng(2), [], []
    for _ in range(50):
        counts = np.bincount(rng.integers(0, 1000, 400)).astype(float)
        share = counts[counts > 0] / 400
        plain.append(-(share * np.log(share)).sum())
        found.append(unseen_entropy(counts))
    assert np.mean(plain) < np.log(1000) - 0.9
    assert np.mean(found) == pytest.approx(np.log(1000), abs=0.3)
