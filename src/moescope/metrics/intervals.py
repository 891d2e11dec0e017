"""Intervals over documents, of means, ratios, lifts and whatever is computed without one group.

The document is the unit: the variance comes from leaving out each in turn (jackknife), and the
interval is Student's. Rates have intervals of their own (`moescope.metrics.rates`). It knows arrays
only. Shapes: N documents, M things.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, Num
from numpy.typing import NDArray
from scipy.special import stdtrit  # scipy.stats takes most of a second to import

Floats = NDArray[np.float64]

MIN_CLUSTERS = 5
"""With fewer documents no interval and no p-value is given (NaN)."""

FEW_DOCUMENTS = 30
"""With fewer documents a page warns that small differences cannot be seen."""

_POWER_FACTOR = 1.959964 + 0.841621
"""z at 97.5 % plus z at 80 %."""


class Interval(NamedTuple):
    """95 % intervals, each end of the shape of the values."""

    low: Any
    high: Any

    @classmethod
    def unknown(cls, *shape: int) -> Interval:
        """Ends that are all NaN."""
        return cls(*np.full((2, *shape), np.nan))


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


def quantile(df: Any) -> Any:
    """Student's t at 97.5 %: half the width of a 95 % interval in standard errors."""
    return stdtrit(df, 0.975)


def jackknife(sums_NM: Floats, tokens_N: Floats) -> tuple[Floats, Floats, Floats]:
    """Σsums/Σtokens, its variance from leaving out each document in turn, degrees of freedom.

    Args:
        sums_NM: sum over the tokens of each document, of M scalars.
        tokens_N: tokens of each document, none of them 0.

    Returns:
        Ratio and variance, each (M,); degrees of freedom, a scalar: unequal lengths leave fewer
        than there are documents.
    """
    total, count = tokens_N.sum(), tokens_N.size
    ratio = sums_NM.sum(0) / total
    # a document with all the tokens has no jackknife; its share is held just below 1
    left = np.maximum(total - tokens_N, 1e-9 * total)[:, None]
    moved = (sums_NM - tokens_N[:, None] * ratio) / left
    variance = (count - 1) / count * (moved**2).sum(0)
    return ratio, variance, np.asarray(total**2 / (tokens_N**2).sum() - 1)


def joint_df(variances: Sequence[Floats], dfs: Sequence[Floats]) -> Floats:
    """Welch–Satterthwaite degrees of freedom of the sum of two independent variances."""
    bottom = np.add(*(v**2 / df for v, df in zip(variances, dfs, strict=True)))
    joint: Floats = np.add(*variances) ** 2 / np.maximum(bottom, 1e-300)
    return joint


def document_means(sums_NM: Num[np.ndarray, "N M"], tokens_N: Int64[np.ndarray, " N"]) -> Means:
    """Σsums/Σtokens over N documents: Student's t with the jackknife variance over documents.

    Args:
        sums_NM: sum over the tokens of each document, of M measurements.
        tokens_N: tokens of each document; documents without any are left out.

    Returns:
        See `Means`. All NaN without tokens; the interval and the standard error are NaN below
        `MIN_CLUSTERS` documents, and where one holds nearly all tokens.
    """
    used = tokens_N > 0
    made = Means(*np.full((4, sums_NM.shape[1]), np.nan))
    if not used.any():
        return made
    sums, tokens = sums_NM[used].astype(np.float64), tokens_N[used].astype(np.float64)
    mean, variance, df = jackknife(sums, tokens)
    if int(used.sum()) < MIN_CLUSTERS or df < 1:
        return made._replace(mean=mean)
    se = np.sqrt(variance)
    return Means(mean, mean - quantile(df) * se, mean + quantile(df) * se, se)


def mean_interval(
    sums_NM: Num[np.ndarray, "N M"],
    tokens_N: Int64[np.ndarray, " N"],
    lowest: float = -np.inf,
    highest: float = np.inf,
) -> Interval:
    """The interval of `document_means`, within what the mean can be at all."""
    made = document_means(sums_NM, tokens_N)
    return Interval(np.clip(made.low, lowest, highest), np.clip(made.high, lowest, highest))


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
    # with no spread on either side any degrees of freedom will do
    t = quantile(np.maximum(joint_df((a, b), (df_on, df_off)), 1.0))
    out.low[:], out.high[:] = on - off - t * np.sqrt(a + b), on - off + t * np.sqrt(a + b)
    clear = (off - quantile(df_off) * np.sqrt(b) > 0) & (off**2 > t**2 * b)
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


def ratio_interval(top_NM: Floats, bottom_NM: Floats, domain_N: NDArray[np.int64]) -> Interval:
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
) -> Interval:
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
) -> Interval:
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
        step = quantile(df) * np.sqrt(variance)
        ends = [
            np.where(enough_M & (value_M > 0), value_M * np.exp(s * step), np.nan) for s in (-1, 1)
        ]
    return Interval(*ends)


def delete_group_interval(value: Any, left_out: Floats, sizes: NDArray[Any]) -> Interval:
    """Interval of a value from the values without each of G groups.

    value ± t(G − 1)·SE with the delete-a-group standard error, which allows groups of unequal
    size: with h_g = Σsizes/size_g and pseudo-values p_g = h_g·value − (h_g − 1)·left_out_g,
    SE² = Σ_g (p_g − θ)²/(h_g − 1)/G, where θ = G·value − Σ_g (1 − 1/h_g)·left_out_g.

    Args:
        value: of all groups together.
        left_out: one row for each group left out, (G, …).
        sizes: tokens of each group.

    Returns:
        Low and high ends. NaN with fewer than `MIN_CLUSTERS` groups, or where a value is unknown.

    Reference:
        Busing, Meijer and van der Leeden 1999, Delete-m jackknife for unequal m.

    Example:
        >>> left_out = np.array([3.5, 3.25, 3.0, 2.75, 2.5])
        >>> ends = delete_group_interval(np.float64(3.0), left_out, np.ones(5))
        >>> round(float(ends.high - 3.0), 3)  # the mean of 1 … 5: t(4)·SD/√5 = 2.776·0.707
        1.963
    """
    count = len(sizes)
    if count < MIN_CLUSTERS:
        return Interval.unknown(*np.shape(value))
    ratio = (sizes.sum() / sizes).reshape(-1, *[1] * np.ndim(value))
    pseudo = ratio * value - (ratio - 1) * left_out
    centre = count * value - ((1 - 1 / ratio) * left_out).sum(0)
    error = np.sqrt(((pseudo - centre) ** 2 / (ratio - 1)).mean(0))
    reach = quantile(count - 1) * error
    return Interval(value - reach, value + reach)
