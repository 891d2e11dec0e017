"""Do domains use different experts? Rates, contrasts, intervals and tests.

Domain specialization (OLMoE Eq. 7) of expert e on domain d is N_{e,d} / N_d: the share of the
domain's tokens that have e among their K experts. On its own it also shows that an expert is busy
everywhere; the lift over the *other* domains does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64
from numpy.typing import NDArray

from moescope.metrics.statistics import (
    BOOTSTRAP_SAMPLES,
    MANY_DOMAINS,
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
    "jensen_shannon_pairs",
    "token_baseline",
    "token_baselines",
]


_PAIR_CELLS = 1 << 22
"""Pairs of domains × experts that are in memory at a time."""


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
        tests; with one domain only, ``others``, ``lift``, ``p`` and ``q`` are NaN. The interval of
        the lift resamples documents inside and outside of the domain, outside without regard to
        domain; with more than `MANY_DOMAINS` it resamples every domain's documents within the
        domain, once for all intervals.

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
    lift_ends = (
        [_lift_interval(counts_NM, tokens_N, domain_N == d, rng) for d in range(num_domains)]
        if num_domains <= MANY_DOMAINS
        else _lift_intervals(counts_NM, tokens_N, domain_N, num_domains, rng)
    )
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
    return _ends_of_ratio(*rates)


def _lift_intervals(
    counts_NM: NDArray[np.int64],
    tokens_N: NDArray[np.int64],
    domain_N: NDArray[np.int64],
    num_domains: int,
    rng: np.random.Generator,
) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Intervals of all lifts in a time that grows with the documents, not with their square.

    What lies outside of a domain in one resample is the sum of all domains less its own. Draws are
    made twice from the same seeds, since those of thousands of domains would fill memory.
    """
    used = np.flatnonzero(tokens_N > 0)
    order = used[np.argsort(domain_N[used], kind="stable")]
    ends = np.searchsorted(domain_N[order], np.arange(num_domains + 1))
    members = [order[a:b] for a, b in pairwise(ends)]
    seeds = rng.integers(2**63, size=num_domains)

    def drawn(d: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        n = members[d].size
        own = np.random.default_rng(seeds[d])
        draws = own.multinomial(n, np.full(n, 1.0 / n), BOOTSTRAP_SAMPLES // 2).astype(float)
        return draws @ counts_NM[members[d]], (draws @ tokens_N[members[d]].astype(float))[:, None]

    top = np.zeros((BOOTSTRAP_SAMPLES // 2, counts_NM.shape[1]))
    bottom = np.zeros((BOOTSTRAP_SAMPLES // 2, 1))
    for d in (d for d in range(num_domains) if members[d].size):
        hit, size = drawn(d)
        top += hit
        bottom += size
    nan = np.full(counts_NM.shape[1], np.nan)
    found = []
    for d in range(num_domains):
        if min(members[d].size, used.size - members[d].size) < MIN_CLUSTERS:
            found.append((nan, nan))
            continue
        hit, size = drawn(d)
        found.append(_ends_of_ratio(hit / size, (top - hit) / (bottom - size)))
    return found


def _ends_of_ratio(
    inside: NDArray[np.floating[Any]], outside: NDArray[np.floating[Any]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(outside > 0, inside / outside, np.inf)
    ratio[(inside == 0) & (outside == 0)] = 1.0
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
    every = np.arange(counts_CXE.shape[1])
    return token_baselines(counts_CXE.sum(0), ((every, own_XE) for own_XE in counts_CXE), top_k)


def token_baselines(
    total_XE: NDArray[np.int64],
    by_domain: Iterable[tuple[NDArray[np.int64], NDArray[np.int64]]],
    top_k: int,
) -> TokenBaseline:
    """`token_baseline` of one domain after the other, none of which holds ids it does not use.

    Args:
        total_XE: how often token id x went to expert e, over all domains.
        by_domain: for each domain rows of ``total_XE`` in ascending order, and its own counts of
            these.
        top_k: K.
    """
    found = [_baseline(own_RE, total_XE[rows_R] - own_RE, top_k) for rows_R, own_RE in by_domain]
    by_token, beyond, shared = zip(*found, strict=True)
    return TokenBaseline(np.stack(by_token), np.stack(beyond), np.asarray(shared))


def _baseline(
    own_RE: NDArray[np.int64], elsewhere_RE: NDArray[np.int64], top_k: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    nan = np.full(own_RE.shape[1], np.nan)
    times, elsewhere = own_RE.sum(1) / top_k, elsewhere_RE.sum(1) / top_k
    common = (times > 0) & (elsewhere > 0)
    if times.sum() == 0:
        return nan, nan, float("nan")
    shared = float(times[common].sum() / times.sum())
    if not common.any():
        return nan, nan, shared
    rates = elsewhere_RE[common] / elsewhere[common, None]
    by_token = (times[common] / times[common].sum()) @ rates
    return by_token, own_RE[common].sum(0) / times[common].sum() - by_token, shared


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


def jensen_shannon_pairs(
    loads_CE: Float64[np.ndarray, "C E"],
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]]:
    """`jensen_shannon` of every two rows i < j, to the last digit, some pairs at a time.

    Args:
        loads_CE: load distributions; each row sums to 1.

    Yields:
        (i, j, distance), in the order of i, then j.
    """
    count, width = loads_CE.shape
    alone = np.asarray([_entropy(row) for row in loads_CE])
    first, second = np.triu_indices(count, 1)
    step = max(1, _PAIR_CELLS // width)
    for start in range(0, first.size, step):
        i, j = first[start : start + step], second[start : start + step]
        inside = 0.5 * (alone[i] + alone[j])
        room = np.log(width) - inside
        apart = _entropies(0.5 * (loads_CE[i] + loads_CE[j])) - inside
        with np.errstate(divide="ignore", invalid="ignore"):
            yield i, j, np.where(room > 1e-12, apart / room, np.nan)


def _entropies(p_PE: NDArray[np.float64]) -> NDArray[np.float64]:
    """`_entropy` of each row, added in the same order: rows with as many zeros go together."""
    positive = p_PE > 0
    counts = positive.sum(1)
    out = np.zeros(len(p_PE))
    for count in np.unique(counts[counts > 0]):
        rows = np.flatnonzero(counts == count)
        p = p_PE[rows][positive[rows]].reshape(rows.size, count)
        out[rows] = -(p * np.log(p)).sum(1)
    return out


def _entropy(p: NDArray[np.float64]) -> float:
    positive = p[p > 0]
    return float(-(positive * np.log(positive)).sum())
