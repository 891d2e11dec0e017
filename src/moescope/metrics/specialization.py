"""Do domains use different experts? Rates, contrasts, intervals and tests.

Domain specialization (OLMoE Eq. 7) of expert e on domain d is N_{e,d} / N_d: the share of the
domain's tokens that have e among their K experts. On its own it also shows that an expert is busy
everywhere; the lift over the *other* domains does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64
from numpy.typing import NDArray

from moescope.metrics.intervals import MIN_CLUSTERS, Interval
from moescope.metrics.rates import (
    Moments,
    rate_interval,
    rate_ratio_interval,
    residuals,
    spread,
)
from moescope.metrics.statistics import benjamini_hochberg, permutation_test, permutations_for

Q_LEVEL = 0.05
"""False discovery rate at which an expert is called used more, or less, for a domain."""

MUCH_LIFT = 1.5
"""Much more: from this lift over the other domains; much less: from its inverse."""

RULE = (
    f"An expert is used more for a domain (it serves it) where q < {Q_LEVEL} and its rate there is "
    "above its rate on all other domains; it is used less where it is below. “Much” is said where "
    f"one of the two rates is {MUCH_LIFT} times the other or more."
)
"""What is meant by use of an expert, as every page says it."""

_HALVINGS = 20

_PAIR_CELLS = 1 << 22
"""Pairs of domains × experts that are in memory at a time."""


class DomainSpecialization(NamedTuple):
    """Arrays of shape (C, M), M cells (layer × expert) in the order of the counts.

    ``value``: N_{e,d}/N_d, chance K/E. ``others``: the same rate over all other domains together.
    ``lift_over_others``: value/others; 1 means no specialization. ``ci_low``, ``ci_high``: 95 %
    interval of ``value`` over documents; ``lift_low``, ``lift_high``: of the lift. ``p``:
    two-sided, document labels permuted. ``q``: Benjamini–Hochberg over all C × M cells.
    ``p_max``: of the largest difference of all cells, for a cell that was chosen because it is the
    largest.
    """

    value: NDArray[np.float64]
    others: NDArray[np.float64]
    lift_over_others: NDArray[np.float64]
    ci_low: NDArray[np.float64]
    ci_high: NDArray[np.float64]
    lift_low: NDArray[np.float64]
    lift_high: NDArray[np.float64]
    p: NDArray[np.float64]
    q: NDArray[np.float64]
    p_max: NDArray[np.float64]


def domain_specialization(
    counts_NM: Int64[np.ndarray, "N M"],
    tokens_N: Int64[np.ndarray, " N"],
    domain_N: Int64[np.ndarray, " N"],
    num_domains: int,
    seed: int = 0,
    permutations: int | None = None,
    families: Sequence[int] | None = None,
) -> DomainSpecialization:
    """Rates by domain with intervals over documents and document-permutation tests.

    Args:
        counts_NM: how many tokens of each document chose each of M experts.
        tokens_N: tokens of each document.
        domain_N: domain of each document.
        num_domains: C.
        seed: of the permutations.
        permutations: how many; chosen by the number of cells when None.
        families: how many of the M experts are in each layer, in order; None: all in one.

    Returns:
        See `DomainSpecialization`. A domain with fewer than 5 documents has NaN intervals and
        tests; with one domain only, ``others``, the lift, ``p`` and ``q`` are NaN. The interval of
        the lift takes the documents outside of the domain as one sample, whatever their domain.

    Reference:
        Muennighoff et al. 2024, OLMoE, Eq. 7 (https://arxiv.org/abs/2409.02060).
    """
    width = counts_NM.shape[1]
    members = _by_domain(domain_N, num_domains)
    sums = np.stack([counts_NM[rows].sum(0) for rows in members]).astype(float)
    tokens = np.bincount(domain_N, tokens_N, num_domains)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = sums / tokens[:, None]
        others = (sums.sum(0) - sums) / (tokens.sum() - tokens)[:, None]
        lift = value / others
    ends = [rate_interval(counts_NM[rows], tokens_N[rows], families) for rows in members]
    lift_ends = _lift_intervals(counts_NM, tokens_N, members, families)
    rounds = permutations or permutations_for(num_domains * width, int((tokens_N > 0).sum()))
    test = permutation_test(
        counts_NM, tokens_N, domain_N, num_domains, np.random.default_rng(seed), rounds, families
    )
    return DomainSpecialization(
        value=value,
        others=others,
        lift_over_others=lift,
        ci_low=np.stack([e.low for e in ends]),
        ci_high=np.stack([e.high for e in ends]),
        lift_low=np.stack([e.low for e in lift_ends]),
        lift_high=np.stack([e.high for e in lift_ends]),
        p=test.p,
        q=benjamini_hochberg(test.p.reshape(-1)).reshape(test.p.shape),
        p_max=test.p_max,
    )


def used(q: Any, value: Any, others: Any) -> NDArray[Any]:
    """Is an expert used more for a domain than for the others? The one place that decides it.

    Args:
        q: false discovery rate of the difference; NaN where it was not tested.
        value: rate of the expert on the domain.
        others: its rate on all other domains.

    Returns:
        ``more``, ``less``, or nothing where no difference is shown, of the shape of ``q``.

    Example:
        >>> used([0.01, 0.04, 0.06, np.nan], [0.3, 0.1, 0.9, 0.9], [0.2, 0.2, 0.2, 0.2]).tolist()
        ['more', 'less', '', '']
    """
    way = np.where(np.greater(value, others), "more", "less")
    return np.where(np.nan_to_num(q, nan=1.0) < Q_LEVEL, way, "")


def much(lift: Any) -> Any:
    """Is a use that is shown much more, or much less, than that of the other domains?"""
    return np.greater_equal(lift, MUCH_LIFT) | np.less_equal(lift, 1 / MUCH_LIFT)


def _by_domain(domain_N: NDArray[np.int64], num_domains: int) -> list[NDArray[np.int64]]:
    """The documents of each domain."""
    order = np.argsort(domain_N, kind="stable")
    ends = np.searchsorted(domain_N[order], np.arange(num_domains + 1))
    return [order[a:b] for a, b in pairwise(ends)]


def _lift_intervals(
    counts_NM: NDArray[np.int64],
    tokens_N: NDArray[np.int64],
    members: list[NDArray[np.int64]],
    families: Sequence[int] | None,
) -> list[Interval]:
    """Intervals of all lifts; NaN with fewer than `MIN_CLUSTERS` documents inside or outside."""
    tokens = tokens_N.astype(np.float64)
    base = counts_NM.sum(0) / max(tokens.sum(), 1.0)
    parts = residuals(counts_NM.astype(np.float64), tokens, base)
    total, documents = Moments.of(parts.sum(0)), int((tokens_N > 0).sum())
    found = []
    for rows in members:
        inside = int((tokens_N[rows] > 0).sum())
        if min(inside, documents - inside) < MIN_CLUSTERS:
            found.append(Interval.unknown(counts_NM.shape[1]))
            continue
        own = Moments.of(parts[rows].sum(0))
        sides = [spread(part, base, families) for part in (own, total.without(own))]
        ends = rate_ratio_interval(*sides)
        hits, elsewhere = counts_NM[rows].sum(0), counts_NM.sum(0) - counts_NM[rows].sum(0)
        ends.low[hits == 0], ends.high[elsewhere == 0] = 0.0, np.inf
        found.append(ends)
    return found


class TokenBaseline(NamedTuple):
    """What the token ids of a domain alone predict, each (C, E) but ``shared`` (C,).

    ``by_token``: rate that the expert would have on the domain if it treated every token id as it
    does in the other domains. ``beyond_token``: measured rate minus that, over the same tokens, so
    their sum is the rate measured there; 0 when the expert follows tokens and not the domain.
    ``shared``: share of the domain's tokens whose id occurs in another domain, to which both
    figures refer.
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


def split_halves(
    counts_NE: Int64[np.ndarray, "N E"],
    domain_N: Int64[np.ndarray, " N"],
    domains: Int64[np.ndarray, " C"],
    rng: np.random.Generator,
) -> Float64[np.ndarray, " C"]:
    """`jensen_shannon` between two random halves of the documents of a domain, mean of 20 halvings.

    Returns:
        By domain, in [0, 1]; NaN for one with fewer than `MIN_CLUSTERS` documents with tokens.
    """
    members = _by_domain(domain_N, int(domain_N.max(initial=0)) + 1)
    halves = np.full(domains.size, np.nan)
    for place, d in enumerate(domains):
        counts = counts_NE[members[d]]
        counts = counts[counts.sum(1) > 0]
        if len(counts) < MIN_CLUSTERS:
            continue
        whole, apart = counts.sum(0), []
        for _ in range(_HALVINGS):
            one = counts[rng.permutation(len(counts))[: len(counts) // 2]].sum(0)
            other = whole - one
            apart.append(jensen_shannon(one / one.sum(), other / other.sum()))
        halves[place] = np.mean(apart)
    return halves


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
