"""Do two rankings agree? Spearman's ρ, with interval and p where things ranked are the unit.

Rankings of different layers are not compared with each other, because what differs between layers
would then pass for agreement. It knows arrays only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from moescope.metrics.statistics import permutation_p

LEAST_EXPERTS = 5
"""With fewer experts in a layer no correlation is given."""

RELABELLINGS = 999
"""Behind each p of `mantel`."""

_SAMPLES = 1000
_PERMUTATIONS = 9999
_SPLITS = 200
_FEWEST_RELABELLED = 4

Floats = NDArray[np.float64]


class RankCorrelation(NamedTuple):
    """Spearman's ρ, its 95 % interval, two-sided permutation p, and the number of experts."""

    rho: float
    low: float
    high: float
    p: float
    experts: int


class Mantel(NamedTuple):
    """Spearman's ρ over ``pairs`` of ``experts``, and its two-sided p."""

    rho: float
    pairs: int
    experts: int
    p: float


def spearman(x: NDArray[Any], y: NDArray[Any]) -> Any:
    """Spearman's ρ along the last axis, ties sharing the mean of their ranks.

    Returns:
        In [−1, 1], 0 without a link; NaN where either has no differences.

    Example:
        >>> float(spearman(np.array([1.0, 2.0, 3.0]), np.array([1.0, 9.0, 4.0])))
        0.5
    """
    return _of_ranks(rankdata(x, axis=-1), rankdata(y, axis=-1))


def _of_ranks(a: Floats, b: Floats) -> Any:
    """Pearson's correlation along the last axis."""
    a, b = (x - x.mean(-1, keepdims=True) for x in (a, b))
    with np.errstate(divide="ignore", invalid="ignore"):
        return (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))


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
    rho = float(np.mean([spearman(s, i) for s, i in kept]))
    drawn = np.nanmean([_resampled(s, i, rng) for s, i in kept], axis=0)
    permuted = np.mean([_permuted(s, i, rng) for s, i in kept], axis=0)
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    p = float(permutation_p(abs(rho), [np.abs(permuted)]))
    return RankCorrelation(rho, float(low), float(high), p, experts)


def _resampled(score: Floats, importance: Floats, rng: np.random.Generator) -> Any:
    drawn = rng.integers(score.size, size=(_SAMPLES, score.size))
    return spearman(score[drawn], importance[drawn])


def _permuted(score: Floats, importance: Floats, rng: np.random.Generator) -> Any:
    ranks = np.tile(rankdata(importance), (_PERMUTATIONS, 1))
    return _of_ranks(rankdata(score), rng.permuted(ranks, axis=1))


def repeatability(
    sums_NE: Floats,
    tokens_N: NDArray[np.int64],
    domain_N: NDArray[np.int64],
    rng: np.random.Generator,
) -> float:
    """How far a ranking by importance repeats: mean ρ between two halves of the documents.

    It says how much of the ranking would be found again on other text of this kind (an
    underestimate: a half is measured with more noise than the whole). It is not a ceiling for
    scores from the same text, which share its accidents. Documents of every domain are halved at
    random, 200 times.

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
        halves = order[::2], order[1::2]
        found.append(spearman(*(sums_NE[h].sum(0) / tokens_N[h].sum() for h in halves)))
    known = np.asarray(found)[np.isfinite(found)]
    return float(known.mean()) if known.size else float("nan")


def mantel(
    x_EE: Floats, y_EE: Floats, rng: np.random.Generator, relabellings: int = RELABELLINGS
) -> Mantel:
    """Do two matrices rank the pairs of the same experts alike?

    Spearman's correlation over pairs, and a two-sided p from giving the experts of one matrix new
    numbers: pairs that share an expert are not independent, so pairs are never shuffled singly.

    Args:
        x_EE: one matrix, symmetric; the diagonal is not used.
        y_EE: the other.
        rng: random numbers.
        relabellings: how many.

    Returns:
        See `Mantel`, over the experts that both matrices know. p is NaN with fewer than 4 of them,
        and never 0: its least value is 1/(1 + relabellings).

    Reference:
        Mantel 1967, The detection of disease clustering and a generalized regression approach.
    """
    kept = _known_to_both(x_EE, y_EE)
    size = len(kept)
    places = np.triu_indices(size, 1)
    ranks_x, ranks_y = (rankdata(m[np.ix_(kept, kept)][places]) for m in (x_EE, y_EE))
    rho = float(_of_ranks(ranks_x, ranks_y)) if ranks_x.size > 2 else float("nan")
    if size < _FEWEST_RELABELLED or not np.isfinite(rho):
        return Mantel(rho, ranks_x.size, size, float("nan"))
    ranks = np.zeros((size, size))
    ranks[places] = ranks_y
    ranks += ranks.T
    orders = (rng.permutation(size) for _ in range(relabellings))
    drawn = (np.abs(_of_ranks(ranks_x, ranks[np.ix_(o, o)][places]))[None] for o in orders)
    return Mantel(rho, ranks_x.size, size, float(permutation_p(abs(rho), drawn)))


def _known_to_both(x_EE: Floats, y_EE: Floats) -> NDArray[np.int64]:
    """The experts whose pairs are all known: those with the most unknown pairs go one by one."""
    unknown = ~(np.isfinite(x_EE) & np.isfinite(y_EE))
    np.fill_diagonal(unknown, False)
    kept = np.arange(x_EE.shape[0])
    while kept.size and (worst := unknown[np.ix_(kept, kept)].sum(1)).any():
        kept = np.delete(kept, int(worst.argmax()))
    return kept
