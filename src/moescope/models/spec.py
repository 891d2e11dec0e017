"""Which model, and how to hold it: what is said before anything is loaded. Imports no torch."""

from __future__ import annotations

import contextlib
import difflib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from moescope.errors import BadInputError, ModelError
from moescope.hub import is_name

DtypeName = Literal["auto", "bfloat16", "float16", "float32"]
"""Precisions that a model is run in."""

EngineName = Literal["auto", "resident", "streamed"]
"""How a model is held: whole, one decoder layer at a time, or whichever fits."""


def local_folder(model: str) -> Path | None:
    """The folder of this name, or None where it can only be a name on the hub.

    Raises:
        ModelError: it can be neither: empty, a file, or of another form than ``owner/name``.
    """
    if not model.strip():
        raise ModelError("the model is an empty text; give a hub id or a folder")
    path = Path(model)
    try:
        if path.is_dir():
            return path
        if path.exists() or path.is_symlink():
            raise ModelError(
                f"{model} is not a folder; give the folder that holds config.json and safetensors"
            )
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"model {model[:100]!r}: {reason}; give a hub id or a folder") from error
    if not is_name(model):
        raise ModelError(
            f"{model}: no such folder{near_folder(model)}, and a model of the hub is written "
            "owner/name, such as allenai/OLMoE-1B-7B-0924"
        )
    return None


def near_folder(name: str) -> str:
    """What was probably meant by a path that is not there, in brackets; or nothing."""
    parent, names = Path(name).parent, list[str]()
    with contextlib.suppress(OSError, RuntimeError):  # nothing to read there; nobody's home
        parent = Path(name).expanduser().parent
        names = [p.name for p in parent.iterdir()]
    close = difflib.get_close_matches(Path(name).name, names, n=1)
    return f" (did you mean {parent / close[0]}?)" if close else ""


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
