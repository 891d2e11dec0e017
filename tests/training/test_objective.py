"""The gradients of a step: those of the plain losses, whichever way the step is cut up."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.training.conftest import RecipeWriter
from torch.nn import functional as F  # noqa: N812

from moescope.training import losses
from moescope.training.network import Network, Pass, build_network
from moescope.training.objective import Workers, balance_weights, run_step
from moescope.training.recipe_file import load_recipe
from moescope.training.routers import gates

TOKENS = torch.randint(0, 100, (4, 3, 17), generator=torch.Generator().manual_seed(1))


def network_of(write_recipe: RecipeWriter, **changes: Any) -> Network:
    return build_network(load_recipe(write_recipe(**changes)), 100, 0, torch.device("cpu"))


def gradients_of(network: Network, tokens: torch.Tensor, workers: int = 1) -> list[torch.Tensor]:
    weights = balance_weights(network.recipe, 0.0)
    done = run_step(network, Workers(workers), tokens, 0, weights)
    return [torch.zeros(1) if g is None else g for g in done.gradients]


def assert_same(one: list[torch.Tensor], other: list[torch.Tensor]) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "balance",
    [
        {"load_balancing": 1.0, "router_z": 0.0},
        {"load_balancing": 0.0, "router_z": 1.0},
        {"load_balancing": 0.0, "importance": 1.0},
    ],
    ids=str,
)
def test_a_globally_balanced_step_has_the_gradient_of_one_big_batch(
    balance: dict[str, Any], write_recipe: RecipeWriter
) -> None:
    network = network_of(write_recipe, balance={**balance, "scope": "global_batch"})
    parts = gradients_of(network, TOKENS, workers=2)
    assert_same(parts, gradients_of(network, TOKENS.reshape(1, 12, 17)))


def test_micro_batch_balance_is_another_loss_than_that_of_the_whole_step(
    write_recipe: RecipeWriter,
) -> None:
    balance = {"load_balancing": 1.0, "scope": "micro_batch"}
    network = network_of(write_recipe, balance=balance)
    parts, whole = gradients_of(network, TOKENS), gradients_of(network, TOKENS.reshape(1, 12, 17))
    assert any((a - b).abs().max() > 1e-3 for a, b in zip(parts, whole, strict=True))


def test_the_gradient_is_that_of_the_losses_written_out(write_recipe: RecipeWriter) -> None:
    balance = {"load_balancing": 0.3, "router_z": 0.2, "importance": 0.1}
    network = network_of(write_recipe, balance=balance)
    tokens = TOKENS[0]
    how = Pass(training=True, sequences=3)
    hidden = network.forward(tokens[:, :-1], how)
    total = F.cross_entropy(hidden @ network.head().T, tokens[:, 1:].reshape(-1))
    for layer in how.layers:
        load = losses.expert_load(layer.routing.topk_ids_TK, 8)
        total = total + 0.3 * losses.load_balancing_loss(layer.routing.router_probs_TE, load)
        total = total + 0.2 * losses.router_z_loss(layer.router_logits)
        total = total + 0.1 * losses.importance_loss(gates(layer.routing, 8))
    wanted = torch.autograd.grad(total, list(network.named_parameters().values()))
    assert_same(gradients_of(network, TOKENS[:1]), list(wanted))


def test_noise_is_drawn_anew_for_every_step_and_micro_batch_and_repeats_with_the_seed(
    write_recipe: RecipeWriter,
) -> None:
    network = network_of(write_recipe, router={"kind": "noisy_topk", "initial_scale": 0.1})

    def scores(*seed: int) -> torch.Tensor:
        how = Pass(training=True, sequences=3, seed=seed)
        network.forward(TOKENS[0, :, :-1], how)
        return how.layers[0].routing.selection_scores_TE

    assert torch.equal(scores(1, 2, 3), scores(1, 2, 3))
    assert not torch.equal(scores(1, 2, 3), scores(1, 2, 4))
    assert not torch.equal(scores(1, 2, 3), scores(1, 3, 3))


def test_outside_a_pass_the_model_routes_as_the_stock_one(write_recipe: RecipeWriter) -> None:
    network = network_of(write_recipe, router={"kind": "noisy_topk", "initial_scale": 0.1})
    with torch.no_grad():
        stock = network.model.model(TOKENS[0, :, :-1], use_cache=False).last_hidden_state
        ours = network.forward(TOKENS[0, :, :-1], Pass(training=False, sequences=3))
    torch.testing.assert_close(stock.flatten(0, 1), ours)


def test_a_dropped_choice_adds_nothing_and_its_weight_goes_to_nobody(
    write_recipe: RecipeWriter,
) -> None:
    network = network_of(write_recipe, capacity={"train": 0.5, "minimum": 1})
    how = Pass(training=True, sequences=3, capacity_factor=0.5)
    network.forward(TOKENS[0, :, :-1], how)
    layer = how.layers[0]
    assert layer.dropped is not None
    assert layer.dropped.any()
    kept = ~layer.dropped
    assert torch.equal(layer.topk_ids[kept], layer.routing.topk_ids_TK[kept])
    assert (layer.topk_ids[layer.dropped] == 8).all()
    per_sequence = layer.topk_ids.view(3, -1)
    for row in per_sequence:
        assert torch.bincount(row, minlength=9)[:8].max() <= 2  # int(16 · 0.5 · 2 / 8) = 2
