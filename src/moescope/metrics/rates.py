"""How sure a rate over documents is: effective tokens, and intervals that keep what they promise.

Tokens of one document are alike, so a rate over N tokens is known as well as one over fewer
independent ones. How many follows from how much the documents differ: the variance of the rate
between documents over the variance that independent tokens would have is the *design effect*, and
N over it the *effective tokens*. Three things keep that honest with little text:

- the design effect is at least 1, so documents that happen to agree promise nothing;
- a rate with few hits says little about its own design effect, so it borrows that of its family
  (the experts of one layer): a rate of 0 of 200 tokens has an interval too;
- unequal lengths leave fewer degrees of freedom than there are documents.

It knows arrays only. Shapes: N documents, M things whose rate is asked, by family in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, Num
from numpy.typing import NDArray

from moescope.metrics.intervals import MIN_CLUSTERS, Interval, jackknife, joint_df, quantile

Floats = NDArray[np.float64]

_BORROWED = 10.0
"""Hits at which a rate's own design effect counts as much as its family's."""


class Moments(NamedTuple):
    """Sums of `residuals` over a group of documents, or over many groups in leading axes.

    ``e``, ``ee``, ``en``: (…, M); ``n``, ``nn``: (…, 1).
    """

    e: Floats
    ee: Floats
    en: Floats
    n: Floats
    nn: Floats

    @classmethod
    def of(cls, sums: Floats) -> Moments:
        """Take sums over rows of `residuals`, (…, 3M + 2), apart."""
        width = (sums.shape[-1] - 2) // 3
        return cls(*np.split(sums, [width, 2 * width, 3 * width, 3 * width + 1], axis=-1))

    def without(self, part: Moments) -> Moments:
        """Sums over the documents that are not in ``part``."""
        return Moments(*(a - b for a, b in zip(self, part, strict=True)))


class Spread(NamedTuple):
    """Rates and how sure they are.

    ``rate``: (hits + 3/8)/(tokens + 3/4), so never 0 or 1. ``effective``: independent tokens that
    would tell as much. ``df``: degrees of freedom, (Σ tokens)²/Σ tokens² − 1.
    """

    rate: Floats
    effective: Floats
    df: Floats


def residuals(counts_NM: Floats, tokens_N: Floats, base_M: Floats) -> Floats:
    """What is summed to know a rate and its variance, by document: e, e², e·n, n, n², (N, 3M + 2).

    Args:
        counts_NM: hits by document.
        tokens_N: tokens n by document.
        base_M: e = hits − base·n. Any base gives the same variances, the pooled rate most exactly.
    """
    n = tokens_N[:, None]
    e = counts_NM - n * base_M
    return np.concatenate([e, e * e, e * n, n, n * n], axis=1)


def spread(sums: Moments, base_M: Floats, families: Sequence[int] | None = None) -> Spread:
    """Rates and effective tokens from `Moments`.

    Args:
        sums: of one group or of many.
        base_M: the base of the residuals.
        families: how many of the M things belong to each family, in order; None: all to one.

    Reference:
        Linearised variance of a ratio of cluster totals: Cochran 1977, Sampling Techniques, ch. 6.
    """
    shift = sums.e / sums.n
    squares = np.maximum(sums.ee - 2 * shift * sums.en + shift**2 * sums.nn, 0.0)
    groups = np.maximum(sums.n**2 / sums.nn, 1.0 + 1e-9)  # documents, were they of equal length
    variance = groups / (groups - 1) * squares / sums.n**2
    return _spread(base_M + shift, variance, sums.n, groups - 1, families)


def _spread(
    rate: Floats, variance: Floats, tokens: Floats, df: Floats, families: Sequence[int] | None
) -> Spread:
    hits = np.clip(rate, 0.0, 1.0) * tokens
    rate = (hits + 0.375) / (tokens + 0.75)
    independent = rate * (1 - rate) / tokens
    own = variance / independent
    weight = _BORROWED / (_BORROWED + hits)
    borrowed = (1 - weight) * own + weight * _pooled(variance, independent, families)
    effect = np.maximum(np.maximum(own, borrowed), 1.0)
    return Spread(rate, tokens / effect, df)


def _pooled(top: Floats, bottom: Floats, families: Sequence[int] | None) -> Floats:
    """Σtop/Σbottom of each family, for each of its members."""
    if families is None:
        whole: Floats = top.sum(-1, keepdims=True) / bottom.sum(-1, keepdims=True)
        return whole
    starts = np.cumsum([0, *families[:-1]])
    parts = np.add.reduceat(top, starts, axis=-1) / np.add.reduceat(bottom, starts, axis=-1)
    return np.repeat(parts, families, axis=-1)


def rate_interval(
    counts_NM: Num[np.ndarray, "N M"],
    tokens_N: Int64[np.ndarray, " N"],
    families: Sequence[int] | None = None,
) -> Interval:
    """95 % interval of Σcounts/Σtokens, the documents being the sample.

    Student's t on the logit scale with the jackknife variance over documents.

    Args:
        counts_NM: how many of each document's tokens are hits, for M things.
        tokens_N: tokens of each document; documents without any are left out.
        families: how many of the M things belong to each family, in order; None: all to one.

    Returns:
        Low and high ends in [0, 1], each (M,). NaN below `MIN_CLUSTERS` documents, and where
        one holds nearly all tokens. Without a hit
        the low end is 0 and the high end is not.

    Reference:
        Coverage by number of documents: docs/concepts/statistics.md.
    """
    used = tokens_N > 0
    if used.sum() < MIN_CLUSTERS:
        return Interval.unknown(counts_NM.shape[1])
    tokens = tokens_N[used].astype(np.float64)
    rate, variance, df = jackknife(counts_NM[used].astype(np.float64), tokens)
    if df < 1:  # one document is nearly all of the text
        return Interval.unknown(counts_NM.shape[1])
    found = _spread(rate, variance, tokens.sum(keepdims=True), df, families)
    middle = np.log(found.rate / (1 - found.rate))
    step = quantile(df) / np.sqrt(found.effective * found.rate * (1 - found.rate))
    low, high = (1 / (1 + np.exp(-np.clip(middle + s * step, -700, 700))) for s in (-1, 1))
    low[rate <= 0], high[rate >= 1] = 0.0, 1.0
    return Interval(low, high)


def rate_ratio_interval(top: Spread, bottom: Spread) -> Interval:
    """95 % interval of the quotient of two independent rates, on the logarithmic scale.

    A rate of 0 is no reason for an interval of one point: the ends come from the rates of
    `Spread`, which are never 0. Who has no hit above sets the low end to 0.
    """
    parts = [(1 - s.rate) / (s.effective * s.rate) for s in (top, bottom)]
    step = quantile(joint_df(parts, (top.df, bottom.df))) * np.sqrt(np.add(*parts))
    middle = np.log(top.rate / bottom.rate)
    return Interval(np.exp(middle - step), np.exp(np.minimum(middle + step, 700)))


def standardised(one: Spread, other: Spread) -> Floats:
    """How far two rates are apart, as a standard normal variable when they are equal.

    The difference on the scale arcsin √rate over its standard error is Student-distributed with
    Welch's degrees of freedom; Wallace's formula turns that into a normal variable, so that groups
    of few and of many documents are measured alike.

    Reference:
        Wallace 1959, Bounds on normal approximations to Student's and the chi-square distributions.
    """
    parts = [0.25 / s.effective for s in (one, other)]
    difference = np.arcsin(np.sqrt(one.rate)) - np.arcsin(np.sqrt(other.rate))
    df = joint_df(parts, (one.df, other.df))
    squared = difference**2 / np.add(*parts)
    z: Floats = np.sign(difference) * np.sqrt(df * np.log1p(squared / df))
    return z * (8 * df + 1) / (8 * df + 3)


def difference_interval(a: Floats, a_ends: Interval, b: Floats, b_ends: Interval) -> Interval:
    """95 % interval of a − b from the intervals of two independent rates.

    Reference:
        Newcombe 1998, Interval estimation for the difference between independent proportions.
    """
    low = a - b - np.hypot(a - a_ends.low, b_ends.high - b)
    high = a - b + np.hypot(a_ends.high - a, b - b_ends.low)
    return Interval(low, high)
