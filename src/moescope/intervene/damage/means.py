"""Means per token with intervals over documents, for many measurements at once.

Every edit is measured on the same documents, so its changes are compared document by document. It
knows arrays only; the rules (Student's t, no interval below `MIN_CLUSTERS` documents) are those of
`moescope.metrics.rates`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from moescope.metrics.rates import MIN_CLUSTERS, jackknife

__all__ = ["Contrast", "Means", "contrast", "document_means", "minimum_detectable"]

Floats = NDArray[np.float64]

_TAIL = 0.975
_POWER_FACTOR = 1.959964 + 0.841621
"""z at 97.5 % plus z at 80 %."""


class Means(NamedTuple):
    """Of M measurements, each (M,): mean per token, 95 % interval, standard error."""

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


def document_means(sums_NM: Floats, tokens_N: NDArray[np.int64]) -> Means:
    """Σ sums / Σ tokens over N documents, with its interval over documents.

    Args:
        sums_NM: sum over the tokens of each document, of M measurements.
        tokens_N: tokens of each document; documents without any are left out.

    Returns:
        See `Means`. All NaN without tokens; the interval and the standard error are NaN below
        `MIN_CLUSTERS` documents.
    """
    used = tokens_N > 0
    unknown = np.full(sums_NM.shape[1], np.nan)
    if not used.any():
        return Means(unknown, unknown.copy(), unknown.copy(), unknown.copy())
    mean, variance, df = jackknife(sums_NM[used], tokens_N[used].astype(np.float64))
    if int(used.sum()) < MIN_CLUSTERS:
        return Means(mean, unknown, unknown.copy(), unknown.copy())
    se = np.sqrt(variance)
    step = student.ppf(_TAIL, df) * se
    return Means(mean, mean - step, mean + step, se)


def contrast(sums_NM: Floats, tokens_N: NDArray[np.int64], on_N: NDArray[np.bool_]) -> Contrast:
    """Damage on target against damage off target.

    Args:
        sums_NM: sum over the tokens of each document, of M measurements.
        tokens_N: tokens of each document.
        on_N: which documents are on target.

    Returns:
        See `Contrast`; intervals (and with them the ratio) are NaN below `MIN_CLUSTERS` documents
        on either side.

    Reference:
        Of the ratio: Fieller 1954, Some problems in interval estimation.
    """
    used = tokens_N > 0
    sides = [used & on_N, used & ~on_N]
    out = Contrast(*np.full((6, sums_NM.shape[1]), np.nan))
    if not all(side.any() for side in sides):
        return out
    (on, a, df_on), (off, b, df_off) = (
        jackknife(sums_NM[s], tokens_N[s].astype(np.float64)) for s in sides
    )
    out.difference[:] = on - off
    if min(int(s.sum()) for s in sides) < MIN_CLUSTERS:
        return out
    # Welch; with no spread on either side any degrees of freedom will do
    df = np.maximum((a + b) ** 2 / np.maximum(a**2 / df_on + b**2 / df_off, 1e-300), 1.0)
    t = student.ppf(_TAIL, df)
    out.low[:], out.high[:] = on - off - t * np.sqrt(a + b), on - off + t * np.sqrt(a + b)
    clear = (off - student.ppf(_TAIL, df_off) * np.sqrt(b) > 0) & (off**2 > t**2 * b)
    on, off, a, b, t = on[clear], off[clear], a[clear], b[clear], t[clear]
    out.ratio[clear] = on / off
    room = off**2 - t**2 * b
    reach = t * np.sqrt(np.maximum(a * room + b * on**2, 0.0))
    out.ratio_low[clear], out.ratio_high[clear] = (
        (on * off - reach) / room,
        (on * off + reach) / room,
    )
    return out


def minimum_detectable(se: Floats) -> Floats:
    """The smallest true change that this text would show with 80 % power: (1.96 + 0.84)·SE.

    Two-sided at 5 %. A plan that shows nothing may well do harm below this.
    """
    return _POWER_FACTOR * se
