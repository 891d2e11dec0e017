"""Where a model comes from: its name, configuration, tokenizer and folder, on the hub or here.

Every way in which transformers or the hub refuses ends in one line that says what to do.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moescope.errors import ModelError

__all__ = [
    "ModelSpec",
    "checkpoint_folder",
    "config_hash",
    "guard",
    "load_config",
    "load_tokenizer",
    "text_hash",
]

_TOKENIZER_FILES = ("tokeniz*", "vocab*", "merges.txt", "*.model", "*.tiktoken", "tekken.json")


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


def checkpoint_folder(spec: ModelSpec) -> Path:
    """The checkpoint on this disk, fetched from the hub if need be."""
    if Path(spec.model).is_dir():
        return Path(spec.model)
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors"]
    found: str = guard(
        spec, snapshot_download, spec.model, revision=spec.revision, allow_patterns=patterns
    )
    return Path(found)


def load_config(spec: ModelSpec) -> Any:
    """The configuration, from the hub or a folder.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    from transformers import AutoConfig

    path = Path(spec.model)
    if path.is_dir() and not (path / "config.json").is_file():
        raise ModelError(
            f"{spec.model}: this folder holds no config.json; expected a model saved with "
            "save_pretrained"
        )
    if path.is_file():
        raise ModelError(
            f"{spec.model} is a file; give the folder that holds config.json and safetensors"
        )
    return guard(
        spec,
        AutoConfig.from_pretrained,
        spec.model,
        revision=spec.revision,
        trust_remote_code=spec.trust_remote_code,
    )


def load_tokenizer(spec: ModelSpec) -> Any:
    """The tokenizer, a fast one. Where a model has none, transformers may make up an empty one.

    Raises:
        ModelError: there is none, or only a slow one.
    """
    from transformers import AutoTokenizer

    folder = Path(spec.model)
    none = (
        f"{spec.model}: no tokenizer with this model; save the one it was trained with beside "
        "the weights (tokenizer.save_pretrained)"
    )
    if folder.is_dir() and not any(next(folder.glob(p), None) for p in _TOKENIZER_FILES):
        raise ModelError(none)
    tokenizer = guard(
        spec,
        AutoTokenizer.from_pretrained,
        spec.model,
        revision=spec.revision,
        trust_remote_code=spec.trust_remote_code,
    )
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"{spec.model}: only a slow tokenizer ({type(tokenizer).__name__}) was found; moescope "
            "needs a tokenizer.json to align tokens with text"
        )
    if not tokenizer("Any text at all.", add_special_tokens=False)["input_ids"]:
        raise ModelError(none)
    return tokenizer


def guard(spec: ModelSpec, call: Any, *args: Any, **kwargs: Any) -> Any:
    """Call into transformers; turn its many-line errors into one line."""
    try:
        return call(*args, **kwargs)
    except (OSError, ValueError, ImportError, KeyError, RuntimeError, TypeError) as error:
        raise ModelError(_explain(spec, error)) from error


def _explain(spec: ModelSpec, error: Exception) -> str:
    first = " ".join(str(error).split())
    if "trust_remote_code" in first:
        return f"{spec.model} brings its own Python code; if you trust it, add --trust-remote-code"
    looks_local = Path(spec.model).exists() or spec.model.startswith((".", "/", "~"))
    if not looks_local and isinstance(error, OSError) and "safetensors" not in first:
        return (
            f"{spec.model!r} is neither a folder here{_near(spec.model)} nor a model that the hub "
            f"gives: {first[:160]}"
        )
    if not Path(spec.model).exists() and looks_local:
        return f"{spec.model}: no such folder{_near(spec.model)}"
    return f"{spec.model} cannot be loaded: {first[:240]}"


def _near(name: str) -> str:
    parent = Path(name).expanduser().parent
    if not parent.is_dir():
        return ""
    close = difflib.get_close_matches(Path(name).name, [p.name for p in parent.iterdir()], n=1)
    return f" (did you mean {parent / close[0]}?)" if close else ""


def config_hash(config: Any) -> str:
    """A sha256 of a configuration, wherever its folder lies."""

    def without_place(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: without_place(v) for k, v in value.items() if k != "_name_or_path"}
        return value

    return text_hash(json.dumps(without_place(json.loads(config.to_json_string(use_diff=False)))))


def text_hash(text: str) -> str:
    """A sha256 of a text; of JSON, whatever the order of its keys."""
    with contextlib.suppress(json.JSONDecodeError):
        text = json.dumps(json.loads(text), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
