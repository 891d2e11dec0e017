"""Domain or token? Planted answers of both kinds, and neither."""

import numpy as np
import pytest

from moescope.metrics.information import layer_information
from moescope.metrics.vocabulary import token_overlap, vocabulary_specialization

EXPERTS, TOP_K = 8, 2


def corpus(seed: int, documents: int = 40, length: int = 80, words: int = 50) -> tuple:
    """Two domains with different word odds; (token, domain, doc)."""
    rng = np.random.default_rng(seed)
    odds = np.stack([np.linspace(1, 8, words), np.linspace(8, 1, words)])
    odds /= odds.sum(1, keepdims=True)
    domain = np.arange(documents) % 2
    token = np.concatenate([rng.choice(words, length, p=odds[d]) for d in domain])
    return token, np.repeat(domain, length), np.repeat(np.arange(documents), length)


def random_ids(n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.argsort(rng.random((n, EXPERTS)), axis=1)[:, :TOP_K]


def test_random_routing_carries_nothing() -> None:
    token, domain, doc = corpus(0)
    made = layer_information(random_ids(token.size, 1), token, domain, doc, EXPERTS)
    for bits in made[:3]:
        assert abs(bits.corrected) < 0.01
        assert bits.raw > 0  # what counting alone would have claimed
    assert made.expert_token.raw > 0.02


def test_null_p_values_reject_as_often_as_stated() -> None:
    rejected = np.zeros(3)
    for seed in range(40):
        token, domain, doc = corpus(seed, documents=20, length=40)
        made = layer_information(
            random_ids(token.size, seed), token, domain, doc, EXPERTS, seed, shuffles=19
        )
        rejected += [b.p <= 0.05 for b in made[:3]]
    assert (rejected <= 6).all()  # 2 expected of 40; P(≥ 7 | 5 %) is below 0.4 %


def test_experts_that_follow_tokens_only_know_nothing_of_the_domain_beyond_them() -> None:
    token, domain, doc = corpus(0)
    first = token * EXPERTS // 50
    ids = np.stack([first, (first + 1 + token % 3) % EXPERTS], axis=1)
    made = layer_information(ids, token, domain, doc, EXPERTS)
    assert made.expert_token.corrected > 1.5
    assert made.expert_domain.corrected > 0.03  # domains differ in words, so this is not 0 …
    assert made.expert_domain.p <= 0.05
    assert abs(made.expert_domain_given_token.corrected) < 1e-9  # … but this is


def test_experts_that_follow_the_domain_are_told_from_those_that_follow_tokens() -> None:
    token, domain, doc = corpus(0)
    rng = np.random.default_rng(1)
    half = np.argsort(rng.random((token.size, EXPERTS // 2)), axis=1)[:, :TOP_K]
    ids = half + domain[:, None] * EXPERTS // 2
    made = layer_information(ids, token, domain, doc, EXPERTS)
    assert made.expert_domain.corrected == pytest.approx(1.0, abs=0.05)  # one of two halves: 1 bit
    # the experts tell the domain entirely, so plain counting gives H(D|X)
    h_xd = np.unique(token * 2 + domain, return_counts=True)[1] / token.size
    h_x = np.unique(token, return_counts=True)[1] / token.size
    unknown = -(h_xd * np.log2(h_xd)).sum() + (h_x * np.log2(h_x)).sum()
    assert made.expert_domain_given_token.raw == pytest.approx(unknown)
    assert made.expert_domain_given_token.corrected > 0.9 * unknown
    assert made.expert_domain_given_token.p <= 0.05
    # H(E) = 3 bits, log₂K = 1: nothing can exceed 2
    assert made.max_bits == pytest.approx(2.0, abs=0.01)


def test_topics_of_single_documents_are_not_taken_for_domains() -> None:
    """Every document prefers experts of its own: clustering, no domain."""
    token, domain, doc = corpus(2)
    rng = np.random.default_rng(3)
    mood = rng.normal(0, 1.5, (doc.max() + 1, EXPERTS))[doc]
    ids = np.argsort(-(mood + rng.gumbel(size=mood.shape)), axis=1)[:, :TOP_K]
    made = layer_information(ids, token, domain, doc, EXPERTS)
    assert made.expert_domain.p > 0.05
    by_counting = (EXPERTS - 1) / (2 * ids.size * np.log(2))  # the bias if tokens were independent
    assert made.expert_domain.raw > 5 * by_counting  # so raw bits would have looked like a finding


def test_vocabulary_specialization_of_a_random_router_is_no_more_than_its_null() -> None:
    """Without a floor and a null, rare types make a random router look specialised."""
    rng = np.random.default_rng(0)
    token = rng.zipf(1.3, 20_000) % 3000
    ids = random_ids(token.size, 4)
    counts = np.zeros((3000, EXPERTS), np.int64)
    np.add.at(counts, (token[:, None], ids), 1)
    times = counts.sum(1) // TOP_K
    naive = (counts[times > 0] / times[times > 0, None]).max(1).mean()
    made = vocabulary_specialization(counts, TOP_K)
    assert naive > 0.6  # "specialised", says the average over types
    assert abs(made.excess) < 0.03


def test_vocabulary_specialization_of_a_token_router_is_full() -> None:
    token = np.repeat(np.arange(40), 25)
    counts = np.zeros((40, EXPERTS), np.int64)
    np.add.at(counts, (token, token % EXPERTS), 1)
    made = vocabulary_specialization(counts, top_k=1)
    assert made.value == 1.0
    assert made.types == 40
    assert made.tokens == 1000


def test_token_overlap_by_hand() -> None:
    # expert 0 serves tokens 0 1, expert 1 serves 1 2 → 1 of 3 shared; expert 2 none
    counts = np.array([[20, 0, 0], [20, 20, 0], [0, 20, 3]])
    jaccard, chance = token_overlap(counts, top_k=1)
    assert jaccard[0, 1] == pytest.approx(1 / 3)
    assert jaccard[0, 2] == 0.0
    assert np.isnan(jaccard[2, 2])
    assert ((chance >= 0) & (chance <= 1) | np.isnan(chance)).all()
