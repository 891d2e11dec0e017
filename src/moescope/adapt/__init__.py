"""Adapting only the experts that matter. So far: which ones those are (`select_experts`).

Names are resolved when first used.
"""

from typing import TYPE_CHECKING

from moescope.lazy import lazily

if TYPE_CHECKING:
    from moescope.adapt.confirm import confirm_experts
    from moescope.adapt.select import select_experts
    from moescope.adapt.selection import Selection

__all__ = ["Selection", "confirm_experts", "select_experts"]

__getattr__ = lazily(
    __name__,
    {
        "Selection": "moescope.adapt.selection",
        "confirm_experts": "moescope.adapt.confirm",
        "select_experts": "moescope.adapt.select",
    },
)
