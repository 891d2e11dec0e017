"""What is refused before or after the weights of a model are read, each as one line.

It knows files, sizes and what transformers reports, and loads nothing.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import nn

from moescope.errors import ModelError
from moescope.models.anatomy import Anatomy
from moescope.models.config_files import local_folder
from moescope.models.memory import machine_memory, readable
from moescope.models.source import ModelSpec
from moescope.models.stored import checkpoint_files, refuse_whole_numbers
from moescope.models.streaming import StreamedModel

__all__ = [
    "name_misfit",
    "refuse_giant",
    "refuse_partial",
    "refuse_quantised",
    "refuse_unreadable",
]


def refuse_unreadable(spec: ModelSpec, config: Any) -> None:
    """Look at the headers of a folder's weights before any of them is read."""
    folder = local_folder(spec.model)
    if folder is None:
        return  # transformers fetches what it needs, and its refusals are translated
    files = checkpoint_files(folder)
    if _quantization(config) is None:
        refuse_whole_numbers(files)


def refuse_quantised(spec: ModelSpec, config: Any) -> None:
    """Scales of quantised weights are transformers' affair, and read with the whole model."""
    found = _quantization(config)
    if found is not None:
        method = found.get("quant_method") if isinstance(found, dict) else found.quant_method
        raise ModelError(
            f"{spec.model} is quantised ({getattr(method, 'value', method)}), so it cannot be "
            "streamed; use --engine resident, or a copy in bfloat16"
        )


def refuse_giant(spec: ModelSpec, config: Any, anatomy: Anatomy, dtype: Any) -> None:
    """Weights that are more than the machine's whole memory can only run away."""
    if _quantization(config) is not None:
        return  # its parameters take less than their number says
    need = anatomy.total_params * (dtype.itemsize if isinstance(dtype, torch.dtype) else 2)
    if need > machine_memory():
        raise ModelError(
            f"{spec.model} has {anatomy.total_params:,} parameters, {readable(need)}, and this "
            f"machine {readable(machine_memory())} of memory; use --engine streamed"
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


def name_misfit(spec: ModelSpec, config: Any, model: nn.Module, anatomy: Anatomy) -> None:
    """Name the stored tensor that does not fit, where transformers only speaks of a conversion."""
    folder = local_folder(spec.model)
    if folder is not None and _quantization(config) is None:
        block = anatomy.layers[0].site.block
        with contextlib.suppress(AttributeError, KeyError, TypeError, ValueError, RuntimeError):
            StreamedModel(model, folder, block, torch.float32, torch.device("cpu"))


def _quantization(config: Any) -> Any:
    return getattr(config, "quantization_config", None) or getattr(
        config.get_text_config(), "quantization_config", None
    )
