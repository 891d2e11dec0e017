"""What is refused before or after the weights of a model are read, each as one line.

It knows files, sizes and what transformers reports, and loads nothing.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from moescope.errors import ModelError
from moescope.memory import machine_memory, readable
from moescope.models.anatomy import Anatomy
from moescope.models.scales import quant_method
from moescope.models.spec import ModelSpec
from moescope.models.streaming import StreamedModel


def refuse_quantised(spec: ModelSpec, config: Any) -> None:
    """Scales of quantised weights are transformers' affair, and read with the whole model."""
    method, known = quant_method(config)
    if known:
        raise ModelError(
            f"{spec.model} is quantised ({method}), so it cannot be streamed; use "
            "`engine=resident`, or a copy in bfloat16"
        )


def refuse_giant(spec: ModelSpec, config: Any, anatomy: Anatomy, dtype: Any) -> None:
    """Weights that are more than the machine's whole memory can only run away."""
    if quant_method(config)[0] is not None:
        return  # its parameters take less than their number says
    need = anatomy.total_params * (dtype.itemsize if isinstance(dtype, torch.dtype) else 2)
    if need > machine_memory():
        raise ModelError(
            f"{spec.model} has {anatomy.total_params:,} parameters, {readable(need)}, and this "
            f"machine {readable(machine_memory())} of memory; use `engine=streamed`"
        )


def refuse_partial(spec: ModelSpec, info: dict[str, Any]) -> None:
    """Parameters that transformers would fill with random numbers are an error."""
    for what, say in (("missing_keys", "has no weights for"), ("mismatched_keys", "does not fit")):
        keys = sorted(info.get(what, ()), key=str)
        if keys:
            first = keys[0]
            if not isinstance(first, str):
                first = f"{first[0]} (stored {tuple(first[1])}, expected {tuple(first[2])})"
            raise ModelError(
                f"{spec.model}: the checkpoint {say} {len(keys)} parameters, first {first}; they "
                "would be random, so nothing measured on them would mean anything"
            )


def name_misfit(config: Any, model: nn.Module, anatomy: Anatomy, folder: Path) -> None:
    """Name the stored tensor that does not fit, where transformers only speaks of a conversion."""
    if not quant_method(config)[1]:
        block = anatomy.layers[0].site.block
        with contextlib.suppress(AttributeError, KeyError, TypeError, ValueError, RuntimeError):
            StreamedModel(model, folder, block, torch.float32, torch.device("cpu"))


def refuse_foreign_ids(spec: ModelSpec, model: nn.Module) -> None:
    """From now on a token id that the embedding does not have ends in one line.

    On an accelerator it would end the process instead, and on some it reads other memory.
    """
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    hooks = embedding._forward_pre_hooks.values()
    if not any(isinstance(hook, _ForeignIds) for hook in hooks):  # a model may be wrapped twice
        embedding.register_forward_pre_hook(_ForeignIds(spec.model))


@dataclass(frozen=True)
class _ForeignIds:
    """The hook, a class so that the model can still be pickled and copied."""

    model: str

    def __call__(self, embedding: Any, given: tuple[Any, ...]) -> None:
        ids, rows = given[0] if given else None, embedding.weight.shape[0]
        if isinstance(ids, torch.Tensor) and ids.numel() and int(ids.max()) >= rows:
            raise ModelError(
                f"{self.model}: the text holds token id {int(ids.max())}, the model knows {rows}; "
                "its tokenizer is another model's, or tokens were added to it and not to the model"
            )
