"""Which model, and how to hold it: what is said before anything is loaded. Imports no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from moescope.errors import BadInputError

DtypeName = Literal["auto", "bfloat16", "float16", "float32"]
"""Precisions that a model is run in."""

EngineName = Literal["auto", "resident", "streamed"]
"""How a model is held: whole, one decoder layer at a time, or whichever fits."""


@dataclass(frozen=True)
class ModelSpec:
    """Which model, and how to hold it.

    Attributes:
        model: hub id (``allenai/OLMoE-1B-7B-0924``) or a folder with config and safetensors.
        revision: branch, tag or commit on the hub.
        dtype: ``bfloat16``, ``float16``, ``float32``, or ``auto``: as stored, but float32 on a
            processor without bfloat16 arithmetic, where that is up to a hundred times faster.
        device: ``auto`` (CUDA if there is one), ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        trust_remote_code: run Python code that comes with the model. Off unless you trust it.
    """

    model: str
    revision: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", os.fspath(self.model))


AnySpec = str | os.PathLike[str] | ModelSpec
"""How to load a model: a hub id, a folder, or a `ModelSpec`, which says more."""


def as_spec(given: AnySpec) -> ModelSpec:
    """How to load a model.

    Raises:
        BadInputError: it is something else.
    """
    if isinstance(given, str | os.PathLike):
        return ModelSpec(os.fspath(given))
    if isinstance(given, ModelSpec):
        return given
    hint = ""
    if hasattr(given, "parameters"):
        hint = "; a model that is in memory is given as wrap_model(model, tokenizer)"
    raise BadInputError(
        "a model is a hub id, the path of a folder, a ModelSpec, or one that is open (load_model); "
        f"got {type(given).__name__}{hint}"
    )
