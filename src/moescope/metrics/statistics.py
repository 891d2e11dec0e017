"""Nulls, intervals and corrections. The document is the unit of all of them.

Tokens of one document are not independent, so nothing here resamples tokens: the bootstrap draws
documents, the permutation test moves the labels of whole documents. Callers give counts by
document cluster (see the trace's aggregates); a cluster is one document unless there are very many.
It knows arrays only.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int64, Num
from numpy.typing import NDArray
from scipy.stats import false_discovery_control

__all__ = [
    "BOOTSTRAP_SAMPLES",
    "MANY_DOMAINS",
    "MIN_CLUSTERS",
    "RateInterval",
    "benjamini_hochberg",
    "bootstrap_rates",
    "permutation_p",
    "permutations_for",
]

BOOTSTRAP_SAMPLES = 1000
"""Resamples behind each interval."""

MIN_CLUSTERS = 5
"""With fewer documents in a domain no interval and no p-value is given (NaN)."""

MANY_DOMAINS = 64
"""With more domains, what is drawn is drawn for all of them at once."""

_LEVEL = 0.95
_CELL_BUDGET = 20_000_000


class RateInterval(NamedTuple):
    """Percentile intervals at 95 %, each of the shape of the rates."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]


def bootstrap_rates(
    counts_NM: Num[np.ndarray, "N M"],
    tokens_N: Int64[np.ndarray, " N"],
    rng: np.random.Generator,
    samples: int = BOOTSTRAP_SAMPLES,
) -> RateInterval:
    """Interval of Σcounts/Σtokens under resampling of documents with replacement.

    Args:
        counts_NM: count of M things, or sum of M scalars, in each of N documents.
        tokens_N: the denominator of each document.
        rng: random numbers.
        samples: resamples.

    Returns:
        Low and high ends, each (M,). NaN when there are fewer than `MIN_CLUSTERS` documents with
        tokens: an interval from so few would promise what it cannot keep.

    Reference:
        Cluster bootstrap: Field and Welsh 2007, Bootstrapping clustered data.
    """
    used = tokens_N > 0
    counts, tokens = counts_NM[used].astype(np.float64), tokens_N[used].astype(np.float64)
    width = counts.shape[1]
    if tokens.size < MIN_CLUSTERS:
        nan = np.full(width, np.nan)
        return RateInterval(nan, nan.copy())
    return _percentiles(counts, tokens, rng, samples)


def _percentiles(
    numerators: NDArray[np.float64],
    denominators: NDArray[np.float64],
    rng: np.random.Generator,
    samples: int,
) -> RateInterval:
    n, width = numerators.shape
    draws = rng.multinomial(n, np.full(n, 1.0 / n), size=samples).astype(np.float64)
    bottom = (draws @ denominators)[:, None]
    low, high = np.empty(width), np.empty(width)
    step = max(1, _CELL_BUDGET // samples)
    for start in range(0, width, step):
        rates = (draws @ numerators[:, start : start + step]) / bottom
        ends = np.quantile(rates, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2], axis=0)
        low[start : start + step], high[start : start + step] = ends
    return RateInterval(low, high)


def permutations_for(num_tests: int, num_clusters: int) -> int:
    """How many permutations to draw so that a single true finding can survive correction.

    With R permutations the smallest p is 1/(R + 1); Benjamini–Hochberg over ``num_tests`` needs
    0.05/num_tests for a lone discovery. Between 999 and 19,999, less where the product of
    clusters and tests would take minutes.
    """
    wanted = int(np.ceil(num_tests / 0.05))
    affordable = int(4e11 // max(1, num_clusters * num_tests))
    return int(np.clip(min(wanted, affordable), 999, 19_999))


def permutation_p(
    counts_NM: Int64[np.ndarray, "N M"],
    tokens_N: Int64[np.ndarray, " N"],
    domain_N: Int64[np.ndarray, " N"],
    num_domains: int,
    rng: np.random.Generator,
    permutations: int,
) -> Float64[np.ndarray, "C M"]:
    """Two-sided p that a domain uses a thing at another rate than the other domains do.

    The statistic is the rate inside the domain minus the rate in all other documents. Under the
    null, labels are exchangeable between documents, so permuting them over documents (the number
    of documents of each domain stays) gives its distribution, whatever the lengths of the
    documents: p = (1 + #{|permuted| ≥ |observed|}) / (1 + permutations), which is never 0.

    Args:
        counts_NM: count of M things in each of N documents.
        tokens_N: tokens of each document; documents without tokens are left out.
        domain_N: domain of each document, 0 … num_domains − 1.
        num_domains: C.
        rng: random numbers.
        permutations: R.

    Returns:
        p by domain and thing, (C, M). NaN for a domain with fewer than `MIN_CLUSTERS` documents
        inside or outside it, so for a corpus of one domain everything is NaN.

    Reference:
        Phipson and Smyth 2010, Permutation p-values should never be zero.
    """
    used = tokens_N > 0
    # float32 holds integers below 2²⁴ exactly and multiplies faster
    exact32 = counts_NM.sum(0).max(initial=0) < 2**24
    counts: NDArray[Any] = counts_NM[used].astype(np.float32 if exact32 else np.float64)
    domain = domain_N[used]
    tokens = tokens_N[used].astype(np.float64)
    n, width = counts.shape
    p = np.full((num_domains, width), np.nan)
    sizes = np.bincount(domain, minlength=num_domains)
    tested = [d for d in range(num_domains) if MIN_CLUSTERS <= sizes[d] <= n - MIN_CLUSTERS]
    if not tested:
        return p
    total, all_tokens = counts.sum(0, dtype=np.float64), tokens.sum()
    hits = np.zeros((num_domains, width), np.int64)
    observed = {
        d: _contrast((domain == d)[None].astype(np.float32), counts, tokens, total, all_tokens)
        for d in tested
    }
    step = int(max(1, min(permutations, _CELL_BUDGET // max(width, n))))
    for start in range(0, permutations, step):
        shuffled = rng.permuted(np.tile(domain, (min(step, permutations - start), 1)), axis=1)
        if num_domains > MANY_DOMAINS:
            _count_together(hits, shuffled, tested, observed, counts, tokens)
            continue
        for d in tested:
            inside = (shuffled == d).astype(np.float32)
            drawn = _contrast(inside, counts, tokens, total, all_tokens)
            hits[d] += (np.abs(drawn) >= np.abs(observed[d]) - 1e-9).sum(0)
    for d in tested:
        p[d] = (1 + hits[d]) / (1 + permutations)
    return p


def _count_together(
    hits: NDArray[np.int64],
    shuffled_RN: NDArray[np.int64],
    tested: list[int],
    observed: dict[int, NDArray[np.float64]],
    counts: NDArray[Any],
    tokens: NDArray[np.float64],
) -> None:
    """Add the hits of all domains: documents sorted by label and summed, once for each permutation.

    The sums are of whole numbers, so they are those of `_contrast` to the last digit; one product
    for each domain would take documents × domains.
    """
    total, all_tokens = counts.sum(0, dtype=np.float64), tokens.sum()
    bar = np.abs(np.concatenate([observed[d] for d in tested])) - 1e-9
    for labels in shuffled_RN:
        order = np.argsort(labels, kind="stable")
        present, starts = np.unique(labels[order], return_index=True)
        kept = np.searchsorted(present, tested)
        hit = np.add.reduceat(counts[order], starts, axis=0)[kept].astype(np.float64)
        size = np.add.reduceat(tokens[order], starts)[kept, None]
        drawn = hit / size - (total - hit) / (all_tokens - size)
        hits[tested] += np.abs(drawn) >= bar


def _contrast(
    inside_RN: NDArray[np.float32],
    counts: NDArray[Any],
    tokens: NDArray[np.float64],
    total: NDArray[np.float64],
    all_tokens: float,
) -> NDArray[np.float64]:
    """Rate inside minus rate outside, (R, M)."""
    hit = (inside_RN @ counts).astype(np.float64)
    size = (inside_RN @ tokens)[:, None]
    contrast: NDArray[np.float64] = hit / size - (total - hit) / (all_tokens - size)
    return contrast


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
        q[known] = false_discovery_control(p[known])
    return q
