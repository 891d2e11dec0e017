"""What a training needs in memory at the least, estimated before anything is built or written.

A lower bound: weights with gradients and moments, what the layers keep of one micro-batch for the
way back, the ids of a step. A recipe that passes may still not fit; one that does not pass cannot.
"""

from __future__ import annotations

import torch

from moescope.errors import BadInputError
from moescope.memory import readable
from moescope.models.memory import free_memory
from moescope.training.network import stock_config
from moescope.training.recipe import Recipe

_PARAMETER_BYTES = 14
"""A weight in half precision with its float32 master, a gradient, and two moments."""

_HIDDEN_STATES = 8
"""Rows of the hidden size that a layer keeps of a token: norms, queries, keys, values, outputs."""

_SEQUENCE_BYTES = 200
"""Of the array that holds one sequence's ids before a step's are joined."""


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

    Raises:
        BadInputError: it needs more than is free; says what takes how much.
    """
    parameters = stock_parameters(recipe, vocab_size)
    tokens = recipe.data.context * recipe.train.sequences
    weights = parameters * _PARAMETER_BYTES
    sizes, sequences = recipe.model, recipe.train.sequences * recipe.train.micro_batches
    layer = _HIDDEN_STATES * sizes.hidden_size + 2 * sizes.top_k * sizes.intermediate_size
    batch = 2 * tokens * layer * sizes.num_hidden_layers
    batch += 8 * recipe.step_tokens + _SEQUENCE_BYTES * sequences
    free = free_memory(device)
    if weights + batch > free:
        raise BadInputError(
            f"this recipe needs at least {readable(weights + batch)} of memory: "
            f"{readable(weights)} for {parameters:,} parameters with gradients and moments, "
            f"{readable(batch)} for a micro-batch of {tokens:,} tokens; {readable(free)} are free; "
            "choose smaller sizes of the model, data.context, train.sequences or micro_batches"
        )
