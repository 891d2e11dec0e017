"""Tests of differences between domains, and their correction. The document is the unit.

Tokens of one document are not independent, so nothing here permutes tokens: the labels of whole
documents move. Callers give counts by document cluster (see the trace's aggregates); a cluster is
one document unless there are very many. How sure a rate is, and its interval:
`moescope.metrics.rates`. It knows arrays only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int64
from numpy.typing import NDArray

from moescope.metrics.intervals import MIN_CLUSTERS
from moescope.metrics.rates import Moments, residuals, spread, standardised

MANY_DOMAINS = 64
"""With more domains, the sums of a permutation are made for all of them at once."""

_CELL_BUDGET = 2_000_000


class PermutationTest(NamedTuple):
    """Two-sided p by domain and thing, each (C, M).

    ``p``: of each cell by itself. ``p_max``: of the largest statistic of all cells, so that a cell
    chosen because it is the largest is tested fairly (single-step max-T): the chance that any of
    them would come out so far from 0 if no domain differed.
    """

    p: NDArray[np.float64]
    p_max: NDArray[np.float64]


def permutation_p(
    observed: Any,
    drawn: Iterable[NDArray[np.float64]],
    *,
    exact: bool = False,
    slack: float = 1e-9,
) -> NDArray[np.float64]:
    """P of what was observed among what the null gives: (1 + #{drawn ≥ observed}) / (1 + #drawn).

    Args:
        observed: a statistic, or many; larger is more extreme.
        drawn: the same under the null, some rounds at a time, (R, …).
        exact: ``drawn`` is everything that the null can give, the observed included; then
            p = #{drawn ≥ observed} / #drawn.
        slack: rounding; what lies below the observed by no more than slack·(1 + |observed|) is
            as extreme.

    Returns:
        p, of the shape of ``observed``; never 0, and NaN where that is NaN.

    Example:
        >>> float(permutation_p(3.0, [np.array([1.0, 2.0]), np.array([3.0, 4.0])]))
        0.6

    Reference:
        Phipson and Smyth 2010, Permutation p-values should never be zero.
    """
    bar = observed - slack * (1 + np.abs(observed))
    itself = 0 if exact else 1
    hits, rounds = np.full(np.shape(observed), itself), itself
    for part in drawn:
        hits, rounds = hits + (part >= bar).sum(0), rounds + len(part)
    return np.where(np.isnan(observed), np.nan, hits / rounds)


def permutations_for(num_tests: int, num_clusters: int) -> int:
    """How many permutations to draw so that a single true finding can survive correction.

    With R permutations the smallest p is 1/(R + 1); Benjamini–Hochberg over ``num_tests`` needs
    0.05/num_tests for a lone discovery. Between 999 and 19,999, less where the product of
    clusters and tests would take minutes.
    """
    wanted = int(np.ceil(num_tests / 0.05))
    affordable = int(1e11 // max(1, num_clusters * num_tests))
    return int(np.clip(min(wanted, affordable), 999, 19_999))


def permutation_test(
    counts_NM: Int64[np.ndarray, "N M"],
    tokens_N: Int64[np.ndarray, " N"],
    domain_N: Int64[np.ndarray, " N"],
    num_domains: int,
    rng: np.random.Generator,
    permutations: int,
    families: Sequence[int] | None = None,
) -> PermutationTest:
    """Does a domain use a thing at another rate than the other domains do?

    The statistic is the difference between the rate inside the domain and the rate in all other
    documents over its standard error, which each side has of its own
    (`moescope.metrics.rates.standardised`). Labels are permuted over documents (the number of
    documents of each domain stays) and p = (1 + #{|permuted| ≥ |observed|}) / (1 + permutations),
    which is never 0. Where documents are exchangeable the test is exact. Dividing by the standard
    error keeps its size close to what is stated where only the rates are equal: domains of
    unlike lengths, or unlike homogeneity. The plain difference does not. Few documents that use a
    thing rarely and then much break both (docs/concepts/statistics.md has figures).

    Args:
        counts_NM: count of M things in each of N documents.
        tokens_N: tokens of each document; documents without tokens are left out.
        domain_N: domain of each document, 0 … num_domains − 1.
        num_domains: C.
        rng: random numbers.
        permutations: R.
        families: how many of the M things belong to each layer, in order; None: all to one.

    Returns:
        See `PermutationTest`. NaN for a domain with fewer than `MIN_CLUSTERS` documents inside or
        outside it, so for a corpus of one domain everything is NaN; and for a thing that no token
        chose, or every one.

    Reference:
        Janssen 1997 and Chung and Romano 2013 on studentized permutation tests; Phipson and Smyth
        2010, Permutation p-values should never be zero; Westfall and Young 1993 on max-T.
    """
    used = tokens_N > 0
    counts, tokens = counts_NM[used].astype(np.float64), tokens_N[used].astype(np.float64)
    domain, width = domain_N[used], counts_NM.shape[1]
    p, p_max = np.full((2, num_domains, width), np.nan)
    sizes = np.bincount(domain, minlength=num_domains)
    tested = np.flatnonzero((sizes >= MIN_CLUSTERS) & (domain.size - sizes >= MIN_CLUSTERS))
    if not tested.size:
        return PermutationTest(p, p_max)
    asked = tested[:1] if num_domains == 2 else tested  # of two, one is the mirror of the other
    base = counts.sum(0) / tokens.sum()
    parts = residuals(counts, tokens, base)
    total = Moments.of(parts.sum(0))
    group = _sorted_sums if num_domains > MANY_DOMAINS else _product_sums

    def statistic(labels_RN: NDArray[np.int64]) -> NDArray[np.float64]:
        inside = Moments.of(group(labels_RN, asked, parts))
        one, other = (spread(part, base, families) for part in (inside, total.without(inside)))
        size: NDArray[np.float64] = np.abs(standardised(one, other))
        return size

    bars = statistic(domain[None])[0]
    bars -= 1e-6 * (1 + bars)  # what ties is as extreme, whatever the rounding of the sums
    hits, hits_max = np.zeros((2, *bars.shape), np.int64)
    step = int(max(1, min(permutations, _CELL_BUDGET // (asked.size * max(width, domain.size)))))
    for start in range(0, permutations, step):
        shuffled = rng.permuted(np.tile(domain, (min(step, permutations - start), 1)), axis=1)
        drawn = statistic(shuffled)
        hits += (drawn >= bars).sum(0)
        hits_max += len(drawn) - np.searchsorted(np.sort(drawn.max((1, 2))), bars)
    p[tested], p_max[tested] = (1 + hits) / (1 + permutations), (1 + hits_max) / (1 + permutations)
    constant = (counts.sum(0) == 0) | (counts.sum(0) == tokens.sum())
    p[:, constant] = p_max[:, constant] = np.nan
    return PermutationTest(p, p_max)


def _product_sums(
    labels_RN: NDArray[np.int64], asked_D: NDArray[np.int64], parts_NP: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Sums over the documents of each domain, (R, D, P), as one product."""
    inside = (labels_RN[:, None] == asked_D[:, None]).reshape(-1, labels_RN.shape[1])
    sums: NDArray[np.float64] = inside.astype(np.float64) @ parts_NP
    return sums.reshape(len(labels_RN), asked_D.size, parts_NP.shape[1])


def _sorted_sums(
    labels_RN: NDArray[np.int64], asked_D: NDArray[np.int64], parts_NP: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The same with documents sorted by label: a product would take documents × domains."""
    made = []
    for labels in labels_RN:
        order = np.argsort(labels, kind="stable")
        present, starts = np.unique(labels[order], return_index=True)
        sums = np.add.reduceat(parts_NP[order], starts, axis=0)
        made.append(sums[np.searchsorted(present, asked_D)])
    return np.stack(made)


def benjamini_hochberg(p: Float[np.ndarray, " M"]) -> Float[np.ndarray, " M"]:
    """q-values: the false discovery rate at which each test would just be called.

    NaN p-values are left out of the family and stay NaN.

    Example:
        >>> benjamini_hochberg(np.array([0.01, 0.04, 0.03, np.nan])).round(3).tolist()
        [0.03, 0.04, 0.04, nan]

    Reference:
        Benjamini and Hochberg 1995.
    """
    q = np.full(p.shape, np.nan)
    known = np.isfinite(p)
    if known.any():
        from scipy.stats import false_discovery_control  # takes most of a second to import

        q[known] = false_discovery_control(p[known])
    return q


def add_q(rows: Sequence[dict[str, Any]], p: str = "p", q: str = "q") -> None:
    """Correct the p of all rows together (`benjamini_hochberg`), each in place."""
    corrected = benjamini_hochberg(np.asarray([row[p] for row in rows], np.float64))
    for row, value in zip(rows, corrected.tolist(), strict=True):
        row[q] = value
