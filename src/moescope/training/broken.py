"""Where in a network the numbers break."""

from __future__ import annotations

from typing import Any

import torch

from moescope.training.network import Network, Pass, capacity_factor


@torch.no_grad()
def first_broken_layer(network: Network, batches: torch.Tensor, step: int) -> str:
    """Run the step's text again and look where the first non-finite number appears."""
    found: list[str] = []
    handles = []
    for name, module in network.model.named_modules():

        def look(_: Any, __: Any, output: Any, name: str = name) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if not found and torch.is_tensor(first) and not torch.isfinite(first).all():
                found.append(name)  # the innermost module is the first to return

        handles.append(module.register_forward_hook(look))
    try:
        for index, tokens in enumerate(batches):
            factor = capacity_factor(network.recipe.capacity, training=True)
            seed = (network.recipe.seed, step, index)
            network.forward(tokens[:, :-1], Pass(True, len(tokens), seed, factor))
    finally:
        for handle in handles:
            handle.remove()
    if found:
        return f"first in {found[0]}"
    return "every layer's output is still finite, so it arose in the loss or on the way back"
