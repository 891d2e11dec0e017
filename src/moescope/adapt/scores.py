"""Scores that say which experts serve a domain, and the rules that choose by them. Arrays only.

Shapes: M experts of all layers in order, ``sizes`` of them in each layer. Sums may have leading
axes, one entry for each resample of the documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moescope.errors import BadInputError
from moescope.words import listing, near_names

Floats = NDArray[np.float64]

SCORES: dict[str, str] = {
    "token": "share of the domain's assignments in the layer: N_e / Σ N",
    "gate": "share of the domain's gate mass in the layer: Σ w_e / Σ w",
    "lift": "rate in the domain over the rate in the other text (½ added to every count)",
    "risk-difference": "rate in the domain minus the rate in the other text",
    "random": "a random number, for a choice to compare others with",
    "least": "minus the share of the domain's assignments: the least used first",
}
"""Score → formula."""

OF_USE = ("token", "gate", "lift", "risk-difference")
"""Those whose shares of a layer are shares of something, so that a part of it can be covered."""


class Sums(NamedTuple):
    """Of some documents: ``counts`` and gate ``mass`` (…, M), ``tokens`` (…, 1)."""

    counts: Floats
    mass: Floats
    tokens: Floats

    def plus(self, other: Sums, sign: int = 1) -> Sums:
        """Both together, or without the other."""
        return Sums(*(a + sign * b for a, b in zip(self, other, strict=True)))


def scored(
    score: str, inside: Sums, outside: Sums, sizes: Sequence[int], random_M: Floats
) -> tuple[Floats, Floats]:
    """The score of every expert, and its share of the layer's.

    Args:
        score: one of `SCORES`.
        inside: of the domain.
        outside: of the text to compare with.
        sizes: experts of each layer.
        random_M: numbers in (0, 1) for ``random``.

    Returns:
        Score and share, each (…, M). The share is what an expert has of the sum over its layer, of
        what is above 0: of the score itself (``token``, ``gate``, ``risk-difference``, ``random``),
        of its logarithm (``lift``), of the distance to the most used (``least``). 0 for an expert
        of which the score says nothing.
    """
    rate, other = inside.counts / inside.tokens, outside.counts / outside.tokens
    load = _shares(inside.counts, sizes)
    if score == "lift":
        value = (inside.counts + 0.5) / (inside.tokens + 1)
        value = value / ((outside.counts + 0.5) / (outside.tokens + 1))
        return value, _shares(np.log2(value), sizes)
    if score == "least":
        return -load, _shares(_largest(load, sizes) - load, sizes)
    value = {
        "token": load,
        "gate": _shares(inside.mass, sizes),
        "risk-difference": rate - other,
        "random": np.broadcast_to(random_M, load.shape),
    }[score]
    return value, _shares(value, sizes)


def _starts(sizes: Sequence[int]) -> NDArray[np.int64]:
    return np.cumsum([0, *sizes[:-1]])


def _shares(value: Floats, sizes: Sequence[int]) -> Floats:
    """What each has of the positive part of its layer; 0 where the layer has none."""
    part = np.maximum(value, 0.0)
    total = np.repeat(np.add.reduceat(part, _starts(sizes), axis=-1), sizes, axis=-1)
    share: Floats = np.divide(part, total, out=np.zeros_like(part), where=total > 0)
    return share


def _largest(value: Floats, sizes: Sequence[int]) -> Floats:
    most: Floats = np.maximum.reduceat(value, _starts(sizes), axis=-1)
    return np.repeat(most, sizes, axis=-1)


class Rule(NamedTuple):
    """How many experts are chosen; one of the three is given.

    ``per_layer``: so many of each layer. ``top_p``: of each layer the fewest whose shares add up
    to so much. ``budget``: so large a share of all experts, those with the largest shares of their
    layers. An expert whose share is 0 is never chosen.
    """

    per_layer: int | None = None
    top_p: float | None = None
    budget: float | None = None

    def choose(self, share_M: Floats, sizes: Sequence[int]) -> NDArray[np.bool_]:
        """Who is chosen, (M,). Of equals the first.

        Example: half of the first layer's share, then one expert of each.
            >>> share = np.array([0.2, 0.5, 0.3, 0.9, 0.1, 0.0])
            >>> Rule(top_p=0.6).choose(share, [3, 3]).nonzero()[0].tolist()
            [1, 2, 3]
            >>> Rule(per_layer=1).choose(share, [3, 3]).nonzero()[0].tolist()
            [1, 3]
            >>> Rule(budget=0.5).choose(share, [3, 3]).nonzero()[0].tolist()
            [1, 2, 3]
        """
        chosen = np.zeros(share_M.size, np.bool_)
        if self.budget is not None:
            order = np.argsort(-share_M, kind="stable")
            chosen[order[: self.size(share_M.size)]] = True
            return chosen & (share_M > 0)
        for start, size in zip(_starts(sizes), sizes, strict=True):
            own = share_M[start : start + size]
            order = np.argsort(-own, kind="stable")
            if self.per_layer is not None:
                taken = order[: self.per_layer]
            else:
                before = np.cumsum(own[order]) - own[order]
                taken = order[before < float(self.top_p or 0) - 1e-9]
            chosen[start + taken] = True
        return chosen & (share_M > 0)

    def size(self, experts: int) -> int:
        """Experts that a budget has room for."""
        return int(float(self.budget or 0) * experts + 1e-9)

    def require(self, score: str, sizes: Sequence[int]) -> None:
        """Refuse a rule that chooses nothing, or everything, or by a score that has no parts.

        Raises:
            BadInputError: no such score, not one of the three, or a number out of range.
        """
        if score not in SCORES:
            raise BadInputError(f"`score` {score!r} is unknown; {near_names(score, SCORES)}")
        given = [name for name, value in self._asdict().items() if value is not None]
        if len(given) != 1:
            got = f"got {listing(f'`{n}`' for n in given)}" if given else "none was given"
            raise BadInputError(
                "say how many experts to choose, by one of `per_layer=2`, `top_p=0.2` and "
                f"`budget=5%`; {got}"
            )
        if self.per_layer is not None and not 1 <= self.per_layer < min(sizes):
            raise BadInputError(
                f"`per_layer={self.per_layer}` leaves nothing to choose in a layer of {min(sizes)} "
                f"experts; give 1 to {min(sizes) - 1}"
            )
        if self.top_p is not None:
            if not 0 < self.top_p < 1:
                raise BadInputError(f"`top_p={self.top_p:g}` is no share; give one between 0 and 1")
            if score not in OF_USE:
                raise BadInputError(
                    f"`top_p` covers a share of use, which `score={score}` is not; give "
                    "`per_layer` or `budget`"
                )
        if self.budget is not None:
            _require_budget(self.budget, self.size(sum(sizes)), sum(sizes))


def _require_budget(budget: float, size: int, experts: int) -> None:
    if not 0 < budget < 1:
        raise BadInputError(
            f"`budget={100 * budget:g}%` is no part of the experts; give 0 % to 100 %"
        )
    if size < 1:
        raise BadInputError(
            f"`budget={100 * budget:g}%` of {experts} experts is none; one is "
            f"{100 / experts:.2g}%, so give at least that"
        )
