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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from moescope.errors import BadInputError
from moescope.given import WHOLE
from moescope.words import ranges

SELECTOR = re.compile(
    rf"^L({WHOLE}|\*)E({WHOLE})(?:-({WHOLE}))?$|^L({WHOLE}|\*)E\*$", re.IGNORECASE
)
"""One expert, or several: ``L5E9``, ``L5E0-7``, ``L5E*``, ``L*E3``."""

_FORMS = "L5E9, L5E0-7, L5E* (a layer) or L*E9"
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


def named_experts(
    selectors: str | Sequence[str], sizes: Mapping[int, int], model: str
) -> list[ExpertRef]:
    """The experts that selectors name, in their order, each once.

    Args:
        selectors: ``L5E9``, ``L5E0-7``, ``L5E*`` (a whole layer), ``L*E3`` (one number everywhere);
            a text may hold several, with commas or spaces between them.
        sizes: E of each MoE layer, by its number.
        model: what it is called.

    Raises:
        BadInputError: no selector, one of another form, or an expert that does not exist.

    Example:
        >>> [str(e) for e in named_experts("L1E0-1,L3E*", {1: 8, 3: 2}, "small")]
        ['L1E0', 'L1E1', 'L3E0', 'L3E1']
    """
    texts = [selectors] if isinstance(selectors, str) else list(selectors)
    names = [name for text in texts for name in text.replace(",", " ").split()]
    if not names:
        raise BadInputError(f"no expert was named: expected {_FORMS}")
    return list(dict.fromkeys(e for name in names for e in _matches(name, sizes, model)))


def _matches(name: str, sizes: Mapping[int, int], model: str) -> Iterator[ExpertRef]:
    match = SELECTOR.match(name)
    if match is None:
        raise BadInputError(f"{name!r} names no expert: expected {_FORMS}")
    layer_text = match[1] or match[4]
    first, last = int(match[2] or 0), int(match[3] or match[2] or 0)
    if first > last:
        raise BadInputError(f"{name!r} names no expert: its range starts after its end")
    for layer in list(sizes) if layer_text == "*" else [int(layer_text)]:
        end = last if match[2] is not None else sizes.get(layer, 1) - 1
        require_experts([ExpertRef(layer, first), ExpertRef(layer, end)], sizes, model)
        yield from (ExpertRef(layer, e) for e in range(first, end + 1))
