"""What one MoE layer did with a batch of tokens, as plain arrays.

`layer_facts` takes what the router and the experts really exchanged (logits, ids, weights) and
adds the few per-token scalars that need the whole distribution. It never chooses experts itself:
which experts ran and with which weight is given. It knows torch, but no model.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from moescope.models.anatomy import Scoring

__all__ = ["LayerFacts", "TokenBlock", "ids_only", "layer_facts", "router_probs"]


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


def router_probs(logits_TE: torch.Tensor, scoring: Scoring) -> torch.Tensor:
    """The router's full distribution over experts, shape (T, E), each row summing to 1.

    Softmax routers: softmax of the logits. Sigmoid and square-root-softplus routers score each
    expert on its own; their scores are divided by their sum. Routers that already return
    probabilities: those, divided by their sum.
    """
    logits_TE = logits_TE.float()
    if scoring == "sigmoid":
        scores = torch.sigmoid(logits_TE)
    elif scoring == "sqrtsoftplus":
        scores = torch.nn.functional.softplus(logits_TE).sqrt()
    elif scoring == "probabilities":
        scores = logits_TE.clamp_min(0.0)
    else:
        return torch.softmax(logits_TE, dim=-1)
    probs: torch.Tensor = scores / scores.sum(-1, keepdim=True).clamp_min(1e-30)
    return probs


def layer_facts(
    logits_TE: torch.Tensor, ids_TK: torch.Tensor, weights_TK: torch.Tensor, scoring: Scoring
) -> LayerFacts:
    """Turn captured routing into `LayerFacts` (see there for the definition of each field)."""
    probs = router_probs(logits_TE, scoring)
    weights, order = weights_TK.float().sort(dim=-1, descending=True, stable=True)
    ids = ids_TK.gather(-1, order)
    num_experts, top_k = probs.shape[-1], ids.shape[-1]
    chosen = probs.gather(-1, ids)
    others = probs.scatter(-1, ids, -1.0)
    best_other = others.max(-1).values.clamp_min(0.0)
    first_two = probs.topk(min(2, num_experts), dim=-1).values
    shares = weights / weights.sum(-1, keepdim=True).clamp_min(1e-30)
    fields = (
        weights,
        logits_TE.float(),
        probs,
        _entropy(probs) / math.log(num_experts)
        if num_experts > 1
        else torch.zeros_like(best_other),
        _entropy(shares) / math.log(top_k) if top_k > 1 else torch.zeros_like(best_other),
        chosen.sum(-1),
        first_two[:, 0] - first_two[:, -1],
        chosen.min(-1).values - best_other,
    )
    return LayerFacts(ids.cpu().numpy().astype(np.int64), *(f.cpu().numpy() for f in fields))


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


def _entropy(p: torch.Tensor) -> torch.Tensor:
    total: torch.Tensor = torch.special.entr(p).sum(-1)
    return total
