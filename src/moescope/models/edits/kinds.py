"""The kinds of edits, in the order in which those of one layer are applied.

The order is fixed, whatever the order in which edits were given, so edits compose:

1. on the router's logits: ``bias`` adds, then ``mask`` sets to minus infinity;
2. on the router: ``top_k`` changes how many experts are chosen (of several, the last given holds);
   then the model's own router decides, with its own scoring, groups, biases and normalisation;
3. on the choice: ``force`` brings an expert into the top k;
4. on the weights: ``zero`` (first where the rest is scaled up), then ``scale``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from typing import Any

from moescope.errors import BadInputError
from moescope.models.anatomy import Anatomy, MoELayer
from moescope.models.edits.bias import Bias
from moescope.models.edits.edit import Edit
from moescope.models.edits.force import Force
from moescope.models.edits.mask import Mask
from moescope.models.edits.scale import Scale
from moescope.models.edits.top_k import TopK
from moescope.models.edits.zero import Zero
from moescope.words import brief

KINDS: tuple[type[Edit], ...] = (Bias, Mask, TopK, Force, Zero, Scale)


BY_NAME = {kind.kind: kind for kind in KINDS}

Edits = Edit | Sequence[Edit]
"""One edit or several."""


def by_kind(edits: Iterable[Edit]) -> Iterator[tuple[type[Edit], list[Edit]]]:
    """The kinds that occur, in the order of application, each with its edits as they were given."""
    several = list(edits)
    for kind in KINDS:
        if own := [edit for edit in several if type(edit) is kind]:
            yield kind, own


def num_chosen(edits: Sequence[Edit], layer: MoELayer) -> int:
    """How many experts a token of this layer takes under these edits."""
    wanted = [edit.num_chosen for edit in edits if edit.num_chosen is not None]
    return wanted[-1] if wanted else layer.top_k


def check_edits(anatomy: Anatomy, edits: Sequence[Edit]) -> None:
    """Refuse edits that cannot be carried out together on this model, before anything runs.

    Raises:
        BadInputError: an expert or layer that does not exist, fewer experts left than a token
            needs, more forced than fit, an expert both masked and forced, K out of range, or K
            changed at some positions only.
    """
    for edit in edits:
        if not isinstance(edit, Edit):
            raise BadInputError(
                f"{edit!r} is not an edit; expected mask(...), zero(...) and the like"
            )
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


def as_edits(given: Edits) -> list[Edit]:
    """One edit or several, as a list.

    Raises:
        BadInputError: something else, or none.
    """
    several: list[Any] = list(given) if isinstance(given, list | tuple) else [given]
    if odd := [e for e in several if not isinstance(e, Edit)]:
        names = ", ".join(BY_NAME)
        raise BadInputError(
            f"an edit is what {names} gives, such as mask('L5E9'); got {brief(odd[0], 60)}"
        )
    return several
