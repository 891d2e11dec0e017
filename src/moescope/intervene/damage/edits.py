"""The edits by which damage is measured, by the names that the command line uses."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from moescope.axes import ExpertRef
from moescope.errors import BadInputError
from moescope.models.edits import KINDS, Edit


class DamageEdit(NamedTuple):
    """A way to take experts away.

    ``name`` as it was asked for; ``make`` turns experts into the edit; ``words`` say what happens
    to a token that would have used one.
    """

    name: str
    make: Callable[[Sequence[ExpertRef]], Edit]
    words: str

    @property
    def setting(self) -> str | None:
        """What steering calls it, as a plan has it; None where it has no word for it.

        Example:
            >>> damage_edit("scale=0.5").setting, damage_edit("zero-renormalize").setting
            ('x0.5', None)
        """
        name = self.name.replace("scale=", "x", 1)
        return name if any(re.fullmatch(kind.written, name) for kind in KINDS) else None


def edit_of(settings: Collection[str | None]) -> str | None:
    """The name of the edit that is all that a plan says to do; None where it says another thing.

    Example:
        >>> edit_of({"x0.5"}), edit_of({"mask", "+2.0"})
        ('scale=0.5', None)
    """
    (only, *others) = settings
    if only is None or others:
        return None
    name = re.sub("^x", "scale=", only, flags=re.IGNORECASE)
    return name if any(kind.removal(name) for kind in KINDS) else None


def damage_edit(name: str) -> DamageEdit:
    """The edit of that name.

    ``zero``: chosen as before, but contributes nothing. ``zero-renormalize``: the token's other
    experts are scaled up to the same sum of weights. ``mask``: cannot be chosen; the router takes
    the next best. ``scale=0.5``: its weight is multiplied.

    Raises:
        BadInputError: another name, or a factor that is not a number or is 1.

    Example:
        >>> str(damage_edit("scale=0.5").make([ExpertRef(5, 9)]))
        'L5E9 × 0.5'
    """
    for kind in KINDS:
        if (found := kind.removal(name)) is not None:
            return DamageEdit(name, *found)
    names = ", ".join(name for kind in KINDS for name in kind.removals)
    raise BadInputError(f"`edit` {name!r} is unknown; choose {names}")
