"""Which experts work together in a layer, and which follow which in the next.

Co-activation counts *all* pairs in a token's top-K (OLMoE Eq. 6). Pairing neighbours in rank order
only, as some released code does, sees K − 1 of the K(K−1)/2 pairs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Int64
from numpy.typing import NDArray


class Coactivation(NamedTuple):
    """Arrays (E, E), NaN on the diagonal and for experts that never ran.

    ``p_j_given_i`` = N_ij / N_i, in [0, 1], chance (K−1)/(E−1); asymmetric.
    ``lift`` = N_ij·T / (N_i·N_j), symmetric; 1 when the two are independent given their loads.
    Since a token's K experts differ, even random routing has a lift of E(K−1)/(K(E−1)), just
    below 1 (``lift_chance``).
    """

    p_j_given_i: NDArray[np.float64]
    lift: NDArray[np.float64]
    chance: float
    lift_chance: float


def coactivation(counts_EE: Int64[np.ndarray, "E E"], tokens: int, top_k: int) -> Coactivation:
    """Conditional probability and lift of every ordered pair of experts of a layer.

    Args:
        counts_EE: tokens that chose both i and j; the diagonal holds N_i.
        tokens: T.
        top_k: K.

    Returns:
        See `Coactivation`.

    Example:
        >>> both = np.array([[4, 2], [2, 2]])
        >>> float(coactivation(both, tokens=4, top_k=2).p_j_given_i[0, 1])
        0.5

    Reference:
        Muennighoff et al. 2024, OLMoE, Eq. 6.
    """
    size = counts_EE.shape[0]
    own = np.diag(counts_EE).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        given = counts_EE / own[:, None]
        lift = counts_EE * float(tokens) / (own[:, None] * own[None, :])
    for matrix in (given, lift):
        matrix[~np.isfinite(matrix)] = np.nan
        np.fill_diagonal(matrix, np.nan)
    chance = (top_k - 1) / (size - 1) if size > 1 else float("nan")
    return Coactivation(given, lift, chance, chance * size / top_k)


class Flow(NamedTuple):
    """``p`` (E, E'): P(e' among the K' of the next MoE layer | e among the K of this one).

    Rows sum to K'. ``chance`` (E'): the activation rate of e', which ``p`` equals if the two
    layers route independently.
    """

    p: NDArray[np.float64]
    chance: NDArray[np.float64]


def flow(
    pairs_EE: Int64[np.ndarray, "E E2"],
    counts_E: Int64[np.ndarray, " E"],
    next_counts_E: Int64[np.ndarray, " E2"],
    tokens: int,
) -> Flow:
    """How routing in one layer predicts routing in the next (see `Flow`)."""
    # nothing of an expert that never ran
    p = pairs_EE / np.where(counts_E > 0, counts_E, np.nan)[:, None]
    return Flow(p, next_counts_E / max(tokens, 1))
