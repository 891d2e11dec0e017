"""Does what the experts of a layer put out reach the final residual unchanged?

The logit lens of an expert assumes that its output is added to one residual stream and stays there.
Many models do that, some with a factor; in others a norm follows the experts, or there are several
streams. It is tried here, layer by layer, on a few tokens:

1. a vector is added to the experts' output: the layer's output must change by a constant times it,
   whatever its size;
2. later layers are given a very large residual, beside which all that they add vanishes: they must
   put out that residual itself;
3. the final norm must receive what the last layer put out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from moescope.errors import ModelError
from moescope.models.anatomy import MoELayer
from moescope.models.resume import decoder_layers
from moescope.words import said_by

_TOLERANCE = 0.03
_ROUNDING = 3e-3
"""Half precision reads a factor of 2 as 1.998; models use round factors."""

_LARGE = 4096.0
_LARGE_HALF = 256.0
"""float16 ends at 65,504."""


def first_output(output: Any) -> torch.Tensor:
    """The hidden states in what a module returned."""
    found: torch.Tensor = output[0] if isinstance(output, tuple | list) else output
    return found


def layer_paths(
    model: nn.Module, layers: Sequence[MoELayer], ids: torch.Tensor, final: torch.Tensor
) -> dict[int, float | str]:
    """By layer number the factor from the experts' output to the stream, or why there is none.

    Tried on a few token ids, (1, S), for which the final norm received ``final``.
    """
    try:
        decoder = decoder_layers(model, layers[0].site.block)
    except ModelError as error:
        return {n.layer_idx: str(error) for n in layers}
    calls, outputs = _one_pass(model, decoder, ids)
    if final.shape != outputs[-1].shape or not _close(final.float(), outputs[-1].float()):
        reason = "something between the last layer and the final norm changes the residual stream"
        return {n.layer_idx: reason for n in layers}
    broken = {
        j: reason
        for j in range(min(n.layer_idx for n in layers) + 1, len(decoder))
        if (reason := _passes_on(decoder[j], calls[j], j))
    }
    out: dict[int, float | str] = {}
    for layer in layers:
        later = [reason for j, reason in broken.items() if j > layer.layer_idx]
        out[layer.layer_idx] = later[0] if later else _factor(model, decoder, calls, layer, ids)
    return out


_Call = tuple[tuple[Any, ...], dict[str, Any]]


def _one_pass(
    model: Any, decoder: list[nn.Module], ids: torch.Tensor
) -> tuple[dict[int, _Call], list[torch.Tensor]]:
    calls: dict[int, _Call] = {}
    outputs: dict[int, torch.Tensor] = {}

    def before(j: int) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls[j] = (args, kwargs)

        return hook

    def after(j: int) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            outputs[j] = first_output(output)

        return hook

    with contextlib.ExitStack() as hooks:
        for j, layer in enumerate(decoder):
            hooks.enter_context(layer.register_forward_pre_hook(before(j), with_kwargs=True))
            hooks.enter_context(layer.register_forward_hook(after(j)))
        model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    return calls, [outputs[j] for j in range(len(decoder))]


def _passes_on(layer: nn.Module, call: _Call, number: int) -> str:
    """Empty when a layer adds to its residual and does nothing else to it."""
    args, kwargs = call
    given = args[0] if args else kwargs["hidden_states"]
    factor = _LARGE_HALF if given.dtype == torch.float16 else _LARGE
    large = given * factor
    try:
        if args:
            made = first_output(layer(large, *args[1:], **kwargs))
        else:
            made = first_output(layer(**{**kwargs, "hidden_states": large}))
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError, KeyError) as error:
        return f"layer {number} cannot be run by itself ({said_by(error)})"
    if made.shape != large.shape or not _close(made.float(), large.float()):
        return f"layer {number} scales or mixes the residual stream"
    return ""


def _factor(
    model: nn.Module,
    decoder: list[nn.Module],
    calls: dict[int, _Call],
    layer: MoELayer,
    ids: torch.Tensor,
) -> float | str:
    """The constant that the experts' output is added with, tried with two sizes of one vector."""
    block, (args, kwargs) = decoder[layer.layer_idx], calls[layer.layer_idx]
    experts = model.get_submodule(layer.site.experts)
    rows, size = int(ids.numel()), layer.hidden_size
    direction = torch.randn(size, generator=torch.Generator().manual_seed(1)).to(ids.device)
    factors: list[float] = []
    try:
        plain = first_output(block(*args, **kwargs))
        if plain.numel() != rows * size:
            return f"layer {layer.layer_idx} keeps several residual streams"
        typical = float(plain.float().pow(2).mean().sqrt())
        for times in (1.0, 4.0):
            added = direction * (typical * times)
            with _adding(experts, added, rows):
                changed = first_output(block(*args, **kwargs))
            gap = (changed.float() - plain.float()).reshape(rows, size)
            factor = float((gap @ added).mean() / (added @ added))
            if not _close(gap, factor * added.expand_as(gap)):
                return _NOT_ADDED.format(layer.layer_idx)
            factors.append(factor)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError, KeyError) as error:
        return f"layer {layer.layer_idx} cannot be run by itself ({said_by(error)})"
    if abs(factors[0] - factors[1]) > _TOLERANCE * abs(factors[1]):
        return _NOT_ADDED.format(layer.layer_idx)
    nearest = round(factors[1], 2)
    return nearest if abs(nearest - factors[1]) < _ROUNDING else factors[1]


_NOT_ADDED = (
    "in layer {} the experts' output is not simply added to the residual stream (a norm or a gate "
    "follows it)"
)


def _adding(experts: nn.Module, vector: torch.Tensor, rows: int) -> RemovableHandle:
    """Within the block a vector is added to every row of what the experts put out."""

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        made = first_output(output)
        # some put out each expert's rows apart, to be summed later: one copy gets the vector
        more = torch.zeros_like(made).reshape(-1, rows, vector.numel())
        more[0] = vector.to(made.dtype)
        made = made + more.reshape(made.shape)
        return (made, *output[1:]) if isinstance(output, tuple | list) else made

    return experts.register_forward_hook(hook)


def _close(made: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((made - expected).norm() <= _TOLERANCE * expected.norm())
