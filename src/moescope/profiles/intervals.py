"""Intervals of ratios over documents, for the figures of a profile.

As in `moescope.metrics.rates`, the document is the unit. Here documents vary within their domain
only, because a sample holds so much of each domain by design. It knows arrays only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from moescope.metrics.rates import MIN_CLUSTERS, RateInterval

__all__ = ["lift_interval", "ratio_interval"]

Floats = NDArray[np.float64]


def ratio_interval(top_NM: Floats, bottom_NM: Floats, domain_N: NDArray[np.int64]) -> RateInterval:
    """95 % interval of Σtop/Σbottom for M ratios of sums that are not negative.

    Student's t on the logarithmic scale.

    Args:
        top_NM: numerators by document.
        bottom_NM: denominators by document; (N, M), or (N, 1) when all share one.
        domain_N: domain of each document.

    Returns:
        Low and high ends, each (M,). NaN for a ratio whose denominator comes from fewer than
        `MIN_CLUSTERS` documents, and for one that is 0.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = top_NM.sum(0) / bottom_NM.sum(0)
        # what leaving the document out moves, as in a jackknife, in parts of the ratio
        moved = (top_NM - ratio * bottom_NM) / (bottom_NM.sum(0) - bottom_NM) / ratio
    enough = np.broadcast_to((bottom_NM > 0).sum(0) >= MIN_CLUSTERS, ratio.shape)
    return _around(ratio, moved, _documents(bottom_NM), enough, domain_N)


def lift_interval(
    both_NM: Floats,
    one_NM: Floats,
    other_NM: Floats,
    tokens_N: Floats,
    domain_N: NDArray[np.int64],
) -> RateInterval:
    """95 % interval of the lift N_ij·T/(N_i·N_j) of M pairs, on the logarithmic scale.

    Args:
        both_NM: tokens with both, by document.
        one_NM: tokens with the first.
        other_NM: tokens with the second.
        tokens_N: tokens of each document.
        domain_N: domain of each document.

    Returns:
        Low and high ends, each (M,). NaN where either of the pair occurs in fewer than
        `MIN_CLUSTERS` documents, or both nowhere together.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        both, one, other, tokens = (
            part / part.sum(0) for part in (both_NM, one_NM, other_NM, tokens_N[:, None])
        )
        lift = both_NM.sum(0) * tokens_N.sum() / (one_NM.sum(0) * other_NM.sum(0))
        documents = np.minimum(_documents(both), np.minimum(_documents(one), _documents(other)))
    enough = ((one_NM > 0).sum(0) >= MIN_CLUSTERS) & ((other_NM > 0).sum(0) >= MIN_CLUSTERS)
    return _around(lift, both + tokens - one - other, documents, enough, domain_N)


def _documents(weight_NM: Floats) -> Floats:
    """How many documents of equal weight would be as many, (M,)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Floats = weight_NM.sum(0) ** 2 / (weight_NM**2).sum(0)
    return found


def _around(
    value_M: Floats,
    moved_NM: Floats,
    documents_M: Floats,
    enough_M: NDArray[np.bool_],
    domain_N: NDArray[np.int64],
) -> RateInterval:
    """Value · exp(± t·SE), SE² the sum over domains of the spread of what documents move."""
    variance = np.zeros(value_M.shape)
    for d in np.unique(domain_N):
        own = moved_NM[domain_N == d]
        if len(own) > 1:
            variance += len(own) / (len(own) - 1) * ((own - own.mean(0)) ** 2).sum(0)
        else:  # nothing to compare it with: all that it moves counts
            variance += own[0] ** 2
    df = np.broadcast_to(documents_M - 1, value_M.shape)
    with np.errstate(invalid="ignore", over="ignore"):
        step = student.ppf(0.975, df) * np.sqrt(variance)
        ends = [
            np.where(enough_M & (value_M > 0), value_M * np.exp(s * step), np.nan) for s in (-1, 1)
        ]
    return RateInterval(*ends)
