"""What one MoE layer did with a batch of tokens, as plain arrays, whoever recorded it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class TokenBlock(NamedTuple):
    """The counted tokens of one batch, by sequence and position; all arrays have shape (T,).

    ``doc``: ordinal of the document in the pool · ``cluster``: row of the cluster tables ·
    ``domain``: index of the domain · ``window``: which window of the document · ``pos``: position
    in the document · ``token_id`` (−1 when not known) · ``next_id``: the token that really follows
    (−1 at the end) · ``pred_id``: the model's most probable next token (−1 when not computed) ·
    ``nll``: negative log-likelihood of ``next_id`` in nats (NaN when not computed) · ``follows``:
    the row before is the token before it in the same window · ``last``: last counted token of its
    document.
    """

    doc: NDArray[np.int64]
    cluster: NDArray[np.int64]
    domain: NDArray[np.int64]
    window: NDArray[np.int64]
    pos: NDArray[np.int64]
    token_id: NDArray[np.int64]
    next_id: NDArray[np.int64]
    pred_id: NDArray[np.int64]
    nll: NDArray[np.float32]
    follows: NDArray[np.bool_]
    last: NDArray[np.bool_]

    @property
    def num_tokens(self) -> int:
        """How many tokens the block holds."""
        return int(self.doc.size)


class LayerFacts(NamedTuple):
    """Routing of T tokens in one MoE layer.

    ``topk_ids`` (T, K) and ``topk_weights`` (T, K) are ordered by descending weight, so that column
    0 is the first choice. ``logits`` and ``probs`` have shape (T, E); ``probs`` sums to 1 over E.
    The others have shape (T,): ``router_entropy`` = H(probs)/log E and ``topk_entropy`` =
    H(weights/Σweights)/log K lie in [0, 1] (0 by definition when E or K is 1); ``topk_mass`` is the
    probability of the chosen; ``margin_first`` = p₍₁₎ − p₍₂₎; ``margin_kth`` = the least probable
    chosen minus the most probable not chosen, negative where a selection bias or a group limit
    overruled the probabilities.
    """

    topk_ids: NDArray[np.int64]
    topk_weights: NDArray[np.float32]
    logits: NDArray[np.float32]
    probs: NDArray[np.float32]
    router_entropy: NDArray[np.float32]
    topk_entropy: NDArray[np.float32]
    topk_mass: NDArray[np.float32]
    margin_first: NDArray[np.float32]
    margin_kth: NDArray[np.float32]


def ids_only(ids_TK: NDArray[np.int64]) -> LayerFacts:
    """What is known of a layer when only the chosen experts are: everything else is NaN.

    ``logits`` and ``probs`` have no column. An aggregate that takes such facts must have been told
    by ``AggregateShape.absent`` that there are no weights.

    Args:
        ids_TK: the experts of each token, in the order in which they are to be kept.
    """
    tokens = ids_TK.shape[0]
    weights = np.broadcast_to(np.float32(np.nan), ids_TK.shape)
    unknown = np.broadcast_to(np.float32(np.nan), (tokens,))
    none = np.zeros((tokens, 0), np.float32)
    return LayerFacts(
        topk_ids=ids_TK,
        topk_weights=weights,
        logits=none,
        probs=none,
        router_entropy=unknown,
        topk_entropy=unknown,
        topk_mass=unknown,
        margin_first=unknown,
        margin_kth=unknown,
    )
