"""Routing rules equal the stock routers, carry right gradients, and mean what they say."""

from __future__ import annotations

import doctest
import math
from collections.abc import Callable
from inspect import unwrap
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter
from transformers.models.olmoe.modeling_olmoe import OlmoeTopKRouter
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeTopKRouter

from moescope.errors import BadInputError
from moescope.training import routers
from moescope.training.routers import (
    Routing,
    expert_choice,
    gates,
    keep_topk_probability,
    noisy_topk,
    sigmoid_bias,
    switch_top1,
    topk_softmax,
)

T, E, K, D = 6, 5, 2, 8


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


def rules(logits: Tensor) -> dict[str, Routing]:
    like = {"seed": 1, "dtype": logits.dtype}
    bias, noise = numbers(logits.shape[1], **like) / 9, numbers(*logits.shape, **like)
    noise_logits = numbers(*logits.shape, seed=2, dtype=logits.dtype)
    return {
        "topk": topk_softmax(logits, K, normalize=False),
        "topk, normalized": topk_softmax(logits, K, normalize=True),
        "switch": switch_top1(logits),
        "noisy": noisy_topk(logits, noise_logits, K, noise=noise),
        "noisy, evaluation": noisy_topk(logits, noise_logits, K, noise=None),
        "expert choice": expert_choice(logits, 3),
        "sigmoid": sigmoid_bias(logits, bias, K, scaling_factor=2.5),
        "sigmoid, raw": sigmoid_bias(logits, bias, K, normalize=False),
    }


RULES = list(rules(numbers(T, E)))


def test_the_examples_in_the_docstrings_hold() -> None:
    result = doctest.testmod(routers)
    assert result.attempted > 0
    assert result.failed == 0


# --- the same as the stock routers of transformers


@pytest.mark.parametrize(
    ("stock", "normalize"),
    [
        (OlmoeTopKRouter, False),
        (OlmoeTopKRouter, True),
        (MixtralTopKRouter, True),  # always normalizes
        (Qwen2MoeTopKRouter, False),
        (Qwen2MoeTopKRouter, True),
    ],
)
def test_topk_softmax_is_bit_equal_to_the_stock_routers(stock: type, normalize: bool) -> None:
    config = SimpleNamespace(
        num_experts_per_tok=4,
        num_experts=16,
        num_local_experts=16,
        norm_topk_prob=normalize,
        hidden_size=32,
    )
    router = stock(config)
    router.weight.data = numbers(16, 32, dtype=torch.float32)
    logits, weights, ids = router(numbers(200, 32, seed=1, dtype=torch.float32))
    ours = topk_softmax(logits, 4, normalize=normalize)
    assert torch.equal(ours.topk_ids_TK, ids)
    assert torch.equal(ours.topk_weights_TK, weights)


@pytest.mark.parametrize("normalize", [False, True])
def test_sigmoid_bias_equals_the_stock_deepseek_router(normalize: bool) -> None:
    config = SimpleNamespace(
        num_experts_per_tok=4,
        num_local_experts=16,
        hidden_size=32,
        routed_scaling_factor=2.5,
        n_group=1,
        topk_group=1,
        norm_topk_prob=normalize,
    )
    router = DeepseekV3TopkRouter(config)
    router.weight.data = numbers(16, 32, dtype=torch.float32) / 4
    bias = router.e_score_correction_bias
    bias.copy_(numbers(16, seed=2, dtype=torch.float32) / 4)
    hidden = numbers(200, 32, seed=1, dtype=torch.float32)
    with torch.no_grad():
        logits, weights, ids = router(hidden)
    ours = sigmoid_bias(logits, bias, 4, normalize=normalize, scaling_factor=2.5)
    # the stock router leaves the order of a token's experts open, so compare laid out by expert
    stock = torch.zeros(200, 16).scatter(1, ids, weights)
    torch.testing.assert_close(gates(ours, 16), stock, rtol=3e-7, atol=0)
    unbiased = sigmoid_bias(logits, torch.zeros(16), 4).topk_ids_TK
    assert (unbiased.sort().values != ours.topk_ids_TK.sort().values).any()  # the bias did matter


# --- gradients, in float64 against finite differences


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("field", ["topk_weights_TK", "router_probs_TE", "selection_scores_TE"])
def test_gradients_of_each_rule_are_right(name: str, field: str) -> None:
    def run(logits: Tensor) -> Tensor:
        return getattr(rules(logits)[name], field)

    assert gradcheck(run, numbers(T, E).requires_grad_())


@pytest.mark.parametrize("name", RULES)
def test_gradients_reach_the_logits_through_the_gates(name: str) -> None:
    def run(logits: Tensor) -> Tensor:
        return gates(rules(logits)[name], E)

    assert gradcheck(run, numbers(T, E).requires_grad_())


def test_gradients_of_noisy_topk_reach_the_noise_logits_too() -> None:
    noise = numbers(T, E, seed=2)

    def run(logits: Tensor, noise_logits: Tensor) -> tuple[Tensor, Tensor]:
        routing = noisy_topk(logits, noise_logits, K, noise=noise)
        assert routing.load_probability_TE is not None
        return routing.topk_weights_TK, routing.load_probability_TE

    inputs = numbers(T, E).requires_grad_(), numbers(T, E, seed=1).requires_grad_()
    assert gradcheck(run, inputs)


def test_gradients_of_the_keep_probability_are_right_in_all_three_inputs() -> None:
    def run(clean: Tensor, noisy: Tensor, std: Tensor) -> Tensor:
        return keep_topk_probability(clean, noisy, std, K)

    clean, noisy = numbers(T, E).requires_grad_(), numbers(T, E, seed=1).requires_grad_()
    std = (numbers(T, E, seed=2).abs() + 0.5).requires_grad_()
    assert gradcheck(run, (clean, noisy, std))


def test_normalizing_a_single_choice_starves_the_router_and_switch_does_not() -> None:
    logits = numbers(T, E).requires_grad_()
    starved = topk_softmax(logits, 1, normalize=True).topk_weights_TK
    assert (starved == 1).all()
    (gradient,) = torch.autograd.grad(starved.sum(), logits)
    assert gradient.abs().max() < 1e-15
    (gradient,) = torch.autograd.grad(switch_top1(logits).topk_weights_TK.sum(), logits)
    assert (gradient.abs().max(-1).values > 1e-3).all()


def test_the_selection_bias_moves_the_choice_but_carries_no_gradient() -> None:
    logits, bias = numbers(T, E), torch.zeros(E, dtype=torch.float64, requires_grad=True)
    routing = sigmoid_bias(logits.requires_grad_(), bias, K)
    (gradient,) = torch.autograd.grad(
        routing.selection_scores_TE.sum() + routing.topk_weights_TK.square().sum(),
        bias,
        allow_unused=True,
    )
    assert gradient is None


# --- what the numbers mean


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", RULES)
def test_every_rule_keeps_the_precision_and_gives_a_distribution(
    name: str, dtype: torch.dtype
) -> None:
    made = rules(numbers(T, E, dtype=dtype))[name]
    assert made.topk_ids_TK.dtype == torch.int64
    for tensor in (made.topk_weights_TK, made.router_probs_TE, made.selection_scores_TE):
        assert tensor.dtype == dtype
    torch.testing.assert_close(made.router_probs_TE.sum(-1), torch.ones(T, dtype=dtype))
    assert (made.topk_weights_TK[made.topk_ids_TK == E] == 0).all()
    assert (made.load_probability_TE is not None) == (name == "noisy")


@pytest.mark.parametrize("name", ["topk", "topk, normalized", "switch", "sigmoid", "expert choice"])
def test_renaming_the_experts_renames_the_choice(name: str) -> None:
    logits, order = numbers(T, E), torch.randperm(E, generator=torch.Generator().manual_seed(3))
    if "sigmoid" in name:
        bias = numbers(E, seed=1) / 9
        first = sigmoid_bias(logits, bias, K)
        second = sigmoid_bias(logits[:, order], bias[order], K)
    else:
        first, second = rules(logits)[name], rules(logits[:, order])[name]
    torch.testing.assert_close(gates(first, E)[:, order], gates(second, E))


def test_gates_lay_out_weights_and_forget_empty_slots() -> None:
    nothing = torch.zeros(2, 3)
    routing = Routing(
        torch.tensor([[2, 0], [3, 1]]), torch.tensor([[0.6, 0.4], [0.0, 1.0]]), nothing, nothing
    )
    assert gates(routing, 3).tolist() == torch.tensor([[0.4, 0, 0.6], [0, 1, 0]]).tolist()


def test_noisy_topk_by_hand() -> None:
    # softplus(ln(e − 1)) = 1, so σ = 1.01; H = 1 + 0, 0 + 2·1.01, 0.5 − 1.01 = 1, 2.02, −0.51
    # the two largest are experts 1 and 0; weights 1/(1 + e^−1.02) and the rest
    one = math.log(math.e - 1)
    routing = noisy_topk(
        torch.tensor([[1.0, 0.0, 0.5]], dtype=torch.float64),
        torch.full((1, 3), one, dtype=torch.float64),
        2,
        noise=torch.tensor([[0.0, 2.0, -1.0]], dtype=torch.float64),
    )
    assert routing.selection_scores_TE[0].tolist() == pytest.approx([1.0, 2.02, -0.51])
    assert routing.topk_ids_TK.tolist() == [[1, 0]]
    high = 1 / (1 + math.exp(-1.02))
    assert routing.topk_weights_TK[0].tolist() == pytest.approx([high, 1 - high])
    # the distribution is of the clean logits, in which expert 1 is the least probable
    assert routing.router_probs_TE.argmin() == 1
    # P: thresholds −0.51 for the two inside, 1 (the second largest) for expert 2
    # (1 + 0.51)/1.01, (0 + 0.51)/1.01, (0.5 − 1)/1.01
    expected = [
        0.5 * (1 + math.erf(z / math.sqrt(2))) for z in (1.51 / 1.01, 0.51 / 1.01, -0.5 / 1.01)
    ]
    assert routing.load_probability_TE is not None
    assert routing.load_probability_TE[0].tolist() == pytest.approx(expected)


def test_without_noise_the_noisy_router_is_normalized_topk_softmax() -> None:
    logits = numbers(T, E)
    quiet = noisy_topk(logits, numbers(T, E, seed=1), K, noise=None)
    stock = topk_softmax(logits, K, normalize=True)
    assert torch.equal(quiet.topk_ids_TK, stock.topk_ids_TK)
    torch.testing.assert_close(quiet.topk_weights_TK, stock.topk_weights_TK)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 7).flatmap(lambda e: st.tuples(st.just(e), st.integers(1, e - 1))), st.data())
def test_the_threshold_is_the_kth_largest_of_the_others(sizes: tuple[int, int], data) -> None:  # type: ignore[no-untyped-def]
    num_experts, top_k = sizes
    # whole numbers, so that ties are common
    noisy = torch.tensor(
        data.draw(st.lists(st.integers(-2, 2), min_size=num_experts, max_size=num_experts)),
        dtype=torch.float64,
    )
    clean, std = numbers(num_experts), numbers(num_experts, seed=1).abs() + 0.1
    made = keep_topk_probability(clean[None], noisy[None], std[None], top_k)[0]
    for i in range(num_experts):
        others = sorted((float(noisy[j]) for j in range(num_experts) if j != i), reverse=True)
        z = (float(clean[i]) - others[top_k - 1]) / float(std[i])
        assert float(made[i]) == pytest.approx(0.5 * math.erfc(-z / math.sqrt(2)), abs=1e-12)


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_the_keep_probability_is_how_often_fresh_noise_keeps_the_expert(top_k: int) -> None:
    draws = 200_000
    clean, std = numbers(E), numbers(E, seed=1).abs() + 0.3
    noisy = clean + std * numbers(E, seed=2)
    stated = keep_topk_probability(clean[None], noisy[None], std[None], top_k)[0]
    for i in range(E):
        trial = noisy.repeat(draws, 1)
        trial[:, i] = clean[i] + std[i] * numbers(draws, seed=10 + i)
        kept = (trial.topk(top_k, dim=-1).indices == i).any(-1).double().mean()
        error = math.sqrt(float(stated[i] * (1 - stated[i])) / draws)
        assert abs(float(kept - stated[i])) <= 4 * error + 1e-9


def test_keeping_all_experts_is_certain() -> None:
    ones = keep_topk_probability(numbers(T, E), numbers(T, E, seed=1), torch.ones(T, E).double(), E)
    assert (ones == 1).all()


def test_even_logits_give_each_expert_the_chance_level_on_average() -> None:
    # by symmetry each expert is among the K of E with probability K/E
    tokens = 20_000
    zeros = torch.zeros(tokens, E, dtype=torch.float64)
    noise = numbers(tokens, E)
    made = noisy_topk(zeros, zeros, K, noise=noise).load_probability_TE
    assert made is not None
    assert made.mean(0).tolist() == pytest.approx([K / E] * E, abs=0.01)


def test_expert_choice_fills_every_expert_exactly_and_may_leave_tokens_without_any() -> None:
    made = expert_choice(numbers(50, E), 7)
    taken = made.topk_ids_TK != E
    assert taken.sum(0).tolist() == [7] * E
    assert (taken.sum(1) == 0).any()
    assert (taken.sum(1) > 1).any()
    for expert in range(E):
        mine = taken[:, expert]
        probs = made.router_probs_TE[:, expert]
        assert (made.topk_ids_TK[mine, expert] == expert).all()
        assert probs[mine].min() >= probs[~mine].max()
        assert torch.equal(made.topk_weights_TK[mine, expert], probs[mine])


def test_expert_choice_depends_on_later_tokens_and_token_choice_does_not() -> None:
    first, later = numbers(8, E), 5 * numbers(8, E, seed=1)
    both = torch.cat([first, later])

    def head_differs(route: Callable[[Tensor], Routing]) -> bool:
        return not torch.equal(route(both).topk_ids_TK[:8], route(first).topk_ids_TK)

    assert head_differs(lambda logits: expert_choice(logits, 4))
    assert not head_differs(lambda logits: topk_softmax(logits, K, normalize=True))


def test_a_capacity_of_all_tokens_or_more_gives_every_expert_every_token() -> None:
    made = expert_choice(numbers(3, E), 9)
    assert made.topk_ids_TK.tolist() == [list(range(E))] * 3
    assert torch.equal(made.topk_weights_TK, made.router_probs_TE)


def test_a_bias_changes_who_is_chosen_but_not_what_a_choice_weighs() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]], dtype=torch.float64)
    scores = logits.sigmoid()[0].tolist()
    bias = torch.tensor([0.0, -1.0, 0.0, 0.0], dtype=torch.float64)
    made = sigmoid_bias(logits, bias, 2, normalize=False, scaling_factor=3.0)
    assert made.topk_ids_TK.tolist() == [[0, 2]]  # expert 1 was second before the bias
    assert made.topk_weights_TK[0].tolist() == pytest.approx([3 * scores[0], 3 * scores[2]])
    total = scores[0] + scores[2]
    made = sigmoid_bias(logits, bias, 2)
    assert made.topk_weights_TK[0].tolist() == pytest.approx([scores[0] / total, scores[2] / total])


def test_scores_that_underflow_to_zero_stay_finite() -> None:
    made = sigmoid_bias(torch.full((2, E), -200.0), torch.zeros(E), K)
    assert made.topk_weights_TK.isfinite().all()
    assert made.router_probs_TE.isfinite().all()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda: topk_softmax(numbers(T, E), E + 1, normalize=True),
            "top_k: got 6, expected 1 to 5",
        ),
        (lambda: topk_softmax(numbers(T, E), 0, normalize=True), "top_k: got 0"),
        (lambda: sigmoid_bias(numbers(T, E), numbers(E), E + 1), "top_k: got 6"),
        (
            lambda: unwrap(sigmoid_bias)(numbers(T, E), numbers(E + 1), K),
            r"got shape \(6,\), expected \(5,\)",
        ),
        (lambda: noisy_topk(numbers(T, E), numbers(T, E), 9, noise=None), "top_k: got 9"),
        (
            lambda: unwrap(noisy_topk)(numbers(T, E), numbers(T, 1), K, noise=numbers(T, E)),
            "noise_logits",
        ),
        (
            lambda: unwrap(noisy_topk)(numbers(T, E), numbers(T, E), K, noise=numbers(1, E)),
            "noise: got",
        ),
        (lambda: expert_choice(numbers(T, E), 0), "capacity: got 0"),
        (
            lambda: unwrap(topk_softmax)(numbers(E), 1, normalize=True),
            "expected \\(tokens, experts\\)",
        ),
        (lambda: switch_top1(numbers(T, E).bfloat16()), r"got torch.bfloat16.*call \.float\(\)"),
    ],
)
def test_impossible_arguments_are_refused_with_what_was_expected(
    call: Callable[[], object], said: str
) -> None:
    # unwrapped where the shape checks that may run in tests would speak first
    with pytest.raises(BadInputError, match=said):
        call()
