"""Held-out loss by domain, and how much the routing still changes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from moescope.training.kernels import chunked_cross_entropy
from moescope.training.network import Network, Pass, capacity_factor
from moescope.training.objective import Workers

_PROBE_WINDOWS = 2


@dataclass(frozen=True)
class HeldOut:
    """One evaluation.

    Attributes:
        losses: nats per token by domain.
        tokens: predicted tokens by domain.
        chosen: (L, T, E) bool: which experts each probe token chose, for saturation.
    """

    losses: dict[str, float]
    tokens: dict[str, int]
    chosen: torch.Tensor

    def saturation(self, before: torch.Tensor) -> list[float]:
        """Share of an earlier evaluation's choices that are still made, by layer; chance K/E."""
        both = (self.chosen & before).sum(dim=(1, 2)).double()
        return (both / before.sum(dim=(1, 2)).clamp(min=1)).tolist()


def evaluate(
    network: Network,
    workers: Workers,
    windows: dict[str, NDArray[np.int64]],
    sequences: int,
    *,
    stock: bool = False,
) -> HeldOut:
    """Loss on held-out windows, by domain.

    Args:
        network: the model under its recipe.
        workers: who computes.
        windows: ids by domain, (windows, context + 1); every token is predicted once.
        sequences: windows computed together.
        stock: route as the saved model does.

    Returns:
        Losses, token counts, and the choices for the first windows of every domain.
    """
    device = network.head().device
    jobs = [
        (name, start, torch.from_numpy(rows[start : start + sequences]).to(device))
        for name, rows in windows.items()
        for start in range(0, len(rows), sequences)
    ]
    factor = None if stock else capacity_factor(network.recipe.capacity, training=False)

    @torch.no_grad()
    def work(job: tuple[str, int, torch.Tensor]) -> tuple[float, torch.Tensor | None]:
        _, start, tokens = job
        how = Pass(False, len(tokens), capacity_factor=factor, stock=stock)
        hidden_TD = network.forward(tokens[:, :-1], how)
        targets_T = tokens[:, 1:].reshape(-1)
        loss = chunked_cross_entropy(hidden_TD, network.head(), targets_T)
        if start:
            return float(loss), None
        length = tokens.shape[1] - 1
        return float(loss), _chosen(how, min(_PROBE_WINDOWS, len(tokens)) * length)

    sums: dict[str, float] = dict.fromkeys(windows, 0.0)
    counts: dict[str, int] = dict.fromkeys(windows, 0)
    chosen = []
    with workers.single_threaded():
        for (name, _, tokens), (loss, probe) in zip(jobs, workers.map(work, jobs), strict=True):
            predicted = tokens[:, 1:].numel()
            sums[name] += loss * predicted
            counts[name] += predicted
            if probe is not None:
                chosen.append(probe)
    return HeldOut(
        {name: sums[name] / counts[name] for name in windows}, counts, torch.cat(chosen, dim=1)
    )


def _chosen(how: Pass, tokens: int) -> torch.Tensor:
    """(L, tokens, E) bool of the rule's choices, before any capacity."""
    layers = []
    for layer in how.layers:
        num_experts = layer.router_logits.shape[1]
        ids_TK = layer.routing.topk_ids_TK[:tokens]
        table = torch.zeros(len(ids_TK), num_experts + 1, dtype=torch.bool, device=ids_TK.device)
        layers.append(table.scatter_(1, ids_TK, True)[:, :num_experts].cpu())
    return torch.stack(layers)
