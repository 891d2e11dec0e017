"""Intervals of ratios over documents, for the figures of a profile.

As in `moescope.metrics.statistics`, the document is the unit: whole documents are drawn again with
replacement. Here they are drawn within each domain, because a sample holds so much of each domain
by design, and one set of draws serves thousands of ratios. It knows arrays only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moescope.metrics.statistics import BOOTSTRAP_SAMPLES, MIN_CLUSTERS

__all__ = ["Interval", "document_draws", "lift_interval", "ratio_interval"]

Interval = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Low and high ends."""

_ENDS = (0.025, 0.975)

_HELD = 0.95
"""An expert that is missing from more than 1 in 20 resamples gets no interval."""


def document_draws(
    domain_N: NDArray[np.int64], rng: np.random.Generator, samples: int = BOOTSTRAP_SAMPLES
) -> NDArray[np.float32]:
    """How often each document is drawn in each resample, (R, N).

    Every resample holds as many documents of each domain as there are.
    """
    draws = np.zeros((samples, domain_N.size), np.float32)
    for d in np.unique(domain_N):
        inside = np.flatnonzero(domain_N == d)
        n = inside.size
        draws[:, inside] = rng.multinomial(n, np.full(n, 1.0 / n), size=samples)
    return draws


def ratio_interval(
    top_NM: NDArray[np.float64],
    bottom_NM: NDArray[np.float64],
    draws_RN: NDArray[np.float32],
) -> Interval:
    """95 % interval of Σtop/Σbottom for M ratios.

    Args:
        top_NM: numerators by document.
        bottom_NM: denominators by document; (N, M), or (N, 1) when all share one.
        draws_RN: see `document_draws`.

    Returns:
        Low and high ends, each (M,). NaN for a ratio whose denominator comes from fewer than
        `MIN_CLUSTERS` documents.
    """
    tops = draws_RN @ top_NM.astype(np.float32)
    bottoms = draws_RN @ bottom_NM.astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = tops / bottoms
    enough = np.broadcast_to((bottom_NM > 0).sum(0) >= MIN_CLUSTERS, top_NM.shape[1:])
    return _ends(ratio, enough)


def lift_interval(
    both_NM: NDArray[np.float64],
    one_NM: NDArray[np.float64],
    other_NM: NDArray[np.float64],
    tokens_N: NDArray[np.float64],
    draws_RN: NDArray[np.float32],
) -> Interval:
    """95 % interval of the lift N_ij·T/(N_i·N_j) of M pairs.

    Args:
        both_NM: tokens with both, by document.
        one_NM: tokens with the first.
        other_NM: tokens with the second.
        tokens_N: tokens of each document.
        draws_RN: see `document_draws`.

    Returns:
        Low and high ends, each (M,). NaN where either of the pair occurs in fewer than
        `MIN_CLUSTERS` documents.
    """
    both, one, other = (draws_RN @ a.astype(np.float32) for a in (both_NM, one_NM, other_NM))
    tokens = (draws_RN @ tokens_N.astype(np.float32))[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        lift = both / one * (tokens / other)
    enough = ((one_NM > 0).sum(0) >= MIN_CLUSTERS) & ((other_NM > 0).sum(0) >= MIN_CLUSTERS)
    return _ends(lift, enough)


def _ends(values_RM: NDArray[np.float32], enough_M: NDArray[np.bool_]) -> Interval:
    """Percentiles of each column over its finite values."""
    low = np.full(values_RM.shape[1], np.nan)
    high = low.copy()
    known = np.isfinite(values_RM)
    usable = enough_M & (known.mean(0) >= _HELD)
    if usable.any():
        ordered = np.sort(np.where(known, values_RM, np.inf)[:, usable], axis=0)
        last = known[:, usable].sum(0) - 1
        low[usable], high[usable] = (_at(ordered, last, share) for share in _ENDS)
    return low, high


def _at(
    ordered_RM: NDArray[np.float32], last_M: NDArray[np.int64], share: float
) -> NDArray[np.float64]:
    """The quantile of each column, between its two nearest values."""
    at = share * last_M
    below = np.floor(at).astype(np.int64)
    above = np.minimum(below + 1, last_M)
    columns = np.arange(last_M.size)
    first = ordered_RM[below, columns].astype(np.float64)
    step: NDArray[np.float64] = first + (at - below) * (ordered_RM[above, columns] - first)
    return step
