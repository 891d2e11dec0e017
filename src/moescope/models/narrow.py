"""Embedding and head kept in half precision beside a model that computes in float32.

What a token looks up is widened after the look-up, and the head a slice of its rows at a time, so
that both take half of the memory; the numbers are those of weights widened as a whole. It knows
modules, not files.
"""

from __future__ import annotations

import inspect
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from moescope.errors import ModelError

_PART_CELLS = 1 << 23
"""Weights of the head that are widened at a time."""


def narrow_weights(model: nn.Module) -> list[str]:
    """Names of the weights of embedding and head that `widen_outputs` can do with in half of it.

    Only plain modules: a family's own embedding may compute with its weights.
    """
    embedding, head = _ends(model)
    places = {id(module): name for name, module in model.named_modules()}
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    plain: list[nn.Module] = [embedding] if type(embedding) is nn.Embedding else []
    if type(head) is nn.Linear and not _rounds_to_its_head(model):
        plain.append(head)
    if len(plain) < 2 and f"{places.get(id(head))}.weight" in tied:
        return []
    return [f"{places[id(module)]}.weight" for module in plain]


def widen_outputs(model: nn.Module, dtype: torch.dtype) -> None:
    """Let the embedding and the head answer in ``dtype`` where their weights are narrower."""
    embedding, head = _ends(model)
    if type(embedding) is nn.Embedding and embedding.weight.dtype.itemsize < dtype.itemsize:
        embedding.register_forward_hook(lambda _module, _args, output: output.to(dtype))
    if type(head) is nn.Linear and head.weight.dtype.itemsize < dtype.itemsize:
        head._computes_in = dtype  # type: ignore[assignment]
        head.forward = MethodType(_product, head)  # type: ignore[method-assign]


def _ends(model: Any) -> tuple[Any, Any]:
    return model.get_input_embeddings(), model.get_output_embeddings()


def _rounds_to_its_head(model: nn.Module) -> bool:
    """Does the model cast what it hands to its head by the dtype of the head's weights?"""
    try:
        return "lm_head.weight" in inspect.getsource(type(model).forward)
    except (OSError, TypeError):
        return True


def _product(head: nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
    dtype: Any = head._computes_in
    if hidden.dtype != dtype:
        raise ModelError(
            f"this model rounds its last states to {hidden.dtype}, the dtype of its head; use "
            "`engine=resident`"
        )
    rows, width = head.weight.shape
    bias = head._parameters["bias"]
    made = hidden.new_empty(*hidden.shape[:-1], rows)
    step = max(1, _PART_CELLS // width)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        added = None if bias is None else bias[part].to(dtype)
        made[..., part] = F.linear(hidden, head.weight[part].to(dtype), added)
    return made
