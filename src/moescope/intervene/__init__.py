"""Interventions: what happens to a model's text when its experts are edited.

The edits themselves live in `moescope.models.edits` and are re-exported here::

    from moescope.intervene import edited, mask, zero, scale, bias, force, top_k
"""

from moescope.models.editing import edited
from moescope.models.edits import Edit, bias, force, mask, scale, select_experts, top_k, zero

__all__ = [
    "Edit",
    "bias",
    "edited",
    "force",
    "mask",
    "scale",
    "select_experts",
    "top_k",
    "zero",
]
