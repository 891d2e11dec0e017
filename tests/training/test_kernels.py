"""The hand-written arithmetic equals what autograd makes of the plain formulas, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch.autograd import gradcheck

from moescope.training.kernels import (
    causal_attention,
    chunked_cross_entropy,
    rms_norm,
    sorted_experts,
)

T, K, E, D, F_ = 7, 2, 4, 5, 3


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)


def plain_experts(
    hidden: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
) -> torch.Tensor:
    """One token and one slot at a time."""
    rows = []
    for t in range(len(hidden)):
        row = torch.zeros_like(hidden[t])
        for k in range(ids.shape[1]):
            e = int(ids[t, k])
            if e < len(gate_up):
                gate, up = (gate_up[e] @ hidden[t]).chunk(2)
                row = row + weights[t, k] * (down[e] @ (F.silu(gate) * up))
        rows.append(row)
    return torch.stack(rows)


def expert_ids(case: str) -> torch.Tensor:
    ids = torch.rand(T, E, generator=torch.Generator().manual_seed(3)).topk(K).indices
    if case == "some dropped":
        ids[2, 1] = ids[4] = E
    if case == "all to one":
        ids[:, 0], ids[:, 1] = 1, E
    if case == "nothing kept":
        ids[:] = E
    return ids


@pytest.mark.parametrize("case", ["all kept", "some dropped", "all to one", "nothing kept"])
def test_sorted_experts_give_the_sum_and_gradients_of_one_token_at_a_time(case: str) -> None:
    ids = expert_ids(case)
    tensors = numbers(T, D), numbers(T, K), numbers(E, 2 * F_, D), numbers(E, D, F_)
    hidden, weights, gate_up, down = tensors
    fast = sorted_experts(hidden, ids, weights, gate_up, down)
    slow = plain_experts(hidden, ids, weights, gate_up, down)
    torch.testing.assert_close(fast, slow)
    back = torch.randn_like(fast)
    got = torch.autograd.grad(fast, tensors, back)
    wanted = (
        torch.autograd.grad(slow, tensors, back, allow_unused=True, materialize_grads=True)
        if (slow.requires_grad)
        else [torch.zeros_like(t) for t in tensors]
    )
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_the_grouped_products_give_what_one_product_for_each_expert_gives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from moescope.training import kernels

    ids = torch.rand(40, E, generator=torch.Generator().manual_seed(3)).topk(K).indices
    ids[ids == 2] = E  # expert 2 gets nothing
    shapes = (40, 16), (40, K), (E, 16, 16), (E, 16, 8)
    tensors = [numbers(*s).detach().float().requires_grad_() for s in shapes]
    results = []
    for grouped in (True, False):
        if not grouped:
            monkeypatch.setattr(kernels, "_grouped", lambda *_: False)
        else:
            assert kernels._grouped(tensors[0], tensors[2])
        hidden, weights, gate_up, down = tensors
        output = sorted_experts(hidden, ids, weights, gate_up, down)
        results.append([output, *torch.autograd.grad(output.square().sum(), tensors)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_sorted_experts_pass_the_numerical_gradient_check() -> None:
    ids = expert_ids("some dropped")
    assert gradcheck(
        lambda h, w, g, d: sorted_experts(h, ids, w, g, d),
        (numbers(T, D), numbers(T, K), numbers(E, 2 * F_, D), numbers(E, D, F_)),
    )


@pytest.mark.parametrize("length", [1, 5, 8, 11])
def test_blocked_attention_equals_the_stock_one_and_passes_the_gradient_check(length: int) -> None:
    query, key, value = numbers(2, length, 4), numbers(2, length, 4, seed=1), numbers(2, length, 3)
    stock = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.7)
    torch.testing.assert_close(causal_attention(query, key, value, 0.7, block=4), stock)
    assert gradcheck(lambda q, k, v: causal_attention(q, k, v, 0.7, 4), (query, key, value))


def test_chunked_cross_entropy_equals_the_stock_one_and_passes_the_gradient_check() -> None:
    hidden, weight = numbers(T, D), numbers(11, D)
    targets = torch.arange(T) % 11
    stock = F.cross_entropy(hidden @ weight.T, targets)
    torch.testing.assert_close(chunked_cross_entropy(hidden, weight, targets, rows=3), stock)
    assert gradcheck(lambda h, w: chunked_cross_entropy(h, w, targets, 3), (hidden, weight))


def test_the_loss_of_all_equal_logits_is_the_log_of_the_vocabulary() -> None:
    loss = chunked_cross_entropy(torch.zeros(6, 2), torch.zeros(10, 2), torch.arange(6))
    torch.testing.assert_close(loss, torch.tensor(10.0).log())


def test_rms_norm_equals_the_stock_one_and_passes_the_gradient_check() -> None:
    hidden, weight = numbers(2, 3, D), numbers(D)
    stock = F.rms_norm(hidden, (D,), weight, 1e-6)
    torch.testing.assert_close(rms_norm(hidden, weight, 1e-6), stock)
    assert gradcheck(lambda h, w: rms_norm(h, w, 1e-6), (hidden, weight))
    assert torch.isfinite(rms_norm(torch.zeros(1, D), torch.ones(D), 1e-6)).all()
