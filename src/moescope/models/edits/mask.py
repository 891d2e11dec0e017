"""``mask``: keep experts from being chosen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from moescope.errors import ModelError
from moescope.lazy import Later
from moescope.models.anatomy import MoELayer
from moescope.models.edits.edit import Chosen, Edit, LayerEdits, Removal, Use, wide
from moescope.models.edits.experts import Experts, refs

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = Later("torch")

_SELECTION_BIASES = ("e_score_correction_bias", "expert_bias", "balancing_biases")
_NEAR_BEST = "PhimoeTopKRouter"  # its softmax is over the near-best experts, not over all


@dataclass(frozen=True)
class Mask(Edit):
    """The logit is set to minus infinity. ``renormalize``: see `mask`."""

    renormalize: bool = True

    kind = "mask"
    written = "mask"
    removals = ("mask",)
    removes = True
    bars = True
    changes_logits = True
    done = "masked"

    def phrase(self, experts: str) -> str:
        return f"mask {experts}" + ("" if self.renormalize else " (weights of the rest kept)")

    @property
    def only_where_chosen(self) -> bool:
        return not self.renormalize

    @property
    def takes_away(self) -> bool:
        return True

    @classmethod
    def removal(cls, name: str) -> Removal | None:
        words = "not to be chosen, so that the router takes the next best"
        return (mask, words) if name == "mask" else None

    def idle(self, uses: Sequence[Use], where: str, names: str) -> str | None:
        if any(u.chosen_before for u in uses):
            return None
        return (
            f"none of {where} it holds at would have chosen {names}; what changes, if anything, is "
            "the share that it held in the router's softmax."
        )

    @classmethod
    def room(cls, layer: MoELayer, k: int) -> int:
        return layer.num_experts - k

    @classmethod
    @contextmanager
    def around(cls, edits: Sequence[Self], at: LayerEdits) -> Iterator[dict[int, Tensor]]:
        """No return by the selection bias: masked copies take its place."""
        held = [
            (store, name, tensor)
            for module in at.block.modules()
            for store in (module._buffers, module._parameters)
            for name, tensor in store.items()
            if tensor is not None and name in _SELECTION_BIASES
        ]
        if held and any(e.positions is not None for e in edits):
            raise ModelError(
                f"{at.name} chooses by a selection bias, which holds for all tokens of a pass, "
                "so an expert cannot be masked at some positions only; use zero or bias, or leave "
                "the position out"
            )
        copies = {id(tensor): tensor.detach().clone() for _, _, tensor in held}
        for copy in copies.values():
            for edit in edits:
                copy.view(-1)[at.ids(edit, copy.device)] = float("-inf")
        try:
            for store, name, tensor in held:
                store[name] = copies[id(tensor)]  # type: ignore[assignment]
            yield copies
        finally:
            for store, name, tensor in held:
                store[name] = tensor  # type: ignore[assignment]

    @classmethod
    def on_logits(cls, edits: Sequence[Self], rows_TE: Tensor, at: LayerEdits) -> Tensor:
        return rows_TE.masked_fill(at.cells(edits, rows_TE), float("-inf"))

    @classmethod
    def check_choice(cls, edits: Sequence[Self], chosen: Chosen, at: LayerEdits) -> None:
        if bool(at.hit(edits, chosen.real_ids).any()):
            raise ModelError(
                f"{at.name} still chose a masked expert: something other than its logits "
                "decides (the token itself, for instance); use zero"
            )

    @classmethod
    def on_choice(cls, edits: Sequence[Self], chosen: Chosen, at: LayerEdits) -> Chosen:
        """Weights as before the masks that keep them, beside the experts that these took out.

        A token that had chosen none of these is left alone, a choice that stays keeps its weight,
        and a newcomer weighs its share of the whole softmax.
        """
        beside = [edit for edit in edits if not edit.renormalize]
        if not beside:
            return chosen
        before, layer, weights = at.decide(beside), at.layer, chosen.weights
        masked_TE = at.cells(beside, chosen.logits)
        hit_T1 = masked_TE.gather(-1, before.real_ids).any(-1, keepdim=True)
        ids = torch.where(hit_T1, chosen.ids, before.ids)
        real_ids = torch.where(hit_T1, chosen.real_ids, before.real_ids)
        own_scale = layer.scoring == "softmax" and not layer.normalized
        if own_scale and type(at.router).__name__ != _NEAR_BEST:
            shares_TE = torch.softmax(wide(before.logits), -1) * masked_TE
            weights = (wide(weights) * (1 - shares_TE.sum(-1, keepdim=True))).to(weights.dtype)
            same_TKK = chosen.real_ids[:, :, None] == before.real_ids[:, None, :]
            old = (same_TKK * before.weights[:, None, :]).sum(-1)
            weights = torch.where(same_TKK.any(-1), old, weights)
        weights = torch.where(hit_T1, weights, before.weights)
        return chosen._replace(ids=ids, weights=weights, real_ids=real_ids)


def mask(experts: Experts, *, renormalize: bool = True) -> Mask:
    """Keep experts from being chosen: the next best take their places.

    The logit is set to minus infinity before the router decides (and its selection bias, where it
    has one), so the router's own rules fill the place.

    Args:
        experts: ``"L5E9"``, or several; with an anatomy at hand `parse_experts` reads wildcards.
        renormalize: as the router computes it: where weights are a softmax over all experts that is
            not normalised over the chosen (OLMoE), the share of the masked experts goes to all
            others, at every token. False keeps the others' probabilities as they were beside the
            masked experts, and every token that chose none of these exactly as it was. Routers that
            normalise over the chosen, or score each expert on its own, give the same either way,
            except for rounding.
    """
    return Mask(refs(experts), renormalize)
