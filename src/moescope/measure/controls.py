"""Random plans to hold a plan against: as many experts in each layer, of about the same load.

That removing experts does harm says little; what matters is whether these experts do more harm
than others would. A control takes as many other experts from every layer as the plan does, chosen
so that together they serve about as many tokens. It knows counts only, no model.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from moescope.axes import ExpertRef
from moescope.errors import BadInputError

CALIPER = 1.25
"""Loads within this factor count as matched, in every layer."""

DEFAULT_CONTROLS = 60
"""With 20 controls no p of a plan of two experts in a layer could fall below 0.05, for they share
experts; with 60 it can."""

_ENUMERATE = 5000
"""Up to so many possible controls are all looked at; of more, a random choice."""

_LEAST_CHOICE = 5
"""Experts that a control may draw from at least, in place of one expert of the plan."""

_SIMULATIONS = 20_000

Refs = tuple[ExpertRef, ...]
Draw = TypeVar("Draw")


class Controls(NamedTuple):
    """Control plans, all different; none where no others have a like load.

    ``plans``: sorted experts of each. ``ratios`` (n,): load of the plan over load of the control,
    all its layers together; 1 is a perfect match. ``worst`` (n,): the same in the layer where it is
    farthest from 1. ``possible``: how many different controls there are at all.
    """

    plans: tuple[Refs, ...]
    ratios: NDArray[np.float64]
    worst: NDArray[np.float64]
    possible: int

    @property
    def matched(self) -> bool:
        """Is every control within `CALIPER`, taken over all layers?"""
        near = (self.ratios >= 1 / CALIPER) & (self.ratios <= CALIPER)
        return bool(near.size and near.all())


def draw_controls(
    plan: Iterable[ExpertRef],
    counts: Mapping[int, NDArray[np.int64]],
    num: int,
    rng: np.random.Generator,
    *,
    by_load: bool = True,
) -> Controls:
    """Draw control plans.

    Args:
        plan: the experts to be held against others.
        counts: assignments of each expert, (E,) by layer.
        num: controls wanted; fewer come back where there are not so many different ones.
        rng: random numbers.
        by_load: only controls whose load is within `CALIPER` of the plan's in every layer, at
            random among them, however few they are: a control of another load shows what load
            does. False matches the number of experts only.

    Returns:
        See `Controls`.

    Raises:
        BadInputError: a plan without experts, or one that leaves fewer in a layer than it takes
            there.
    """
    require_room(plan, {layer: counts_E.size for layer, counts_E in counts.items()})
    pools = [_Pool(layer, experts, counts[layer]) for layer, experts in _by_layer(plan)]
    possible = math.prod(math.comb(pool.others.size, len(pool.taken)) for pool in pools)
    few = possible <= _ENUMERATE
    found = _all_of(pools) if few else _some_of(pools, num, rng, by_load)
    ratios = np.array([[p.ratio(c) for p, c in zip(pools, one, strict=True)] for one in found])
    farthest = np.abs(np.log(ratios)).argmax(1)
    worst = ratios[np.arange(len(found)), farthest]
    usable = np.abs(np.log(worst)) <= math.log(CALIPER) if by_load else np.ones(len(found), bool)
    order = np.sort(rng.permutation(np.flatnonzero(usable))[:num])
    plans = tuple(
        tuple(
            ExpertRef(pool.layer, e)
            for pool, experts in zip(pools, found[i], strict=True)
            for e in sorted(experts)
        )
        for i in order
    )
    totals = np.array([sum(counts[r.layer_idx][r.expert] for r in refs) for refs in plans], float)
    own = sum(pool.counts[pool.taken].sum() for pool in pools)
    return Controls(plans, (own + 0.5) / (totals + 0.5), worst[order], possible)


def require_room(plan: Iterable[ExpertRef], sizes: Mapping[int, int]) -> None:
    """Refuse a plan beside which a layer has not as many other experts.

    Raises:
        BadInputError: names the layer, or the plan has no expert.
    """
    layers = _by_layer(plan)
    if not layers:
        raise BadInputError("the plan names no expert, so there is nothing to draw controls for")
    for layer, taken in layers:
        if sizes[layer] < 2 * len(taken):
            raise BadInputError(
                f"layer {layer}: the plan takes {len(taken)} of {sizes[layer]} experts, which "
                "leaves too few for a control of the same size; take fewer experts, or measure "
                "without controls (`controls=0`)"
            )


class _Pool:
    """One layer: the plan's experts, the others, and their counts."""

    def __init__(self, layer: int, taken: list[int], counts_E: NDArray[np.int64]) -> None:
        self.layer, self.taken, self.counts = layer, taken, counts_E
        self.others = np.setdiff1d(np.arange(counts_E.size), taken)

    def ratio(self, chosen: Iterable[int]) -> float:
        """Load of the plan over load of these experts, in this layer; halves keep it finite."""
        mine, theirs = self.counts[self.taken].sum(), self.counts[list(chosen)].sum()
        return float((mine + 0.5) / (theirs + 0.5))

    def near(self, rng: np.random.Generator) -> tuple[int, ...]:
        """For each of the plan's experts another one of nearly its load, none twice."""
        chosen: list[int] = []
        for expert in rng.permutation(self.taken).tolist():
            ordered, within = self._neighbours[expert]
            free = [e for e in ordered[:within] if e not in chosen]
            if len(free) < _LEAST_CHOICE:
                free = [e for e in ordered if e not in chosen][:_LEAST_CHOICE]
            chosen.append(free[int(rng.integers(len(free)))])
        return tuple(sorted(chosen))

    @cached_property
    def _neighbours(self) -> dict[int, tuple[list[int], int]]:
        """Of each expert of the plan: all others by distance in load, and how many are matched."""
        logs, found = np.log(self.counts + 0.5), {}
        for expert in self.taken:
            far = np.abs(logs[self.others] - logs[expert])
            within = int((far <= math.log(CALIPER)).sum())
            found[expert] = (self.others[np.argsort(far, kind="stable")].tolist(), within)
        return found

    def any(self, rng: np.random.Generator) -> tuple[int, ...]:
        """As many others as the plan takes, whatever their load."""
        picked = rng.choice(self.others, len(self.taken), replace=False)
        return tuple(sorted(picked.tolist()))


def _by_layer(plan: Iterable[ExpertRef]) -> list[tuple[int, list[int]]]:
    layers: dict[int, list[int]] = {}
    for ref in sorted(plan):
        layers.setdefault(ref.layer_idx, []).append(ref.expert)
    return list(layers.items())


def _all_of(pools: list[_Pool]) -> list[tuple[tuple[int, ...], ...]]:
    each = (itertools.combinations(p.others.tolist(), len(p.taken)) for p in pools)
    return list(itertools.product(*each))


def _some_of(
    pools: list[_Pool], num: int, rng: np.random.Generator, by_load: bool
) -> list[tuple[tuple[int, ...], ...]]:
    """Different random plans, many more than wanted, so that enough of them are matched."""
    wanted = 20 * num if by_load else num
    # where near ones are soon exhausted, any others complete the number
    near = (by_load and attempt < 5 * wanted for attempt in range(10 * wanted))
    return distinct((tuple(p.near(rng) if n else p.any(rng) for p in pools) for n in near), wanted)


def distinct(draws: Iterable[Draw | None], number: int) -> list[Draw]:
    """The first different ones among some draws, at most this many; a draw may fail (None)."""
    found: dict[Draw, None] = {}
    for made in draws:
        if made is not None:
            found[made] = None
        if len(found) == number:
            break
    return list(found)


def substitutes(
    pools: Mapping[ExpertRef, Sequence[ExpertRef]], rng: np.random.Generator
) -> Refs | None:
    """For each expert one of its pool, none twice; None where one finds its pool used up."""
    chosen: list[ExpertRef] = []
    for pool in pools.values():
        free = [e for e in pool if e not in chosen]
        if not free:
            return None
        chosen.append(free[int(rng.integers(len(free)))])
    return tuple(chosen)


def lowest_p(chance: Sequence[float]) -> float:
    """The least p that these controls can give, if the plan does more harm than all of them.

    Args:
        chance: from `exceed_chance`.

    Returns:
        At least 1/(1 + controls); NaN without controls.
    """
    return max(chance[0], 1 / len(chance)) if chance else math.nan


def exceed_chance(plan: Iterable[ExpertRef], controls: Iterable[Refs], seed: int) -> list[float]:
    """How often a plan that is like any other has at most k controls as harmful as itself.

    Controls draw from the same few experts and never from the plan's own, so they are more like
    each other than like the plan, and a plan of no interest lies outside them more often than
    1/(n + 1). Here the harm of every expert is an independent normal number and that of a plan the
    sum over its experts; then what happens is counted.

    Args:
        plan: the experts of the plan.
        controls: the experts of each control.
        seed: of the random numbers.

    Returns:
        For k = 0 … n controls, the chance that at most k are as harmful as the plan: where no two
        controls share an expert exactly (k + 1)/(n + 1), else from 20,000 draws (standard error at
        most 0.004).
    """
    plans = [tuple(plan), *controls]
    place = {ref: i for i, ref in enumerate(sorted({r for p in plans for r in p}))}
    if len(place) == sum(map(len, plans)):
        return [(k + 1) / len(plans) for k in range(len(plans))]
    member = np.zeros((len(place), len(plans)))
    for j, refs in enumerate(plans):
        member[[place[r] for r in refs], j] = 1.0
    counted = np.zeros(len(plans), np.int64)
    for harm in _harm(member, np.random.default_rng([seed, 7])):
        beyond = (harm[:, 1:] >= harm[:, :1]).sum(1)
        counted += np.bincount(beyond, minlength=len(plans))
    chance: list[float] = (np.cumsum(counted) / _SIMULATIONS).tolist()
    return chance


def _harm(
    member_XJ: NDArray[np.float64], rng: np.random.Generator
) -> Iterator[NDArray[np.float64]]:
    step = 2000
    for _ in range(_SIMULATIONS // step):
        yield rng.standard_normal((step, member_XJ.shape[0])) @ member_XJ
