"""Domain or token? Planted answers of both kinds, and neither."""

import numpy as np
import pytest

from moescope.metrics.information import (
    Information,
    SampledText,
    layer_information,
    previous_tokens,
)
from moescope.metrics.likeness import document_pairs
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


def measured(ids: np.ndarray, token, domain, doc, previous=None, **more) -> Information:
    text = SampledText(token, domain, doc, previous)
    return layer_information(ids, text, EXPERTS, **more)


def test_random_routing_carries_nothing() -> None:
    token, domain, doc = corpus(0)
    made = measured(random_ids(token.size, 1), token, domain, doc)
    for bits in made[:3]:
        assert abs(bits.corrected) < 0.01
        assert bits.low < 0 < bits.high
        assert bits.raw > 0  # what counting alone would have claimed
    assert made.expert_token.raw > 0.02


def test_null_p_values_reject_as_often_as_stated() -> None:
    rejected = np.zeros(4)
    for seed in range(40):
        token, domain, doc = corpus(seed, documents=20, length=40, words=12)
        previous = previous_tokens(token, doc, np.zeros_like(doc), np.arange(token.size))
        ids = random_ids(token.size, seed)
        made = measured(ids, token, domain, doc, previous, seed=seed, shuffles=19)
        rejected += [b.p <= 0.05 for b in made[:4]]
    assert (rejected <= 6).all()  # 2 expected of 40; P(≥ 7 | 5 %) is below 0.4 %


def test_experts_that_follow_tokens_only_know_nothing_of_the_domain_beyond_them() -> None:
    token, domain, doc = corpus(0)
    first = token * EXPERTS // 50
    ids = np.stack([first, (first + 1 + token % 3) % EXPERTS], axis=1)
    made = measured(ids, token, domain, doc)
    assert made.expert_token.corrected == pytest.approx(made.max_bits)
    assert made.expert_domain.corrected > 0.03  # domains differ in words, so this is not 0 …
    assert made.expert_domain.p <= 0.05
    assert abs(made.expert_domain_given_token.corrected) < 1e-9  # … but this is
    assert made.expert_domain_given_token.p == 1.0


def test_complete_knowledge_of_a_large_vocabulary_is_reported_as_complete() -> None:
    """Many token ids occur once or twice: raw less null alone says less than is known."""
    rng = np.random.default_rng(0)
    token = np.minimum(rng.zipf(1.3, 6000), 4000)
    doc = np.repeat(np.arange(60), 100)
    ids = np.argsort(rng.random((4001, EXPERTS)), axis=1)[token, :TOP_K]
    bits = measured(ids, token, doc % 2, doc).expert_token
    assert bits.raw - bits.null < 0.9 * bits.most
    assert bits.corrected == pytest.approx(bits.most)
    assert bits.low <= bits.most <= bits.high


@pytest.mark.parametrize("kept", [0.9, 0.7, 0.4])
def test_what_a_noisy_token_router_knows_lies_in_its_interval(kept: float) -> None:
    """A token's own experts with chance ``kept``, any others otherwise: known in closed form."""
    rng = np.random.default_rng(1)
    token = np.minimum(rng.zipf(1.3, 8000), 2000)
    doc = np.repeat(np.arange(80), 100)
    own = np.argsort(rng.random((2001, EXPERTS)), axis=1)[token, :TOP_K]
    ids = np.where(rng.random((token.size, 1)) < kept, own, random_ids(token.size, 2))
    share = np.full(EXPERTS, (1 - kept) / EXPERTS)
    share[:TOP_K] += kept / TOP_K
    overall = (1 - kept) / EXPERTS + kept * np.bincount(own.ravel(), minlength=8) / own.size
    true = -(overall * np.log2(overall)).sum() + (share * np.log2(share)).sum()
    bits = measured(ids, token, doc % 2, doc).expert_token
    assert bits.low < true < bits.high
    assert bits.corrected == pytest.approx(true, rel=0.12)


def test_experts_that_follow_the_domain_are_told_from_those_that_follow_tokens() -> None:
    token, domain, doc = corpus(0)
    rng = np.random.default_rng(1)
    half = np.argsort(rng.random((token.size, EXPERTS // 2)), axis=1)[:, :TOP_K]
    ids = half + domain[:, None] * EXPERTS // 2
    made = measured(ids, token, domain, doc)
    assert made.expert_domain.corrected == pytest.approx(1.0, abs=0.02)  # one of two halves: 1 bit
    # the experts tell the domain entirely, so plain counting gives H(D|X)
    h_xd = np.unique(token * 2 + domain, return_counts=True)[1] / token.size
    h_x = np.unique(token, return_counts=True)[1] / token.size
    unknown = -(h_xd * np.log2(h_xd)).sum() + (h_x * np.log2(h_x)).sum()
    assert made.expert_domain_given_token.raw == pytest.approx(unknown)
    assert made.expert_domain_given_token.corrected == pytest.approx(unknown, rel=0.02)
    assert made.expert_domain_given_token.p <= 0.05
    # H(E) = 3 bits, log₂K = 1: nothing can exceed 2
    assert made.max_bits == pytest.approx(2.0, abs=0.01)


def test_a_router_of_two_neighbouring_tokens_knows_no_domain_beyond_the_two() -> None:
    """It beats the current token, since the words before it differ between domains."""
    beyond_token, beyond_pair = [], []
    for seed in range(20):
        token, domain, doc = corpus(seed, documents=40, length=100, words=20)
        previous = previous_tokens(token, doc, np.zeros_like(doc), np.arange(token.size))
        rng = np.random.default_rng([seed, 5])
        sets = np.argsort(rng.random((20 * 21, EXPERTS)), axis=1)[:, :TOP_K]
        ids = sets[token * 21 + previous + 1]
        noise = rng.random((token.size, 1)) < 0.2
        ids = np.where(noise, random_ids(token.size, seed), ids)
        made = measured(ids, token, domain, doc, previous, seed=seed, shuffles=5)
        beyond_token.append(made.expert_domain_given_token.p <= 0.05)
        beyond_pair.append(made.expert_domain_given_pair.p <= 0.05)
    assert sum(beyond_token) >= 18
    assert sum(beyond_pair) <= 4  # 1 expected of 20; P(≥ 5 | 5 %) is 0.3 %


def test_a_router_of_the_domain_is_seen_beyond_two_tokens() -> None:
    token, domain, doc = corpus(4, documents=60, length=150, words=20)
    previous = previous_tokens(token, doc, np.zeros_like(doc), np.arange(token.size))
    rng = np.random.default_rng(5)
    half = np.argsort(rng.random((token.size, EXPERTS // 2)), axis=1)[:, :TOP_K]
    made = measured(half + domain[:, None] * EXPERTS // 2, token, domain, doc, previous)
    assert made.expert_domain_given_pair.p <= 0.01
    assert made.expert_domain_given_pair.low > 0.3


def test_the_previous_token_is_one_of_the_same_document_window_and_neighbouring_place() -> None:
    token, doc = np.arange(10, 17), np.array([0, 0, 0, 1, 1, 1, 1])
    window, position = np.array([0, 0, 1, 0, 0, 0, 0]), np.array([3, 4, 5, 0, 1, 3, 4])
    made = previous_tokens(token, doc, window, position)
    assert made.tolist() == [-1, 10, -1, -1, 13, -1, 15]


def test_topics_of_single_documents_are_not_taken_for_domains() -> None:
    """Every document prefers experts of its own: clustering, no domain."""
    token, domain, doc = corpus(2)
    rng = np.random.default_rng(3)
    mood = rng.normal(0, 1.5, (doc.max() + 1, EXPERTS))[doc]
    ids = np.argsort(-(mood + rng.gumbel(size=mood.shape)), axis=1)[:, :TOP_K]
    made = measured(ids, token, domain, doc)
    assert made.expert_domain.p > 0.05
    assert made.expert_domain_given_token.p > 0.05
    by_counting = (EXPERTS - 1) / (2 * ids.size * np.log(2))  # the bias if tokens were independent
    assert made.expert_domain.raw > 5 * by_counting  # so raw bits would have looked like a finding


def test_long_documents_with_moods_are_not_called_a_domain() -> None:
    """Ten documents of 400 tokens: what a document prefers, it prefers for all its words."""
    hits = 0
    for seed in range(40):
        token, domain, doc = corpus(seed, documents=10, length=400, words=100)
        rng = np.random.default_rng([seed, 1])
        lean = rng.normal(0, 0.3, (10, EXPERTS))[doc] + rng.normal(0, 1, (100, EXPERTS))[token]
        ids = np.argsort(-(lean + rng.gumbel(size=lean.shape)), axis=1)[:, :TOP_K]
        made = measured(ids, token, domain, doc, seed=seed, shuffles=2)
        hits += made.expert_domain_given_token.p <= 0.05
    assert hits <= 6  # 2 expected of 40; P(≥ 7 | 5 %) is below 0.4 %


def test_tokens_that_are_decided_nearly_always_are_not_called_a_domain() -> None:
    """Domains tilt the words, and the words decide: what varies within a word must not count."""
    hits = 0
    for seed in range(40):
        token, domain, doc = corpus(seed, documents=40, length=100, words=20)
        rng = np.random.default_rng([seed, 9])
        own = np.argsort(rng.random((20, EXPERTS)), axis=1)[token, :TOP_K]
        ids = np.where(rng.random((token.size, 1)) < 0.8, own, random_ids(token.size, seed))
        made = measured(ids, token, domain, doc, seed=seed, shuffles=2)
        hits += made.expert_domain_given_token.p <= 0.05
    assert hits <= 6


def test_the_likeness_of_two_documents_by_hand() -> None:
    """One label, four documents of two tokens; p(e) = ½ for both experts.

    Shares (1, 0), (1, 0), (½, ½), (0, 1) minus nothing: a_12 = 2, a_13 = a_23 = 1, a_34 = 1,
    a_14 = a_24 = 0. Sums r = 3, 3, 3, 1 and R = 10, so with d = 4:
    ã_12 = 2 − 6/2 + 10/6 = ⅔; ã_13 = 1 − 6/2 + 10/6 = −⅓; ã_14 = 0 − 4/2 + 10/6 = −⅓.
    W = 2·2/8·ã.
    """
    ids = np.array([[0], [0], [0], [0], [0], [1], [1], [1]])
    # two tokens of a label that no four documents have make the overall shares even
    ids = np.concatenate([ids, [[1], [1]]])
    label, doc = np.array([0] * 8 + [1, 1]), np.array([0, 0, 1, 1, 2, 2, 3, 3, 0, 1])
    made = document_pairs(ids, label, doc, 2, 4)
    expected = np.array([[0, 2, -1, -1], [2, 0, -1, -1], [-1, -1, 0, 2], [-1, -1, 2, 0]]) / 6
    assert made == pytest.approx(expected)
    assert made.sum(1) == pytest.approx(np.zeros(4))


def test_unlike_lengths_and_unlike_homogeneity_are_not_called_a_domain() -> None:
    """5 documents of 300 tokens with strong moods beside 40 of 20 without, all rates equal."""
    hits = np.zeros(2)
    for seed in range(40):
        rng = np.random.default_rng([seed, 2])
        length = np.array([300] * 5 + [20] * 40)
        doc, domain = np.repeat(np.arange(45), length), np.repeat([0] * 5 + [1] * 40, length)
        token = rng.integers(0, 40, doc.size)
        mood = rng.dirichlet(np.ones(EXPERTS), 45)
        mood[5:] = 1 / EXPERTS
        ids = (rng.random((doc.size, 1)) > mood[doc].cumsum(1)[:, :-1]).sum(1)[:, None]
        made = measured(ids, token, domain, doc, seed=seed, shuffles=2)
        hits += [made.expert_domain.p <= 0.05, made.expert_domain_given_token.p <= 0.05]
    assert (hits <= 6).all()


def test_too_few_documents_have_no_interval_and_no_p() -> None:
    token, domain, doc = corpus(0, documents=4)
    made = measured(random_ids(token.size, 1), token, domain, doc)
    assert np.isnan([made.expert_domain.low, made.expert_domain.p]).all()
    assert np.isnan(made.expert_domain_given_token.p)


def test_one_domain_tells_nothing_and_tokens_without_company_are_not_measured() -> None:
    token, domain, doc = corpus(0)
    alone = measured(random_ids(token.size, 1), token, np.zeros_like(domain), doc)
    assert alone.expert_domain.corrected == alone.expert_domain_given_token.corrected == 0.0
    assert np.isnan(alone.expert_domain_given_token.p)
    apart = measured(random_ids(token.size, 1), token + 100 * domain, domain, doc)
    assert np.isnan(apart.expert_domain_given_token.corrected)


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
