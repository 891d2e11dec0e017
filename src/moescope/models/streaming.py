"""A model whose decoder layers stay on disk: one is read, used, and dropped again.

`StreamedModel` builds the stock modules without weights, loads what lies outside the decoder layers
(embedding, norms, head), and fills one layer at a time from safetensors into memory that is used again
for the next. All private calls into transformers' loading live in this file and nowhere else. It knows
files and modules, not batches.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from moescope.errors import ModelError

__all__ = ["StreamedModel", "checkpoint_files"]

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"


def checkpoint_files(folder: Path) -> dict[str, Path]:
    """Which safetensors file holds each tensor of a checkpoint folder.

    Raises:
        ModelError: no safetensors, a shard that the index names but that is not there, or a tensor
            that the shard does not hold.
    """
    index = folder / _INDEX
    if index.is_file():
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = {key: folder / name for key, name in named.items()}
        for path in sorted(set(files.values())):
            if not path.is_file():
                raise ModelError(
                    f"{folder}: the index names the shard {path.name}, which is not there; fetch "
                    "the whole checkpoint"
                )
        return files
    single = folder / _SINGLE
    if not single.is_file():
        raise ModelError(f"{folder} holds no {_SINGLE} and no {_INDEX}; only safetensors are read")
    with _opened(single) as handle:
        return dict.fromkeys(handle.keys(), single)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as handle:
            yield handle
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} cannot be read ({' '.join(str(error).split())[:120]})") from error


_LAYER = re.compile(r"^(?:.*\.)?(?:layers|blocks|h)\.(\d+)\.")


@dataclass
class _Target:
    """One parameter or buffer, and the checkpoint tensors that it is made of, in order."""

    converter: Any = None
    sources: list[tuple[str, str]] = field(default_factory=list)


class StreamedModel:
    """Stock modules of a checkpoint folder, with at most one decoder layer in memory.

    Args:
        model: the modules, on the meta device.
        folder: config and safetensors.
        dtype: of the weights in memory, whatever they are stored in.
        device: where they go.

    Attributes:
        model: the modules; usable from the outside only while the layers asked for are loaded.
        layers: the decoder layers, in order.
    """

    def __init__(
        self, model: nn.Module, folder: Path, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.model, self.dtype, self.device = model, dtype, device
        self._folder = folder
        self._files = checkpoint_files(folder)
        self._meta = dict(model.state_dict(keep_vars=True))
        self._by_layer = self._plan()
        self.layers = list(self._layer_modules())
        self._slot: dict[tuple[str, ...], torch.Tensor] = {}

    # -- which tensors make which parameter

    def _plan(self) -> dict[int | None, dict[str, _Target]]:
        """Targets by decoder layer; None holds what lies outside of them."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            dot_natural_key,
            rename_source_key,
        )

        mapping = get_model_conversion_mapping(self.model)  # type: ignore[arg-type]
        renamings = [w for w in mapping if isinstance(w, WeightRenaming)]
        converters = [w for w in mapping if isinstance(w, WeightConverter)]
        by_pattern = {p: c for c in converters for p in c.source_patterns}
        prefix = self.model.base_model_prefix  # type: ignore[attr-defined]
        plan: dict[int | None, dict[str, _Target]] = {}
        for key in sorted(self._files, key=dot_natural_key):
            name, pattern = rename_source_key(key, renamings, converters, prefix, self._meta)
            if name not in self._meta and key in self._meta:
                name, pattern = rename_source_key(key, [], [], prefix, self._meta)
            if name not in self._meta:
                continue  # what transformers leaves out too, such as a multi-token head
            match = _LAYER.match(name)
            targets = plan.setdefault(int(match[1]) if match else None, {})
            target = targets.setdefault(name, _Target())
            if pattern is not None and target.converter is None:
                target.converter = deepcopy(by_pattern[pattern])
            target.sources.append((key, pattern or key))
        return plan

    def _layer_modules(self) -> Iterator[nn.Module]:
        inside = next(n for n in self._meta if _LAYER.match(n))
        match = _LAYER.match(inside)
        assert match is not None
        stack = self.model.get_submodule(inside[: match.start(1) - 1])
        yield from stack.children()

    # -- reading

    def load_rest(self) -> None:
        """Load embedding, norms, head, and whatever else lies outside the decoder layers.

        Raises:
            ModelError: a tensor is missing or has another shape than the modules expect.
        """
        self._initialize_buffers(self.model)  # first: what it does to parameters must not stay
        self._fill(self._by_layer.get(None, {}), {})
        outside = {n for n in self._meta if not _LAYER.match(n)}
        self.model.tie_weights()  # type: ignore[operator]
        self._require(outside)

    def load_layer(self, index: int) -> None:
        """Read the weights of one decoder layer into memory."""
        prefix = next(n for n in self._meta if (m := _LAYER.match(n)) and int(m[1]) == index)
        match = _LAYER.match(prefix)
        assert match is not None
        self._initialize_buffers(self.layers[index])
        self._fill(self._by_layer.get(index, {}), self._slot, len(match[0]))
        self._require({n for n in self._meta if (m := _LAYER.match(n)) and int(m[1]) == index})

    def drop_layer(self, index: int) -> None:
        """Give the layer's weights back: its parameters are on the meta device again."""
        for module in self.layers[index].modules():
            for name, tensor in list(module._parameters.items()):
                if tensor is not None:
                    empty = torch.empty_like(tensor, device="meta")
                    module._parameters[name] = nn.Parameter(empty, requires_grad=False)

    def _fill(
        self, targets: dict[str, _Target], slot: dict[tuple[str, ...], torch.Tensor], skip: int = 0
    ) -> None:
        """Read these parameters; memory of the slot is used again where shapes allow."""
        needed = {key for target in targets.values() for key, _ in target.sources}
        with contextlib.ExitStack() as stack:
            handles = {
                path: stack.enter_context(_opened(path))
                for path in sorted({self._files[key] for key in needed})
            }
            for name, target in targets.items():
                empty = self._meta[name]
                place = (name[skip:], str(tuple(empty.shape)), str(self._kept_dtype(name)))
                held = slot.get(place)
                if held is None:
                    held = torch.empty(
                        empty.shape, dtype=self._kept_dtype(name), device=self.device
                    )
                    if skip and isinstance(empty, nn.Parameter):  # buffers stay when a layer goes
                        slot[place] = held
                reads = [(key, handles[self._files[key]], p) for key, p in target.sources]
                self._read(name, target, reads, held)
                _put(self.model, name, held)

    def _read(self, name: str, target: _Target, reads: list[Any], held: torch.Tensor) -> None:
        try:
            if target.converter is None:
                [(key, handle, _)] = reads[:1]
                _copy(held, handle.get_tensor(key), name, key)
            elif (dim := _stacked(target.converter)) is not None:
                _assemble(held, target.converter, reads, dim, name)
            else:
                _copy(held, self._convert(name, target, reads), name, reads[0][0])
        except SafetensorError as error:
            raise ModelError(f"{self._folder}: {name}: {error}") from error

    def _convert(self, name: str, target: _Target, reads: list[Any]) -> torch.Tensor:
        """What transformers' own conversion makes of these tensors; needs twice their memory."""
        converter = deepcopy(target.converter)
        for key, handle, pattern in reads:
            converter.add_tensor(name, key, pattern, handle.get_tensor(key))
        made = converter.convert(name, model=self.model, config=self.model.config)
        found = made[name]
        return found[0] if isinstance(found, list) else found  # type: ignore[no-any-return]

    def _kept_dtype(self, name: str) -> torch.dtype:
        """The dtype asked for, but for what the modules keep in float32 and for integers."""
        empty = self._meta[name]
        if not empty.is_floating_point() or empty.dtype == torch.float32 != self.dtype:
            return empty.dtype
        return self.dtype

    def _require(self, names: set[str]) -> None:
        state = self.model.state_dict(keep_vars=True)
        missing = sorted(n for n in names if n in state and state[n].is_meta)
        if missing:
            raise ModelError(
                f"{self._folder}: the checkpoint has no weights for {len(missing)} parameters, first "
                f"{missing[0]}; they would be random, so nothing measured on them would mean anything"
            )

    def _initialize_buffers(self, root: nn.Module) -> None:
        """Compute the buffers that no checkpoint holds, such as rotary frequencies."""
        for module in root.modules():
            empty = [n for n, b in module._buffers.items() if b is not None and b.is_meta]
            if not empty or (root is self.model and self._is_inside_a_layer(module)):
                continue
            for name in empty:
                module._buffers[name] = torch.empty_like(
                    module._buffers[name], device=self.device  # type: ignore[arg-type]
                )
            self.model._init_weights(module)  # type: ignore[operator]

    def _is_inside_a_layer(self, module: nn.Module) -> bool:
        return any(module is part for layer in self.layers for part in layer.modules())


def _put(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    parent_name, _, last = name.rpartition(".")
    parent = model.get_submodule(parent_name)
    if last in parent._parameters:
        parent._parameters[last] = nn.Parameter(tensor, requires_grad=False)
    else:
        parent._buffers[last] = tensor


def _copy(held: torch.Tensor, found: torch.Tensor, name: str, key: str) -> None:
    if found.shape != held.shape:
        raise ModelError(
            f"{key} has shape {tuple(found.shape)}, expected {tuple(held.shape)} for {name}; the "
            "checkpoint does not fit its config"
        )
    held.copy_(found)


def _stacked(converter: Any) -> int | None:
    """For "stack experts, then join along a side": that side (in the stack); else None."""
    kinds = [type(op).__name__ for op in converter.operations]
    if kinds == ["MergeModulelist"] and converter.operations[0].dim == 0:
        return 1
    if kinds == ["MergeModulelist", "Concatenate"] and converter.operations[0].dim == 0:
        return int(converter.operations[1].dim)
    return None


def _assemble(
    held: torch.Tensor, converter: Any, reads: list[Any], dim: int, name: str
) -> None:
    """Copy per-expert tensors straight to their places in the stack, one at a time."""
    offsets: dict[str, int] = {}
    counts: dict[str, int] = {}
    begin = 0
    for pattern in converter.source_patterns:
        first = next((h.get_slice(k) for k, h, p in reads if p == pattern), None)
        if first is None:
            raise ModelError(f"{name}: the checkpoint has no tensor of the form {pattern}")
        offsets[pattern], counts[pattern] = begin, 0
        begin += int(first.get_shape()[dim - 1])
    for key, handle, pattern in reads:
        part = handle.get_tensor(key)
        place = held[counts[pattern]] if counts[pattern] < held.shape[0] else None
        if place is None:
            raise ModelError(f"{key}: more experts than the {held.shape[0]} of the config")
        _copy(place.narrow(dim - 1, offsets[pattern], part.shape[dim - 1]), part, name, key)
        counts[pattern] += 1
    short = {p: n for p, n in counts.items() if n != held.shape[0]}
    if short or begin != held.shape[dim]:
        raise ModelError(
            f"{name}: the checkpoint has {min(counts.values())} experts of {begin} rows, expected "
            f"{held.shape[0]} of {held.shape[dim]}"
        )
