"""The experts' arithmetic for reading a model on a processor: sorted by expert, one slice for each.

Transformers lets a model's experts be computed by a registered function. The one here gathers each
expert's tokens, runs the expert once on that slice, and adds the weighted result to their rows. So
no copy of all assignments is made, and what an expert works on stays in the cache. It has no
backward pass; the trainer has arithmetic of its own (`moescope.training.kernels`). On an
accelerator the model keeps transformers' own grouped or fused kernels. It knows modules, not
routing rules.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

_NAME = "moescope_sorted"
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@contextmanager
def fast_experts(model: nn.Module) -> Iterator[bool]:
    """Compute the model's experts by `run_sorted` while the context lasts.

    Nothing changes for a model off the processor, with quantized experts, spread over several
    processes, or whose experts transformers does not run through its registered functions.

    Yields:
        Whether the experts were switched.
    """
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    if not sorts_experts(model):
        yield False
        return
    experts = _experts_of(model)
    ALL_EXPERTS_FUNCTIONS.register(_NAME, run_sorted)
    configs: dict[int, Any] = {id(module.config): module.config for module in experts}
    before = [(c, c._experts_implementation_internal) for c in configs.values()]
    try:
        for config, _ in before:
            config._experts_implementation_internal = _NAME
        yield True
    finally:
        for config, name in before:
            config._experts_implementation_internal = name


def sorts_experts(model: nn.Module) -> bool:
    """Would `fast_experts` switch the experts of this model?"""
    experts = _experts_of(model)
    return bool(experts) and all(_takes(module) for module in experts)


def expert_weights(model: nn.Module) -> list[str]:
    """Names of the stacked weights that `run_sorted` takes one expert at a time from."""
    kept = {id(m): m for m in _experts_of(model)}
    return [
        f"{place}.{name}"
        for place, module in model.named_modules()
        if id(module) in kept
        for name, weight in module.named_parameters(recurse=False)
        if weight.dim() == 3 and name in ("gate_up_proj", "up_proj", "down_proj")
    ]


def _experts_of(model: nn.Module) -> list[Any]:
    """The modules whose experts transformers runs through its registered functions."""
    return [m for m in model.modules() if hasattr(m, "_is_expert_parallel")]


def _takes(module: Any) -> bool:
    """Are these experts plain floating-point weights on a processor, all of them here?"""
    weights = [p for p in module.parameters() if p.dim() == 3]
    return (
        not module._is_expert_parallel
        and hasattr(module, "down_proj")
        and hasattr(module, "gate_up_proj" if module.has_gate else "up_proj")
        and all(p.device.type in ("cpu", "meta") and p.dtype in _FLOATS for p in weights)
    )


@torch.no_grad()
def run_sorted(
    module: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """The weighted sum of the chosen experts, in the form of transformers' experts interface.

    Args:
        module: stacked experts: ``gate_up_proj`` (or ``up_proj``) and ``down_proj``, with biases,
            transposed weights, a gate and a norm after each expert where the module says so. They
            may be kept in half precision beside float32 states: one expert is widened at a time.
        hidden_states: (T, D).
        top_k_index: (T, K); a number past the last expert adds nothing.
        top_k_weights: (T, K).

    Returns:
        (T, D) in the dtype of ``hidden_states``; half precisions are summed in float32.
    """
    top_k = top_k_index.shape[-1]
    flat = top_k_index.reshape(-1)
    order = torch.argsort(flat, stable=True)
    sizes = torch.bincount(flat, minlength=module.num_experts)[: module.num_experts].tolist()
    tokens = torch.div(order, top_k, rounding_mode="floor")
    sum_dtype = torch.promote_types(hidden_states.dtype, torch.float32)
    weights = top_k_weights.reshape(-1)[order].to(sum_dtype).unsqueeze(1)
    total = hidden_states.new_zeros(hidden_states.shape, dtype=sum_dtype)
    start = 0
    for expert, size in enumerate(sizes):
        if size:
            rows = tokens[start : start + size]
            made = _one(module, expert, hidden_states.index_select(0, rows)).to(sum_dtype)
            total.index_add_(0, rows, made.mul_(weights[start : start + size]))
            start += size
    return total.to(hidden_states.dtype)


def _one(module: Any, expert: int, rows_MD: torch.Tensor) -> torch.Tensor:
    """One expert on its rows, unweighted: (M, D), memory of its own."""
    name = "gate_up_proj" if module.has_gate else "up_proj"
    inner = _linear(module, name, expert, rows_MD)
    inner = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)
    made = _linear(module, "down_proj", expert, inner)
    return module.post_expert_norm(made) if module.has_post_expert_norm else made


def _linear(module: Any, name: str, expert: int, rows_MI: torch.Tensor) -> torch.Tensor:
    """One expert's product; the narrower of weights and rows is widened."""
    weight = getattr(module, name)[expert]
    dtype = torch.promote_types(rows_MI.dtype, weight.dtype)
    weight = (weight.T if module.is_transposed else weight).to(dtype)
    bias = getattr(module, f"{name}_bias")[expert].to(dtype) if module.has_bias else None
    return F.linear(rows_MI.to(dtype), weight, bias)
