"""The small vocabulary of edits: what may be done to experts and routers while a model runs.

An `Edit` is data: which experts, what is done, where in the text. Nothing happens until
`moescope.models.editing.edited` applies it. All edits of one layer are applied in a fixed order,
whatever the order in which they were given, so edits compose:

1. on the router's logits: ``bias`` adds, then ``mask`` sets to minus infinity;
2. on the router: ``top_k`` changes how many experts are chosen (of several, the last given holds);
   then the model's own router decides, with its own scoring, groups, biases and normalisation;
3. on the choice: ``force`` brings an expert into the top k;
4. on the weights: ``zero`` (first where the rest is scaled up), then ``scale``.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from moescope.axes import ExpertRef
from moescope.errors import BadInputError
from moescope.given import WHOLE
from moescope.models.anatomy import Anatomy, MoELayer

__all__ = [
    "Edit",
    "EditKind",
    "Edits",
    "as_edits",
    "bias",
    "check_edits",
    "force",
    "mask",
    "scale",
    "select_experts",
    "top_k",
    "zero",
]

EditKind = Literal["mask", "zero", "scale", "bias", "force", "top_k"]

_SELECTOR = re.compile(
    rf"^L({WHOLE}|\*)E({WHOLE})(?:-({WHOLE}))?$|^L({WHOLE}|\*)E\*$", re.IGNORECASE
)
_ONE = re.compile(rf"^L{WHOLE}E{WHOLE}$", re.IGNORECASE)


@dataclass(frozen=True)
class Edit:
    """One thing done to some experts; made by `mask`, `zero`, `scale`, `bias`, `force`, `top_k`.

    Attributes:
        kind: what is done.
        experts: to which experts; empty for ``top_k``.
        layers: to which layers (``top_k`` only); None means every MoE layer.
        value: the factor of ``scale``, the summand of ``bias`` (in logits), the K of ``top_k``.
        renormalize: see `mask` and `zero`.
        positions: columns of the sequence (0 is the first token that the model reads, BOS
            included); None means everywhere.
    """

    kind: EditKind
    experts: tuple[ExpertRef, ...] = ()
    layers: tuple[int, ...] | None = None
    value: float = 0.0
    renormalize: bool = True
    positions: tuple[int, ...] | None = None

    def at(self, positions: Iterable[int]) -> Edit:
        """The same edit at these positions only.

        Raises:
            BadInputError: a position that is no whole number from 0 on, or none at all.
        """
        wanted = tuple(sorted({_whole(p, "a position") for p in positions}))
        if not wanted:
            raise BadInputError(f"{self}: at() names no position, so the edit would do nothing")
        return replace(self, positions=wanted)

    @property
    def only_where_chosen(self) -> bool:
        """Does a token that chose none of the experts stay exactly as it was?"""
        return self.kind in ("zero", "scale") or (self.kind == "mask" and not self.renormalize)

    def __str__(self) -> str:
        what = {
            "mask": "mask {e}" + ("" if self.renormalize else " (weights of the rest kept)"),
            "zero": "zero {e}" + (" (rest scaled up)" if self.renormalize else ""),
            "scale": f"{{e}} × {self.value:g}",
            "bias": f"{{e}} {self.value:+g} logits",
            "force": "force {e}",
            "top_k": f"top_k = {self.value:g}",
        }[self.kind]
        where = "" if self.positions is None else f" at {', '.join(map(str, self.positions))}"
        names = [str(e) for e in self.experts]
        shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
        return what.format(e=shown) + where


Edits = Edit | Sequence[Edit]
Experts = str | ExpertRef | Sequence[str | ExpertRef]


def as_edits(given: Edits) -> list[Edit]:
    """One edit or several, as a list.

    Raises:
        BadInputError: something else, or none.
    """
    several: list[Any] = list(given) if isinstance(given, list | tuple) else [given]
    if odd := [e for e in several if not isinstance(e, Edit)]:
        raise BadInputError(
            "an edit is what mask, zero, scale, bias, force or top_k gives, such as "
            f"mask('L5E9'); got {odd[0]!r:.60}"
        )
    return several


def mask(experts: Experts, *, renormalize: bool = True) -> Edit:
    """Keep experts from being chosen: the next best take their places.

    The logit is set to minus infinity before the router decides (and its selection bias, where it
    has one), so the router's own rules fill the place.

    Args:
        experts: ``"L5E9"``, or several; with an anatomy at hand `select_experts` reads wildcards.
        renormalize: as the router computes it: where weights are a softmax over all experts that is
            not normalised over the chosen (OLMoE), the share of the masked experts goes to all
            others, at every token. False keeps the others' probabilities as they were beside the
            masked experts, and every token that chose none of these exactly as it was. Routers that
            normalise over the chosen, or score each expert on its own, give the same either way,
            but for rounding.
    """
    return Edit("mask", _refs(experts), renormalize=renormalize)


def zero(experts: Experts, *, renormalize: bool = False) -> Edit:
    """Let experts be chosen but contribute nothing; no other expert takes their place.

    Args:
        experts: which.
        renormalize: scale the token's other weights up so that their sum stays what it was. A token
            all of whose experts are zeroed is left without any.
    """
    return Edit("zero", _refs(experts), renormalize=renormalize)


def scale(experts: Experts, factor: float) -> Edit:
    """Multiply the weight of experts wherever they are chosen.

    Raises:
        BadInputError: the factor is no finite number.
    """
    return Edit("scale", _refs(experts), value=_finite(factor, "scale", "0 takes the expert out"))


def bias(experts: Experts, logits: float) -> Edit:
    """Add to the router's logit of experts: changes whether they are chosen and how they weigh.

    Raises:
        BadInputError: the summand is no finite number.
    """
    return Edit("bias", _refs(experts), value=_finite(logits, "bias", "mask removes the expert"))


def force(experts: Experts) -> Edit:
    """Bring experts into the top k: each takes the place of the choice with the smallest weight.

    The forced expert weighs what its own logit is worth beside the token's other choices (weights
    of one token are proportional to their scores); where the router normalises, the sum stays.
    A token that chose the expert anyway stays exactly as it was; forced experts never take each
    other's place.
    """
    return Edit("force", _refs(experts))


def top_k(k: int, *, layers: Iterable[int] | None = None) -> Edit:
    """Let the router choose another number of experts, in some or all MoE layers.

    Raises:
        BadInputError: K or a layer is no whole number, or no layer is named.
    """
    wanted = None if layers is None else tuple(sorted({_whole(n, "a layer") for n in layers}))
    if wanted == ():
        raise BadInputError(
            "top_k names no layer, so it would do nothing; leave layers out for all"
        )
    return Edit("top_k", layers=wanted, value=_whole(k, "top_k"))


def _refs(experts: Experts) -> tuple[ExpertRef, ...]:
    several = [experts] if isinstance(experts, str | ExpertRef) else list(experts)
    for e in several:
        if not isinstance(e, str | ExpertRef):
            raise BadInputError(f"{e!r} names no expert: expected L5E9 or an ExpertRef")
        if isinstance(e, str) and _SELECTOR.match(e.strip()) and not _ONE.match(e.strip()):
            raise BadInputError(
                f"{e!r} may stand for many experts, and how many depends on the model; give "
                "select_experts(anatomy, ...) of it"
            )
    if not several:
        raise BadInputError("an edit needs at least one expert; none was named")
    refs = (e if isinstance(e, ExpertRef) else ExpertRef.parse(e) for e in several)
    return tuple(sorted(set(refs)))


def _whole(number: int, what: str) -> int:
    try:
        whole = operator.index(number)
    except TypeError:
        whole = -1
    if whole < 0:
        raise BadInputError(f"{what} must be a whole number from 0 on, got {number!r}")
    return whole


def _finite(number: float, kind: str, instead: str) -> float:
    if not math.isfinite(number):
        raise BadInputError(f"{kind} needs a finite number, got {number}; {instead}")
    return float(number)


def select_experts(
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
    names = [selectors] if isinstance(selectors, str) else list(selectors)
    if not names:
        raise BadInputError("no expert was named: expected L5E9, L5E0-7, L5E* (a layer) or L*E9")
    found = sorted({ref for name in names for ref in _matches(anatomy, name.strip())})
    if expect is not None and len(found) != expect:
        raise BadInputError(
            f"{' '.join(names)} selects {len(found)} experts, expected {expect}; nothing was "
            "changed"
        )
    return tuple(found)


def _matches(anatomy: Anatomy, name: str) -> list[ExpertRef]:
    match = _SELECTOR.match(name)
    if match is None:
        raise BadInputError(
            f"{name!r} names no expert: expected L5E9, L5E0-7, L5E* (a layer) or L*E9"
        )
    layer_text = match[1] or match[4]
    first, last = int(match[2] or 0), int(match[3] or match[2] or 0)
    if first > last:
        raise BadInputError(f"{name!r} names no expert: its range starts after its end")
    sizes = {m.layer_idx: m.num_experts for m in anatomy.layers}
    found = []
    for layer in anatomy.layer_numbers if layer_text == "*" else (int(layer_text),):
        end = last if match[2] is not None else sizes.get(layer, 1) - 1
        check_exist(anatomy, [ExpertRef(layer, first), ExpertRef(layer, end)])
        found += [ExpertRef(layer, e) for e in range(first, end + 1)]
    return found


def check_exist(anatomy: Anatomy, experts: Iterable[ExpertRef]) -> None:
    """Refuse experts that the model does not have.

    Raises:
        BadInputError: names the first of them and the range that exists.
    """
    sizes = {m.layer_idx: m.num_experts for m in anatomy.layers}
    for ref in experts:
        if ref.layer_idx not in sizes:
            numbers = ", ".join(map(str, anatomy.layer_numbers))
            raise BadInputError(
                f"{ref} does not exist: layer {ref.layer_idx} is no MoE layer of this "
                f"{anatomy.model_type} model; its MoE layers are {numbers}"
            )
        if ref.expert >= sizes[ref.layer_idx]:
            raise BadInputError(
                f"{ref} does not exist: layer {ref.layer_idx} has experts E0 to "
                f"E{sizes[ref.layer_idx] - 1}"
            )


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
        check_exist(anatomy, edit.experts)
        if edit.kind == "top_k":
            _check_top_k(anatomy, edit)
    for layer in anatomy.layers:
        here = [e for e in edits if concerns(e, layer)]
        wanted = [int(e.value) for e in here if e.kind == "top_k"]
        k = wanted[-1] if wanted else layer.top_k
        for position, meeting in _meetings([e for e in here if e.kind in ("mask", "force")]):
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


def concerns(edit: Edit, layer: MoELayer) -> bool:
    """Does the edit change anything in this layer?"""
    if edit.kind == "top_k":
        return edit.layers is None or layer.layer_idx in edit.layers
    return any(ref.layer_idx == layer.layer_idx for ref in edit.experts)


def _check_room(layer: MoELayer, k: int, edits: Sequence[Edit], position: int | None) -> None:
    """Do masks and forces that meet leave a token its choice?"""
    named = {
        kind: {
            r for e in edits if e.kind == kind for r in e.experts if r.layer_idx == layer.layer_idx
        }
        for kind in ("mask", "force")
    }
    where = f"layer {layer.layer_idx}" + ("" if position is None else f", position {position}")
    for kind, room in (("mask", layer.num_experts - k), ("force", k)):
        if len(named[kind]) > room:
            raise BadInputError(
                f"{where}: {kind} names {len(named[kind])} of {layer.num_experts} experts, but a "
                f"token takes {k}, so at most {room} can be {kind.rstrip('e')}ed"
            )
    both = sorted(named["mask"] & named["force"])
    if both:
        raise BadInputError(f"{where}: {both[0]} is both masked and forced; leave one of them out")


def _check_top_k(anatomy: Anatomy, edit: Edit) -> None:
    if edit.positions is not None:
        raise BadInputError(
            "top_k cannot differ between positions of one pass: all tokens of a layer take the "
            "same number of experts; leave the position out"
        )
    unknown = sorted(set(edit.layers or ()) - set(anatomy.layer_numbers))
    if unknown:
        numbers = ", ".join(map(str, anatomy.layer_numbers))
        raise BadInputError(
            f"top_k names layer {unknown[0]}, which is no MoE layer of this {anatomy.model_type} "
            f"model; its MoE layers are {numbers}"
        )
    for layer in anatomy.select(edit.layers):
        if not 1 <= edit.value <= layer.num_experts:
            raise BadInputError(
                f"top_k = {edit.value:g} in layer {layer.layer_idx}: expected 1 to "
                f"{layer.num_experts}"
            )
