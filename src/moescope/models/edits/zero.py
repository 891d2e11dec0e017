"""``zero``: let experts be chosen but contribute nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Self

from moescope.lazy import Later
from moescope.models.edits.edit import Chosen, LayerEdits, Removal, WeightEdit, same_sum
from moescope.models.edits.experts import Experts, refs

if TYPE_CHECKING:
    import torch
else:
    torch = Later("torch")

_REMOVALS = {
    "zero": "chosen as before, but contributing nothing",
    "zero-renormalize": "chosen as before, but contributing nothing, with the token's other "
    "experts scaled up",
}


@dataclass(frozen=True)
class Zero(WeightEdit):
    """The weight is set to 0. ``renormalize``: see `zero`."""

    renormalize: bool = False

    kind = "zero"
    written = "zero"
    removals = tuple(_REMOVALS)
    removes = True

    def phrase(self, experts: str) -> str:
        return f"zero {experts}" + (" (rest scaled up)" if self.renormalize else "")

    @property
    def factor(self) -> float | None:
        return None if self.renormalize else 0.0

    @classmethod
    def removal(cls, name: str) -> Removal | None:
        words = _REMOVALS.get(name)
        return None if words is None else (partial(zero, renormalize=name != "zero"), words)

    @classmethod
    def on_choice(cls, edits: Sequence[Self], chosen: Chosen, at: LayerEdits) -> Chosen:
        """Those that hand their share on first: no order but this."""
        weights = chosen.weights
        hit = at.hit([edit for edit in edits if edit.renormalize], chosen.ids)
        left = same_sum(weights.masked_fill(hit, 0.0), weights)
        weights = torch.where(hit.any(-1, keepdim=True), left, weights)
        hit = at.hit([edit for edit in edits if not edit.renormalize], chosen.ids)
        return chosen._replace(weights=weights.masked_fill(hit, 0.0))


def zero(experts: Experts, *, renormalize: bool = False) -> Zero:
    """Let experts be chosen but contribute nothing; no other expert takes their place.

    Args:
        experts: which.
        renormalize: scale the token's other weights up so that their sum stays what it was. A token
            all of whose experts are zeroed is left without any.
    """
    return Zero(refs(experts), renormalize)
