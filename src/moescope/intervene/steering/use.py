"""Where edited experts were chosen, before and after; and whether an edit could do anything at all.

The commonest failure of steering is silence: the edit is carried out and nothing reads it. `why`
says in words what happened, from what was captured and never from what should have happened.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from moescope.axes import ExpertRef
from moescope.intervene.steering.passes import Continuation, LayerChoice, Look
from moescope.models.anatomy import Anatomy
from moescope.models.edits import Edit

_SLACK = 8
"""Weights that differ by no more than so many roundings of their precision are the same."""


class Choice(NamedTuple):
    """What one edited layer chose for one token: ``(expert, weight)`` by descending weight."""

    layer_idx: int
    position: int
    before: tuple[tuple[int, float], ...]
    after: tuple[tuple[int, float], ...]


class ExpertUse(NamedTuple):
    """How often an edited expert was chosen where its edit holds.

    ``positions``: prompt tokens that the edit holds at; ``chosen_before`` and ``chosen_after``:
    those that chose the expert. ``rank_before``: the rank (from 1) of its router logit in the
    unedited pass at the last of these tokens. ``written_*``: the same counts over generated tokens
    that were fed back, None where the edit ends with the prompt or nothing was generated.
    """

    expert: str
    positions: int
    chosen_before: int
    chosen_after: int
    rank_before: int
    written_before: tuple[int, int] | None
    written_after: tuple[int, int] | None


class Effect(NamedTuple):
    """What became of the edits on the way to the next token.

    ``kind``: ``none`` (the same logits bit for bit), ``rounding`` (the routers chose and weighted
    as before up to rounding), ``some``. ``notes``: lines for the reader, worst first; empty when
    there is nothing to warn of.
    """

    kind: Literal["none", "rounding", "some"]
    notes: tuple[str, ...]


def uses_of(
    edits: Sequence[Edit],
    looks: tuple[Look, Look],
    written: tuple[Continuation, Continuation] | None,
) -> list[ExpertUse]:
    """Every expert that an edit names, in order."""
    experts = sorted({e for edit in edits for e in edit.experts})
    return [_use(e, edits, looks, written) for e in experts]


def common_positions(
    edits: Iterable[Edit], expert: ExpertRef | None = None
) -> tuple[int, ...] | None:
    """All positions that edits, or those of one expert, hold at; None when one holds everywhere."""
    found = [e.positions for e in edits if expert is None or expert in e.experts]
    if None in found:
        return None
    return tuple(sorted({p for positions in found for p in positions or ()}))


def _use(
    expert: ExpertRef,
    edits: Sequence[Edit],
    looks: tuple[Look, Look],
    written: tuple[Continuation, Continuation] | None,
) -> ExpertUse:
    layer, number = expert
    positions = common_positions(edits, expert)
    everywhere = positions is None
    at = list(range(len(looks[0].choices[layer].ids)) if positions is None else positions)
    counts = [int(k.choices[layer].chose(number)[at].sum()) for k in looks]
    logits = looks[0].choices[layer].logits[at[-1]]
    rank = 1 + int((logits > logits[number]).sum())
    fed = [_fed(w, expert) for w in written] if written and everywhere else [None, None]
    return ExpertUse(str(expert), len(at), counts[0], counts[1], rank, fed[0], fed[1])


def _fed(written: Continuation, expert: ExpertRef) -> tuple[int, int]:
    choice = written.choices.get(expert.layer_idx)
    if choice is None:
        return 0, 0
    return int(choice.chose(expert.expert).sum()), len(choice.ids)


def choices_at(
    layers: Sequence[int], positions: Sequence[int], looks: tuple[Look, Look]
) -> list[Choice]:
    """The choices of these layers at these tokens, before and after."""
    return [
        Choice(n, p, *(_pairs(k.choices[n], p) for k in looks)) for n in layers for p in positions
    ]


def _pairs(choice: LayerChoice, position: int) -> tuple[tuple[int, float], ...]:
    row = zip(choice.ids[position].tolist(), choice.weights[position].tolist(), strict=True)
    return tuple((int(e), float(w)) for e, w in row)


def effect_of(
    anatomy: Anatomy,
    edits: Sequence[Edit],
    looks: tuple[Look, Look],
    uses: Sequence[ExpertUse],
    last: int,
) -> Effect:
    """Did the edits reach the next token, and if not, why?"""
    same_logits = np.array_equal(looks[0].logits, looks[1].logits)
    same_routing = all(_same(looks[0].choices[n], looks[1].choices[n]) for n in looks[0].choices)
    notes = [note for edit in edits if (note := _idle(edit, uses))]
    if same_routing:
        head = (
            "The edit changed nothing in this prompt: the edited routers chose and weighted exactly"
            " as before."
            if same_logits
            else "The edit changed nothing but rounding in this prompt: the edited routers chose "
            "as before, with the same weights up to their precision."
        )
        return Effect("none" if same_logits else "rounding", (head, *notes))
    if same_logits:
        return Effect("none", (_unread(anatomy, edits, last), *notes))
    return Effect("some", tuple(notes))


def _same(a: LayerChoice, b: LayerChoice) -> bool:
    """The same experts with the same weights, whatever the order of equal ones."""
    if a.ids.shape != b.ids.shape:
        return False
    first, second = a.ids.argsort(-1), b.ids.argsort(-1)
    ids = [np.take_along_axis(c.ids, o, -1) for c, o in ((a, first), (b, second))]
    weights = [np.take_along_axis(c.weights, o, -1) for c, o in ((a, first), (b, second))]
    close = np.allclose(weights[0], weights[1], rtol=_SLACK * a.eps, atol=0.0)
    return bool(np.array_equal(ids[0], ids[1])) and close


def _idle(edit: Edit, uses: Sequence[ExpertUse]) -> str | None:
    """Why an edit could do nothing at the tokens it holds at; None when it could."""
    mine = [u for u in uses if u.expert in {str(e) for e in edit.experts}]
    if not mine:
        return None
    where = f"the {mine[0].positions} tokens" if mine[0].positions > 1 else "the token"
    why = edit.idle(mine, where, mine[0].expert if len(mine) == 1 else "any of these experts")
    return why and f"{edit}: {why}"


def _unread(anatomy: Anatomy, edits: Sequence[Edit], last: int) -> str:
    """The routing changed and the next token's logits did not."""
    end = anatomy.num_decoder_layers - 1
    layers = {e.layer_idx for edit in edits for e in edit.experts}
    elsewhere = all(edit.positions is not None and last not in edit.positions for edit in edits)
    if layers == {end} and elsewhere:
        return (
            f"The routing changed, and the next token could not: layer {end} is the last one, and "
            "what it writes at a token reaches the prediction at that token only. Take the last "
            f"token (`target={last}`), or an expert of an earlier layer."
        )
    return "The routing changed, and the logits of the next token are the same bit for bit."
