"""Interventions: what happens to a model's text when its experts are edited.

The edits themselves live in `moescope.models.edits` and are re-exported here::

    from moescope.intervene import edited, mask, zero, scale, bias, force, top_k
"""

from moescope.intervene.contrast.compare import ContrastResult, contrast
from moescope.intervene.damage.measure import Damage, measure_damage
from moescope.intervene.expert_sweep.sweep import ExpertSweep, sweep_experts
from moescope.intervene.steering.steer import SteeringResult, SweepResult, steer, sweep
from moescope.models.editing import edited
from moescope.models.edits import Edit, bias, force, mask, scale, select_experts, top_k, zero

__all__ = [
    "ContrastResult",
    "Damage",
    "Edit",
    "ExpertSweep",
    "SteeringResult",
    "SweepResult",
    "bias",
    "contrast",
    "edited",
    "force",
    "mask",
    "measure_damage",
    "scale",
    "select_experts",
    "steer",
    "sweep",
    "sweep_experts",
    "top_k",
    "zero",
]
