"""How evenly a layer spreads its tokens over its experts.

Every measure keeps experts that were never chosen: leaving them out is the commonest way to make
a collapsed layer look balanced.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

DEAD_SHARE = 0.001
"""An expert with less than this share of a layer's assignments counts as dead."""

COLD_SHARE = 0.005
"""An expert with less than this share of a layer's assignments counts as cold."""


class Balance(NamedTuple):
    """Evenness of one layer.

    ``cv``: standard deviation over mean of the counts (population), 0 when even, at most
    √(E/K − 1).
    ``gini``: 0 when even, at most 1 − K/E. ``max_over_mean``: 1 when even, at most E/K.
    ``entropy``: H(load)/log E, 1 when even. ``dead_share``, ``cold_share``: share of the experts
    below 0.1 % and 0.5 % of the assignments; they mean little unless far more than E/0.001 tokens
    were counted.
    """

    cv: float
    gini: float
    max_over_mean: float
    entropy: float
    dead_share: float
    cold_share: float


def balance(counts_E: Int64[np.ndarray, " E"]) -> Balance:
    """Measure the evenness of expert counts.

    Args:
        counts_E: assignments of each expert, zeros included.

    Returns:
        The six measures; all NaN when nothing was counted.

    Example:
        >>> balance(np.array([2, 2, 2, 2])).cv
        0.0
        >>> balance(np.array([8, 0, 0, 0])).max_over_mean
        4.0
    """
    total = counts_E.sum()
    if total == 0:
        return Balance(*([float("nan")] * 6))
    load = counts_E / total
    size = load.size
    ranks = np.arange(1, size + 1)
    ascending = np.sort(load)
    positive = load[load > 0]
    entropy = float(-(positive * np.log(positive)).sum() / np.log(size)) if size > 1 else 1.0
    return Balance(
        cv=float(load.std() / load.mean()),
        gini=float((2 * ranks - size - 1) @ ascending / size),
        max_over_mean=float(load.max() * size),
        entropy=entropy,
        dead_share=float((load < DEAD_SHARE).mean()),
        cold_share=float((load < COLD_SHARE).mean()),
    )


def cv_by_chance(tokens: int, num_experts: int, top_k: int) -> float:
    """The CV to expect if every token chose K of E experts evenly at random.

    Each count is then binomial with mean T·K/E and variance T·(K/E)·(1 − K/E), so CV ≈
    √((1 − K/E) / (T·K/E)). A measured CV near it says nothing about the router.
    """
    if tokens == 0:
        return float("nan")
    rate = top_k / num_experts
    return float(np.sqrt((1 - rate) / (tokens * rate)))
