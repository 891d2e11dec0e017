"""What pure chance gives: K of E experts drawn evenly, independently for every token."""

from __future__ import annotations

from math import comb


def share_any(num_experts: int, top_k: int) -> float:
    """P(two random K-subsets of E share at least one) = 1 − C(E−K, K)/C(E, K).

    Example:
        >>> round(share_any(8, 2), 3), round(share_any(64, 8), 3)
        (0.464, 0.679)
    """
    return 1.0 - comb(num_experts - top_k, top_k) / comb(num_experts, top_k)


def expected_jaccard(num_experts: int, top_k: int) -> float:
    """Mean |A∩B| / |A∪B| of two random K-subsets of E experts.

    |A∩B| = j has probability C(K, j)·C(E−K, K−j)/C(E, K), and the union has 2K − j elements.

    Example:
        >>> round(expected_jaccard(4, 1), 3)
        0.25
    """
    total = comb(num_experts, top_k)
    return sum(
        comb(top_k, j) * comb(num_experts - top_k, top_k - j) / total * j / (2 * top_k - j)
        for j in range(top_k + 1)
    )
