"""``force``: bring experts into the top k."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from moescope.errors import ModelError
from moescope.lazy import Later
from moescope.models.anatomy import MoELayer, Scoring
from moescope.models.edits.edit import Chosen, Edit, LayerEdits, Use, same_sum, wide
from moescope.models.edits.experts import Experts, refs

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = Later("torch")

_NO_RATIO = ("PhimoeTopKRouter", "ZayaRouter")


@dataclass(frozen=True)
class Force(Edit):
    """The choice with the smallest weight gives its place."""

    kind = "force"
    written = "force"
    done = "forced"

    def idle(self, uses: Sequence[Use], where: str, names: str) -> str | None:
        if all(u.chosen_before == u.positions for u in uses):
            return f"{where} it holds at chose {names} anyway."
        return None

    @classmethod
    def room(cls, layer: MoELayer, k: int) -> int:
        return k

    @classmethod
    def on_choice(cls, edits: Sequence[Self], chosen: Chosen, at: LayerEdits) -> Chosen:
        if type(at.router).__name__ in _NO_RATIO:
            raise ModelError(
                f"{at.name}: the weights of a token do not follow from its scores alone, so a "
                "forced expert has no weight; use bias instead"
            )
        held_TE = at.cells(edits, chosen.logits)
        gain_E = getattr(at.router, "per_expert_scale", None)
        for expert in held_TE.any(0).nonzero().flatten().tolist():
            chosen = _bring_in(expert, held_TE, chosen, at.layer, gain_E)
        return chosen


def force(experts: Experts) -> Force:
    """Bring experts into the top k: each takes the place of the choice with the smallest weight.

    The forced expert weighs what its own logit is worth beside the token's other choices (weights
    of one token are proportional to their scores); where the router normalises, the sum stays.
    A token that chose the expert anyway stays exactly as it was; forced experts never take each
    other's place.
    """
    return Force(refs(experts))


def _scores(logits: Tensor, scoring: Scoring) -> Tensor:
    """What a token's weights are proportional to, (T, E), in float32 at least."""
    z = wide(logits)
    if scoring == "softmax":
        return torch.softmax(z, -1)
    if scoring == "sigmoid":
        return torch.sigmoid(z)
    return torch.nn.functional.softplus(z).sqrt() if scoring == "sqrtsoftplus" else z


def _bring_in(
    expert: int,
    held_TE: Tensor,
    chosen: Chosen,
    layer: MoELayer,
    gain_E: Tensor | None,
) -> Chosen:
    """Put one expert in the place of the choice of least weight that is not held itself."""
    ids, scores = chosen.ids, _scores(chosen.logits, layer.scoring)
    gain = torch.ones_like(scores[0]) if gain_E is None else wide(gain_E)
    weights = wide(chosen.weights) / gain[ids]  # Gemma 4: one more factor for each expert
    top = weights.argmax(-1, keepdim=True)
    unit = weights.gather(-1, top) / scores.gather(-1, ids.gather(-1, top))
    own = scores[:, expert : expert + 1] * unit
    rank = wide(chosen.weights).masked_fill(held_TE.gather(-1, ids), float("inf"))
    weakest = rank.argmin(-1, keepdim=True)
    new_weights = weights.scatter(-1, weakest, own)
    if layer.normalized:
        new_weights = same_sum(new_weights, weights)
    new_ids = ids.scatter(-1, weakest, torch.full_like(weakest, expert, dtype=ids.dtype))
    new_weights = (new_weights * gain[new_ids]).to(chosen.weights.dtype)
    change = held_TE[:, expert : expert + 1] & ~(ids == expert).any(-1, keepdim=True)
    ids = torch.where(change, new_ids, ids)
    weights = torch.where(change, new_weights, chosen.weights)
    return chosen._replace(ids=ids, weights=weights, real_ids=ids)
