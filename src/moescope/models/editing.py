"""Carry edits out while a model runs, by the model's own router.

`edited` replaces the ``forward`` of the routers concerned with one that lets the stock router run
and steps in at two places: at the linear map that makes the logits, and at what the router returns.
Everything between (scoring, groups, selection bias, normalisation) is transformers' own code. So an
edit needs no knowledge of an architecture, works in scoring and in cached generation alike, and
`RoutingCapture` sees what was really used.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, Protocol

from torch import nn

from moescope.errors import BadInputError, CoverageError, ModelError
from moescope.models.anatomy import Anatomy, MoELayer
from moescope.models.decision import Decision, refuse_copy
from moescope.models.edits import Edit, Edits, as_edits, by_kind, check_edits, num_chosen
from moescope.models.edits.edit import LayerEdits
from moescope.models.window import PassWindow

REFUSED = {
    "JetMoeTopKGating": (
        "its router hands assignments over sorted by expert, so an edited choice has no place there"
    ),
}
"""Routers that cannot be edited, with the reason."""

_KEY = "_moescope_edits"


class HasModel(Protocol):
    """A model with its anatomy, such as a `LoadedModel`."""

    @property
    def model(self) -> nn.Module:
        """The model itself."""

    @property
    def anatomy(self) -> Anatomy:
        """Its MoE layers."""


@contextlib.contextmanager
def edited(loaded: HasModel, edits: Edits) -> Iterator[None]:
    """Run the model with these edits inside the ``with`` block; nested blocks add theirs.

    An edit that changes nothing (scale by 1, bias 0) leaves logits bit-identical. On leaving, the
    model is as it was.

    Args:
        loaded: a `LoadedModel`.
        edits: from `mask`, `zero`, `scale`, `bias`, `force`, `top_k`.

    Raises:
        BadInputError: an expert that does not exist, or edits that leave too few experts.
        ModelError: an edit that this architecture cannot take; says why.
        CoverageError: a pass of the model that asked none of the router that an edit is for.

    Example::

        with edited(loaded, [mask("L5E9"), scale("L3E1", 2.0)]):
            loaded.model.generate(...)
    """
    if not hasattr(loaded, "anatomy"):
        raise BadInputError(
            "edited takes a model that is open, from load_model or wrap_model; got "
            f"{type(loaded).__name__}"
        )
    several = as_edits(edits)
    session: _Session = loaded.model.__dict__.get(_KEY) or _Session(loaded.model)
    block = object()
    try:
        session.open(block, several, loaded.anatomy)
        yield
    finally:
        session.close(block)


class _Session:
    """All blocks that are open on one model; it puts edits in and takes them out."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._window = PassWindow()
        self._blocks: dict[object, list[Edit]] = {}
        self._states: dict[int, LayerEdits] = {}
        self._undo: dict[int, Callable[[], None]] = {}
        self._handles: list[Any] = []
        self._names: tuple[str, ...] = ()

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        """A copy would stay edited for good."""
        refuse_copy()

    def open(self, block: object, edits: list[Edit], anatomy: Anatomy) -> None:
        """Add the edits of one block, or none of them."""
        check_edits(anatomy, [e for held in self._blocks.values() for e in held] + edits)
        self._blocks[block] = edits
        for layer in anatomy.layers:
            if any(e.concerns(layer) for e in edits):
                state = self._states.get(layer.layer_idx) or self._new_state(layer)
                state.edits = self._edits_of(layer)
                for kind, own in by_kind(state.edits):
                    kind.check_router(own, state)
                _check_groups(state)
                if layer.layer_idx not in self._states:
                    self._undo[layer.layer_idx] = _install(state)
                    self._states[layer.layer_idx] = state
        if self._states and not self._handles:
            self._watch()

    def close(self, block: object) -> None:
        """Take one block's edits out, and leave no trace after the last."""
        self._blocks.pop(block, None)
        for number, state in list(self._states.items()):
            state.edits = self._edits_of(state.layer)
            if not state.edits:
                self._undo.pop(number)()
                del self._states[number]
        if not self._states:
            for handle in self._handles:
                handle.remove()
            self._handles = []
            if self._model.__dict__.get(_KEY) is self:
                del self._model.__dict__[_KEY]

    def _new_state(self, layer: MoELayer) -> LayerEdits:
        site, module = layer.site, self._model.get_submodule
        parts = (module(site.router), module(site.block), module(site.experts))
        return LayerEdits(layer, self._window, *parts)

    def _edits_of(self, layer: MoELayer) -> list[Edit]:
        return [e for held in self._blocks.values() for e in held if e.concerns(layer)]

    def _watch(self) -> None:
        """Keep track of each pass: which columns it holds, and whether it asked every router."""
        body: Any = self._model.base_model
        self._names = tuple(inspect.signature(body.forward).parameters)
        self._model.__dict__[_KEY] = self
        self._handles = [
            body.register_forward_pre_hook(self._before, with_kwargs=True),
            body.register_forward_hook(self._after),
        ]

    def _before(self, _body: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for state in self._states.values():
            state.calls = 0
        self._window.read(dict(zip(self._names, args, strict=False)) | kwargs)

    def _after(self, _body: nn.Module, _args: Any, _output: Any) -> None:
        for number, state in self._states.items():
            if not state.calls:
                raise CoverageError(
                    f"layer {number}: router {state.layer.site.router} was not asked in this pass, "
                    "so its edits did nothing; run all layers, with the model's own code"
                )


def _check_groups(state: LayerEdits) -> None:
    """Refuse edits under which a router that picks groups first cannot fill its choice.

    It would fill it with experts that it ruled out, in whatever order equal scores come.
    """
    layer, router = state.layer, state.router
    groups, picked = getattr(router, "num_group", None), getattr(router, "topk_group", None)
    barred = [e for e in state.edits if e.bars]
    refs = {ref for e in barred for ref in e.experts if ref.layer_idx == layer.layer_idx}
    k, method = num_chosen(state.edits, layer), getattr(router, "topk_method", None)
    if not groups or not picked or groups == 1 or method == "greedy":
        return
    if not refs and all(e.num_chosen is None for e in state.edits):
        return
    size = layer.num_experts // groups
    left = [size - sum(ref.expert // size == g for ref in refs) for g in range(groups)]
    needed = 2 if method is None else 1  # a group counts by its best two, or by its best one
    open_groups = sorted(n for n in left if n >= needed)
    if len(open_groups) < picked or sum(open_groups[:picked]) < k:
        raise ModelError(
            f"{layer.site.router} ({type(router).__name__}) picks {picked} of {groups} groups of "
            f"{size} experts before it picks {k} of their experts; these edits could leave fewer "
            "there, so mask fewer or use zero"
        )


def _install(state: LayerEdits) -> Callable[[], None]:
    """Put the edited decision in place of the stock one; returns what takes it out again."""
    router, block = state.router, state.block
    name = type(router).__name__
    if name in REFUSED:
        raise ModelError(f"{state.name} cannot be edited: {REFUSED[name]}")
    by_block = hasattr(block, "route_tokens_to_experts")
    module, method = (block, "route_tokens_to_experts") if by_block else (router, "forward")
    own = module.__dict__.get(method)  # other tools put a forward of theirs on a module, too
    setattr(module, method, Decision(state, getattr(module, method), by_block=by_block))
    return lambda: delattr(module, method) if own is None else setattr(module, method, own)
