"""Experts computed one token and one choice at a time, from the weights alone.

Slow and plain on purpose: it is what captured routing is checked against. If the captured ids and
weights were not the ones that ran, the sum would differ from what the block put out.
"""

from typing import Any

import torch
from torch import nn


def replay(
    experts: nn.Module, hidden_TD: torch.Tensor, ids: torch.Tensor, w: torch.Tensor
) -> torch.Tensor:
    """Σ_k weight_k · expert_k(x) for every token."""
    kind = type(experts).__name__
    one = _SPECIAL.get(kind, _fused_expert)
    scale_input = kind == "Llama4TextExperts"
    rows = []
    for x, row_ids, row_w in zip(hidden_TD, ids.tolist(), w, strict=True):
        total = torch.zeros_like(x, dtype=torch.float32)
        for e, weight in zip(row_ids, row_w, strict=True):
            if scale_input:
                total += one(experts, e, x * weight)
            else:
                total += one(experts, e, x) * weight
        rows.append(total)
    return torch.stack(rows)


def _fused_expert(m: Any, e: int, x: torch.Tensor) -> torch.Tensor:
    if e >= m.num_experts:  # a skip expert does nothing
        return torch.zeros_like(x)
    name = "gate_up_proj" if m.has_gate else "up_proj"
    up, down = getattr(m, name)[e], m.down_proj[e]
    h = x @ up if m.is_transposed else up @ x
    if m.has_bias:
        h = h + getattr(m, f"{name}_bias")[e]
    h = m._apply_gate(h[None])[0] if m.has_gate else m.act_fn(h)
    out = h @ down if m.is_transposed else down @ h
    if m.has_bias:
        out = out + m.down_proj_bias[e]
    return m.post_expert_norm(out[None])[0] if m.has_post_expert_norm else out


def _dbrx_expert(m: Any, e: int, x: torch.Tensor) -> torch.Tensor:
    w1, v1, w2 = (
        t.view(m.num_experts, m.ffn_hidden_size, m.hidden_size)[e]
        for t in (m.mlp.w1, m.mlp.v1, m.mlp.w2)
    )
    return w2.T @ (m.mlp.activation_fn(w1 @ x) * (v1 @ x))


def _longcat_expert(m: Any, e: int, x: torch.Tensor) -> torch.Tensor:
    if e >= m.num_routed_experts:
        return x
    gate, up = (m.gate_up_proj[e] @ x).chunk(2)
    return m.down_proj[e] @ (m.act_fn(gate) * up)


def _llama4_expert(m: Any, e: int, x: torch.Tensor) -> torch.Tensor:
    gate, up = (x @ m.gate_up_proj[e]).chunk(2)
    return (up * m.act_fn(gate)) @ m.down_proj[e]


def _jetmoe_expert(m: Any, e: int, x: torch.Tensor) -> torch.Tensor:
    gate, up = (m.input_linear.weight[e] @ x).chunk(2)
    return m.output_linear.weight[e] @ (m.activation(gate) * up)


def _step_expert(m: Any, e: int, x: torch.Tensor) -> torch.Tensor:
    gate, up = (m.gate_up_proj[e] @ x).chunk(2)
    return m.down_proj[e] @ (m.act_fn(gate).clamp(max=m.limit) * up.clamp(-m.limit, m.limit))


_SPECIAL = {
    "Step3p7Experts": _step_expert,
    "DbrxExperts": _dbrx_expert,
    "LongcatFlashExperts": _longcat_expert,
    "Llama4TextExperts": _llama4_expert,
    "JetMoeMoE": _jetmoe_expert,
}
