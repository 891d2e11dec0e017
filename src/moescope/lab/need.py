"""What a training needs in memory at the least, reckoned before anything is built or written.

A lower bound: weights with gradients and moments, the logits and hidden states of one micro-batch,
the ids of a step. A recipe that passes may still not fit; one that does not pass cannot.
"""

from __future__ import annotations

import torch

from moescope.errors import BadInputError
from moescope.lab.network import stock_config
from moescope.lab.recipe import Recipe
from moescope.models.memory import available_memory, readable

__all__ = ["require_memory", "stock_parameters"]

_PARAMETER_BYTES = 14
"""A weight in half precision with its float32 master, a gradient, and two moments."""


def stock_parameters(recipe: Recipe, vocab_size: int) -> int:
    """Parameters of the model, counted on one layer of it that takes no memory."""
    from transformers import AutoModelForCausalLM

    config = stock_config(recipe, vocab_size, 0, layers=1)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    layer: int = sum(p.numel() for p in model.model.layers.parameters())
    outside: int = sum(p.numel() for p in model.parameters()) - layer
    return outside + layer * recipe.model.num_hidden_layers


def require_memory(recipe: Recipe, vocab_size: int, device: torch.device) -> None:
    """Refuse what cannot be held.

    Args:
        recipe: the recipe.
        vocab_size: tokens of the vocabulary, as many as are certain.
        device: where it is trained.

    Raises:
        BadInputError: it needs more than is free; says what takes how much.
    """
    parameters = stock_parameters(recipe, vocab_size)
    tokens = recipe.data.context * recipe.train.sequences
    weights = parameters * _PARAMETER_BYTES
    per_token = 4 * vocab_size + 4 * recipe.model.hidden_size * recipe.model.num_hidden_layers
    batch = tokens * per_token + 8 * recipe.step_tokens
    free = available_memory(device)
    if weights + batch > free:
        raise BadInputError(
            f"this recipe needs at least {readable(weights + batch)} of memory: "
            f"{readable(weights)} for {parameters:,} parameters with gradients and moments, "
            f"{readable(batch)} for a micro-batch of {tokens:,} tokens; {readable(free)} are free; "
            "choose smaller sizes of the model, data.context, train.sequences or micro_batches"
        )
