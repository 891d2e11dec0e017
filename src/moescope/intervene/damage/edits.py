"""The edits by which damage is measured, by the names that the command line uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from moescope.axes import ExpertRef
from moescope.errors import BadInputError
from moescope.models.edits import Edit, mask, scale, zero

__all__ = ["DamageEdit", "damage_edit"]

NAMES = "zero, zero-renormalize, mask, scale=FACTOR"


class DamageEdit(NamedTuple):
    """A way to take experts away.

    ``name`` as it was asked for; ``make`` turns experts into the edit; ``words`` say what happens
    to a token that would have used one.
    """

    name: str
    make: Callable[[Sequence[ExpertRef]], Edit]
    words: str


def damage_edit(name: str) -> DamageEdit:
    """The edit of that name.

    ``zero``: chosen as before, but contributes nothing. ``zero-renormalize``: the token's other
    experts are scaled up to the same sum of weights. ``mask``: cannot be chosen; the router takes
    the next best. ``scale=0.5``: its weight is multiplied.

    Raises:
        BadInputError: another name, or a factor that is no number or is 1.

    Example:
        >>> str(damage_edit("scale=0.5").make([ExpertRef(5, 9)]))
        'L5E9 × 0.5'
    """
    kind, _, value = name.partition("=")
    if kind == "scale" and value:
        return _scaled(name, value)
    if name == "zero":
        return DamageEdit(name, zero, "chosen as before, but contributing nothing")
    if name == "zero-renormalize":
        return DamageEdit(
            name,
            lambda refs: zero(refs, renormalize=True),
            "chosen as before, but contributing nothing, with the token's other experts scaled up",
        )
    if name == "mask":
        return DamageEdit(name, mask, "not to be chosen, so that the router takes the next best")
    raise BadInputError(f"`edit` {name!r} is unknown; choose {NAMES}")


def _scaled(name: str, value: str) -> DamageEdit:
    try:
        factor = float(value)
    except ValueError:
        raise BadInputError(
            f"`edit` {name!r}: {value!r} is no number; give a factor such as scale=0.5"
        ) from None
    if factor == 1.0 or not abs(factor) < 1e6:
        raise BadInputError(
            f"`edit` {name!r}: nothing can be measured with a factor of {value}; give another, "
            "such as scale=0.5"
        )
    return DamageEdit(
        name, lambda refs: scale(refs, factor), f"chosen as before, their weight times {factor:g}"
    )
