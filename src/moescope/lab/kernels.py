"""The arithmetic of a training step that is worth writing by hand: experts, attention, loss, norm.

Each is a function with a backward of its own, held against autograd in float64 by the tests. They
keep their working set small enough for a processor's cache and touch each large array as rarely as
they can. They know nothing of routing rules, of models or of recipes.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

__all__ = [
    "causal_attention",
    "chunked_cross_entropy",
    "keep_memory",
    "rms_norm",
    "sorted_experts",
]

_Context = Any  # torch's autograd context: it takes whatever attribute it is given


class _SortedExperts(torch.autograd.Function):
    """Gated experts on contiguous slices of the assignments sorted by expert.

    Nothing of the size (assignments, hidden) is kept for the backward pass but the gathered input;
    the gradient of a routing weight is the product of what flows back through the expert's output
    with its inner activation, so the expert's output is never kept either.
    """

    @staticmethod
    def forward(
        ctx: _Context,
        hidden_TD: torch.Tensor,
        topk_ids_TK: torch.Tensor,
        topk_weights_TK: torch.Tensor,
        gate_up_EGD: torch.Tensor,
        down_EDF: torch.Tensor,
    ) -> torch.Tensor:
        num_experts, width = gate_up_EGD.shape[0], down_EDF.shape[2]
        top_k = topk_ids_TK.shape[1]
        flat_ids = topk_ids_TK.reshape(-1)
        sizes = torch.bincount(flat_ids, minlength=num_experts + 1)[:num_experts].tolist()
        kept = sum(sizes)  # ids of num_experts sort last: assignments that were dropped
        order = torch.argsort(flat_ids, stable=True)
        tokens_M = torch.div(order[:kept], top_k, rounding_mode="floor")
        position_TK = torch.empty_like(order)
        position_TK[order] = torch.arange(len(order), device=order.device)
        position_TK = position_TK.view(topk_ids_TK.shape)
        weights_M = topk_weights_TK.reshape(-1)[order[:kept]].to(hidden_TD.dtype)
        rows_MD = hidden_TD.index_select(0, tokens_M)
        inner_MG = rows_MD.new_empty(kept, 2 * width)
        active_MF = rows_MD.new_empty(kept, width)
        output_MD = torch.empty_like(rows_MD)
        start = 0
        for expert, size in enumerate(sizes):
            if not size:
                continue
            part = slice(start, start + size)
            start += size
            inner = torch.mm(rows_MD[part], gate_up_EGD[expert].T, out=inner_MG[part])
            active = torch.mul(F.silu(inner[:, :width]), inner[:, width:], out=active_MF[part])
            torch.mm(active, down_EDF[expert].T, out=output_MD[part])
        ctx.save_for_backward(
            tokens_M, position_TK, weights_M, rows_MD, inner_MG, active_MF, gate_up_EGD, down_EDF
        )
        ctx.sizes, ctx.weights_dtype, ctx.order = sizes, topk_weights_TK.dtype, order[:kept]
        return _sum_assignments(output_MD, position_TK, topk_weights_TK.to(hidden_TD.dtype))

    @staticmethod
    def backward(ctx: _Context, grad_TD: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        tokens_M, position_TK, weights_M, rows_MD, inner_MG, active_MF, gate_up_EGD, down_EDF = (
            ctx.saved_tensors
        )
        width = down_EDF.shape[2]
        grad_MD = grad_TD.index_select(0, tokens_M)
        grad_rows_MD, grad_weights_M = torch.empty_like(rows_MD), torch.empty_like(weights_M)
        grad_gate_up, grad_down = torch.zeros_like(gate_up_EGD), torch.zeros_like(down_EDF)
        start = 0
        for expert, size in enumerate(ctx.sizes):
            if not size:
                continue
            part = slice(start, start + size)
            start += size
            gate, up = inner_MG[part, :width], inner_MG[part, width:]
            active, weights = active_MF[part], weights_M[part, None]
            back = grad_MD[part] @ down_EDF[expert]
            torch.sum(back * active, dim=-1, out=grad_weights_M[part])
            torch.mm(grad_MD[part].T, active * weights, out=grad_down[expert])
            back *= weights
            grad_inner = torch.empty_like(inner_MG[part])
            torch.mul(back, F.silu(gate), out=grad_inner[:, width:])
            back *= up
            grad_inner[:, :width] = torch.ops.aten.silu_backward(back, gate)
            torch.mm(grad_inner.T, rows_MD[part], out=grad_gate_up[expert])
            torch.mm(grad_inner, gate_up_EGD[expert], out=grad_rows_MD[part])
        grad_topk = grad_weights_M.new_zeros(position_TK.numel())
        grad_topk[ctx.order] = grad_weights_M
        return (
            _sum_assignments(grad_rows_MD, position_TK, None),
            None,
            grad_topk.view(position_TK.shape).to(ctx.weights_dtype),
            grad_gate_up,
            grad_down,
        )


def _sum_assignments(
    rows_MD: torch.Tensor, position_TK: torch.Tensor, weights_TK: torch.Tensor | None
) -> torch.Tensor:
    """Each token's sum over its own rows (weighted); a position past the last row adds nothing."""
    if not len(rows_MD):
        return rows_MD.new_zeros(len(position_TK), rows_MD.shape[1])
    if weights_TK is None and len(rows_MD) == position_TK.numel():
        return F.embedding_bag(position_TK, rows_MD, mode="sum")
    present = position_TK < len(rows_MD)
    scale = present.to(rows_MD.dtype) if weights_TK is None else weights_TK * present
    return F.embedding_bag(
        position_TK.clamp(max=len(rows_MD) - 1), rows_MD, mode="sum", per_sample_weights=scale
    )


class _CausalAttention(torch.autograd.Function):
    """Softmax attention by blocks of queries; keys after a block are never touched."""

    @staticmethod
    def forward(
        ctx: _Context,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        block: int,
    ) -> torch.Tensor:
        query = query * scaling
        length = query.shape[1]
        output = query.new_empty(*query.shape[:2], value.shape[2])
        later = torch.full((block, block), float("-inf"), dtype=query.dtype, device=query.device)
        later.triu_(1)
        probs = []
        for start in range(0, length, block):
            end = min(start + block, length)
            scores = torch.bmm(query[:, start:end], key[:, :end].transpose(1, 2))
            scores[:, :, start:] += later[: end - start, : end - start]
            probs.append(torch.softmax(scores, dim=-1))
            output[:, start:end] = torch.bmm(probs[-1], value[:, :end])
        ctx.save_for_backward(query, key, value, output, *probs)
        ctx.scaling, ctx.block = scaling, block
        return output

    @staticmethod
    def backward(ctx: _Context, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, output, *probs = ctx.saved_tensors
        grad_query = torch.empty_like(query)
        grad_key, grad_value = torch.zeros_like(key), torch.zeros_like(value)
        common = (grad * output).sum(dim=-1, keepdim=True)
        for number, prob in enumerate(probs):
            start = number * ctx.block
            end = start + prob.shape[1]
            part = grad[:, start:end]
            grad_value[:, :end].baddbmm_(prob.transpose(1, 2), part)
            back = torch.bmm(part, value[:, :end].transpose(1, 2))
            back -= common[:, start:end]
            back *= prob
            grad_query[:, start:end] = torch.bmm(back, key[:, :end])
            grad_key[:, :end].baddbmm_(back.transpose(1, 2), query[:, start:end])
        return grad_query * ctx.scaling, grad_key, grad_value, None, None


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy without all logits at once: forward takes the gradients on its way."""

    @staticmethod
    def forward(
        ctx: _Context,
        hidden_TD: torch.Tensor,
        weight_VD: torch.Tensor,
        targets_T: torch.Tensor,
        rows: int,
    ) -> torch.Tensor:
        wanted = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        grad_hidden_TD, grad_weight_VD = torch.empty_like(hidden_TD), torch.zeros_like(weight_VD)
        total = hidden_TD.new_zeros((), dtype=torch.promote_types(hidden_TD.dtype, torch.float32))
        for start in range(0, len(targets_T), rows):
            part, goal = hidden_TD[start : start + rows], targets_T[start : start + rows, None]
            probs = (part @ weight_VD.T).to(total.dtype)
            probs -= probs.amax(dim=-1, keepdim=True)
            told = probs.gather(1, goal)
            sums = probs.exp_().sum(dim=-1, keepdim=True)
            total += (sums.log() - told).sum()
            if wanted:
                probs /= sums * len(targets_T)
                probs.scatter_add_(1, goal, torch.full_like(told, -1.0 / len(targets_T)))
                probs = probs.to(weight_VD.dtype)
                torch.mm(probs, weight_VD, out=grad_hidden_TD[start : start + rows])
                grad_weight_VD.addmm_(probs.T, part)
        ctx.save_for_backward(grad_hidden_TD, grad_weight_VD)
        return total / len(targets_T)

    @staticmethod
    def backward(ctx: _Context, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_hidden_TD, grad_weight_VD = ctx.saved_tensors
        scale = grad.to(grad_hidden_TD.dtype)
        return grad_hidden_TD * scale, grad_weight_VD * scale, None, None


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _Context, hidden: torch.Tensor, weight_D: torch.Tensor, eps: float
    ) -> torch.Tensor:
        wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = torch.rsqrt(norm.square_().div_(hidden.shape[-1]).add_(eps))
        unit = (wide * scale).to(hidden.dtype)
        ctx.save_for_backward(unit, scale, weight_D)
        return unit * weight_D

    @staticmethod
    def backward(ctx: _Context, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        unit, scale, weight_D = ctx.saved_tensors
        width = unit.shape[-1]
        product = grad * unit
        grad_weight_D = product.reshape(-1, width).sum(dim=0)
        common = (product @ weight_D).unsqueeze(-1) / width
        grad_hidden = (grad * weight_D).addcmul_(unit, common.to(unit.dtype), value=-1)
        return grad_hidden.mul_(scale.to(grad.dtype)), grad_weight_D, None


def sorted_experts(
    hidden: torch.Tensor,
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
) -> torch.Tensor:
    """Weighted sum of the chosen gated experts (SiLU), computed expert by expert.

    ``Σ_k w_k · W_down (silu(W_gate x) ⊙ W_up x)``. The tokens are sorted by expert, so every
    expert runs once, on one contiguous slice.

    Args:
        hidden: states, (T, D).
        topk_ids: chosen experts, (T, K); E marks a slot that is empty or was dropped.
        topk_weights: what each output is multiplied with, (T, K); ignored in empty slots.
        gate_up: stacked weights, gate above up, (E, 2F, D).
        down: stacked weights, (E, D, F).

    Returns:
        (T, D); a token without any expert gets zeros. Differentiable in all but the ids.
    """
    result: torch.Tensor = _SortedExperts.apply(hidden, topk_ids, topk_weights, gate_up, down)  # type: ignore[no-untyped-call]
    return result


def causal_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    block: int = 64,
) -> torch.Tensor:
    """Causal softmax attention over whole sequences, every position seeing itself and before.

    Args:
        query: (N, S, d) with N = sequences × heads.
        key: (N, S, d).
        value: (N, S, e).
        scaling: factor on the scores, 1/√d as a rule.
        block: queries handled together. Memory is N·S²/2 probabilities, kept for backward.

    Returns:
        (N, S, e).
    """
    result: torch.Tensor = _CausalAttention.apply(query, key, value, scaling, block)  # type: ignore[no-untyped-call]
    return result


def chunked_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, rows: int = 256
) -> torch.Tensor:
    """Mean cross-entropy of a linear language-model head, in nats, logits never held at once.

    Tokens × vocabulary is by far the largest array of a small model's step; ``rows`` tokens of it
    stay in cache. Gradients are taken in the forward pass.

    Args:
        hidden: final states, (T, D).
        weight: the head, (V, D).
        targets: (T,), every one counted.
        rows: tokens of a slice.

    Returns:
        A scalar in float32 (float64 for float64 input). Even guessing gives ln V.
    """
    result: torch.Tensor = _ChunkedCrossEntropy.apply(hidden, weight, targets, rows)  # type: ignore[no-untyped-call]
    return result


def rms_norm(hidden: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """``x / sqrt(mean(x²) + eps) · weight`` over the last axis, in three passes.

    Args:
        hidden: (..., D).
        weight: (D,).
        eps: added to the mean square.

    Returns:
        The shape and dtype of ``hidden``.
    """
    result: torch.Tensor = _RMSNorm.apply(hidden, weight, eps)  # type: ignore[no-untyped-call]
    return result


def keep_memory() -> None:
    """Let glibc reuse large blocks; fresh pages at every step cost up to a third of the time.

    Does nothing with another C library. Lasts for the process.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no block in a mapping of its own
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: give nothing back
    except (OSError, AttributeError):
        return
