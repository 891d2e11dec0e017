"""``scale``: multiply the weight of experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Self

from moescope.errors import BadInputError
from moescope.lazy import Later
from moescope.models.edits.edit import (
    NUMBER,
    Chosen,
    LayerEdits,
    Removal,
    Use,
    WeightEdit,
    finite,
    wide,
)
from moescope.models.edits.experts import Experts, refs

if TYPE_CHECKING:
    import torch
else:
    torch = Later("torch")


@dataclass(frozen=True)
class Scale(WeightEdit):
    """The weight is multiplied by ``value``."""

    value: float = 1.0

    kind = "scale"
    written = rf"x(?P<number>[+-]?(?:{NUMBER})|s)"
    form = "x0.5 multiplies the weight"
    unit = "factor"
    neutral = 1.0
    removals = ("scale=FACTOR",)

    def phrase(self, experts: str) -> str:
        return f"{experts} × {self.value:g}"

    @property
    def factor(self) -> float:
        return self.value

    def idle(self, uses: Sequence[Use], where: str, names: str) -> str | None:
        if self.value == self.neutral:
            return "multiplying by 1 is not an edit."
        return super().idle(uses, where, names)

    @classmethod
    def removal(cls, name: str) -> Removal | None:
        kind, _, value = name.partition("=")
        if kind != "scale" or not value:
            return None
        try:
            factor = float(value)
        except ValueError:
            raise BadInputError(
                f"`edit` {name!r}: {value!r} is not a number; give a factor such as scale=0.5"
            ) from None
        if factor == cls.neutral or not abs(factor) < 1e6:
            raise BadInputError(
                f"`edit` {name!r}: nothing can be measured with a factor of {value}; give another, "
                "such as scale=0.5"
            )
        return partial(scale, factor=factor), f"chosen as before, their weight times {factor:g}"

    @classmethod
    def on_choice(cls, edits: Sequence[Self], chosen: Chosen, at: LayerEdits) -> Chosen:
        factor = torch.ones_like(wide(chosen.weights))
        for edit in sorted(edits, key=lambda edit: edit.value):
            factor = torch.where(at.hit([edit], chosen.ids), factor * edit.value, factor)
        scaled = (wide(chosen.weights) * factor).to(chosen.weights.dtype)
        return chosen._replace(weights=torch.where(factor != 1, scaled, chosen.weights))


def scale(experts: Experts, factor: float) -> Scale:
    """Multiply the weight of experts wherever they are chosen.

    Raises:
        BadInputError: the factor is not a finite number.
    """
    return Scale(refs(experts), finite(factor, "scale", "0 takes the expert out"))
