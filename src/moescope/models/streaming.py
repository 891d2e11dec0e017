"""A model whose decoder layers stay on disk: one is read, used, and dropped again.

`StreamedModel` builds the stock modules without weights, loads what lies outside the decoder
layers (embedding, norms, head), and fills one layer at a time from safetensors into memory that is
used again for the next. What it asks of transformers' private loading lies here and in `targets`,
and nowhere else. It knows files and modules, not batches.
"""

from __future__ import annotations

import hashlib
import inspect
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from moescope.errors import ModelError
from moescope.memory import give_memory_back
from moescope.models.experts import expert_weights, sorts_experts
from moescope.models.memory import StreamedNeed
from moescope.models.narrow import narrow_weights, widen_outputs
from moescope.models.resume import answering
from moescope.models.stored import Target, check_stack, refuse_shape, stacked_side
from moescope.models.stored_weights import StoredWeights
from moescope.models.targets import kept_wide, targets_of

UNSTREAMED = {
    "inkling2_text": "a layer reads what earlier layers left in the model, not only its own input",
}
"""Model types whose layers do not stand on their own, with the reason."""

_LAYER = re.compile(r"^(.*\.)?(?:layers|blocks|h)\.\d+\.")


class StreamedModel:
    """Stock modules of a checkpoint folder, with at most one decoder layer in memory.

    Args:
        model: the modules, on the meta device.
        folder: config and safetensors.
        block: path of one of its MoE blocks, which says where the decoder layers are; a model that
            also sees or hears has other stacks, and those stay in memory.
        dtype: of the weights in memory, whatever they are stored in.
        device: where they go.

    Attributes:
        model: the modules; usable from the outside only while the layers asked for are loaded.
        need: what it takes in memory and the batch that this was estimated for, once planned.
        layers: the decoder layers, in order.
    """

    def __init__(
        self,
        model: Any,
        folder: Path,
        block: str,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        model_type = str(getattr(model.config.get_text_config(), "model_type", ""))
        if model_type in UNSTREAMED:
            raise ModelError(
                f"{model_type} models cannot be streamed: {UNSTREAMED[model_type]}; use "
                "`engine=resident`"
            )
        self.model = model
        self.dtype, self.device = dtype, device
        self.need: StreamedNeed | None = None
        self._stack = _stack_of(block)
        self._layer = re.compile(rf"^{re.escape(self._stack)}\.(\d+)\.")
        self._stored = StoredWeights(model, folder)
        self._meta = dict(model.state_dict(keep_vars=True))
        self._tied = getattr(model, "all_tied_weights_keys", None) or {}
        self._by_layer = self._plan()
        self._targets = {n: t for part in self._by_layer.values() for n, t in part.items()}
        self._outside = {n for n in self._meta if not self._layer.match(n)}
        self.layers: list[nn.Module] = list(model.get_submodule(self._stack).children())
        self._slot: dict[tuple[str, ...], torch.Tensor] = {}
        self._check_shapes()
        self._as_stored = self._stay_as_stored()
        self._wide = kept_wide(model, dtype)

    # -- which tensors make which parameter

    def _plan(self) -> dict[int | None, dict[str, Target]]:
        """Targets by decoder layer; None holds what lies outside of them."""
        plan: dict[int | None, dict[str, Target]] = {}
        for name, target in targets_of(self.model, self._stored.files).items():
            match = self._layer.match(name)
            plan.setdefault(int(match[1]) if match else None, {})[name] = target
        return plan

    def _check_shapes(self) -> None:
        """Refuse a checkpoint that does not fit, by its headers, before a weight is read."""
        made, tied = self._targets, {id(self._meta[n]) for n in self._targets}
        parameters = dict(self.model.named_parameters()).keys() - made.keys() - self._tied.keys()
        self._refuse_missing(sorted(n for n in parameters if id(self._meta[n]) not in tied))
        for name, target in made.items():
            shape, dim = tuple(self._meta[name].shape), None
            if target.converter is not None and (dim := stacked_side(target.converter)) is None:
                continue
            stored = [(key, self._stored.header(key).shape, p) for key, p in target.sources]
            if dim is None and stored[0][1] != shape:
                refuse_shape(stored[0][0], stored[0][1], shape, name)
            if dim is not None:
                check_stack(name, shape, dim, stored, target.converter.source_patterns)

    def _stay_as_stored(self) -> dict[str, torch.dtype]:
        """Weights kept in half precision: experts, widened one at a time; embedding and head.

        Where a processor computes in float32 what is stored in half of it, that halves the memory
        of a layer and of what lies outside; the numbers are the same.
        """
        if self.dtype != torch.float32 or self.device.type != "cpu":
            return {}
        kept = {}
        experts = expert_weights(self.model) if sorts_experts(self.model) else []
        for name in [*experts, *narrow_weights(self.model)]:
            sources = self._targets[name].sources if name in self._targets else []
            dtypes = {self._stored.header(key).dtype for key, _ in sources}
            if len(dtypes) == 1 and dtypes <= {torch.bfloat16, torch.float16}:
                kept[name] = dtypes.pop()
        return {n: d for n, d in kept.items() if d is not None}

    # -- sizes

    def outside_bytes(self) -> int:
        """Bytes of what lies outside the decoder layers, in memory."""
        seen: dict[int, int] = {}
        for name in self._outside:  # tied weights are one tensor, held as the one that is stored
            shared = id(self._meta[name])
            seen[shared] = min(self._size(name), seen.get(shared, self._size(name)))
        return sum(seen.values())

    def layer_bytes(self) -> int:
        """Bytes that the largest decoder layer takes while it is read: weights and copies."""
        largest = 0
        for index, targets in self._by_layer.items():
            if index is None:
                continue
            held = sum(self._size(name) for name in targets)
            copies = [0]
            for name, target in targets.items():
                whole = target.converter is not None and stacked_side(target.converter) is None
                parts = len(target.sources) if target.converter is not None else 1
                copies.append(2 * self._size(name) if whole else self._size(name) // parts)
            largest = max(largest, held + max(copies))
        return largest

    def _size(self, name: str) -> int:
        return int(self._meta[name].numel()) * self._kept_dtype(name).itemsize

    # -- reading

    def load_rest(self) -> None:
        """Load embedding, norms, head, and whatever else lies outside the decoder layers.

        Raises:
            ModelError: a tensor is missing or has another shape than the modules expect.
        """
        self._initialize_buffers(self.model)  # first: what it does to parameters must not stay
        self._fill(self._by_layer.get(None, {}), {})
        absent = self._outside - self._by_layer.get(None, {}).keys()
        self.model.tie_weights(missing_keys=absent, recompute_mapping=False)
        widen_outputs(self.model, self.dtype)
        self._require(self._outside)

    def load_layer(self, index: int) -> None:
        """Read the weights of one decoder layer into memory."""
        targets, skip = self._by_layer.get(index, {}), len(f"{self._stack}.{index}.")
        wanted = {self._place(name, skip) for name in targets}
        self._slot = {place: held for place, held in self._slot.items() if place in wanted}
        self._initialize_buffers(self.layers[index])
        self._fill(targets, self._slot, skip)
        self._require({n for n in self._meta if (m := self._layer.match(n)) and int(m[1]) == index})

    def drop_layer(self, index: int) -> None:
        """Give the layer's weights back: its parameters are on the meta device again."""
        for module in self.layers[index].modules():
            for name, tensor in list(module._parameters.items()):
                if tensor is not None:
                    empty = torch.empty_like(tensor, device="meta")
                    module._parameters[name] = nn.Parameter(empty, requires_grad=False)

    def release(self) -> None:
        """Give back the memory that one layer after the other was read into."""
        self._slot = {}
        give_memory_back()

    def _fill(
        self, targets: dict[str, Target], slot: dict[tuple[str, ...], torch.Tensor], skip: int = 0
    ) -> None:
        """Read these parameters; memory of the slot is used again where shapes allow."""
        with self._stored.opened(targets.values()) as reads_of:
            for name, target in targets.items():
                empty = self._meta[name]
                place = self._place(name, skip)
                held = slot.get(place)
                if held is None:
                    held = torch.empty(
                        empty.shape, dtype=self._kept_dtype(name), device=self.device
                    )
                    if skip and isinstance(empty, nn.Parameter):  # buffers stay when a layer goes
                        slot[place] = held
                self._stored.read(name, target, reads_of(target), held)
                _put(self.model, name, held)

    def _place(self, name: str, skip: int) -> tuple[str, ...]:
        """Parameters of two layers with the same place can lie in the same memory."""
        return name[skip:], str(tuple(self._meta[name].shape)), str(self._kept_dtype(name))

    def fingerprint(self) -> str:
        """The same sha256 as `weights_fingerprint` gives for the model in memory.

        Only the elements that it looks at are read; a parameter that goes through one of
        transformers' rarer conversions is made whole for it.
        """
        digest = hashlib.sha256()
        targets = self._targets
        twin = {source: target for target, source in self._tied.items() if target in targets}
        for name, empty in sorted(self.model.named_parameters()):
            step = max(1, empty.numel() // 64)
            flat = torch.arange(min(64, -(-empty.numel() // step))) * step
            target = targets.get(name) or targets[twin[name]]
            values = self._stored.elements(name, empty.shape, target, flat)
            digest.update(name.encode())
            digest.update(values.to(self._kept_dtype(name)).float().numpy().tobytes())
        return digest.hexdigest()

    def read_ahead(self, index: int) -> None:
        """Ask the system to bring the bytes of a layer into its file cache; no memory is taken."""
        if 0 <= index < len(self.layers):
            self._stored.read_ahead(self._by_layer.get(index, {}).values())

    # -- running

    @torch.inference_mode()
    def run_layer(
        self,
        index: int,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        hidden: Any,
    ) -> Any:
        """What one loaded decoder layer makes of what the layer below put out.

        Masks and rotary embeddings are made by the model's own code, which runs as usual up to this
        layer with those below answering from ``hidden``.

        Args:
            index: the layer; `load_layer` must have been called.
            input_ids: (B, S).
            attention_mask: (B, S), 0 on padding.
            hidden: what the layer below put out; None for the first layer.

        Returns:
            What the layer puts out: (B, S, D), or a tuple in families that hand on more.
        """

        def stop(_module: nn.Module, _args: Any, output: Any) -> None:
            raise _Done(output)

        handle = self.layers[index].register_forward_hook(stop)
        try:
            with answering(self.layers[:index], hidden):
                self.model.base_model(
                    input_ids=input_ids, attention_mask=attention_mask, use_cache=False
                )
        except _Done as done:
            output = done.args[0]
        else:
            raise ModelError(f"decoder layer {index} was not called")
        finally:
            handle.remove()
        return output

    @property
    def head_takes_positions(self) -> bool:
        """Can the model make the logits of some positions only?"""
        return "logits_to_keep" in inspect.signature(self.model.forward).parameters

    @torch.inference_mode()
    def run_head(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, hidden: Any, at: slice
    ) -> torch.Tensor:
        """Logits (B, positions ``at``, V) of what the last decoder layer put out."""
        places = torch.arange(input_ids.shape[1], device=self.device)[at]
        some = {"logits_to_keep": places} if self.head_takes_positions else {}
        with answering(self.layers, hidden):
            output = self.model(
                input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **some
            )
        logits: torch.Tensor = output.logits
        return logits if some else logits[:, at]

    def _kept_dtype(self, name: str) -> torch.dtype:
        """The dtype that transformers would load it in, except for what stays narrow."""
        if name in self._as_stored:
            return self._as_stored[name]
        if self._wide is not None and self._wide.search(name):
            return torch.float32
        dtype: torch.dtype = self._meta[name].dtype  # of the modules, which were built in `dtype`
        return dtype

    def _require(self, names: set[str]) -> None:
        state = self.model.state_dict(keep_vars=True)
        missing = sorted(n for n in names if n in state and state[n].is_meta)
        self._refuse_missing(missing)

    def _refuse_missing(self, names: list[str]) -> None:
        if names:
            raise ModelError(
                f"{self._stored.folder}: the checkpoint has no weights for {len(names)} "
                f"parameters, first {names[0]}; they would be random, so nothing measured would "
                "mean anything"
            )

    def _initialize_buffers(self, root: nn.Module) -> None:
        """Compute the buffers that no checkpoint holds, such as rotary frequencies.

        The part of a model that a module belongs to knows how: the whole has no such settings.
        """
        parts = [part for part in self.model.modules() if hasattr(part, "_init_weights")]
        owner = {id(module): part for part in parts for module in part.modules()}
        inside = {id(module) for layer in self.layers for module in layer.modules()}
        for module in root.modules():
            empty = {n: b for n, b in module._buffers.items() if b is not None and b.is_meta}
            if not empty or (root is self.model and id(module) in inside):
                continue
            for name, buffer in empty.items():
                module._buffers[name] = torch.empty_like(buffer, device=self.device)
            owner[id(module)]._init_weights(module)


def _stack_of(block: str) -> str:
    """The path of the module whose children are the decoder layers."""
    match = _LAYER.match(f"{block}.")
    if match is None:
        raise ModelError(
            f"the MoE block {block} is in no stack of layers that could be read one by one; use "
            "`engine=resident`"
        )
    return match[0].rstrip(".").rpartition(".")[0]


class _Done(Exception):
    """Carries a layer's output out of the forward pass that the rest of is not needed."""


def _put(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    parent_name, _, last = name.rpartition(".")
    parent = model.get_submodule(parent_name)
    if last in parent._parameters:
        parent._parameters[last] = nn.Parameter(tensor, requires_grad=False)
    else:
        parent._buffers[last] = tensor
