"""What one MoE layer did with a batch of tokens, as plain arrays.

`layer_facts` takes what the router and the experts really exchanged (logits, ids, weights) and
adds the few per-token scalars that need the whole distribution. It never chooses experts itself:
which experts ran and with which weight is given. It knows torch, but no model.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from moescope.models.anatomy import Scoring
from moescope.run.facts import LayerFacts


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


def _entropy(p: torch.Tensor) -> torch.Tensor:
    total: torch.Tensor = torch.special.entr(p).sum(-1)
    return total
