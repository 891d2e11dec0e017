"""The axis legend, and the one way to write the name of an expert.

Axes, used as suffixes of local arrays (``topk_ids_TK``)::

    T  tokens            L  MoE layers            D  hidden size
    E  routed experts    K  experts per token     F  hidden size of an expert
    C  domains           N  documents             V  vocabulary

An expert is written ``L5E9``: layer 5 (the model's own number), expert 9. This module knows
nothing of models; whether L5E9 exists is for the caller to say.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from moescope.errors import BadInputError

__all__ = ["ExpertRef"]

_PATTERN = re.compile(r"^L(\d+)E(\d+)$", re.IGNORECASE)


class ExpertRef(NamedTuple):
    """One routed expert: the model's own layer number and the index of the expert in it.

    Example:
        >>> ExpertRef.parse("L5E9")
        ExpertRef(layer_idx=5, expert=9)
        >>> str(ExpertRef(5, 9))
        'L5E9'
    """

    layer_idx: int
    expert: int

    @classmethod
    def parse(cls, text: str) -> ExpertRef:
        """Read ``L5E9`` (either case).

        Raises:
            BadInputError: the text has another form.
        """
        match = _PATTERN.match(text.strip())
        if match is None:
            raise BadInputError(
                f"{text!r} names no expert: expected the form L5E9 (layer 5, expert 9)"
            )
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"L{self.layer_idx}E{self.expert}"
