"""``bias``: add to the router's logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from moescope.lazy import Later
from moescope.models.edits.edit import NUMBER, Edit, LayerEdits, Use, finite, wide
from moescope.models.edits.experts import Experts, refs

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = Later("torch")


@dataclass(frozen=True)
class Bias(Edit):
    """``value`` is added to the logit."""

    value: float = 0.0

    kind = "bias"
    written = rf"(?P<sign>[+-])(?P<number>{NUMBER}|s)"
    form = "+2.0 or -1.5 adds to the router's logit (the sign must be there)"
    unit = "logits added"
    changes_logits = True

    def phrase(self, experts: str) -> str:
        return f"{experts} {self.value:+g} logits"

    @property
    def takes_away(self) -> bool:
        return self.value < 0

    def idle(self, uses: Sequence[Use], where: str, names: str) -> str | None:
        if self.value == 0.0:
            return "adding 0 is not an edit."
        if any(u.chosen_before or u.chosen_after for u in uses):
            return None
        rank = min(u.rank_before for u in uses)
        more = f" (its logit is number {rank} from the top)" if len(uses) == 1 else ""
        turn = "; a larger number may" if self.value > 0 else ""
        return f"{names} was chosen neither before nor after{more}{turn}."

    @classmethod
    def on_logits(cls, edits: Sequence[Self], rows_TE: Tensor, at: LayerEdits) -> Tensor:
        change_TE = torch.zeros_like(wide(rows_TE))
        for edit in sorted(edits, key=lambda edit: edit.value):
            change_TE = torch.where(at.cells([edit], rows_TE), change_TE + edit.value, change_TE)
        biased = (wide(rows_TE) + change_TE).to(rows_TE.dtype)
        return torch.where(change_TE != 0, biased, rows_TE)


def bias(experts: Experts, logits: float) -> Bias:
    """Add to the router's logit of experts: changes whether they are chosen and how they weigh.

    Raises:
        BadInputError: the summand is not a finite number.
    """
    return Bias(refs(experts), finite(logits, "bias", "mask removes the expert"))
