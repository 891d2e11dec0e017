"""Which columns of the sequence the running pass of a model holds.

It reads what the model's body is called with. A cache is known by what it is, not by the name under
which it is handed over, which differs between versions of transformers. Where something shows that
the pass goes on from tokens that no cache in sight holds, positions are refused: an edit at a
position is never left out silently. Used by `moescope.models.editing` only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from moescope.errors import ModelError
from moescope.words import counted

_LEAVE_OUT = "positions cannot be told, so leave the position out"
_NOT_CACHES = (bool, int, str, torch.Tensor)
"""Arguments such as ``use_cache`` and ``cache_position``, which hold no tokens."""


@dataclass
class PassWindow:
    """The columns of the running pass: batch × length from ``start``; ``fault``: cannot be told."""

    batch: int = 0
    length: int = 0
    start: int = 0
    fault: str = "no pass of the model is running"

    def read(self, given: dict[str, Any]) -> None:
        """Take note of a pass from the arguments of the model's body, by name."""
        ids = given.get("input_ids")
        shaped = given.get("inputs_embeds") if ids is None else ids
        if shaped is None:
            self.fault = "the model was given neither input_ids nor inputs_embeds by name"
            return
        self.batch, self.length = map(int, shaped.shape[:2])
        self.start, self.fault = 0, ""
        caches = {name: value for name, value in given.items() if _may_be_cache(name, value)}
        for name, cache in caches.items():
            try:
                self.start = int(cache.get_seq_length())
            except (AttributeError, ValueError):  # another form; of linear attention alone
                self.fault = f"this model's cache ({name}) does not say how many tokens it holds"
        if not caches:
            self.fault = _earlier_tokens(given, self.length)

    def rows(self, positions: tuple[int, ...], num_rows: int) -> torch.Tensor:
        """Which of the batch × length rows stand at these columns, (num_rows,) bool.

        Raises:
            ModelError: the router sees other rows, or nobody says where the pass starts.
        """
        if self.fault:
            raise ModelError(f"{self.fault}; {_LEAVE_OUT}")
        if self.batch * self.length != num_rows:
            raise ModelError(
                f"the router saw {counted(num_rows, 'row')} in a pass of {self.batch} × "
                f"{self.length} tokens; {_LEAVE_OUT}"
            )
        columns = torch.arange(self.start, self.start + self.length)
        return torch.isin(columns, torch.tensor(positions)).repeat(self.batch)


def _may_be_cache(name: str, value: Any) -> bool:
    if hasattr(value, "get_seq_length"):
        return True
    named = "cache" in name or "past" in name
    return named and value is not None and not isinstance(value, _NOT_CACHES)


def _earlier_tokens(given: dict[str, Any], length: int) -> str:
    """What shows that there are tokens before those of a pass without a cache; empty for none."""
    mask, numbers = given.get("attention_mask"), given.get("position_ids")
    if isinstance(mask, torch.Tensor) and mask.dim() == 2 and mask.shape[1] > length:
        return (
            f"a pass of {length} tokens came with a mask of {mask.shape[1]}, and no cache that "
            "moescope knows"
        )
    if isinstance(numbers, torch.Tensor) and numbers.numel() and (first := int(numbers.min())) > 0:
        return (
            f"a pass of {length} tokens begins at number {first}, and brings no cache that "
            "moescope knows"
        )
    return ""
