"""The same edit on other experts of the same layers: is the chosen expert anything special?

An edit that takes something away (mask, zero, scale, a negative bias) can only act where its
expert is chosen, so its controls are drawn among the experts that were chosen there too: others
would do nothing and make any effect look large.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from moescope.axes import ExpertRef
from moescope.intervene.steering.passes import Look
from moescope.intervene.steering.use import common_positions
from moescope.measure.controls import distinct, substitutes
from moescope.metrics.statistics import permutation_p
from moescope.models.anatomy import Anatomy
from moescope.models.edits import Edit
from moescope.words import counted

MOST_CONTROLS = 10_000
"""Each is a pass of the model."""

_ATTEMPTS = 60

Substitutes = Mapping[ExpertRef, ExpertRef]


class Control(NamedTuple):
    """One control: the experts in the places of the chosen ones, and what their edit did.

    ``kl`` in nats; ``word_changes``: change of the logit of each word; ``positions``: how often
    the substitutes were chosen, before, at the tokens where the edits hold.
    """

    experts: tuple[str, ...]
    kl: float
    word_changes: tuple[float, ...]
    positions: int


class Standing(NamedTuple):
    """Where the chosen experts stand among the controls.

    ``rank``: 1 is the largest effect, out of n + 1. ``p``: (1 + controls at least as large) /
    (1 + n), one-sided, never below 1/(n + 1).
    """

    rank: int
    p: float


@dataclass(frozen=True)
class Controls:
    """All controls of an edit.

    Attributes:
        draws: one for each.
        kl: standing of the divergence, None without controls.
        words: standing of the absolute change of each word's logit.
        asked: how many were asked for.
        chosen_only: controls were drawn among experts that were chosen where the edit holds.
        note: why there are fewer than were asked for, or how they are unlike; may be empty.
    """

    draws: tuple[Control, ...]
    kl: Standing | None
    words: tuple[Standing, ...]
    asked: int
    chosen_only: bool
    note: str


def draw_controls(
    anatomy: Anatomy, edits: Sequence[Edit], plain: Look, number: int, seed: int
) -> tuple[list[Substitutes], bool, str]:
    """Random substitutes for the edited experts, each draw another.

    Returns:
        The draws, whether any was limited to experts chosen there, and why there are fewer than
        asked for (empty when there are not).
    """
    experts = sorted({e for edit in edits for e in edit.experts})
    if not experts or number <= 0:
        return [], False, ""
    pools = {e: _pool(anatomy, e, experts, edits, plain) for e in experts}
    limited = any(_takes_away(e, edits) for e in experts)
    rng = np.random.default_rng(seed)
    drawn = distinct((substitutes(pools, rng) for _ in range(_ATTEMPTS * number)), number)
    for layer in anatomy.select(tuple(sorted({e.layer_idx for e in experts}))):
        if layer.num_experts == sum(e.layer_idx == layer.layer_idx for e in experts):
            why = f"No control: the edit names every expert of layer {layer.layer_idx}."
            return [], limited, why
    made: list[Substitutes] = [dict(zip(experts, others, strict=True)) for others in drawn]
    return made, limited, _shortage(len(made), number, limited)


def _shortage(found: int, asked: int, limited: bool) -> str:
    if found == asked:
        return ""
    of = "that were chosen where the edit holds" if limited else "in these layers"
    if found:
        return f"{found} of {counted(asked, 'control')}: there are no more other experts {of}."
    return f"No control: too few other experts {of}."


def _unlike(
    experts: Sequence[ExpertRef], edits: Sequence[Edit], plain: Look, made: Sequence[Control]
) -> str:
    """A word of warning where the edited experts were busier than every control."""
    own, most = _times_chosen(experts, experts, edits, plain), max(c.positions for c in made)
    if own <= most:
        return ""
    return (
        f"The edited experts were chosen {own} times there, the controls at most {most} times: "
        "part of the difference is how busy they were."
    )


def _takes_away(expert: ExpertRef, edits: Sequence[Edit]) -> bool:
    return any(edit.takes_away for edit in edits if expert in edit.experts)


def _pool(
    anatomy: Anatomy,
    expert: ExpertRef,
    experts: Sequence[ExpertRef],
    edits: Sequence[Edit],
    plain: Look,
) -> list[ExpertRef]:
    layer = next(m for m in anatomy.layers if m.layer_idx == expert.layer_idx)
    others = [ExpertRef(layer.layer_idx, e) for e in range(layer.num_experts)]
    others = [e for e in others if e not in experts]
    if not _takes_away(expert, edits):
        return others
    return [e for e in others if _times_chosen([e], [expert], edits, plain)]


def _times_chosen(
    substitutes: Sequence[ExpertRef],
    experts: Sequence[ExpertRef],
    edits: Sequence[Edit],
    plain: Look,
) -> int:
    """How often the substitutes were chosen at the tokens where the edits of the experts hold."""
    total = 0
    for substitute, expert in zip(substitutes, experts, strict=True):
        chose = plain.choices[expert.layer_idx].chose(substitute.expert)
        at = common_positions(edits, expert)
        total += int((chose if at is None else chose[list(at)]).sum())
    return total


def substituted(edits: Sequence[Edit], by: Substitutes) -> list[Edit]:
    """The same edits on the substitutes."""
    return [replace(e, experts=tuple(sorted(by[x] for x in e.experts))) for e in edits]


def stand(value: float, controls: Sequence[float]) -> Standing:
    """Rank and p of a value among its controls; larger is more extreme.

    Example:
        >>> stand(3.0, [1.0, 2.0, 3.0, 4.0])       # one above, one equal
        Standing(rank=2, p=0.6)
    """
    p = permutation_p(value, [np.asarray(controls)], slack=0.0)
    return Standing(1 + sum(c > value for c in controls), float(p))


def run_controls(
    anatomy: Anatomy,
    edits: Sequence[Edit],
    plain: Look,
    *,
    number: int,
    seed: int,
    measure: Callable[[Sequence[Edit]], tuple[float, tuple[float, ...]]],
) -> Controls:
    """Carry the controls out and say where the chosen experts stand.

    ``measure`` gives the divergence and the changes of the words' logits under some edits.
    """
    draws, limited, note = draw_controls(anatomy, edits, plain, number, seed)
    experts = sorted({e for edit in edits for e in edit.experts})
    made = []
    for by in draws:
        kl, words = measure(substituted(edits, by))
        several = [by[e] for e in experts]
        times = _times_chosen(several, experts, edits, plain)
        made.append(Control(tuple(map(str, several)), kl, words, times))
    if not made:
        return Controls((), None, (), number, limited, note)
    kl, words = measure(edits)
    if limited:
        note = " ".join(filter(None, [note, _unlike(experts, edits, plain, made)]))
    return Controls(
        draws=tuple(made),
        kl=stand(kl, [c.kl for c in made]),
        words=tuple(
            stand(abs(w), [abs(c.word_changes[i]) for c in made]) for i, w in enumerate(words)
        ),
        asked=number,
        chosen_only=limited,
        note=note,
    )
