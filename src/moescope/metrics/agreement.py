"""How far two routings agree: two checkpoints, two domains, two texts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64
from numpy.typing import NDArray


class Agreement(NamedTuple):
    """How two routings of the same tokens agree; arrays (T,).

    ``saturation`` = |A∩B|/K, chance K/E; ``jaccard`` = |A∩B|/|A∪B|; ``first``: same first choice,
    chance 1/E.
    """

    saturation: NDArray[np.float64]
    jaccard: NDArray[np.float64]
    first: NDArray[np.float64]


def agreement(ids_a_TK: Int64[np.ndarray, "T K"], ids_b_TK: Int64[np.ndarray, "T K"]) -> Agreement:
    """Compare the experts of the same tokens in two runs.

    Args:
        ids_a_TK: experts in one run, by descending weight.
        ids_b_TK: experts in the other.

    Returns:
        See `Agreement`. The mean saturation over tokens is OLMoE's router saturation.

    Example:
        >>> agreement(np.array([[3, 1]]), np.array([[1, 2]])).saturation.tolist()
        [0.5]

    Reference:
        Muennighoff et al. 2024, OLMoE, Eq. 5.
    """
    top_k = ids_a_TK.shape[1]
    shared = (ids_a_TK[:, :, None] == ids_b_TK[:, None, :]).sum((1, 2))
    return Agreement(
        saturation=shared / top_k,
        jaccard=shared / (2 * top_k - shared),
        first=(ids_a_TK[:, 0] == ids_b_TK[:, 0]).astype(np.float64),
    )


def committee(scores_CE: Float[np.ndarray, "C E"], top_k: int) -> Bool[np.ndarray, "C E"]:
    """Which experts are among each domain's K best by mean router probability.

    An expert belongs to the *standing committee* when that holds in more than 80 % of the domains.

    Args:
        scores_CE: mean router probability by domain (the expert contribution index, ECI).
        top_k: K.
    """
    best = np.argsort(-scores_CE, axis=1, kind="stable")[:, :top_k]
    member = np.zeros(scores_CE.shape, np.bool_)
    np.put_along_axis(member, best, True, axis=1)
    return member


def mean_jaccard(member_CE: Bool[np.ndarray, "C E"]) -> float:
    """Mean Jaccard overlap of the sets of all pairs of rows; NaN with fewer than two rows."""
    rows = member_CE.astype(np.float64)
    if len(rows) < 2:
        return float("nan")
    both = rows @ rows.T
    each = rows.sum(1)
    overlap = both / (each[:, None] + each[None, :] - both)
    return float(overlap[np.triu_indices(len(rows), 1)].mean())


def entropy_bits(counts: Int64[np.ndarray, " P"]) -> tuple[float, float]:
    """Entropy of a distribution in bits: as counted, and Miller–Madow corrected.

    Both lie in [0, log₂ T]. With nearly as many distinct things as tokens T even the corrected
    value is a lower bound, not an estimate.

    Args:
        counts: occurrences of each distinct thing.
    """
    total = counts.sum()
    if total == 0:
        return float("nan"), float("nan")
    share = counts / total
    plain = float(-(share * np.log2(share)).sum())
    corrected = plain + (counts.size - 1) / (2 * total * np.log(2))
    return plain, float(min(corrected, np.log2(total)))


def unseen_entropy(counts: Float[np.ndarray, " P"]) -> float:
    """Entropy in nats of the distribution that some counts were drawn from, unseen things included.

    The share that things seen once have among the draws estimates how much was not seen; the
    others are scaled down by it, and each is weighted by its chance to be seen.

    Args:
        counts: occurrences of each distinct thing.

    Returns:
        NaN without counts. No more than half is taken to be unseen.

    Reference:
        Chao and Shen 2003, Nonparametric estimation of Shannon's index of diversity when there are
        unseen species in sample.

    Example:
        >>> round(unseen_entropy(np.full(4, 1000.0)), 3)  # ln 4
        1.386
    """
    counts = counts[counts > 0]
    total = counts.sum()
    if not total:
        return float("nan")
    once = min(int((counts <= 1).sum()), total / 2)
    share = (1 - once / total) * counts / total
    return float(-(share * np.log(share) / -np.expm1(total * np.log1p(-share))).sum())
