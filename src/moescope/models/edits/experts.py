"""How experts are named: ``L5E9`` and its kin, each checked against the model."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Sequence

from moescope.axes import SELECTOR, ExpertRef, named_experts, require_experts
from moescope.errors import BadInputError
from moescope.given import WHOLE
from moescope.models.anatomy import Anatomy

_ONE = re.compile(rf"^L{WHOLE}E{WHOLE}$", re.IGNORECASE)

Experts = str | ExpertRef | Sequence[str | ExpertRef]


def refs(experts: Experts) -> tuple[ExpertRef, ...]:
    """The experts that are named one by one, without an anatomy.

    Raises:
        BadInputError: none, or what names no expert or perhaps many.
    """
    several = [experts] if isinstance(experts, str | ExpertRef) else list(experts)
    for e in several:
        if not isinstance(e, str | ExpertRef):
            raise BadInputError(f"{e!r} names no expert: expected L5E9 or an ExpertRef")
        if isinstance(e, str) and SELECTOR.match(e.strip()) and not _ONE.match(e.strip()):
            raise BadInputError(
                f"{e!r} may stand for many experts, and how many depends on the model; give "
                "parse_experts(anatomy, ...) of it"
            )
    if not several:
        raise BadInputError("an edit needs at least one expert; none was named")
    found = (e if isinstance(e, ExpertRef) else ExpertRef.parse(e) for e in several)
    return tuple(sorted(set(found)))


def whole(number: int, what: str) -> int:
    """The number, if it is a whole one from 0 on.

    Raises:
        BadInputError: it is not; says what it was for.
    """
    try:
        found = operator.index(number)
    except TypeError:
        found = -1
    if found < 0:
        raise BadInputError(f"{what} must be a whole number from 0 on, got {number!r}")
    return found


def parse_experts(
    anatomy: Anatomy, selectors: str | Sequence[str], *, expect: int | None = None
) -> tuple[ExpertRef, ...]:
    """The experts that selectors name, each checked against the model.

    Args:
        anatomy: of the model.
        selectors: ``L5E9``, ``L5E0-7``, ``L5E*`` (a whole layer), ``L*E3`` (one number everywhere).
        expect: how many experts must match; another number is an error.

    Raises:
        BadInputError: a selector of another form, an expert that does not exist (says which do), or
            a number of matches other than ``expect``.
    """
    sizes = {m.layer_idx: m.num_experts for m in anatomy.layers}
    found = sorted(set(named_experts(selectors, sizes, f"this {anatomy.model_type} model")))
    if expect is not None and len(found) != expect:
        named = selectors if isinstance(selectors, str) else " ".join(selectors)
        raise BadInputError(
            f"{named} selects {len(found)} experts, expected {expect}; nothing was changed"
        )
    return tuple(found)


def check_exist(anatomy: Anatomy, experts: Iterable[ExpertRef]) -> None:
    """Refuse experts that the model does not have.

    Raises:
        BadInputError: names the first of them and the range that exists.
    """
    sizes = {m.layer_idx: m.num_experts for m in anatomy.layers}
    require_experts(experts, sizes, f"this {anatomy.model_type} model")
