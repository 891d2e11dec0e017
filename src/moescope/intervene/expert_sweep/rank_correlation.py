"""Do two rankings of experts agree? Spearman's ρ with interval and p, within layers.

Experts are the unit here: the interval resamples experts, the test permutes them. Rankings of
different layers are not compared with each other unless pooling is asked for, because what differs
between layers would then pass for agreement. It knows arrays only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

__all__ = ["LEAST_EXPERTS", "RankCorrelation", "rank_correlation", "repeatability"]

LEAST_EXPERTS = 5
"""With fewer experts in a layer no correlation is given."""

_SAMPLES = 1000
_PERMUTATIONS = 9999
_SPLITS = 200

Floats = NDArray[np.float64]


class RankCorrelation(NamedTuple):
    """Spearman's ρ, its 95 % interval, two-sided permutation p, and the number of experts."""

    rho: float
    low: float
    high: float
    p: float
    experts: int


def rank_correlation(
    pairs: Sequence[tuple[Floats, Floats]], rng: np.random.Generator
) -> RankCorrelation:
    """Mean over layers of Spearman's ρ between a score and the importance of the layer's experts.

    Args:
        pairs: for each layer, score and importance of its experts, both (E,). Experts where either
            is NaN are left out; layers with fewer than `LEAST_EXPERTS` left are too.
        rng: random numbers.

    Returns:
        ρ in [−1, 1], 0 without a link. Interval: experts are resampled within their layers, 1,000
        times. p: importance is permuted within layers, 9,999 times. All NaN where no layer has
        enough experts, or a ranking has no differences.
    """
    kept = [(s[k], i[k]) for s, i in pairs if (k := ~(np.isnan(s) | np.isnan(i))).any()]
    kept = [(s, i) for s, i in kept if s.size >= LEAST_EXPERTS]
    experts = sum(s.size for s, _ in kept)
    if not kept or any(np.ptp(rankdata(a)) == 0 for pair in kept for a in pair):
        nan = float("nan")
        return RankCorrelation(nan, nan, nan, nan, experts)
    rho = float(np.mean([_rho(rankdata(s)[None], rankdata(i)[None])[0] for s, i in kept]))
    drawn = np.nanmean([_resampled(s, i, rng) for s, i in kept], axis=0)
    permuted = np.mean([_permuted(s, i, rng) for s, i in kept], axis=0)
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    hits = int((np.abs(permuted) >= abs(rho) - 1e-12).sum())
    return RankCorrelation(rho, float(low), float(high), (1 + hits) / (1 + _PERMUTATIONS), experts)


def _rho(a_RE: Floats, b_RE: Floats) -> Floats:
    """Pearson's correlation of each row of ranks; NaN where a row has no differences."""
    a, b = (x - x.mean(1, keepdims=True) for x in (a_RE, b_RE))
    with np.errstate(divide="ignore", invalid="ignore"):
        made: Floats = (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return made


def _resampled(score: Floats, importance: Floats, rng: np.random.Generator) -> Floats:
    drawn = rng.integers(score.size, size=(_SAMPLES, score.size))
    return _rho(rankdata(score[drawn], axis=1), rankdata(importance[drawn], axis=1))


def _permuted(score: Floats, importance: Floats, rng: np.random.Generator) -> Floats:
    ranks = np.tile(rankdata(importance), (_PERMUTATIONS, 1))
    return _rho(rankdata(score)[None], rng.permuted(ranks, axis=1))


def repeatability(
    sums_NE: Floats,
    tokens_N: NDArray[np.int64],
    domain_N: NDArray[np.int64],
    rng: np.random.Generator,
) -> float:
    """How far a ranking by importance repeats: mean ρ between two halves of the documents.

    It says how much of the ranking would be found again on other text of this kind (an
    underestimate: a half is measured with more noise than the whole). It is no ceiling for scores
    from the same text, which share its accidents. Documents of every domain are halved at random,
    200 times.

    Args:
        sums_NE: summed change of each document, of E experts.
        tokens_N: tokens of each document.
        domain_N: domain of each document.
        rng: random numbers.

    Returns:
        Mean Spearman's ρ; NaN below `LEAST_EXPERTS` experts or 2 documents, or without differences.
    """
    used = np.flatnonzero(tokens_N > 0)
    if sums_NE.shape[1] < LEAST_EXPERTS or used.size < 2:
        return float("nan")
    found = []
    for _ in range(_SPLITS):
        order = rng.permutation(used)
        order = order[np.argsort(domain_N[order], kind="stable")]
        halves = (order[::2], order[1::2])
        ranks = [rankdata(sums_NE[h].sum(0) / tokens_N[h].sum())[None] for h in halves]
        found.append(float(_rho(*ranks)[0]))
    known = [r for r in found if not np.isnan(r)]
    return float(np.mean(known)) if known else float("nan")
