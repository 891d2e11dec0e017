"""The loss of a step: cross-entropy and what keeps the routing balanced, and its gradients.

The micro-batches of a step run side by side, one thread each, and their gradients are added in the
order of the micro-batches: the numbers do not depend on the number of workers. With the scope
``global_batch`` all forward passes come first, so that every balancing loss is that of the whole
step, exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import torch

from moescope.training import losses
from moescope.training.kernels import chunked_cross_entropy
from moescope.training.network import LayerRouting, Network, Pass, capacity_factor
from moescope.training.part import weight_at
from moescope.training.recipe import Recipe
from moescope.training.routers import gates

_X = TypeVar("_X")
_Y = TypeVar("_Y")


class BalanceWeights(NamedTuple):
    """The weights of the balancing losses at one step."""

    load_balancing: float
    router_z: float
    importance: float
    load: float


@dataclass
class LayerSums:
    """What one layer's router did in a whole step, in sums.

    Attributes:
        counts: assignments that each expert was chosen for, before capacity, (E,).
        assigned: assignments that an expert computed, (E,).
        dropped, rerouted: assignments. dropped_by_position: the same by position, (S,).
        entropy: summed entropy of the router's distribution, nats. noise: summed standard deviation
            of the noise, mean of the experts; 0 without noise. tokens: summed over.
    """

    counts: torch.Tensor
    assigned: torch.Tensor
    dropped_by_position: torch.Tensor
    rerouted: int = 0
    entropy: float = 0.0
    noise: float = 0.0
    tokens: int = 0

    @property
    def dropped(self) -> int:
        """Assignments that no expert computed."""
        return int(self.dropped_by_position.sum())


@dataclass
class StepResult:
    """A step's mean loss, balancing losses (means over layers), gradients and routing."""

    loss: float
    parts: dict[str, float]
    gradients: list[torch.Tensor | None]
    layers: dict[int, LayerSums] = field(default_factory=dict)


class _Forward(NamedTuple):
    cross_entropy: torch.Tensor
    layers: list[LayerRouting]


class Workers:
    """Threads that compute micro-batches, each with one thread of arithmetic of its own.

    Two single-threaded workers beat one worker with two threads by half at these sizes: the many
    small operations of experts cost a barrier each. With one worker or on an accelerator everything
    runs in the calling thread, with all its threads.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._pools = [ThreadPoolExecutor(1) for _ in range(count)] if count > 1 else []

    def map(self, work: Callable[[_X], _Y], items: Sequence[_X]) -> Iterator[_Y]:
        """Results in the order of the items.

        Item i always goes to thread i mod count: autograd adds up gradients in an order that
        depends on which thread made which part of a graph, so a micro-batch stays on its thread.
        """
        if not self._pools:
            return map(work, items)
        waiting = [self._pools[i % self.count].submit(work, x) for i, x in enumerate(items)]
        return (done.result() for done in waiting)

    @contextmanager
    def single_threaded(self) -> Iterator[None]:
        """One thread of arithmetic for each worker while the block runs."""
        before = torch.get_num_threads()
        if self._pools:
            torch.set_num_threads(1)
            for pool in self._pools:
                pool.submit(torch.set_num_threads, 1).result()
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def close(self) -> None:
        """End the threads."""
        for pool in self._pools:
            pool.shutdown(cancel_futures=True)


def balance_weights(recipe: Recipe, progress: float) -> BalanceWeights:
    """The weights when ``progress`` (0 to 1) of the steps are done."""
    given = (getattr(recipe.balance, name) for name in BalanceWeights._fields)
    return BalanceWeights(*(weight_at(weight, progress) for weight in given))


def run_step(
    network: Network, workers: Workers, batches: torch.Tensor, step: int, weights: BalanceWeights
) -> StepResult:
    """Forward and backward of one step.

    Args:
        network: the model under its recipe.
        workers: who computes.
        batches: ids, (micro-batches, sequences, context + 1).
        step: its number; decides the noise.
        weights: of the balancing losses.

    Returns:
        Mean gradients over the micro-batches in the order of ``network.named_parameters()``.
    """
    parameters = list(network.named_parameters().values())
    number = len(batches)

    def forward(index: int) -> _Forward:
        return _forward(network, batches[index], step, index)

    def backward(ran: _Forward, whole: list[_Whole] | None) -> _Backward:
        balancing, parts = _balancing(ran.layers, weights, whole)
        total = (ran.cross_entropy + balancing) / number
        gradients = torch.autograd.grad(total, parameters, allow_unused=True)
        sums = [_sums(layer, batches.shape[1]) for layer in ran.layers]
        return _Backward(float(ran.cross_entropy.detach()), parts, gradients, sums)

    with workers.single_threaded():
        if network.recipe.balance.scope == "micro_batch":
            done = workers.map(lambda index: backward(forward(index), None), range(number))
        else:
            ran = list(workers.map(forward, range(number)))
            whole = _whole([r.layers for r in ran], weights)
            done = workers.map(lambda r: backward(r, whole), ran)
        return _collect(done, network, number)


class _Backward(NamedTuple):
    loss: float
    parts: dict[str, float]
    gradients: tuple[torch.Tensor | None, ...]
    sums: list[LayerSums]


def _forward(network: Network, tokens: torch.Tensor, step: int, index: int) -> _Forward:
    recipe = network.recipe
    how = Pass(
        training=True,
        sequences=len(tokens),
        seed=(recipe.seed, step, index),
        capacity_factor=capacity_factor(recipe.capacity, training=True),
    )
    hidden_TD = network.forward(tokens[:, :-1], how)
    targets_T = tokens[:, 1:].reshape(-1)
    return _Forward(chunked_cross_entropy(hidden_TD, network.head(), targets_T), how.layers)


class _Whole(NamedTuple):
    """One layer's figures over all micro-batches of a step, without gradient."""

    load: torch.Tensor
    importance: torch.Tensor
    smooth_load: torch.Tensor | None
    parts: int


def _whole(all_layers: list[list[LayerRouting]], weights: BalanceWeights) -> list[_Whole]:
    result = []
    for parts in zip(*all_layers, strict=True):
        num_experts = parts[0].router_logits.shape[1]
        ids_TK = torch.cat([p.routing.topk_ids_TK for p in parts])
        importance = torch.stack([_importance(p, num_experts).detach() for p in parts]).sum(0)
        smooth = None
        if weights.load:
            smooth = torch.stack([_smooth_load(p).detach() for p in parts]).sum(0)
        load_E = losses.expert_load(ids_TK, num_experts)
        result.append(_Whole(load_E, importance, smooth, len(parts)))
    return result


def _importance(layer: LayerRouting, num_experts: int) -> torch.Tensor:
    return gates(layer.routing, num_experts).sum(0)


def _smooth_load(layer: LayerRouting) -> torch.Tensor:
    assert layer.routing.load_probability_TE is not None
    return layer.routing.load_probability_TE.sum(0)


def _balancing(
    layers: list[LayerRouting],
    weights: BalanceWeights,
    whole: list[_Whole] | None,
) -> tuple[torch.Tensor, dict[str, float]]:
    """The weighted sum over layers, and each loss's mean over layers."""
    total = layers[0].router_logits.new_zeros(())
    seen: dict[str, list[float]] = {}
    for index, layer in enumerate(layers):
        over = whole[index] if whole is not None else None
        for name, (weight, value) in _terms(layer, weights, over).items():
            seen.setdefault(name, []).append(float(value.detach()))
            if weight:
                total = total + weight * value
    return total, {name: math.fsum(values) / len(values) for name, values in seen.items()}


def _terms(
    layer: LayerRouting, weights: BalanceWeights, whole: _Whole | None
) -> dict[str, tuple[float, torch.Tensor]]:
    """Each balancing loss of one layer with its weight; what costs time only if it is asked for."""
    routing, num_experts = layer.routing, layer.router_logits.shape[1]
    load_E = whole.load if whole else losses.expert_load(routing.topk_ids_TK, num_experts)
    terms = {
        "load_balancing_loss": (
            weights.load_balancing,
            losses.load_balancing_loss(routing.router_probs_TE, load_E),
        ),
        "router_z_loss": (weights.router_z, losses.router_z_loss(layer.router_logits)),
    }
    if weights.importance:
        part_E = _importance(layer, num_experts)
        value = _cv_squared(part_E, whole and whole.importance, whole)
        terms["importance_loss"] = (weights.importance, value)
    if weights.load and routing.load_probability_TE is not None:
        part_E = _smooth_load(layer)
        value = _cv_squared(part_E, whole and whole.smooth_load, whole)
        terms["load_loss"] = (weights.load, value)
    return terms


def _cv_squared(
    part_E: torch.Tensor, whole_E: torch.Tensor | None, whole: _Whole | None
) -> torch.Tensor:
    """CV² of this micro-batch, or a value whose mean over micro-batches has the whole's gradient.

    The parts' gradients add up to that of the whole, but the step takes their mean.
    """
    if whole is None or whole_E is None:
        return losses.coefficient_of_variation_squared(part_E)
    linear = losses.linearized_cv_squared(part_E, whole_E)
    return linear.detach() + whole.parts * (linear - linear.detach())


@torch.no_grad()
def _sums(layer: LayerRouting, sequences: int) -> LayerSums:
    num_tokens, num_experts = layer.router_logits.shape
    probs_TE, noise_TE = layer.routing.router_probs_TE.detach(), layer.routing.noise_std_TE
    entropy_T = -(probs_TE * probs_TE.clamp_min(1e-30).log()).sum(-1)
    length = num_tokens // sequences
    lost = torch.zeros(length, dtype=torch.int64)
    if layer.dropped is not None:
        lost = layer.dropped.sum(-1).view(sequences, length).sum(0).cpu()

    def count(ids: torch.Tensor) -> torch.Tensor:
        return torch.bincount(ids.flatten(), minlength=num_experts + 1)[:num_experts].cpu()

    return LayerSums(
        counts=count(layer.routing.topk_ids_TK),
        assigned=count(layer.topk_ids),
        dropped_by_position=lost,
        rerouted=0 if layer.rerouted is None else int(layer.rerouted.sum()),
        entropy=float(entropy_T.sum()),
        noise=0.0 if noise_TE is None else float(noise_TE.sum()) / num_experts,
        tokens=num_tokens,
    )


def _collect(done: Iterator[_Backward], network: Network, number: int) -> StepResult:
    """Add up in the order of the micro-batches."""
    result: StepResult | None = None
    for part in done:
        if result is None:
            layers = dict(zip(network.layer_numbers, part.sums, strict=True))
            result = StepResult(part.loss, dict(part.parts), list(part.gradients), layers)
            continue
        result.loss += part.loss
        for name, value in part.parts.items():
            result.parts[name] += value
        for index, gradient in enumerate(part.gradients):
            before = result.gradients[index]
            if gradient is not None:
                result.gradients[index] = gradient if before is None else before.add_(gradient)
        for layer_idx, sums in zip(network.layer_numbers, part.sums, strict=True):
            _add(result.layers[layer_idx], sums)
    assert result is not None
    result.loss /= number
    result.parts = {name: value / number for name, value in result.parts.items()}
    return result


def _add(into: LayerSums, other: LayerSums) -> None:
    for name, amount in vars(other).items():
        setattr(into, name, getattr(into, name) + amount)
