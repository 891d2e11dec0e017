"""``top_k``: let the router choose another number of experts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from moescope.errors import BadInputError, ModelError
from moescope.models.anatomy import Anatomy, MoELayer
from moescope.models.edits.edit import Chosen, Edit, LayerEdits
from moescope.models.edits.experts import whole

if TYPE_CHECKING:
    from torch import Tensor

_NAMES = ("top_k", "num_experts_per_tok", "moe_top_k")
_LEAST = {"LongcatFlashExperts": 2}
"""Experts whose own code does not stand fewer choices of a token."""


@dataclass(frozen=True)
class TopK(Edit):
    """``value`` experts are chosen, in ``layers``; None means every MoE layer."""

    value: int = 1
    layers: tuple[int, ...] | None = None

    kind = "top_k"

    def phrase(self, experts: str) -> str:
        return f"top_k = {self.value}"

    @property
    def num_chosen(self) -> int:
        return self.value

    def concerns(self, layer: MoELayer) -> bool:
        return self.layers is None or layer.layer_idx in self.layers

    def check(self, anatomy: Anatomy) -> None:
        if self.positions is not None:
            raise BadInputError(
                "top_k cannot differ between positions of one pass: all tokens of a layer take the "
                "same number of experts; leave the position out"
            )
        for layer in anatomy.select(self.layers):
            if not 1 <= self.value <= layer.num_experts:
                raise BadInputError(
                    f"{self} in layer {layer.layer_idx}: expected 1 to {layer.num_experts}"
                )

    @classmethod
    def check_router(cls, edits: Sequence[Self], at: LayerEdits) -> None:
        name = type(at.experts).__name__
        least = _LEAST.get(name, 1)
        if edits[-1].value < least:
            raise ModelError(
                f"{at.layer.site.experts} ({name}) cannot run with {edits[-1]}: its code expects "
                f"at least {least} experts of each token"
            )

    @classmethod
    @contextmanager
    def around(cls, edits: Sequence[Self], at: LayerEdits) -> Iterator[dict[int, Tensor]]:
        stock_k = at.layer.top_k
        holders = [
            (module, name)
            for module in (at.router, at.block)
            for name in _NAMES
            if getattr(module, name, None) == stock_k
        ]
        for module, name in holders:
            setattr(module, name, edits[-1].value)
        try:
            yield {}
        finally:
            for module, name in holders:
                setattr(module, name, stock_k)

    @classmethod
    def check_choice(cls, edits: Sequence[Self], chosen: Chosen, at: LayerEdits) -> None:
        if chosen.ids.shape[-1] != edits[-1].value:
            raise ModelError(
                f"{at.name} chose {chosen.ids.shape[-1]} experts where {edits[-1]} was asked for: "
                "its number is built in"
            )


def top_k(k: int, *, layers: Iterable[int] | None = None) -> TopK:
    """Let the router choose another number of experts, in some or all MoE layers.

    Raises:
        BadInputError: K or a layer is not a whole number, or no layer is named.
    """
    wanted = None if layers is None else tuple(sorted({whole(n, "a layer") for n in layers}))
    if wanted == ():
        raise BadInputError(
            "top_k names no layer, so it would do nothing; leave layers out for all"
        )
    return TopK(value=whole(k, "top_k"), layers=wanted)
