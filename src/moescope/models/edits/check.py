"""Which edits can be carried out together on a model, before anything runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from moescope.errors import BadInputError
from moescope.models.anatomy import Anatomy, MoELayer
from moescope.models.edits.edit import Edit
from moescope.models.edits.kinds import by_kind, num_chosen

__all__ = ["check_edits"]


def check_edits(anatomy: Anatomy, edits: Sequence[Edit]) -> None:
    """Refuse edits that cannot be carried out together on this model, before anything runs.

    Raises:
        BadInputError: an expert or layer that does not exist, fewer experts left than a token
            needs, more forced than fit, an expert both masked and forced, K out of range, or K
            changed at some positions only.
    """
    for edit in edits:
        if not isinstance(edit, Edit):
            raise BadInputError(f"{edit!r} is no edit; expected mask(...), zero(...) and the like")
        edit.check(anatomy)
    for layer in anatomy.layers:
        here = [e for e in edits if e.concerns(layer)]
        k = num_chosen(here, layer)
        for position, meeting in _meetings([e for e in here if e.done]):
            _check_room(layer, k, meeting, position)


def _meetings(edits: Sequence[Edit]) -> Iterator[tuple[int | None, list[Edit]]]:
    """Which edits meet: away from all named positions (None), and once for each other company."""
    everywhere = tuple(i for i, e in enumerate(edits) if e.positions is None)
    at: dict[int, tuple[int, ...]] = {}
    for i, edit in enumerate(edits):
        for position in edit.positions or ():
            at[position] = (*at.get(position, everywhere), i)
    companies: dict[tuple[int, ...], int | None] = {everywhere: None}
    for position in sorted(at):
        companies.setdefault(at[position], position)
    for company, first in companies.items():
        yield first, [edits[i] for i in company]


def _check_room(layer: MoELayer, k: int, edits: Sequence[Edit], position: int | None) -> None:
    """Do the edits that meet leave a token its choice?"""
    where = f"layer {layer.layer_idx}" + ("" if position is None else f", position {position}")
    named = {
        kind: {r for e in own for r in e.experts if r.layer_idx == layer.layer_idx}
        for kind, own in by_kind(edits)
    }
    for kind, refs in named.items():
        room = kind.room(layer, k)
        if room is not None and len(refs) > room:
            raise BadInputError(
                f"{where}: {kind.kind} names {len(refs)} of {layer.num_experts} experts, but a "
                f"token takes {k}, so at most {room} can be {kind.done}"
            )
    for one, other in combinations(named, 2):
        if both := sorted(named[one] & named[other]):
            raise BadInputError(
                f"{where}: {both[0]} is both {one.done} and {other.done}; leave one of them out"
            )
