"""What is known of a model before its weights are read: so what it cannot do is refused early."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from moescope.memory import available_memory, readable
from moescope.models.anatomy import Anatomy
from moescope.models.source import config_hash

_LARGE = 1_000_000_000


class Outline(NamedTuple):
    """What is known of a model before its weights are read.

    ``weight_bytes``: of all weights in the precision that they will have. ``streamed``: not all of
    them will be in memory.
    """

    name: str
    anatomy: Anatomy
    config: Any
    weight_bytes: int
    streamed: bool = False

    @property
    def memory_note(self) -> str:
        """What it will take, where that is worth a word."""
        if self.weight_bytes < _LARGE:
            return ""
        free = "read from disk layer by layer"
        if not self.streamed:
            free = f"{readable(available_memory())} of memory are free"
        return f"{self.name}: {readable(self.weight_bytes)} of weights, {free}"

    def describe(self) -> dict[str, Any]:
        """What a plan needs to know of the model that it is for, but for its weights."""
        layers = self.anatomy.layers
        return {
            "name": self.name,
            "config_sha256": config_hash(self.config),
            "weights_sha256": None,
            "layers": [m.layer_idx for m in layers],
            "num_experts": [m.num_experts for m in layers],
        }


Check = Callable[[Outline], object]
"""Refuses what a model cannot be asked for, before its weights are read."""


def anything(_outline: Outline) -> None:
    """Refuse nothing."""
