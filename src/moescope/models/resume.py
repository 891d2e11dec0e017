"""Run a model from the middle: what came out of the layers below is kept and given back.

An edit in layer l changes nothing below l. `Resumable` keeps what each decoder layer put out in
one plain pass; then the model runs again with the layers below l answering from what was kept.
Masks, rotary embeddings, the layers from l on, the last norm and the head are the model's own code,
so it works on any architecture whose layers pass on everything in what they return. Whether a model
is one of those is tried, not assumed: `check` compares such a pass with the plain one, bit for bit.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from moescope.errors import BadInputError, ModelError

_DECODER_LAYER = re.compile(r"^(?:(.*?)\.)?(layers|blocks|h)\.\d+(?:\.|$)")


def decoder_layers(model: nn.Module, inside: str) -> list[nn.Module]:
    """The decoder layers of a model in their order, found by the path of a module in one of them.

    Raises:
        ModelError: the path lies in no numbered decoder layer.
    """
    match = _DECODER_LAYER.match(inside)
    if match is None:
        raise ModelError(f"{inside} lies in no numbered decoder layer")
    return list(model.get_submodule(".".join(filter(None, match.groups()))).children())


class Resumable:
    """Keeps one pass over one batch, and runs it again from a chosen layer.

    Args:
        model: a causal language model.
        inside: dotted path of any module inside a decoder layer, to find the layers by.

    Attributes:
        layers: decoder layers of the model.
        num_layers: how many.
    """

    def __init__(self, model: nn.Module, inside: str) -> None:
        self._model: Any = model
        self.layers = decoder_layers(model, inside)
        self._kept: dict[int, Any] = {}
        self._call: dict[str, torch.Tensor] = {}
        self.num_layers = len(self.layers)

    @torch.inference_mode()
    def keep(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, starts: Sequence[int]
    ) -> torch.Tensor:
        """One plain pass that keeps what is needed to start at these layers; logits (B, S, V).

        Raises:
            BadInputError: a start that is not a layer of the model.
        """
        for start in starts:
            if not 0 <= start <= self.num_layers:
                raise BadInputError(
                    f"a pass starts at a layer from 0 to {self.num_layers}, got {start}"
                )
        self._kept = {}
        self._call = {"input_ids": input_ids, "attention_mask": attention_mask}
        handles = [
            self.layers[start - 1].register_forward_hook(self._keep(start - 1))
            for start in sorted(set(starts))
            if start > 0
        ]
        try:
            return self._model(**self._call, use_cache=False).logits  # type: ignore[no-any-return]
        finally:
            for handle in handles:
                handle.remove()

    def _keep(self, index: int) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            self._kept[index] = output

        return hook

    @torch.inference_mode()
    def run(self, start: int, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Logits (B, S, V) with the layers from ``start`` run anew, under whatever edits hold now.

        Args:
            start: one of the starts that were kept; 0 runs everything.
            rows: which sequences of the batch, (R,) long; all by default.

        Raises:
            BadInputError: nothing was kept for this start.
        """
        if not self._call or (start and start - 1 not in self._kept):
            kept_starts = ", ".join(str(n + 1) for n in sorted(self._kept))
            raise BadInputError(
                f"nothing was kept to start at layer {start}; kept: {kept_starts or 'none'}"
            )
        call = self._call if rows is None else {n: t[rows] for n, t in self._call.items()}
        if start == 0:
            return self._model(**call, use_cache=False).logits  # type: ignore[no-any-return]
        kept = self._kept[start - 1]
        if rows is not None:
            kept = take_rows(kept, rows, int(self._call["input_ids"].shape[0]))
        with answering(self.layers[:start], kept):
            return self._model(**call, use_cache=False).logits  # type: ignore[no-any-return]

    def check(self, logits: torch.Tensor, start: int) -> bool:
        """Does a pass from ``start`` give exactly these logits, those of the plain pass?"""
        try:
            return torch.equal(self.run(start), logits)
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError, KeyError):
            return False


@contextlib.contextmanager
def answering(layers: Sequence[Any], kept: Any) -> Iterator[None]:
    """Let these layers give back ``kept`` instead of running."""

    def answer(*_args: Any, **_kwargs: Any) -> Any:
        return kept

    own = [layer.__dict__.get("forward") for layer in layers]  # put there by other tools
    for layer in layers:
        layer.forward = answer
    try:
        yield
    finally:
        for layer, forward in zip(layers, own, strict=True):
            del layer.forward
            if forward is not None:
                layer.forward = forward


def take_rows(kept: Any, rows: torch.Tensor | slice, batch: int) -> Any:
    """Some sequences of a batch, of what a layer put out for it."""
    if isinstance(kept, torch.Tensor):
        return kept[rows] if kept.dim() and kept.shape[0] == batch else kept
    if isinstance(kept, tuple | list):
        return type(kept)(take_rows(part, rows, batch) for part in kept)
    return kept
