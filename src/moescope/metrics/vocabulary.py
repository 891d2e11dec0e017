"""Do experts own tokens? Vocabulary specialization and the overlap of experts' tokens.

Every average here is weighted by frequency, has a floor on how often a token id must occur, and
stands beside what independent routing would give: the mean over rare token types of the largest
share is large for a *random* router (a type seen once "belongs" to K experts entirely).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from math import comb
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64
from numpy.typing import NDArray

MIN_TOKEN_COUNT = 10
"""A token id (or a token id at one expert) seen fewer times than this is left out."""

_REPEATS = 20
_FITTING = 100
_MOST_SETS = 128


class VocabularySpecialization(NamedTuple):
    """How strongly token ids belong to single experts, in one layer.

    ``value``: mean over tokens of max_e N_{x,e}/N_x, in [K/E, 1]. ``null``: the same when every
    expert serves every token id at its own overall rate, from simulated counts (20 repeats).
    ``excess`` = (value − null)/(1 − null): 0 by chance (within 0.005), 1 when every token id always
    goes to one expert first. ``types``, ``tokens``: token ids above the floor and their
    occurrences; ``covered``: their share of all tokens.
    """

    value: float
    null: float
    excess: float
    types: int
    tokens: int
    covered: float


def vocabulary_specialization(
    counts_XE: Int64[np.ndarray, "X E"],
    top_k: int,
    seed: int = 0,
    min_count: int = MIN_TOKEN_COUNT,
) -> VocabularySpecialization:
    """Frequency-weighted vocabulary specialization with its null (OLMoE Eq. 8, with a floor).

    Args:
        counts_XE: how often token id x went to expert e; each occurrence counts in K experts.
        top_k: K.
        seed: of the simulated null.
        min_count: floor on the occurrences of a token id.

    Returns:
        See `VocabularySpecialization`; NaN when no token id reaches the floor.

    Reference:
        Muennighoff et al. 2024, OLMoE, Eq. 8.
    """
    times = counts_XE.sum(1) // top_k
    keep = times >= min_count
    covered = float(times[keep].sum() / max(times.sum(), 1))
    if not keep.any():
        nan = float("nan")
        return VocabularySpecialization(nan, nan, nan, 0, 0, covered)
    counts, n = counts_XE[keep], times[keep]
    rates = counts_XE.sum(0) / max(times.sum(), 1)
    rng = np.random.default_rng(seed)
    draw = _null(rates, top_k)

    def weighted(table: NDArray[np.int64]) -> float:
        return float(table.max(1).sum() / n.sum())

    null = float(np.mean([weighted(draw(n, rng)) for _ in range(_REPEATS)]))
    value = weighted(counts)
    return VocabularySpecialization(
        value, null, (value - null) / max(1 - null, 1e-12), int(keep.sum()), int(n.sum()), covered
    )


def _null(
    rates_E: NDArray[np.float64], top_k: int
) -> Callable[[NDArray[np.int64], np.random.Generator], NDArray[np.int64]]:
    """Draws counts (X, E) of token ids that occur n_X times when routing ignores the token id.

    K different experts serve each token. With few sets of K experts their dependence matters for
    the largest count, so whole sets are drawn: P(set) ∝ the product of its experts' weights, such
    that every expert has its rate (conditional Poisson sampling). With many sets experts are as
    good as independent.
    """
    if comb(rates_E.size, top_k) > max(_MOST_SETS, rates_E.size):
        return lambda n, rng: rng.binomial(n[:, None], np.clip(rates_E, 0, 1)[None, :])
    sets = np.zeros((comb(rates_E.size, top_k), rates_E.size))
    for row, chosen in enumerate(combinations(range(rates_E.size), top_k)):
        sets[row, chosen] = 1.0
    weights = least = np.maximum(rates_E, 1e-12)
    for fitted in range(_FITTING + 1):
        share = np.exp(sets @ np.log(weights))
        share /= share.sum()
        if fitted < _FITTING:
            weights = weights * least / np.maximum(share @ sets, 1e-12)
    drawn: NDArray[np.int64] = sets.astype(np.int64)
    return lambda n, rng: rng.multinomial(n, share) @ drawn


def token_overlap(
    counts_XE: Int64[np.ndarray, "X E"],
    top_k: int,
    min_count: int = MIN_TOKEN_COUNT,
) -> tuple[Float[np.ndarray, "E E"], Float[np.ndarray, "E E"]]:
    """Jaccard overlap of the sets of token ids that two experts serve, and what chance gives.

    Expert e serves x when at least ``min_count`` occurrences of x went to it. By chance, that has
    probability P(Binomial(N_x, rate_e) ≥ min_count), independently for the two experts.

    Args:
        counts_XE: how often token id x went to expert e.
        top_k: K.
        min_count: floor.

    Returns:
        (jaccard, chance), each (E, E), in [0, 1], NaN where neither expert serves any token id.
    """
    from scipy.stats import binom

    served = (counts_XE >= min_count).astype(np.float64)
    times = counts_XE.sum(1) // top_k
    rates = counts_XE.sum(0) / max(int(times.sum()), 1)
    likely = binom.sf(min_count - 1, times[:, None], np.clip(rates, 0, 1)[None, :])
    return _jaccard(served), _jaccard(likely)


def _jaccard(membership_XE: NDArray[np.float64]) -> NDArray[np.float64]:
    both = membership_XE.T @ membership_XE
    each = membership_XE.sum(0)
    either = each[:, None] + each[None, :] - both
    with np.errstate(divide="ignore", invalid="ignore"):
        result: NDArray[np.float64] = np.where(either > 1e-9, both / either, np.nan)
    return result
