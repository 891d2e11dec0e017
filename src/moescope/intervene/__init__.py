"""Interventions: what happens to a model's text when its experts are edited.

The edits themselves live in `moescope.models.edits` and are re-exported here::

    from moescope.intervene import edited, mask, zero, scale, bias, force, top_k

Names are resolved when first used: the words of an edit are read without torch.
"""

from typing import TYPE_CHECKING

from moescope.lazy import lazily

if TYPE_CHECKING:
    from moescope.intervene.contrast.result import ContrastResult
    from moescope.intervene.damage.measure import Damage, measure_damage
    from moescope.intervene.expert_sweep.sweep import ExpertSweep, sweep_experts
    from moescope.intervene.steering.results import SteeringResult, SweepResult
    from moescope.intervene.steering.steer import steer, sweep
    from moescope.models.editing import edited
    from moescope.models.edits import Edit, bias, force, mask, parse_experts, scale, top_k, zero

__all__ = [
    "ContrastResult",
    "Damage",
    "Edit",
    "ExpertSweep",
    "SteeringResult",
    "SweepResult",
    "bias",
    "edited",
    "force",
    "mask",
    "measure_damage",
    "parse_experts",
    "scale",
    "steer",
    "sweep",
    "sweep_experts",
    "top_k",
    "zero",
]

_STEER, _DAMAGE = "moescope.intervene.steering.steer", "moescope.intervene.damage.measure"
_EACH = "moescope.intervene.expert_sweep.sweep"

__getattr__ = lazily(
    __name__,
    {
        **dict.fromkeys(__all__, "moescope.models.edits"),
        **dict.fromkeys(("SteeringResult", "SweepResult", "steer", "sweep"), _STEER),
        **dict.fromkeys(("Damage", "measure_damage"), _DAMAGE),
        **dict.fromkeys(("ExpertSweep", "sweep_experts"), _EACH),
        "ContrastResult": "moescope.intervene.contrast.compare",
        "edited": "moescope.models.editing",
    },
)
