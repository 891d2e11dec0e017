"""The small vocabulary of edits: what may be done to experts and routers while a model runs.

An `Edit` is data: which experts, what is done, where in the text. Nothing happens until
`moescope.models.editing.edited` applies it. All edits of one layer are applied in a fixed order,
whatever the order in which they were given, so edits compose:

1. on the router's logits: ``bias`` adds, ``mask`` sets to minus infinity;
2. on the router: ``top_k`` changes how many experts are chosen;
   then the model's own router decides, with its own scoring, groups, biases and normalisation;
3. on the choice: ``force`` brings an expert into the top k;
4. on the weights: ``scale`` and ``zero`` multiply.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from moescope.axes import ExpertRef
from moescope.errors import BadInputError
from moescope.models.anatomy import Anatomy

__all__ = [
    "Edit",
    "EditKind",
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

_SELECTOR = re.compile(r"^L(\d+|\*)E(\d+)(?:-(\d+))?$|^L(\d+|\*)E\*$", re.IGNORECASE)


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
        """The same edit at these positions only."""
        return replace(self, positions=tuple(sorted(set(positions))))

    @property
    def only_where_chosen(self) -> bool:
        """Does a token that chose none of the experts stay exactly as it was?"""
        return self.kind in ("zero", "scale")

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


Experts = str | ExpertRef | Sequence[str | ExpertRef]


def mask(experts: Experts, *, renormalize: bool = True) -> Edit:
    """Keep experts from being chosen: the next best take their places.

    The logit is set to minus infinity before the router decides (and its selection bias, where it
    has one), so the router's own rules fill the place.

    Args:
        experts: ``"L5E9"``, or several; with an anatomy at hand `select_experts` reads wildcards.
        renormalize: as the router computes it: where weights are a softmax over all experts that is
            not normalised over the chosen (OLMoE), the share of the masked experts goes to all
            others. False keeps the others' probabilities as they were beside the masked experts.
            Routers that normalise over the chosen, or score each expert on its own, give the same
            either way.
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
    """Multiply the weight of experts wherever they are chosen."""
    return Edit("scale", _refs(experts), value=float(factor))


def bias(experts: Experts, logits: float) -> Edit:
    """Add to the router's logit of experts: changes whether they are chosen and how they weigh."""
    return Edit("bias", _refs(experts), value=float(logits))


def force(experts: Experts) -> Edit:
    """Bring experts into the top k: each takes the place of the weakest choice of a token.

    The forced expert weighs what its own logit is worth beside the token's other choices (weights
    of one token are proportional to their scores); where the router normalises, the sum stays.
    A token that chose the expert anyway stays exactly as it was.
    """
    return Edit("force", _refs(experts))


def top_k(k: int, *, layers: Iterable[int] | None = None) -> Edit:
    """Let the router choose another number of experts, in some or all MoE layers."""
    return Edit(
        "top_k", layers=None if layers is None else tuple(sorted(set(layers))), value=int(k)
    )


def _refs(experts: Experts) -> tuple[ExpertRef, ...]:
    several = [experts] if isinstance(experts, str | ExpertRef) else experts
    refs = (e if isinstance(e, ExpertRef) else ExpertRef.parse(e) for e in several)
    return tuple(sorted(set(refs)))


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
    layers = anatomy.layer_numbers if layer_text == "*" else (int(layer_text),)
    found = []
    for layer in layers:
        sizes = {m.layer_idx: m.num_experts for m in anatomy.layers}
        last = sizes.get(layer, 1) - 1
        low = 0 if match[2] is None else int(match[2])
        high = last if match[2] is None else int(match[3] or match[2])
        wanted = [ExpertRef(layer, e) for e in range(low, high + 1)]
        check_exist(anatomy, wanted or [ExpertRef(layer, low)])
        found += wanted
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
    """Refuse edits that cannot be carried out on this model, before anything runs.

    Raises:
        BadInputError: an expert or layer that does not exist, fewer experts left than a token
            needs, more forced than fit, K out of range, or K changed at some positions only.
    """
    for edit in edits:
        check_exist(anatomy, edit.experts)
        if edit.positions is not None and any(p < 0 for p in edit.positions):
            raise BadInputError(f"{edit}: positions count from 0")
        if edit.kind == "top_k":
            _check_top_k(anatomy, edit)
    for layer in anatomy.layers:
        here = [
            e for e in edits if e.kind == "top_k" and (not e.layers or layer.layer_idx in e.layers)
        ]
        k = int(here[-1].value) if here else layer.top_k
        for kind in ("mask", "force"):
            refs = {
                ref
                for e in edits
                if e.kind == kind
                for ref in e.experts
                if ref.layer_idx == layer.layer_idx
            }
            room = layer.num_experts - k if kind == "mask" else k
            if len(refs) > room:
                raise BadInputError(
                    f"layer {layer.layer_idx}: {kind} names {len(refs)} of {layer.num_experts} "
                    f"experts, but a token takes {k}, so at most {room} can be "
                    f"{'masked' if kind == 'mask' else 'forced'}"
                )


def _check_top_k(anatomy: Anatomy, edit: Edit) -> None:
    if edit.positions is not None:
        raise BadInputError(
            "top_k cannot differ between positions of one pass: all tokens of a layer take the "
            "same number of experts; leave the position out"
        )
    for layer in anatomy.select(edit.layers):
        if not 1 <= edit.value <= layer.num_experts:
            raise BadInputError(
                f"top_k = {edit.value:g} in layer {layer.layer_idx}: expected 1 to "
                f"{layer.num_experts}"
            )
