"""The arithmetic of a training step that is worth writing by hand: experts, attention, loss, norm.

Each is a function with a backward of its own, held against autograd in float64 by the tests. They
keep their working set small enough for a processor's cache and touch each large array as rarely as
they can. They know nothing of routing rules, of models or of recipes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

_Context = Any  # torch's autograd context: it takes whatever attribute it is given


class _SortedExperts(torch.autograd.Function):
    """Gated experts on contiguous slices of the assignments sorted by expert.

    The gradient of a routing weight is the product of what flows back through the expert's output
    with its inner activation, so the experts' outputs are not kept for the backward pass.
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
        flat_ids = topk_ids_TK.reshape(-1)
        sizes_E = torch.bincount(flat_ids, minlength=num_experts + 1)[:num_experts]
        kept = int(sizes_E.sum())  # ids of num_experts sort last: empty or dropped
        order = torch.argsort(flat_ids, stable=True)
        tokens_M = torch.div(order[:kept], topk_ids_TK.shape[1], rounding_mode="floor")
        position_TK = torch.empty_like(order)
        position_TK[order] = torch.arange(len(order), device=order.device)
        position_TK = position_TK.view(topk_ids_TK.shape)
        weights_M = topk_weights_TK.reshape(-1)[order[:kept]].to(hidden_TD.dtype)
        rows_MD = hidden_TD.index_select(0, tokens_M)
        inner_MG = _each_expert(rows_MD, gate_up_EGD.transpose(1, 2), sizes_E)
        active_MF = F.silu(inner_MG[:, :width]).mul_(inner_MG[:, width:])
        output_MD = _each_expert(active_MF, down_EDF.transpose(1, 2), sizes_E)
        ctx.save_for_backward(
            tokens_M, position_TK, weights_M, rows_MD, inner_MG, active_MF, gate_up_EGD, down_EDF,
            sizes_E,
        )  # fmt: skip
        ctx.weights_dtype, ctx.order = topk_weights_TK.dtype, order[:kept]
        return _sum_assignments(output_MD, position_TK, topk_weights_TK.to(hidden_TD.dtype))

    @staticmethod
    def backward(ctx: _Context, grad_TD: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (
            tokens_M, position_TK, weights_M, rows_MD, inner_MG, active_MF, gate_up_EGD, down_EDF,
            sizes_E,
        ) = ctx.saved_tensors  # fmt: skip
        width = down_EDF.shape[2]
        grad_MD = grad_TD.index_select(0, tokens_M)
        back_MF = _each_expert(grad_MD, down_EDF, sizes_E)
        grad_weights_M = (back_MF * active_MF).sum(dim=-1)
        weights_M1 = weights_M.unsqueeze(-1)
        grad_down = _each_gradient(grad_MD, active_MF * weights_M1, sizes_E)
        back_MF *= weights_M1
        gate_MF = inner_MG[:, :width]
        grad_inner_MG = torch.empty_like(inner_MG)
        torch.mul(back_MF, F.silu(gate_MF), out=grad_inner_MG[:, width:])
        back_MF *= inner_MG[:, width:]
        grad_inner_MG[:, :width] = torch.ops.aten.silu_backward(back_MF, gate_MF)
        grad_gate_up = _each_gradient(grad_inner_MG, rows_MD, sizes_E)
        grad_rows_MD = _each_expert(grad_inner_MG, gate_up_EGD, sizes_E)
        grad_topk = grad_weights_M.new_zeros(position_TK.numel())
        grad_topk[ctx.order] = grad_weights_M
        return (
            _sum_assignments(grad_rows_MD, position_TK, None),
            None,
            grad_topk.view(position_TK.shape).to(ctx.weights_dtype),
            grad_gate_up,
            grad_down,
        )


def _each_expert(
    rows_MI: torch.Tensor, weights_EIO: torch.Tensor, sizes_E: torch.Tensor
) -> torch.Tensor:
    """Each expert's slice of the rows times its matrix: (M, O)."""
    if _grouped(rows_MI, weights_EIO):
        ends_E = sizes_E.cumsum(0).to(torch.int32)
        return F.grouped_mm(rows_MI, weights_EIO, offs=ends_E)
    result_MO = rows_MI.new_empty(len(rows_MI), weights_EIO.shape[2])
    sizes = sizes_E.tolist()
    parts = zip(torch.split(rows_MI, sizes), torch.split(result_MO, sizes), strict=True)
    for expert, (rows, result) in enumerate(parts):
        torch.mm(rows, weights_EIO[expert], out=result)
    return result_MO


def _each_gradient(
    left_MI: torch.Tensor, right_MO: torch.Tensor, sizes_E: torch.Tensor
) -> torch.Tensor:
    """The product of both sides of each expert's slice: (E, I, O)."""
    if _grouped(left_MI, right_MO):
        ends_E = sizes_E.cumsum(0).to(torch.int32)
        return F.grouped_mm(left_MI.T, right_MO, offs=ends_E)
    result_EIO = left_MI.new_zeros(len(sizes_E), left_MI.shape[1], right_MO.shape[1])
    sizes = sizes_E.tolist()
    parts = zip(torch.split(left_MI, sizes), torch.split(right_MO, sizes), strict=True)
    for expert, (left, right) in enumerate(parts):
        torch.mm(left.T, right, out=result_EIO[expert])
    return result_EIO


def _grouped(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Can one call do it? It wants rows of whole 16 bytes, and is absent from older releases.

    One call instead of one for each expert matters with several workers: between two calls a
    thread may have to wait for the interpreter.
    """
    fits = all(t.element_size() * t.shape[-1] % 16 == 0 for t in (one, other))
    return fits and hasattr(F, "grouped_mm") and one.dtype != torch.float64 and len(one) > 0


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
