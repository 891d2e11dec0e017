"""The axis legend, and the one way to write the name of an expert.

Axes, used as suffixes of local arrays (``topk_ids_TK``)::

    T  tokens            L  MoE layers            D  hidden size
    E  routed experts    K  experts per token     F  hidden size of an expert
    C  domains           N  documents             V  vocabulary

An expert is written ``L5E9``: layer 5 (the model's own number), expert 9. Which layers and experts
a model has is for the caller to say; that one is not among them is said here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from moescope.errors import BadInputError
from moescope.given import WHOLE
from moescope.words import ranges

_PATTERN = re.compile(rf"^L({WHOLE})E({WHOLE})$", re.IGNORECASE)


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


def require_layers(layers: Iterable[int], known: Sequence[int], model: str) -> None:
    """Refuse numbers of layers that are not MoE layers of a model.

    Args:
        layers: the numbers.
        known: those of its MoE layers.
        model: what it is called.

    Raises:
        BadInputError: names the first of them, and the layers that there are.

    Example:
        >>> require_layers([2], [1, 3], "small")
        Traceback (most recent call last):
        moescope.errors.BadInputError: layer 2 is not an MoE layer of small; its MoE layers are 1, 3
    """
    unknown = sorted(set(layers) - set(known))
    if unknown:
        raise BadInputError(
            f"layer {unknown[0]} is not an MoE layer of {model}; its MoE layers are {ranges(known)}"
        )


def require_experts(experts: Iterable[ExpertRef], sizes: Mapping[int, int], model: str) -> None:
    """Refuse experts that a model does not have.

    Args:
        experts: their names.
        sizes: E of each MoE layer, by its number.
        model: what it is called.

    Raises:
        BadInputError: names the first of them, and what there is.

    Example:
        >>> require_experts([ExpertRef(1, 8)], {1: 8}, "small")
        Traceback (most recent call last):
        moescope.errors.BadInputError: L1E8 does not exist: layer 1 of small has experts E0 to E7
    """
    for ref in experts:
        try:
            require_layers([ref.layer_idx], list(sizes), model)
        except BadInputError as error:
            raise BadInputError(f"{ref} does not exist: {error}") from error
        if not 0 <= ref.expert < sizes[ref.layer_idx]:
            raise BadInputError(
                f"{ref} does not exist: layer {ref.layer_idx} of {model} has experts E0 to "
                f"E{sizes[ref.layer_idx] - 1}"
            )
