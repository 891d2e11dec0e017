"""Balancing losses: hand-computed values, their extremes, and gradients in float64."""

from __future__ import annotations

import doctest
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from moescope.errors import BadInputError
from moescope.training import losses
from moescope.training.losses import (
    coefficient_of_variation_squared,
    expert_load,
    importance_loss,
    linearized_cv_squared,
    load_balancing_loss,
    load_loss,
    max_violation,
    router_z_loss,
    update_selection_bias,
)
from moescope.training.routers import gates, noisy_topk, topk_softmax

T, E, K = 12, 6, 2


def numbers(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def exact(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_the_examples_in_the_docstrings_hold() -> None:
    result = doctest.testmod(losses)
    assert result.attempted > 0
    assert result.failed == 0


# --- the coefficient of variation


def test_cv_squared_by_hand() -> None:
    # 6 2 0 0: mean 2, deviations 4 0 −2 −2, variance (16 + 0 + 4 + 4)/4 = 6, over 2² = 1.5
    assert float(coefficient_of_variation_squared(exact(6, 2, 0, 0))) == pytest.approx(1.5)


def test_cv_squared_is_0_when_even_and_experts_less_one_when_collapsed() -> None:
    assert float(coefficient_of_variation_squared(exact(3, 3, 3, 3, 3))) == 0
    # one has all: mean x/E, variance x²/E − x²/E², ratio E − 1
    assert float(coefficient_of_variation_squared(exact(7, 0, 0, 0, 0))) == pytest.approx(4)


def test_nothing_routed_has_a_cv_of_zero_and_a_gradient_of_zero() -> None:
    nothing = torch.zeros(4, requires_grad=True)
    value = coefficient_of_variation_squared(nothing)
    value.backward()
    assert float(value.detach()) == 0
    assert nothing.grad is not None
    assert nothing.grad.tolist() == [0.0] * 4


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 50), min_size=2, max_size=12).filter(any),
    st.floats(0.01, 100),
)
def test_cv_squared_ignores_scale_and_order_and_stays_in_range(
    values: list[int], by: float
) -> None:
    amounts = exact(*values)
    value = float(coefficient_of_variation_squared(amounts))
    assert 0 <= value <= len(values) - 1 + 1e-9
    assert float(coefficient_of_variation_squared(by * amounts.flip(0))) == pytest.approx(value)


def test_importance_sees_weights_and_load_sees_tokens() -> None:
    # expert 0 gets one token at weight 2, expert 1 two tokens at weight 1: equal importance
    weights = exact(2, 0, 0, 1, 0, 1).view(3, 2)
    assert float(importance_loss(weights)) == 0
    # counted as tokens: 1 and 2, mean 1.5, variance 0.25, CV² = 1/9
    assert float(load_loss((weights > 0).double())) == pytest.approx(1 / 9)


# --- the Switch loss


def test_the_switch_loss_is_1_when_even_and_experts_when_collapsed() -> None:
    even = torch.full((T, E), 1 / E, dtype=torch.float64)
    share = torch.full((E,), 1 / E, dtype=torch.float64)
    assert float(load_balancing_loss(even, share)) == pytest.approx(1)
    assert float(load_balancing_loss(even, exact(1, 0, 0, 0, 0, 0))) == pytest.approx(1)
    collapsed = torch.zeros(T, E, dtype=torch.float64)
    collapsed[:, 2] = 1
    assert float(load_balancing_loss(collapsed, exact(0, 0, 1, 0, 0, 0))) == pytest.approx(E)


def test_the_switch_loss_by_hand() -> None:
    # P = (0.6 + 0.4)/2, (0.3 + 0.3)/2, (0.1 + 0.3)/2 = 0.5, 0.3, 0.2; f = 0.5, 0.5, 0
    # 3·(0.5·0.5 + 0.5·0.3 + 0) = 1.2
    probs = exact(0.6, 0.3, 0.1, 0.4, 0.3, 0.3).view(2, 3)
    assert float(load_balancing_loss(probs, exact(0.5, 0.5, 0))) == pytest.approx(1.2)


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_the_loss_of_transformers_is_k_times_ours(top_k: int) -> None:
    logits = numbers(40, E).float()
    routing = topk_softmax(logits, top_k, normalize=True)
    ours = load_balancing_loss(routing.router_probs_TE, expert_load(routing.topk_ids_TK, E))
    theirs = load_balancing_loss_func((logits,), num_experts=E, top_k=top_k)
    assert float(theirs) == pytest.approx(top_k * float(ours), rel=1e-5)


def test_no_gradient_flows_into_the_load() -> None:
    probs, load = numbers(T, E).softmax(-1).requires_grad_(), torch.full((E,), 1 / E).double()
    load.requires_grad_()
    load_balancing_loss(probs, load).backward()
    assert load.grad is None
    assert probs.grad is not None


def test_the_gradient_lowers_the_logits_of_busy_experts_and_raises_those_of_idle_ones() -> None:
    logits = torch.zeros(T, 3, dtype=torch.float64, requires_grad=True)
    load_balancing_loss(logits.softmax(-1), exact(0.8, 0.2, 0.0)).backward()
    assert logits.grad is not None
    assert (logits.grad[:, 0] > 0).all()  # descending the gradient lowers it
    assert (logits.grad[:, 2] < 0).all()


def test_with_the_global_load_the_mean_over_micro_batches_is_the_global_loss() -> None:
    logits = numbers(4, T, E).requires_grad_()
    ids = logits.detach().topk(K, -1).indices.view(-1, K)
    load = expert_load(ids, E)
    whole = load_balancing_loss(logits.reshape(-1, E).softmax(-1), load)
    parts = torch.stack([load_balancing_loss(m.softmax(-1), load) for m in logits]).mean()
    torch.testing.assert_close(whole, parts)
    (of_whole,) = torch.autograd.grad(whole, logits)
    (of_parts,) = torch.autograd.grad(parts, logits)
    torch.testing.assert_close(of_whole, of_parts)
    own = torch.stack(
        [load_balancing_loss(m.softmax(-1), expert_load(m.topk(K, -1).indices, E)) for m in logits]
    ).mean()
    assert not torch.isclose(own, whole, rtol=1e-3)  # balance within micro-batches is another loss


# --- z-loss


def test_the_z_loss_by_hand() -> None:
    # Σ exp of ln 1, ln 3 is 4; of 0, 0 is 2: ((ln 4)² + (ln 2)²)/2
    logits = torch.stack([exact(1, 3).log(), exact(0, 0)])
    expected = (math.log(4) ** 2 + math.log(2) ** 2) / 2
    assert float(router_z_loss(logits)) == pytest.approx(expected)


def test_the_z_loss_is_zero_for_logits_that_are_log_probabilities() -> None:
    assert float(router_z_loss(numbers(T, E).log_softmax(-1))) == pytest.approx(0, abs=1e-20)


def test_the_z_loss_survives_large_logits() -> None:
    assert float(router_z_loss(torch.full((2, 3), 1e4))) == pytest.approx(1e8, rel=1e-3)


# --- gradients


@pytest.mark.parametrize(
    "loss",
    [
        coefficient_of_variation_squared,
        lambda x: importance_loss(x.view(2, 3)),
        lambda x: load_loss(x.view(3, 2)),
        lambda x: load_balancing_loss(x.view(2, 3).softmax(-1), exact(0.7, 0.2, 0.1)),
        lambda x: router_z_loss(x.view(3, 2)),
    ],
    ids=["cv", "importance", "load", "switch", "z"],
)
def test_gradients_are_right(loss: Callable[[Tensor], Tensor]) -> None:
    assert gradcheck(loss, (numbers(6).abs() + 0.1).requires_grad_())


def test_the_whole_noisy_router_loss_has_right_gradients() -> None:
    noise = numbers(T, E, seed=2)

    def run(logits: Tensor, noise_logits: Tensor) -> Tensor:
        routing = noisy_topk(logits, noise_logits, K, noise=noise)
        assert routing.load_probability_TE is not None
        return importance_loss(gates(routing, E)) + load_loss(routing.load_probability_TE)

    inputs = numbers(T, E).requires_grad_(), numbers(T, E, seed=1).requires_grad_()
    assert gradcheck(run, inputs)


# --- the global batch in micro-batches


def test_gradients_of_micro_batches_sum_to_exactly_the_global_gradient() -> None:
    weight = numbers(E, 4).requires_grad_()
    micro = numbers(5, T, 4, seed=1)

    def importance(inputs: Tensor) -> Tensor:
        return gates(topk_softmax(inputs @ weight.T, K, normalize=True), E).sum(0)

    whole = importance(micro.view(-1, 4))
    wanted_value = coefficient_of_variation_squared(whole)
    (wanted,) = torch.autograd.grad(wanted_value, weight, retain_graph=True)
    summed = torch.zeros_like(weight)
    for part in micro:
        value = linearized_cv_squared(importance(part), whole)
        torch.testing.assert_close(value, wanted_value, rtol=1e-14, atol=0)
        (gradient,) = torch.autograd.grad(value, weight)
        summed += gradient
    torch.testing.assert_close(summed, wanted, rtol=1e-12, atol=1e-15)
    local = [coefficient_of_variation_squared(importance(part)) for part in micro]
    (other,) = torch.autograd.grad(torch.stack(local).sum(), weight)
    assert not torch.allclose(other, wanted, rtol=0.1)  # balancing each alone is another loss


def test_the_slope_is_the_gradient_of_cv_squared_at_the_whole() -> None:
    whole = (numbers(E).abs() + 0.1).requires_grad_()
    (wanted,) = torch.autograd.grad(coefficient_of_variation_squared(whole), whole)
    part = numbers(E, seed=3).requires_grad_()
    value = linearized_cv_squared(part, whole)
    got, into_whole = torch.autograd.grad(value, (part, whole), allow_unused=True)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-15)
    assert into_whole is None


def test_an_empty_whole_pulls_nowhere() -> None:
    part = torch.zeros(E, requires_grad=True)
    value = linearized_cv_squared(part, torch.zeros(E))
    value.backward()
    assert float(value.detach()) == 0
    assert part.grad is not None
    assert part.grad.tolist() == [0.0] * E


# --- load, its violation, and the bias rule


def test_load_counts_shares_of_what_was_assigned_and_keeps_idle_experts() -> None:
    # non-empty slots: 0 1 0 3 0 → 3/5, 1/5, 0, 1/5; 4 marks the empty slot
    load = expert_load(torch.tensor([[0, 1], [0, 4], [3, 0]]), 4)
    assert load.tolist() == pytest.approx([0.6, 0.2, 0.0, 0.2])
    assert float(load.sum()) == pytest.approx(1)


def test_a_load_of_nothing_is_zeros() -> None:
    assert expert_load(torch.full((3, 2), 4), 4).tolist() == [0.0] * 4
    assert expert_load(torch.zeros(0, 2, dtype=torch.int64), 4).tolist() == [0.0] * 4


@pytest.mark.parametrize("wrong", [-1, 5])
def test_an_id_that_cannot_be_is_refused(wrong: int) -> None:
    with pytest.raises(BadInputError, match="expected 0 to 3, or 4 for an empty slot"):
        expert_load(torch.tensor([[0, wrong]]), 4)


def test_max_violation_is_0_when_even_and_experts_over_k_less_one_at_most() -> None:
    assert float(max_violation(torch.tensor([5, 5, 5]))) == 0
    # K = 2 of E = 6, all tokens to the same two: load 1/2 1/2 0 0 0 0, mean 1/6 → 3 − 1
    load = expert_load(torch.tensor([[0, 1]] * 9), 6)
    assert float(max_violation(load)) == pytest.approx(6 / 2 - 1)
    assert float(max_violation(exact(3, 1, 1, 1))) == pytest.approx(1)  # 3 over 1.5, less 1
    assert math.isnan(float(max_violation(torch.zeros(3))))


def test_the_bias_rule_steps_against_the_load_by_the_rate() -> None:
    before = torch.tensor([0.1, 0.2, 0.3, 0.4])
    # mean 3: 6 is above, 3 on it, 2 and 1 below
    after = update_selection_bias(before, torch.tensor([6, 3, 2, 1]), 0.05)
    assert after.tolist() == pytest.approx([0.05, 0.2, 0.35, 0.45])
    assert before.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize("num_experts", range(2, 40))
def test_an_even_load_leaves_the_bias_alone_despite_rounding(num_experts: int) -> None:
    load = expert_load(torch.arange(num_experts)[:, None], num_experts)
    bias = torch.zeros(num_experts)
    assert torch.equal(update_selection_bias(bias, load, 1e-3), bias)
    assert torch.equal(update_selection_bias(bias, torch.zeros(num_experts), 1e-3), bias)


def test_the_bias_rule_evens_out_a_lopsided_router() -> None:
    from moescope.training.routers import sigmoid_bias

    logits = numbers(400, E).float() + torch.linspace(-2, 2, E)
    bias = torch.zeros(E)
    first = max_violation(expert_load(sigmoid_bias(logits, bias, K).topk_ids_TK, E))
    for _ in range(300):
        load = expert_load(sigmoid_bias(logits, bias, K).topk_ids_TK, E)
        bias = update_selection_bias(bias, load, 5e-3)
    last = max_violation(expert_load(sigmoid_bias(logits, bias, K).topk_ids_TK, E))
    assert float(first) > 0.8
    assert float(last) < 0.1
