"""What keeps a router balanced: auxiliary losses, the bias rule, and how far off balance it is.

Axes: T tokens, K experts per token, E experts. Every loss is of one layer: pooled over layers,
two layers that collapse on different experts would look even. None is multiplied with its
coefficient here. Balance within each micro-batch presses harder against specialization than
balance over the global batch; which one it is depends on the load that the caller gives
(`load_balancing_loss`, `linearized_cv_squared`).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64, Num
from torch import Tensor

from moescope.errors import BadInputError


def coefficient_of_variation_squared(values_E: Float[Tensor, " E"]) -> Float[Tensor, ""]:
    """Variance over squared mean: how uneven E amounts are, whatever their scale.

    CV² = (mean(x²) − mean(x)²) / mean(x)², population variance. For amounts ≥ 0 it lies in
    [0, E − 1]: 0 when even, E − 1 when one expert has everything.

    Degenerate: a mean of exactly zero (nothing was routed) gives 0 with a zero gradient.

    Args:
        values_E: (E,), for example summed gates or counts.

    Returns:
        A scalar, differentiable.

    Example:
        >>> coefficient_of_variation_squared(torch.tensor([3.0, 1.0]))  # variance 1, mean 2
        tensor(0.2500)

    Reference:
        Shazeer et al. 2017, Outrageously Large Neural Networks, Eq. 7.
    """
    mean = values_E.mean()
    nothing = mean == 0
    squared = mean.masked_fill(nothing, 1.0).square()
    return (values_E.var(correction=0) / squared).masked_fill(nothing, 0.0)


def importance_loss(gates_TE: Float[Tensor, "T E"]) -> Float[Tensor, ""]:
    """CV² of the experts' summed gate values: even in weight, though not in tokens.

    In [0, E − 1]; 0 when every expert gets the same total weight or nothing was routed. Few
    tokens of large weight and many of small weight look the same to it: `load_loss` sees those.

    Args:
        gates_TE: (T, E), see `moescope.training.routers.gates`.

    Returns:
        A scalar, differentiable.

    Example:
        >>> importance_loss(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        tensor(0.)
        >>> importance_loss(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
        tensor(1.)

    Reference:
        Shazeer et al. 2017, Outrageously Large Neural Networks, Eqs. 6-7.
    """
    return coefficient_of_variation_squared(gates_TE.sum(0))


def load_loss(load_probability_TE: Float[Tensor, "T E"]) -> Float[Tensor, ""]:
    """CV² of the experts' expected token counts under noisy top-k.

    In [0, E − 1]; 0 when every expert expects as many tokens. With K = E always 0.

    Args:
        load_probability_TE: (T, E), see `moescope.training.routers.keep_topk_probability`.

    Returns:
        A scalar, differentiable.

    Example:
        >>> load_loss(torch.tensor([[0.5, 0.5], [1.0, 0.0]]))  # sums 1.5 and 0.5
        tensor(0.2500)

    Reference:
        Shazeer et al. 2017, Outrageously Large Neural Networks, Eqs. 8-11.
    """
    return coefficient_of_variation_squared(load_probability_TE.sum(0))


def load_balancing_loss(
    router_probs_TE: Float[Tensor, "T E"], load_E: Float[Tensor, " E"]
) -> Float[Tensor, ""]:
    """The Switch loss: probability is pushed away from experts that get many tokens.

    E · Σ_i f_i·P_i, with f_i the share of the assignments and P_i the mean router probability. 1
    when load or probability is even, near E when both collapse on one expert; below 1 when the
    experts with the tokens have the lower probabilities. f sums to 1 for every K, so the value
    does not grow with K: ``load_balancing_loss_func`` of transformers is K times this.

    Degenerate: 0 for a load of zeros; NaN without tokens.

    Args:
        router_probs_TE: (T, E), rows sum to 1.
        load_E: (E,), f, see `expert_load`; no gradient flows into it. It may come from more
            tokens than the probabilities do: with the load of the global batch, the mean over
            micro-batches of equal size is exactly the global loss.

    Returns:
        A scalar, differentiable in the probabilities.

    Example:
        >>> probs, load = torch.tensor([[0.75, 0.25]]), torch.tensor([1.0, 0.0])
        >>> load_balancing_loss(probs, load)  # 2 · (1·0.75 + 0·0.25)
        tensor(1.5000)

    Reference:
        Fedus, Zoph and Shazeer 2021, Switch Transformers, Eqs. 4-6; global-batch load: Qiu et al.
        2025, Demons in the Detail.
    """
    return load_E.numel() * (load_E.detach() * router_probs_TE.mean(0)).sum()


def router_z_loss(router_logits_TE: Float[Tensor, "T E"]) -> Float[Tensor, ""]:
    """Mean squared log-partition: keeps the logits small, where softmax rounds little.

    mean over tokens of (log Σ_i exp logit_i)², ≥ 0; (log E)² for logits of zero, 0 where the
    exponentials sum to 1. It says nothing about balance.

    Degenerate: NaN without tokens.

    Args:
        router_logits_TE: (T, E), before any softmax.

    Returns:
        A scalar, differentiable.

    Example:
        >>> router_z_loss(torch.zeros(3, 2))  # (log 2)²
        tensor(0.4805)

    Reference:
        Zoph et al. 2022, ST-MoE, Eq. 5.
    """
    return router_logits_TE.logsumexp(-1).square().mean()


def linearized_cv_squared(
    part_E: Float[Tensor, " E"], whole_E: Float[Tensor, " E"]
) -> Float[Tensor, ""]:
    """CV² of the global batch, for the backward pass of one of its micro-batches.

    CV² does not add up over micro-batches, but its gradient does: with whole = Σ part,
    ∂CV²(whole)/∂part_i = g_i = 2/(E·m)·(whole_i/m − 1 − CV²(whole)), m = mean(whole), the same
    for every part. Taking whole as a constant from a first pass, the gradients of the
    micro-batches therefore sum to exactly the gradient of the global loss.

    The value is CV²(whole), the same for every micro-batch: report one, and do not divide the
    loss by their number when the gradients are summed.

    Degenerate: a whole with a mean of zero gives 0 with a zero gradient.

    Args:
        part_E: (E,), of this micro-batch, with gradient.
        whole_E: (E,), summed over all micro-batches; no gradient flows into it.

    Returns:
        A scalar with the value CV²(whole) and the gradient g for ``part_E``.

    Example:
        >>> part = torch.tensor([1.0, 0.0], requires_grad=True)
        >>> linearized_cv_squared(part, torch.tensor([3.0, 1.0])).backward()
        >>> part.grad  # m = 2, CV² = 1/4: (3/2 − 5/4)/2 and (1/2 − 5/4)/2
        tensor([ 0.1250, -0.3750])
    """
    whole = whole_E.detach()
    mean, value = whole.mean(), coefficient_of_variation_squared(whole)
    nothing = mean == 0
    mean = mean.masked_fill(nothing, 1.0)
    slope_E = (2 / (whole.numel() * mean)) * (whole / mean - 1 - value)
    slope_E = slope_E.masked_fill(nothing, 0.0)
    return value + (slope_E * (part_E - part_E.detach())).sum()


def update_selection_bias(
    bias_E: Float[Tensor, " E"], load_E: Num[Tensor, " E"], rate: float
) -> Float[Tensor, " E"]:
    """One step of the loss-free balance rule: busy experts become less likely to be chosen.

    b_i + rate·sign(mean(load) − load_i). Every expert off the mean moves by the same step,
    however far off it is.

    Degenerate: an even load, all zeros included, changes nothing.

    Args:
        bias_E: (E,), what is added to the scores before the top-k.
        load_E: (E,), counts or shares of the last global batch.
        rate: the step, 1e-3 in DeepSeek-V3.

    Returns:
        (E,), a new tensor without gradient; the old one is left as it is.

    Example:
        >>> update_selection_bias(torch.zeros(3), torch.tensor([4, 2, 0]), 0.5)
        tensor([-0.5000,  0.0000,  0.5000])

    Reference:
        Wang et al. 2024, Auxiliary-Loss-Free Load Balancing, algorithm 1.
    """
    load = load_E.detach().double()  # so that equal shares in float32 are equal to their mean
    return bias_E.detach() + rate * (load.mean() - load).sign().to(bias_E.dtype)


def expert_load(topk_ids_TK: Int64[Tensor, "T K"], num_experts: int) -> Float[Tensor, " E"]:
    """Each expert's share of the assignments.

    f_i = assignments of i / all assignments; sums to 1, 1/E each when even, at most 1/K when a
    token's K experts differ. Slots holding ``num_experts`` (empty or dropped) count nowhere.

    Degenerate: all slots empty gives zeros.

    Args:
        topk_ids_TK: (T, K), 0 … num_experts.
        num_experts: E; experts that nobody chose keep their place.

    Returns:
        (E,), float32.

    Raises:
        BadInputError: an id below 0 or above num_experts.

    Example:
        >>> expert_load(torch.tensor([[0, 1], [0, 4], [0, 3]]), 4)  # 4 marks an empty slot
        tensor([0.6000, 0.2000, 0.0000, 0.2000])
    """
    flat = topk_ids_TK.reshape(-1)
    if flat.numel() and (int(flat.min()) < 0 or int(flat.max()) > num_experts):
        raise BadInputError(
            f"topk_ids: got ids {int(flat.min())} to {int(flat.max())}, expected 0 to "
            f"{num_experts - 1}, or {num_experts} for an empty slot"
        )
    counts = flat.bincount(minlength=num_experts + 1)[:num_experts]
    return counts.float() / counts.sum().clamp(min=1)


def max_violation(load_E: Num[Tensor, " E"]) -> Float[Tensor, ""]:
    """How far the busiest expert is above the mean.

    max(load)/mean(load) − 1, in [0, E/K − 1] when a token's K experts differ; 0 when even. The
    scale of the load does not matter.

    Degenerate: NaN for a load of zeros: nothing routed is unknown, not even.

    Args:
        load_E: (E,), counts or shares.

    Returns:
        A scalar.

    Example:
        >>> max_violation(torch.tensor([3, 1, 1, 1]))
        tensor(1.)

    Reference:
        Wang et al. 2024, Auxiliary-Loss-Free Load Balancing, Eq. 4 (MaxVio).
    """
    load = load_E if load_E.is_floating_point() else load_E.to(torch.get_default_dtype())
    return load.max() / load.mean() - 1
