"""What every kind of edit has: data, what may be asked of it, and where it steps in."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol, Self

from moescope.axes import ExpertRef
from moescope.errors import BadInputError
from moescope.lazy import Later
from moescope.models.anatomy import Anatomy, MoELayer
from moescope.models.edits.experts import check_exist, whole

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from moescope.models.window import PassWindow
else:
    torch = Later("torch")

NUMBER = r"[0-9]+(?:\.[0-9]*)?(?:e[+-]?[0-9]+)?|\.[0-9]+(?:e[+-]?[0-9]+)?"
"""A number as it is written behind a sign or an x."""

Removal = tuple[Callable[[Sequence[ExpertRef]], "Edit"], str]
"""What takes experts away, and what happens then to a token that would have used one, in words."""


class Chosen(NamedTuple):
    """What a router put out, as rows. ``real_ids`` gives a skip expert its own number."""

    logits: Tensor
    ids: Tensor
    weights: Tensor
    real_ids: Tensor


class Use(Protocol):
    """How often an expert was chosen where an edit holds."""

    @property
    def positions(self) -> int: ...
    @property
    def chosen_before(self) -> int: ...
    @property
    def chosen_after(self) -> int: ...
    @property
    def rank_before(self) -> int: ...


@dataclass(frozen=True)
class Edit:
    """One thing done to some experts; made by `mask`, `zero`, `scale`, `bias`, `force`, `top_k`.

    A kind is a subclass in a file of its own, listed in `moescope.models.edits.kinds.KINDS` in the
    order of application. It says what it is in the attributes below and steps in at the methods.

    Attributes:
        experts: to which experts; empty for ``top_k``.
        positions: columns of the sequence (0 is the first token that the model reads, BOS
            included); None means everywhere.
        kind: its name.
        written: how ``EXPERTS=VALUE`` gives it, a regular expression; its group ``number`` may be
            the letter s. Empty where it cannot be written.
        form: how a number is written, for a person.
        unit: what the number is; empty where the kind takes none.
        neutral: the number that changes nothing.
        removes: does nothing of the experts stay?
        bars: can the experts not be chosen?
        changes_logits: does it step in at `on_logits`?
        done: what was done to the experts, where only so many can be at once (see `room`).
        only_where_chosen: does a token that chose none of the experts stay exactly as it was?
        takes_away: can only a token that chose the experts lose by it?
        factor: what it multiplies an expert's weight by wherever chosen, if that is all it does.
        num_chosen: how many experts a token is to choose, where the edit says so.
        removals: names that ``--edit`` has for it.
    """

    experts: tuple[ExpertRef, ...] = ()
    positions: tuple[int, ...] | None = field(default=None, kw_only=True)

    kind: ClassVar[str]
    written: ClassVar[str] = ""
    form: ClassVar[str] = ""
    unit: ClassVar[str] = ""
    neutral: ClassVar[float] = 0.0
    removes: ClassVar[bool] = False
    bars: ClassVar[bool] = False
    changes_logits: ClassVar[bool] = False
    done: ClassVar[str] = ""
    removals: ClassVar[tuple[str, ...]] = ()

    def at(self, positions: Iterable[int]) -> Self:
        """The same edit at these positions only.

        Raises:
            BadInputError: a position that is not a whole number from 0 on, or none at all.
        """
        wanted = tuple(sorted({whole(p, "a position") for p in positions}))
        if not wanted:
            raise BadInputError(f"{self}: at() names no position, so the edit would do nothing")
        return replace(self, positions=wanted)

    def __str__(self) -> str:
        where = "" if self.positions is None else f" at {', '.join(map(str, self.positions))}"
        names = [str(e) for e in self.experts]
        more = f" and {len(names) - 6} more" if len(names) > 6 else ""
        return self.phrase(", ".join(names[:6]) + more) + where

    def phrase(self, experts: str) -> str:
        """The edit in words, without its positions."""
        return f"{self.kind} {experts}"

    @property
    def only_where_chosen(self) -> bool:
        return False

    @property
    def takes_away(self) -> bool:
        return self.only_where_chosen

    @property
    def factor(self) -> float | None:
        return None

    @property
    def num_chosen(self) -> int | None:
        return None

    def idle(self, uses: Sequence[Use], where: str, names: str) -> str | None:
        """Why it could do nothing at the tokens it holds at; None when it could.

        Args:
            uses: of its experts there.
            where: these tokens, in words.
            names: its experts, in words.
        """
        return None

    @classmethod
    def removal(cls, name: str) -> Removal | None:
        """What ``--edit NAME`` means, if this kind has that name."""
        return None

    # -- before the model runs

    def concerns(self, layer: MoELayer) -> bool:
        """Does it change anything in this layer?"""
        return any(ref.layer_idx == layer.layer_idx for ref in self.experts)

    def check(self, anatomy: Anatomy) -> None:
        """Refuse what cannot be done on this model.

        Raises:
            BadInputError: an expert that does not exist, for instance.
        """
        check_exist(anatomy, self.experts)

    @classmethod
    def room(cls, layer: MoELayer, k: int) -> int | None:
        """How many experts of a layer it may be done to at once, of a token that takes ``k``."""
        return None

    @classmethod
    def check_router(cls, edits: Sequence[Self], at: LayerEdits) -> None:
        """Refuse a router whose code cannot take these edits.

        Raises:
            ModelError: says why.
        """

    # -- around the router's decision; all edits of one kind and layer at a time

    @classmethod
    @contextmanager
    def around(cls, edits: Sequence[Self], at: LayerEdits) -> Iterator[dict[int, Tensor]]:
        """Hold something of the router's otherwise while it decides.

        Yields:
            Tensors that take the place of others, by the ``id`` of those.
        """
        yield {}

    @classmethod
    def on_logits(cls, edits: Sequence[Self], rows_TE: Tensor, at: LayerEdits) -> Tensor:
        """The logits that the router is to decide by."""
        return rows_TE

    @classmethod
    def check_choice(cls, edits: Sequence[Self], chosen: Chosen, at: LayerEdits) -> None:
        """Refuse where the router did not do what was asked.

        Raises:
            ModelError: says why.
        """

    @classmethod
    def on_choice(cls, edits: Sequence[Self], chosen: Chosen, at: LayerEdits) -> Chosen:
        """The experts and weights that the token is to have; ``chosen`` itself if none changes."""
        return chosen


@dataclass(frozen=True)
class WeightEdit(Edit):
    """An edit that works on the weights of chosen experts only."""

    @property
    def only_where_chosen(self) -> bool:
        return True

    def idle(self, uses: Sequence[Use], where: str, names: str) -> str | None:
        if any(u.chosen_before or u.chosen_after for u in uses):
            return None
        return (
            f"none of {where} it holds at chose {names}, and a weight that is not there cannot be "
            "multiplied; bias (+2.0) or force brings an expert in."
        )


@dataclass
class LayerEdits:
    """The edits of one layer, its modules, and how often its router was asked in this pass.

    ``decide``: what the router chooses in this pass without some of the edits.
    """

    layer: MoELayer
    window: PassWindow
    router: nn.Module
    block: nn.Module
    experts: nn.Module
    edits: list[Edit] = field(default_factory=list)
    calls: int = 0
    decide: Callable[[Sequence[Edit]], Chosen] = field(init=False)

    @property
    def name(self) -> str:
        """Of the router, as an error says it."""
        return f"{self.layer.site.router} ({type(self.router).__name__})"

    def ids(self, edit: Edit, device: torch.device) -> Tensor:
        """Numbers of the edit's experts in this layer."""
        here = [ref.expert for ref in edit.experts if ref.layer_idx == self.layer.layer_idx]
        return torch.tensor(here, device=device, dtype=torch.long)

    def rows(self, edit: Edit, like: Tensor) -> Tensor:
        """Which rows the edit concerns, (T, 1) bool."""
        if edit.positions is None:
            return torch.ones((like.shape[0], 1), dtype=torch.bool, device=like.device)
        return self.window.rows(edit.positions, like.shape[0]).to(like.device)[:, None]

    def cells(self, edits: Iterable[Edit], like_TE: Tensor) -> Tensor:
        """Which experts these edits name at which rows, (T, E) bool."""
        cells_TE = torch.zeros(like_TE.shape, dtype=torch.bool, device=like_TE.device)
        for edit in edits:
            cells_TE[:, self.ids(edit, like_TE.device)] |= self.rows(edit, like_TE)
        return cells_TE

    def hit(self, edits: Iterable[Edit], ids_TK: Tensor) -> Tensor:
        """Which of the choices these edits name, (T, K) bool."""
        hit_TK = torch.zeros(ids_TK.shape, dtype=torch.bool, device=ids_TK.device)
        for edit in edits:
            named = torch.isin(ids_TK, self.ids(edit, ids_TK.device))
            hit_TK = hit_TK | (named & self.rows(edit, ids_TK))
        return hit_TK


def finite(number: float, kind: str, instead: str) -> float:
    """The number, if it is one.

    Raises:
        BadInputError: it has no end or is none; says what to do instead.
    """
    if not math.isfinite(number):
        raise BadInputError(f"{kind} needs a finite number, got {number}; {instead}")
    return float(number)


def wide(tensor: Tensor) -> Tensor:
    """In float32 at least: sums and ratios of half precision would be rounded twice."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def same_sum(new: Tensor, old: Tensor) -> Tensor:
    """Scale each row of ``new`` to the sum of that row of ``old``; rows of zeros stay."""
    total = wide(new).sum(-1, keepdim=True)
    whole = total.where(total > 0, torch.ones_like(total))
    return (wide(new) * (wide(old).sum(-1, keepdim=True) / whole)).to(new.dtype)
