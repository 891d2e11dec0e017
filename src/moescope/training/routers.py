"""Routing rules as differentiable functions: logits of the router in, a `Routing` out.

Axes: T tokens, K experts per token, E experts. Every rule takes float32 or float64 and answers in
the same precision; half precision is refused, because a choice between close experts should not
hang on rounding. Nothing here holds weights, state or random numbers: noise, biases and capacities
are given by the caller. What happens to a choice whose expert is full is decided in
`moescope.training.capacity`.
"""

# ruff: noqa: N815  (axis suffixes on the fields of NamedTuples)

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float
from torch import Tensor

from moescope.errors import BadInputError

MIN_NOISE_STD = 0.01
"""What noisy top-k adds to softplus(noise logits), so that the noise never dies out."""

_TINY = 1e-20  # DeepSeek's guard against scores that are all zero


class Routing(NamedTuple):
    """What a router decided for T tokens.

    ``topk_ids_TK``: int64, the experts of each token; num_experts in a slot that is empty.
    ``topk_weights_TK``: what the output of each expert is multiplied with; 0 in an empty slot.
    ``router_probs_TE``: the full distribution, rows sum to 1. ``selection_scores_TE``: what the
    top-k saw. ``load_probability_TE``: the probability of each expert to be among the K under
    fresh noise; ``noise_std_TE``: the noise's standard deviation; only noisy top-k with noise gives
    the two. Weights, probabilities and load probability carry gradients.
    """

    topk_ids_TK: Tensor
    topk_weights_TK: Tensor
    router_probs_TE: Tensor
    selection_scores_TE: Tensor
    load_probability_TE: Tensor | None = None
    noise_std_TE: Tensor | None = None


def gates(routing: Routing, num_experts: int) -> Float[Tensor, "T E"]:
    """The weights laid out by expert: G(x) of Shazeer 2017.

    Args:
        routing: of any rule here.
        num_experts: E.

    Returns:
        (T, E), the weight of each chosen expert and 0 elsewhere; differentiable. Empty slots
        leave no trace.

    Example:
        >>> routing = topk_softmax(torch.zeros(1, 2), 2, normalize=True)
        >>> gates(routing, 2)
        tensor([[0.5000, 0.5000]])
    """
    weights = routing.topk_weights_TK
    wide = weights.new_zeros(len(weights), num_experts + 1)  # the last column takes empty slots
    return wide.scatter_add(1, routing.topk_ids_TK, weights)[:, :num_experts]


def topk_softmax(router_logits_TE: Float[Tensor, "T E"], top_k: int, *, normalize: bool) -> Routing:
    """Softmax over all experts, then the K most probable: token choice as most models do it.

    p = softmax(logits); the weight of a chosen expert is p_i, or p_i / Σ_chosen p with
    ``normalize``. In [0, 1]; a token's weights sum to 1 with ``normalize``, to less without.
    With top_k = 1 and ``normalize`` the weight is the constant 1 and the router learns nothing
    from the task (see `switch_top1`).

    Args:
        router_logits_TE: (T, E).
        top_k: K, 1 … E.
        normalize: ``norm_topk_prob``; true of Mixtral and the released Qwen3-MoE, not of OLMoE and
            the released Qwen2-MoE.

    Returns:
        See `Routing`; slots by descending weight.

    Raises:
        BadInputError: top_k outside 1 … E, logits that are not (T, E), or half precision.

    Example:
        >>> logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
        >>> topk_softmax(logits, 2, normalize=False).topk_weights_TK
        tensor([[0.5000, 0.3000]])
        >>> topk_softmax(logits, 2, normalize=True).topk_weights_TK
        tensor([[0.6250, 0.3750]])

    Reference:
        Jiang et al. 2024, Mixtral of Experts; Muennighoff et al. 2024, OLMoE.
    """
    _check_top_k(_check_logits(router_logits_TE), top_k)
    probs_TE = router_logits_TE.softmax(-1)
    weights_TK, ids_TK = probs_TE.topk(top_k, dim=-1)
    if normalize:
        weights_TK = weights_TK / weights_TK.sum(-1, keepdim=True)
    return Routing(ids_TK, weights_TK, probs_TE, probs_TE)


def switch_top1(router_logits_TE: Float[Tensor, "T E"]) -> Routing:
    """The single most probable expert, weighted with its probability.

    The weight is p_max itself, in [1/E, 1]; normalised it would be the constant 1.

    Args:
        router_logits_TE: (T, E).

    Returns:
        See `Routing`; K = 1.

    Raises:
        BadInputError: logits that are not (T, E), or half precision.

    Example:
        >>> switch_top1(torch.tensor([[0.5, 0.3, 0.2]]).log()).topk_weights_TK
        tensor([[0.5000]])

    Reference:
        Fedus, Zoph and Shazeer 2021, Switch Transformers, Eq. 2.
    """
    return topk_softmax(router_logits_TE, 1, normalize=False)


def noisy_topk(
    router_logits_TE: Float[Tensor, "T E"],
    noise_logits_TE: Float[Tensor, "T E"],
    top_k: int,
    *,
    noise: Float[Tensor, "T E"] | None,
) -> Routing:
    """Top-k of logits with learned noise; the softmax comes after the choice.

    H = logits + noise·(softplus(noise logits) + 0.01); weights = softmax(KeepTopK(H, K)), which
    sum to 1 for each token. The distribution ``router_probs_TE`` is softmax(logits), without the
    noise; the top-k saw H. Logits and H are compared as they are, never with probabilities.

    Args:
        router_logits_TE: (T, E), x·W_g.
        noise_logits_TE: (T, E), x·W_noise. Unused without noise.
        top_k: K, 1 … E. With 1 the weight is the constant 1; Shazeer takes 2 or more.
        noise: (T, E) drawn from N(0, 1) in training; None in evaluation, where H = logits.

    Returns:
        See `Routing`; slots by descending H. ``load_probability_TE`` is None without noise.

    Raises:
        BadInputError: top_k outside 1 … E, shapes that differ, or half precision.

    Example:
        >>> logits = torch.tensor([[2.0, 1.0, 0.0]])
        >>> noisy_topk(logits, torch.zeros(1, 3), 2, noise=None).topk_weights_TK
        tensor([[0.7311, 0.2689]])

    Reference:
        Shazeer et al. 2017, Outrageously Large Neural Networks, Eqs. 3-5 and appendix A.
    """
    _check_top_k(_check_logits(router_logits_TE), top_k)
    noisy_TE, load_TE, std_TE = router_logits_TE, None, None
    if noise is not None:
        _check_same_shape("noise_logits", noise_logits_TE, "router_logits", router_logits_TE)
        _check_same_shape("noise", noise, "router_logits", router_logits_TE)
        std_TE = F.softplus(noise_logits_TE) + MIN_NOISE_STD
        noisy_TE = router_logits_TE + noise * std_TE
        load_TE = keep_topk_probability(router_logits_TE, noisy_TE, std_TE, top_k)
    values_TK, ids_TK = noisy_TE.topk(top_k, dim=-1)
    # softmax over the kept values is softmax with −inf everywhere else
    weights_TK, probs_TE = values_TK.softmax(-1), router_logits_TE.softmax(-1)
    return Routing(ids_TK, weights_TK, probs_TE, noisy_TE, load_TE, std_TE)


def keep_topk_probability(
    clean_logits_TE: Float[Tensor, "T E"],
    noisy_logits_TE: Float[Tensor, "T E"],
    noise_std_TE: Float[Tensor, "T E"],
    top_k: int,
) -> Float[Tensor, "T E"]:
    """How probable each expert is among the K if its own noise were drawn again.

    P_i = Φ((clean_i − kth largest of the noisy logits without i) / σ_i), the noise of the others
    kept. The threshold is the (K+1)-th largest for an expert inside the top K, the K-th for one
    outside. In [0, 1]; a smooth stand-in for the count of tokens of an expert, K/E on average
    under even logits.

    Degenerate: with K = E every expert is always kept, P = 1, a constant without gradient.

    Args:
        clean_logits_TE: (T, E), before the noise.
        noisy_logits_TE: (T, E), after it.
        noise_std_TE: (T, E), σ > 0.
        top_k: K, 1 … E.

    Returns:
        (T, E), differentiable in all three.

    Raises:
        BadInputError: top_k outside 1 … E, shapes that differ, or half precision.

    Example:
        >>> clean = torch.tensor([[1.0, 0.0]])
        >>> keep_topk_probability(clean, clean, torch.ones(1, 2), 1)  # Φ(1) and Φ(−1)
        tensor([[0.8413, 0.1587]])

    Reference:
        Shazeer et al. 2017, Outrageously Large Neural Networks, Eqs. 8-9.
    """
    num_experts = _check_logits(clean_logits_TE)
    _check_top_k(num_experts, top_k)
    _check_same_shape("noisy_logits", noisy_logits_TE, "clean_logits", clean_logits_TE)
    _check_same_shape("noise_std", noise_std_TE, "clean_logits", clean_logits_TE)
    if top_k == num_experts:
        return torch.ones_like(clean_logits_TE)
    values, ids = noisy_logits_TE.topk(top_k + 1, dim=-1)
    inside_TE = torch.zeros_like(clean_logits_TE, dtype=torch.bool)
    inside_TE.scatter_(1, ids[:, :top_k], True)
    threshold_TE = torch.where(inside_TE, values[:, top_k, None], values[:, top_k - 1, None])
    probability: Tensor = torch.special.ndtr((clean_logits_TE - threshold_TE) / noise_std_TE)
    return probability


def expert_choice(router_logits_TE: Float[Tensor, "T E"], capacity: int) -> Routing:
    """Each expert takes its most probable tokens: perfectly even, and NOT causal.

    Which tokens an expert takes depends on tokens that come later, so the rule leaks the future
    in training and cannot be followed when tokens arrive one by one: never use it for
    autoregressive decoding. It fits encoders, and comparisons that say so.

    p = softmax over the experts of each token; expert e takes the ``capacity`` tokens of largest
    p_e; the weight is p_e. A token may get any number of experts from 0 to E, capacity·E/T on
    average.

    Args:
        router_logits_TE: (T, E).
        capacity: tokens of each expert, ≥ 1; from T on, every expert takes every token.

    Returns:
        See `Routing`; K = E, slot e holds e if expert e took the token and E if not.

    Raises:
        BadInputError: capacity below 1, logits that are not (T, E), or half precision.

    Example:
        >>> logits = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2]]).log()
        >>> expert_choice(logits, 1).topk_ids_TK  # token 0 to expert 0, token 1 to expert 1
        tensor([[0, 2],
                [2, 1],
                [2, 2]])

    Reference:
        Zhou et al. 2022, Mixture-of-Experts with Expert Choice Routing.
    """
    num_experts = _check_logits(router_logits_TE)
    if capacity < 1:
        raise BadInputError(f"capacity: got {capacity}, expected at least 1 token for each expert")
    probs_TE = router_logits_TE.softmax(-1)
    chosen_CE = probs_TE.topk(min(capacity, len(probs_TE)), dim=0).indices
    taken_TE = torch.zeros_like(probs_TE, dtype=torch.bool).scatter_(0, chosen_CE, True)
    experts_E = torch.arange(num_experts, device=probs_TE.device)
    ids_TE = torch.where(taken_TE, experts_E, num_experts)
    return Routing(ids_TE, probs_TE.masked_fill(~taken_TE, 0.0), probs_TE, probs_TE)


def sigmoid_bias(
    router_logits_TE: Float[Tensor, "T E"],
    selection_bias_E: Float[Tensor, " E"],
    top_k: int,
    *,
    normalize: bool = True,
    scaling_factor: float = 1.0,
) -> Routing:
    """Choose by biased scores, weight by unbiased ones: balance without an auxiliary loss.

    s = sigmoid(logits); the top-k sees s + b; the weight is s_i, with ``normalize`` over the sum
    of the chosen s (+ 1e-20), times ``scaling_factor``. The bias moves the choice only, so it
    carries no gradient; `moescope.training.losses.update_selection_bias` moves it. The distribution
    ``router_probs_TE`` is s / Σ s. With top_k = 1 and ``normalize`` the weight is the constant 1
    and the router learns nothing from the task: leave the score as it is, as DeepSeek's own code
    does then, and as Llama 4 does.

    Args:
        router_logits_TE: (T, E).
        selection_bias_E: (E,), b.
        top_k: K, 1 … E.
        normalize: divide by the sum over the chosen.
        scaling_factor: ``routed_scaling_factor``.

    Returns:
        See `Routing`; slots by descending s + b, which need not be descending weight.

    Raises:
        BadInputError: top_k outside 1 … E, a bias that is not (E,), or half precision.

    Example:
        >>> logits, bias = torch.zeros(1, 3), torch.tensor([0.0, 0.2, 0.1])
        >>> routing = sigmoid_bias(logits, bias, 2)
        >>> routing.topk_ids_TK, routing.topk_weights_TK
        (tensor([[1, 2]]), tensor([[0.5000, 0.5000]]))

    Reference:
        Wang et al. 2024, Auxiliary-Loss-Free Load Balancing; DeepSeek-AI 2024, DeepSeek-V3.
    """
    num_experts = _check_logits(router_logits_TE)
    _check_top_k(num_experts, top_k)
    if selection_bias_E.shape != (num_experts,):
        raise BadInputError(
            f"selection_bias: got shape {tuple(selection_bias_E.shape)}, expected ({num_experts},)"
        )
    scores_TE = router_logits_TE.sigmoid()
    selection_TE = scores_TE + selection_bias_E.detach().to(scores_TE.dtype)
    ids_TK = selection_TE.topk(top_k, dim=-1).indices
    weights_TK = scores_TE.gather(1, ids_TK)
    if normalize:
        weights_TK = weights_TK / (weights_TK.sum(-1, keepdim=True) + _TINY)
    probs_TE = scores_TE / (scores_TE.sum(-1, keepdim=True) + _TINY)
    return Routing(ids_TK, weights_TK * scaling_factor, probs_TE, selection_TE)


def _check_logits(logits: Tensor) -> int:
    """The number of experts, once the logits are known to be usable."""
    if logits.dim() != 2:
        raise BadInputError(
            f"router logits: got shape {tuple(logits.shape)}, expected (tokens, experts)"
        )
    if logits.dtype not in (torch.float32, torch.float64):
        raise BadInputError(
            f"router logits: got {logits.dtype}, expected float32 or float64; call .float() first"
        )
    return logits.shape[1]


def _check_top_k(num_experts: int, top_k: int) -> None:
    if not 1 <= top_k <= num_experts:
        raise BadInputError(f"top_k: got {top_k}, expected 1 to {num_experts}, the experts")


def _check_same_shape(name: str, got: Tensor, other: str, wanted: Tensor) -> None:
    if got.shape != wanted.shape:
        raise BadInputError(
            f"{name}: got shape {tuple(got.shape)}, expected {tuple(wanted.shape)} as {other}"
        )
