"""Carry edits out while a model runs, by the model's own router.

`edited` replaces the ``forward`` of the routers concerned with one that lets the stock router run
and steps in at two places: at the linear map that makes the logits, and at what the router returns.
Everything between (scoring, groups, selection bias, normalisation) is transformers' own code. So an
edit needs no knowledge of an architecture, works in scoring and in cached generation alike, and
`RoutingCapture` sees what was really used.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from torch import nn

from moescope.errors import ModelError
from moescope.models.anatomy import Anatomy, MoELayer
from moescope.models.decision import Decision, LayerEdits, PassWindow
from moescope.models.edits import Edit, check_edits

__all__ = ["HasModel", "edited"]

REFUSED = {
    "JetMoeTopKGating": (
        "its router hands assignments over sorted by expert, so an edited choice has no place there"
    ),
}
"""Routers that cannot be edited, with the reason."""


class HasModel(Protocol):
    """A model with its anatomy, such as a `LoadedModel`."""

    @property
    def model(self) -> nn.Module:
        """The model itself."""
        ...

    @property
    def anatomy(self) -> Anatomy:
        """Its MoE layers."""
        ...


@contextlib.contextmanager
def edited(loaded: HasModel, edits: Edit | Sequence[Edit]) -> Iterator[None]:
    """Run the model with these edits inside the ``with`` block; nested blocks add theirs.

    An edit that changes nothing (scale by 1, bias 0) leaves logits bit-identical. On leaving, the
    model is as it was.

    Args:
        loaded: a `LoadedModel`.
        edits: from `mask`, `zero`, `scale`, `bias`, `force`, `top_k`.

    Raises:
        BadInputError: an expert that does not exist, or edits that leave too few experts.
        ModelError: an edit that this architecture cannot take; says why.

    Example::

        with edited(loaded, [mask("L5E9"), scale("L3E1", 2.0)]):
            loaded.model.generate(...)
    """
    several = [edits] if isinstance(edits, Edit) else list(edits)
    model, anatomy = loaded.model, loaded.anatomy
    outer = [e for s in _states(model).values() for e in s.edits]
    check_edits(anatomy, [*dict.fromkeys(outer), *several])
    with contextlib.ExitStack() as stack:
        window: PassWindow | None = None
        for layer in anatomy.layers:
            mine = [e for e in several if _concerns(e, layer)]
            if not mine:
                continue
            if window is None:
                window = stack.enter_context(_watching(model))
            stack.enter_context(_on_layer(model, layer, mine, window))
        yield


def _concerns(edit: Edit, layer: MoELayer) -> bool:
    if edit.kind == "top_k":
        return edit.layers is None or layer.layer_idx in edit.layers
    return any(ref.layer_idx == layer.layer_idx for ref in edit.experts)


@contextlib.contextmanager
def _watching(model: nn.Module) -> Iterator[PassWindow]:
    """Keep track of which columns of the sequences each pass holds."""
    window = PassWindow()

    def note(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        shaped = kwargs.get("inputs_embeds") if ids is None else ids
        if shaped is None:
            return
        past = kwargs.get("past_key_values")
        window.batch, window.length = int(shaped.shape[0]), int(shaped.shape[1])
        window.start = int(past.get_seq_length()) if past is not None else 0

    body: Any = model.base_model
    handle = body.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield window
    finally:
        handle.remove()


def _states(model: nn.Module) -> dict[int, LayerEdits]:
    """The edits in force, by layer; kept on the model so that nested blocks find them."""
    held: dict[int, LayerEdits] = model.__dict__.setdefault("_moescope_edits", {})
    return held


@contextlib.contextmanager
def _on_layer(
    model: nn.Module, layer: MoELayer, edits: list[Edit], window: PassWindow
) -> Iterator[None]:
    states = _states(model)
    state = states.get(layer.layer_idx)
    undo: Callable[[], None] | None = None
    if state is None:
        state = LayerEdits(layer, window)
        undo = _install(model, state)
        states[layer.layer_idx] = state
    state.edits.extend(edits)
    try:
        yield
    finally:
        del state.edits[len(state.edits) - len(edits) :]
        if undo is not None:
            undo()
            del states[layer.layer_idx]


def _install(model: nn.Module, state: LayerEdits) -> Callable[[], None]:
    """Put the edited decision in place of the stock one; returns what takes it out again."""
    router = model.get_submodule(state.layer.site.router)
    block = model.get_submodule(state.layer.site.block)
    name = type(router).__name__
    if name in REFUSED:
        raise ModelError(f"{state.layer.site.router} ({name}) cannot be edited: {REFUSED[name]}")
    by_block = hasattr(block, "route_tokens_to_experts")
    module, method = (block, "route_tokens_to_experts") if by_block else (router, "forward")
    decision = Decision(state, router, block, getattr(module, method), by_block=by_block)
    setattr(module, method, decision)
    return lambda: delattr(module, method)
