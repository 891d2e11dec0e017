"""Weights in eight bits and fewer mean nothing without their scales: is each scale applied?

transformers applies the scales of the methods that it knows, under the names that it knows, and
leaves out all others without an error: the model would run on weights that are hundreds of times
too large. So what is stored is looked at before loading, and what was left out afterwards. It knows
headers and names, not numbers.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from moescope.errors import ModelError
from moescope.models.config_files import CONFIG
from moescope.models.source import guard
from moescope.models.spec import ModelSpec
from moescope.models.stored import Stored, read_header
from moescope.models.targets import loaded_names, targets_of

_NO_SCALE = re.compile(
    r"(bias|shape|act)$|[._]([kqv]|input|output|activation)_(global_)?(scale|zero_point)\w*$"
)
"""What lies beside a weight and does not say how large it is."""

_COPY = "use a copy in bfloat16"


class _Narrow(NamedTuple):
    """A stored tensor of eight bits or fewer, or of whole numbers, that makes a float parameter."""

    name: str
    path: Path
    entry: Stored
    scales: list[str]

    @property
    def kind(self) -> str:
        dtype = self.entry.dtype
        return "an unknown type" if dtype is None else str(dtype).removeprefix("torch.")


def quant_method(config: Any) -> tuple[str | None, bool]:
    """The quantization that a configuration names, and whether transformers can undo it."""
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    given = _quantization(config)
    if not given:
        return None, False
    if given.get("load_in_8bit") or given.get("load_in_4bit"):
        return "bitsandbytes", True
    method = str(getattr(given.get("quant_method"), "value", given.get("quant_method")))
    return method, method in AUTO_QUANTIZATION_CONFIG_MAPPING or method == "bitsandbytes"


def require_packages(spec: ModelSpec, config: Any) -> None:
    """Have transformers ask for what it needs to undo a quantization, before weights are fetched.

    Raises:
        MissingExtraError: accelerate is not installed.
        ModelError: another package is not, or it cannot be undone here.
    """
    from transformers.quantizers import AutoHfQuantizer

    if quant_method(config)[1]:
        given = deepcopy(_quantization(config))
        quantizer = guard(spec, AutoHfQuantizer.from_config, given, reads=CONFIG)
        guard(spec, quantizer.validate_environment, device_map=None, weights_only=True)


def refuse_unscaled(config: Any, files: dict[str, Path], model: nn.Module) -> None:
    """Refuse, by the headers alone, weights whose scale nobody would apply.

    Raises:
        ModelError: the first of them.
    """
    method, known = quant_method(config)
    for key, weight in _narrow(files, model).items():
        if known and weight.scales:
            continue
        if known:
            why = f"and no scale is stored beside it; fetch the model again, or {_COPY}"
        elif method is None:
            why = f"but the configuration names no quantization that would scale it; {_COPY}"
        else:
            why = f"by quant_method {method!r}, which transformers does not know; {_COPY}"
        raise ModelError(f"{weight.path}: {key} is stored in {weight.kind}, {why}")


def refuse_left_out(files: dict[str, Path], model: nn.Module, unexpected: set[str]) -> None:
    """Refuse a loaded model of which a scale was left out: it is among the ``unexpected`` tensors.

    Raises:
        ModelError: the first such scale.
    """
    narrow = _narrow(files, model) if unexpected else {}
    names = loaded_names(model, [scale for weight in narrow.values() for scale in weight.scales])
    for key, weight in narrow.items():
        for scale in weight.scales:
            if names[scale] in unexpected:
                raise ModelError(
                    f"{weight.path}: {key} is stored in {weight.kind}, and transformers does not "
                    f"apply {scale}, which says how large it is; {_COPY}"
                )


def refuse_parts_of_blocks(
    config: Any, files: dict[str, Path], model: nn.Module, loaded: nn.Module | None = None
) -> None:
    """Refuse float8 weights that end in the middle of a block, if they were widened.

    transformers takes the size of a block from shape and number of scales, which holds for whole
    blocks only: it fails, or scales the wrong columns. ``loaded``: what came of loading, where that
    did not fail: what is float8 there is not widened.

    Raises:
        ModelError: the first such weight.
    """
    if quant_method(config)[0] != "fp8":
        return
    block = _quantization(config).get("weight_block_size") or (128, 128)
    kept = {} if loaded is None else dict(loaded.named_parameters())
    for key, weight in _narrow(files, model).items():
        if weight.name in kept and kept[weight.name].dtype.itemsize < 2:
            continue
        for scale in weight.scales:
            grid, shape = read_header(files[scale])[scale].shape, weight.entry.shape
            if 1 < len(grid) == len(shape) and _ends_in_a_block(shape, grid, block):
                raise ModelError(
                    f"{weight.path}: {key} of shape {shape} has {grid} scales, so its last block "
                    f"is not a whole one, and transformers widens whole blocks only; {_COPY}"
                )


def _quantization(config: Any) -> dict[str, Any]:
    found = getattr(config, "quantization_config", None)
    found = found or getattr(config.get_text_config(), "quantization_config", None) or {}
    return found if isinstance(found, dict) else found.to_dict()


def _ends_in_a_block(shape: tuple[int, ...], grid: tuple[int, ...], block: tuple[int, int]) -> bool:
    sides = zip(shape[-2:], grid[-2:], block, strict=True)
    return any(
        side % scales or (scales > 1 and scales == -(-side // length) and side != scales * length)
        for side, scales, length in sides
    )


def _narrow(files: dict[str, Path], model: nn.Module) -> dict[str, _Narrow]:
    """Weights that mean nothing by themselves, by the name they are stored under."""
    headers = {path: read_header(path) for path in sorted(set(files.values()))}
    keys = [key for key, path in files.items() if _is_narrow(headers[path].get(key))]
    if not keys:
        return {}
    empty, stored = model.state_dict(keep_vars=True), sorted(files)
    return {
        key: _Narrow(name, files[key], headers[files[key]][key], _scales(key, stored))
        for name, target in targets_of(model, keys).items()
        if empty[name].is_floating_point()
        for key, _ in target.sources
    }


def _is_narrow(entry: Stored | None) -> bool:
    if entry is None:
        return False
    dtype = entry.dtype
    return dtype is None or dtype.itemsize < 2 or not dtype.is_floating_point


def _scales(key: str, stored: list[str]) -> list[str]:
    """What is stored beside a weight to say how large it is: ``q_proj.weight_scale_inv``, …."""
    stem = key.removesuffix(".weight")
    found = []
    for other in stored[bisect_left(stored, stem) :]:
        if not other.startswith(stem):
            break
        rest = other[len(stem) :]
        if other != key and rest[:1] in (".", "_") and not _NO_SCALE.search(rest):
            found.append(other)
    return found
