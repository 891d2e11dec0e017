"""Do domains use different experts? Rates, contrasts, intervals and tests.

Domain specialization (OLMoE Eq. 7) of expert e on domain d is N_{e,d} / N_d: the share of the
domain's tokens that have e among their K experts. On its own it also shows that an expert is busy
everywhere; the lift over the *other* domains does not.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Int64
from numpy.typing import NDArray

from moescope.metrics.statistics import (
    BOOTSTRAP_SAMPLES,
    MIN_CLUSTERS,
    benjamini_hochberg,
    bootstrap_rates,
    permutation_p,
    permutations_for,
)

__all__ = [
    "DomainSpecialization",
    "TokenBaseline",
    "domain_specialization",
    "jensen_shannon",
    "token_baseline",
]


class DomainSpecialization(NamedTuple):
    """Arrays of shape (C, M), M cells (layer × expert) in the order of the counts.

    ``value``: N_{e,d}/N_d, chance K/E. ``others``: the same rate over all other domains together.
    ``lift``: value/others; 1 means no specialization. ``ci_low``, ``ci_high``: 95 % interval of
    ``value`` from resampling documents; ``lift_low``, ``lift_high``: of the lift. ``p``: two-sided,
    document labels permuted. ``q``: Benjamini–Hochberg over all C × M cells.
    """

    value: NDArray[np.float64]
    others: NDArray[np.float64]
    lift: NDArray[np.float64]
    ci_low: NDArray[np.float64]
    ci_high: NDArray[np.float64]
    lift_low: NDArray[np.float64]
    lift_high: NDArray[np.float64]
    p: NDArray[np.float64]
    q: NDArray[np.float64]


def domain_specialization(
    counts_NM: Int64[np.ndarray, "N M"],
    tokens_N: Int64[np.ndarray, " N"],
    domain_N: Int64[np.ndarray, " N"],
    num_domains: int,
    seed: int = 0,
    permutations: int | None = None,
) -> DomainSpecialization:
    """Rates by domain with cluster-bootstrap intervals and document-permutation tests.

    Args:
        counts_NM: how many tokens of each document chose each of M experts.
        tokens_N: tokens of each document.
        domain_N: domain of each document.
        num_domains: C.
        seed: of the resampling.
        permutations: how many; chosen by the number of cells when None.

    Returns:
        See `DomainSpecialization`. A domain with fewer than 5 documents has NaN intervals and
        tests; with one domain only, ``others``, ``lift``, ``p`` and ``q`` are NaN.

    Reference:
        Muennighoff et al. 2024, OLMoE, Eq. 7 (https://arxiv.org/abs/2409.02060).
    """
    rng = np.random.default_rng(seed)
    width = counts_NM.shape[1]
    sums = np.stack([counts_NM[domain_N == d].sum(0) for d in range(num_domains)]).astype(float)
    tokens = np.bincount(domain_N, tokens_N, num_domains)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = sums / tokens[:, None]
        others = (sums.sum(0) - sums) / (tokens.sum() - tokens)[:, None]
        lift = value / others
    ends = [bootstrap_rates(counts_NM[domain_N == d], tokens_N[domain_N == d], rng)
            for d in range(num_domains)]  # fmt: skip
    lift_ends = [
        _lift_interval(counts_NM, tokens_N, domain_N == d, rng) for d in range(num_domains)
    ]
    rounds = permutations or permutations_for(num_domains * width, int((tokens_N > 0).sum()))
    p = permutation_p(counts_NM, tokens_N, domain_N, num_domains, rng, rounds)
    p[:, counts_NM.sum(0) == 0] = np.nan  # an expert that never ran is in no test
    return DomainSpecialization(
        value=value,
        others=others,
        lift=lift,
        ci_low=np.stack([e.low for e in ends]),
        ci_high=np.stack([e.high for e in ends]),
        lift_low=np.stack([e[0] for e in lift_ends]),
        lift_high=np.stack([e[1] for e in lift_ends]),
        p=p,
        q=benjamini_hochberg(p.reshape(-1)).reshape(p.shape),
    )


def _lift_interval(
    counts_NM: NDArray[np.int64],
    tokens_N: NDArray[np.int64],
    inside_N: NDArray[np.bool_],
    rng: np.random.Generator,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Interval of the lift: documents inside and outside are resampled separately."""
    used = tokens_N > 0
    groups = [used & inside_N, used & ~inside_N]
    nan = np.full(counts_NM.shape[1], np.nan)
    if min(int(g.sum()) for g in groups) < MIN_CLUSTERS:
        return nan, nan.copy()
    rates = []
    for group in groups:
        n = int(group.sum())
        draws = rng.multinomial(n, np.full(n, 1.0 / n), size=BOOTSTRAP_SAMPLES // 2)
        top = draws.astype(np.float32) @ counts_NM[group].astype(np.float32)
        rates.append(top / (draws @ tokens_N[group])[:, None])
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(rates[1] > 0, rates[0] / rates[1], np.inf)
    ratio[(rates[0] == 0) & (rates[1] == 0)] = 1.0
    low, high = np.quantile(ratio, [0.025, 0.975], axis=0, method="closest_observation")
    return low, high


class TokenBaseline(NamedTuple):
    """What the token ids of a domain alone predict, each (C, E) but ``shared`` (C,).

    ``by_token``: rate that the expert would have on the domain if it treated every token id as it
    does in the other domains. ``beyond_token``: measured rate minus that, over the same tokens; 0
    when the expert follows tokens and not the domain. ``shared``: share of the domain's tokens
    whose id occurs in another domain, to which both figures refer.
    """

    by_token: NDArray[np.float64]
    beyond_token: NDArray[np.float64]
    shared: NDArray[np.float64]


def token_baseline(counts_CXE: Int64[np.ndarray, "C X E"], top_k: int) -> TokenBaseline:
    """The token-identity baseline of domain specialization, leaving the domain itself out.

    Σ_x P(x|d)·N_{x,e,others}/N_{x,others} over token ids x that other domains have too.

    Args:
        counts_CXE: how often token id x of domain d went to expert e.
        top_k: K.

    Returns:
        See `TokenBaseline`; NaN for a domain that shares no token id.
    """
    total_XE = counts_CXE.sum(0)
    shape = (counts_CXE.shape[0], counts_CXE.shape[2])
    by_token, beyond = np.full(shape, np.nan), np.full(shape, np.nan)
    shared = np.full(shape[0], np.nan)
    for d, own_XE in enumerate(counts_CXE):
        times, elsewhere_XE = own_XE.sum(1) / top_k, total_XE - own_XE
        elsewhere = elsewhere_XE.sum(1) / top_k
        common = (times > 0) & (elsewhere > 0)
        if times.sum() == 0:
            continue
        shared[d] = times[common].sum() / times.sum()
        if common.any():
            rates = elsewhere_XE[common] / elsewhere[common, None]
            weights = times[common] / times[common].sum()
            by_token[d] = weights @ rates
            beyond[d] = own_XE[common].sum(0) / times[common].sum() - by_token[d]
    return TokenBaseline(by_token, beyond, shared)


def jensen_shannon(load_a: NDArray[np.float64], load_b: NDArray[np.float64]) -> float:
    """Distance of two load distributions over experts, normalised to [0, 1].

    JSD / (log E − ½(H_a + H_b)): raw JSD grows with how peaked the two are, the quotient does not.
    0: the same experts; 1: as different as two distributions of these entropies can be. NaN when
    both are uniform, where the question has no answer.
    """
    mean = 0.5 * (load_a + load_b)
    inside = 0.5 * (_entropy(load_a) + _entropy(load_b))
    room = np.log(load_a.size) - inside
    if room <= 1e-12:
        return float("nan")
    return float((_entropy(mean) - inside) / room)


def _entropy(p: NDArray[np.float64]) -> float:
    positive = p[p > 0]
    return float(-(positive * np.log(positive)).sum())
