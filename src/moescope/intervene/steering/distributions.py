"""Two next-token distributions compared: divergence, entropy, and what happened to single tokens.

Arrays only: no model, no text.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Shift(NamedTuple):
    """One token's place in the distribution before and after.

    Probabilities in [0, 1]; changes are after minus before, log-probabilities in nats; ranks from
    1. A constant added to all logits moves ``logit_change`` and leaves ``log_prob_change`` alone.
    """

    prob_before: float
    prob_after: float
    log_prob_change: float
    logit_before: float
    logit_after: float
    logit_change: float
    rank_before: int
    rank_after: int


def log_probs(logits_V: Floats) -> Floats:
    """Log-softmax in float64; a logit of −inf stays there."""
    top = logits_V.max()
    shifted = logits_V - top
    result: Floats = shifted - np.log(np.exp(shifted).sum())
    return result


def kl_divergence(before_V: Floats, after_V: Floats) -> float:
    """KL(before ‖ after) in nats, from logits: Σ p·(log p − log q).

    0 when the distributions are the same; no upper bound; infinite where a token that had
    probability has none after. What rounding leaves below 0 is 0.

    Example:
        >>> even, one_to_three = np.log([1.0, 1.0]), np.log([1.0, 3.0])
        >>> round(kl_divergence(even, one_to_three), 4)     # ½·log 2 + ½·log ⅔
        0.1438
    """
    p, q = log_probs(before_V), log_probs(after_V)
    there = np.isfinite(p)
    with np.errstate(invalid="ignore"):
        total = float((np.exp(p[there]) * (p[there] - q[there])).sum())
    return max(0.0, total)


def entropy(logits_V: Floats) -> float:
    """Shannon entropy of the softmax in nats, 0 to log V."""
    p = log_probs(logits_V)
    there = np.isfinite(p)
    return float(-(np.exp(p[there]) * p[there]).sum())


def top_union(before_V: Floats, after_V: Floats, top: int) -> list[int]:
    """Tokens among the first ``top`` before or after, the higher of both probabilities first."""
    p, q = log_probs(before_V), log_probs(after_V)
    ids = {int(i) for v in (p, q) for i in np.argsort(-v, kind="stable")[:top]}
    return sorted(ids, key=lambda i: (-max(p[i], q[i]), i))


def shift_of(token_id: int, before_V: Floats, after_V: Floats) -> Shift:
    """What happened to one token."""
    p, q = log_probs(before_V)[token_id], log_probs(after_V)[token_id]
    old, new = before_V[token_id], after_V[token_id]
    same = p == q  # both may be −inf, whose difference is not a number
    return Shift(
        float(np.exp(p)),
        float(np.exp(q)),
        0.0 if same else float(q - p),
        float(old),
        float(new),
        0.0 if old == new else float(new - old),
        1 + int((before_V > old).sum()),
        1 + int((after_V > new).sum()),
    )
