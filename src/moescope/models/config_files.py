"""What a model's small files say, checked as plain data before anything is built from them.

transformers believes a configuration: 200,000 layers are built one by one, and a size of 10⁹ is
asked of the memory. So numbers are looked at first, and when something below fails, the files that
were read are named, and a key where the error names it. It knows JSON and the names of settings,
not modules.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from moescope.errors import BadInputError, ModelError
from moescope.given import parse_json, read_text

CONFIG = ("config.json",)
TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
WEIGHTS = ("config.json", "generation_config.json", "model.safetensors.index.json")
"""The JSON files that each part of a model is made from."""

_MOST_BYTES = {"config.json": 16 << 20, "generation_config.json": 16 << 20}
_MOST_BYTES_OTHERWISE = 512 << 20
_DEPTH = 32
_TOKENS = "tokenizer.json"
_AGAIN = "fetch the model again, or save it anew with save_pretrained"

_LIMITS = (
    (re.compile(r"labels$"), 1 << 16),
    (re.compile(r"layers$|^n_layer$|depth$"), 1000),
    (re.compile(r"experts$|expert_num$|experts_per_tok|top_?k$"), 1 << 14),
    (re.compile(r"ngram"), 1 << 32),  # hashes of several tokens: far more than tokens
    (re.compile(r"vocab"), 1 << 24),
    (re.compile(r"hidden_size$|d_model$|n_embd$"), 1 << 18),
    (re.compile(r"(size|dim|rank|heads|channels)$|^[nd]_"), 1 << 22),
)
"""The largest number that a setting of such a name may have: far above every known model's."""

_AT_LEAST_ONE = {
    "hidden_size", "d_model", "n_embd", "num_hidden_layers", "n_layers", "n_layer", "num_layers",
    "num_attention_heads", "n_heads", "n_head", "num_key_value_heads", "vocab_size",
    "max_position_embeddings",
}  # fmt: skip
_LARGEST = 1 << 62
_BARE = (
    ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError, TypeError,
)  # fmt: skip
"""Errors whose words were not meant for a user."""
_REAL = re.compile(r"(^|[._])(theta|eps|factor|range)$")


def check_config(path: Path, model: str) -> None:
    """Refuse a configuration whose numbers no model has, before a module is built.

    Raises:
        ModelError: it is not a JSON object, or a number in it cannot be meant.
    """
    _check(json_object(path, f"{model}/config.json"), f"{model}/config.json", "", 0)


def fault_in(model: str, names: tuple[str, ...], error: BaseException) -> str:
    """What came of reading these files of a local model: a damaged file, a setting, or a reason.

    Args:
        model: its folder.
        names: the files that were read.
        error: what came of it. A setting is blamed only where this names it.

    Returns:
        A place such as ``m/config.json: hidden_act`` with the reason.
    """
    settings: dict[str, tuple[str, str, Any]] = {}
    for name in names:
        path = Path(model) / name
        if not path.exists():
            continue
        try:
            found = json_object(path, f"{model}/{name}")
        except ModelError as spoilt:
            return str(spoilt)
        for key, value in _flat(found) if name != _TOKENS else found.items():
            settings.setdefault(key.rpartition(".")[2], (name, key, value))
    reason, keys = _reason(error), _named(error, settings)
    if not keys:
        read = [name for name in names if (Path(model) / name).exists()]
        read += ["the weights"] if names == WEIGHTS else []
        place = f"/{read[0]}" if len(read) == 1 else f": {' or '.join(read)}" if read else ""
        return f"{model}{place} cannot be used: {reason}"
    file = settings[keys[0]][0]
    mine = [settings[key] for key in keys[:3] if settings[key][0] == file]
    shown = [f"{key} is {_short(value)}" for _, key, value in mine]
    return f"{model}/{file}: {', '.join(shown)}, which cannot be used: {reason}"


def _flat(value: dict[str, Any], above: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        yield above + key, inner
        if isinstance(inner, dict) and depth < _DEPTH:
            yield from _flat(inner, f"{above}{key}.", depth + 1)


def json_object(path: Path, label: str) -> dict[str, Any]:
    """The JSON object in a file of a model.

    Raises:
        ModelError: no regular file, too large, or something else in it.
    """
    try:
        text = read_text(path, _MOST_BYTES.get(path.name, _MOST_BYTES_OTHERWISE), label)
    except BadInputError as error:
        raise ModelError(f"{error}; {_AGAIN}") from error
    try:
        made = parse_json(text, odd_text=True)
    except BadInputError as error:
        raise ModelError(f"{label}: {error}; {_AGAIN}") from error
    if not isinstance(made, dict):
        raise ModelError(f"{label} holds {_kind(made)}, expected a JSON object; {_AGAIN}")
    return made


def _check(value: Any, label: str, key: str, depth: int) -> None:
    if depth > _DEPTH:
        raise ModelError(f"{label} is nested more than {_DEPTH} deep; {_AGAIN}")
    if key.rpartition(".")[2] in ("dtype", "torch_dtype") and not _is_dtype(value):
        raise ModelError(
            f"{label}: {key} is {_short(value)}, which is not a type of weights; expected "
            "bfloat16, float16 or float32"
        )
    if isinstance(value, dict):
        for name, inner in value.items():
            _check(inner, label, f"{key}.{name}".lstrip("."), depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _check(inner, label, key, depth + 1)
    elif isinstance(value, float) and math.isnan(value):
        raise ModelError(f"{label}: {key} is NaN, expected a number")
    elif isinstance(value, int) and not isinstance(value, bool):
        _check_count(value, label, key)
    elif isinstance(value, str) and _REAL.search(key):
        raise ModelError(f"{label}: {key} is {_short(value)}, expected a number")


def _check_count(value: int, label: str, key: str) -> None:
    name = key.rpartition(".")[2]
    most = next((limit for pattern, limit in _LIMITS if pattern.search(name)), _LARGEST)
    least = 1 if name in _AT_LEAST_ONE else -1 if most < _LARGEST else -_LARGEST
    if not least <= value <= most:
        raise ModelError(
            f"{label}: {key} is {_short(value)}, expected a number from {max(least, 0):,} to "
            f"{most:,}; {_AGAIN}"
        )


def _is_dtype(name: Any) -> bool:
    if name is None or name == "auto":
        return True
    if not isinstance(name, str):
        return False
    found = getattr(torch, name.removeprefix("torch."), None)
    return isinstance(found, torch.dtype) and found.is_floating_point


def _named(error: BaseException, settings: dict[str, tuple[str, str, Any]]) -> list[str]:
    """Settings that the words of an error are about: by a name no prose has, or a quoted value."""
    words = re.findall(r"\w+_\w+|(?<=[Ff]ield ')\w+", str(error))
    if named := [word for word in dict.fromkeys(words) if word in settings]:
        return named
    quoted = set(re.findall(r"['\"`](\w+)['\"`]", str(error)))
    return [k for k, (_, _, v) in settings.items() if isinstance(v, str) and v in quoted]


def _reason(error: BaseException) -> str:
    """The words of an error; bare Python errors say little without their kind."""
    if not (words := " ".join(str(error).split())):
        return type(error).__name__
    words = re.split(r"\. Errors:|\. Model type should be", words)[0]
    words = re.sub(r"^\w[\w ]* error for (field|validator) '\w+': (\w+: )?", "", words)
    words = re.sub(r"^Field '\w+' | \(value: .*\)$", "", words)
    if isinstance(error, KeyError) and len(words) < 40:
        return f"there is no {words}"
    return (f"{words} ({type(error).__name__})" if isinstance(error, _BARE) else words)[:240]


def _short(value: Any) -> str:
    """A value as it would stand in the file; a number of a thousand digits is not echoed."""
    if isinstance(value, int) and abs(value) > _LARGEST:
        return f"a number of more than {int(math.log10(_LARGEST))} digits"
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:39]}…"


def _kind(value: Any) -> str:
    kinds = {list: "a list", str: "a text", bool: "a truth value"}
    return "null" if value is None else kinds.get(type(value), "a number")
