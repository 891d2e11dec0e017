"""Means per token with intervals from resampled documents, for many measurements at once.

Every edit is measured on the same documents, so one draw of documents serves them all and the
comparison is paired. It knows arrays only; the rules (1,000 resamples, no interval below
`MIN_CLUSTERS` documents) are those of `moescope.metrics.statistics`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moescope.metrics.statistics import BOOTSTRAP_SAMPLES, MIN_CLUSTERS

__all__ = ["Contrast", "Means", "contrast", "document_means", "minimum_detectable"]

Floats = NDArray[np.float64]

_LEVEL = (0.025, 0.975)
_POWER_FACTOR = 1.959964 + 0.841621
"""z at 97.5 % plus z at 80 %."""

_CELL_BUDGET = 20_000_000


class Means(NamedTuple):
    """Of M measurements, each (M,): mean per token, 95 % interval, bootstrap standard error."""

    mean: Floats
    low: Floats
    high: Floats
    se: Floats


class Contrast(NamedTuple):
    """Of M measurements, each (M,): on-target mean over and minus the off-target mean.

    ``ratio`` and its interval are NaN where the off-target mean is not clearly above 0 (its
    interval reaches 0), for then the quotient says nothing; the difference is always there.
    """

    ratio: Floats
    ratio_low: Floats
    ratio_high: Floats
    difference: Floats
    low: Floats
    high: Floats


def document_means(sums_NM: Floats, tokens_N: NDArray[np.int64], rng: np.random.Generator) -> Means:
    """Σ sums / Σ tokens over N documents, with the interval under resampling of documents.

    Args:
        sums_NM: sum over the tokens of each document, of M measurements.
        tokens_N: tokens of each document; documents without any are left out.
        rng: random numbers.

    Returns:
        See `Means`. All NaN without tokens; the interval and the standard error are NaN below
        `MIN_CLUSTERS` documents.
    """
    used = tokens_N > 0
    sums, tokens = sums_NM[used], tokens_N[used].astype(np.float64)
    unknown = np.full(sums_NM.shape[1], np.nan)
    if not used.any():
        return Means(unknown, unknown.copy(), unknown.copy(), unknown.copy())
    mean = sums.sum(0) / tokens.sum()
    if tokens.size < MIN_CLUSTERS:
        return Means(mean, unknown, unknown.copy(), unknown.copy())
    low, high, se = (np.empty_like(mean) for _ in range(3))
    draws = _draws(tokens.size, rng)
    step = max(1, _CELL_BUDGET // BOOTSTRAP_SAMPLES)
    for start in range(0, mean.size, step):
        part = slice(start, start + step)
        drawn = _rates(draws, sums[:, part], tokens)
        low[part], high[part] = np.quantile(drawn, _LEVEL, axis=0)
        se[part] = drawn.std(0, ddof=1)
    return Means(mean, low, high, se)


def contrast(
    sums_NM: Floats, tokens_N: NDArray[np.int64], on_N: NDArray[np.bool_], rng: np.random.Generator
) -> Contrast:
    """Damage on target against damage off target; the two sides are resampled separately.

    Args:
        sums_NM: sum over the tokens of each document, of M measurements.
        tokens_N: tokens of each document.
        on_N: which documents are on target.
        rng: random numbers.

    Returns:
        See `Contrast`; intervals (and with them the ratio) are NaN below `MIN_CLUSTERS` documents
        on either side.
    """
    used = tokens_N > 0
    sides = [used & on_N, used & ~on_N]
    out = Contrast(*np.full((6, sums_NM.shape[1]), np.nan))
    if not all(side.any() for side in sides):
        return out
    on, off = (sums_NM[s].sum(0) / tokens_N[s].sum() for s in sides)
    out.difference[:] = on - off
    if min(int(s.sum()) for s in sides) < MIN_CLUSTERS:
        return out
    on_drawn, off_drawn = (
        _rates(_draws(int(s.sum()), rng), sums_NM[s], tokens_N[s].astype(np.float64)) for s in sides
    )
    clear = np.quantile(off_drawn, _LEVEL[0], axis=0) > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = on_drawn / off_drawn
        out.ratio[clear] = (on / off)[clear]
    ends = np.quantile(drawn[:, clear], _LEVEL, axis=0)
    out.ratio_low[clear], out.ratio_high[clear] = ends
    out.low[:], out.high[:] = np.quantile(on_drawn - off_drawn, _LEVEL, axis=0)
    return out


def minimum_detectable(se: Floats) -> Floats:
    """The smallest true change that this text would show with 80 % power: (1.96 + 0.84)·SE.

    Two-sided at 5 %. A plan that shows nothing may well do harm below this.
    """
    return _POWER_FACTOR * se


def _draws(documents: int, rng: np.random.Generator) -> Floats:
    """How often each document is in each resample, (R, N)."""
    even = np.full(documents, 1.0 / documents)
    return rng.multinomial(documents, even, size=BOOTSTRAP_SAMPLES).astype(np.float64)


def _rates(draws_RN: Floats, sums_NM: Floats, tokens_N: Floats) -> Floats:
    rates: Floats = (draws_RN @ sums_NM) / (draws_RN @ tokens_N)[:, None]
    return rates
