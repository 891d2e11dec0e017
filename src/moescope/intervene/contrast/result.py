"""What a contrast gives back: the difference of every expert, and the experts to steer."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, NamedTuple

import pyarrow as pa
from numpy.typing import NDArray

from moescope.axes import ExpertRef
from moescope.errors import BadInputError
from moescope.intervene.contrast.texts import Span
from moescope.plan import Plan, PlanEntry, PlanSplit
from moescope.result import Note, Result, Tabular, plain
from moescope.words import counted

CONTRAST = "contrast"
"""The kind of result that a contrast is."""


class Proposal(NamedTuple):
    """An expert that was chosen by the size of its Δ.

    ``delta_chosen_on``: on the documents that it was chosen by. ``delta``, ``low``, ``high``,
    ``p``: on those that it was tested by (the same ones without a holdout). ``q``:
    Benjamini–Hochberg over the candidates with a holdout, over all experts without. ``by_token``:
    what token identity alone would give, on the tested documents, beside ``delta_shared``, measured
    over the same tokens. ``confirmed``: q < 0.05, with the sign that it was chosen for.
    """

    expert: str
    delta_chosen_on: float
    delta: float
    low: float
    high: float
    p: float
    q: float
    delta_shared: float
    by_token: float
    confirmed: bool

    @property
    def boost(self) -> bool:
        """Is the expert more active on the texts with the property?"""
        return self.delta_chosen_on > 0


@dataclass(frozen=True)
class ContrastResult(Tabular):
    """The difference of two sets of texts, expert by expert.

    Attributes:
        model: what was compared on.
        identity: everything that decided the numbers.
        columns: one row per expert of each layer: ``layer``, ``expert``, ``name``, ``rate_with``,
            ``rate_without``, ``delta``, ``ci_low``, ``ci_high``, ``p``, ``q`` (over all rows),
            ``delta_shared``, ``by_token``; over all texts.
        proposals: the candidates, largest difference first.
        num_documents, num_tokens: of each set (with, without) that were counted.
        shared_tokens: share of the tokens of each set whose id occurs in both.
        paired, span, holdout, seed: how it was done.
        notes: what limits the result.
    """

    model: dict[str, Any]
    identity: dict[str, Any]
    columns: dict[str, NDArray[Any]]
    proposals: tuple[Proposal, ...]
    num_documents: tuple[int, int]
    num_tokens: tuple[int, int]
    shared_tokens: tuple[float, float]
    paired: bool
    span: Span
    holdout: bool
    seed: int
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        confirmed = sum(p.confirmed for p in self.proposals)
        a, b = self.num_documents
        return (
            f"<ContrastResult of {a} and {counted(b, 'text')}: {len(self.proposals)} candidates, "
            f"{confirmed} confirmed>"
        )

    def to_arrow(self) -> pa.Table:
        """One row per expert."""
        return pa.table({k: pa.array(v) for k, v in self.columns.items()})

    def to_dict(self, strength: float = 2.0) -> dict[str, Any]:
        """Everything, as JSON values: ``experts`` is a list with one row per expert."""
        return {
            "model": self.model["name"],
            "config_sha256": self.model["config_sha256"],
            "weights_sha256": self.model["weights_sha256"],
            **self.about(),
            "notes": list(self.notes),
            "settings": self.settings(strength),
            "proposals": plain(self.proposals),
            "experts": plain(self.to_arrow().to_pylist()),
        }

    def about(self) -> dict[str, Any]:
        """How it was done, and on how much text."""
        return {
            "documents": list(self.num_documents),
            "tokens": list(self.num_tokens),
            "shared_tokens": list(self.shared_tokens),
            "paired": self.paired,
            "span": self.span,
            "holdout": self.holdout,
            "seed": self.seed,
        }

    def answers(self) -> list[str]:
        """The findings, as sentences that follow from the numbers by rule."""
        confirmed = [p for p in self.proposals if p.confirmed]
        tried = counted(len(self.proposals), "candidate")
        if not confirmed:
            most = f"; the largest: {_in_short(self.proposals[0])}" if self.proposals else ""
            return [
                f"No expert's difference is confirmed ({tried}{most}), so there is nothing to "
                "steer by."
            ]
        where = (
            "texts that did not choose them"
            if self.holdout
            else "the texts that chose them, so the differences are somewhat too large"
        )
        are = "is" if len(confirmed) == 1 else "are"
        out = [
            f"{len(confirmed)} of {tried} {are} confirmed at q < 0.05 on {where}; of so many "
            f"{0.05 * len(confirmed):.2g} are expected to be false."
        ]
        for boost, how in ((True, "more"), (False, "less")):
            named = ", ".join(_in_short(p) for p in confirmed if p.boost == boost)
            if named:
                out.append(f"Active {how} often on tokens with the property: {named}.")
        first = confirmed[0]
        out.append(
            f"Where both sides have the same tokens, {first.expert} differs by "
            f"{_points(first.delta_shared)} points; which tokens there are, alone, would give "
            f"{_points(first.by_token)}."
        )
        return out

    def settings(self, strength: float = 2.0) -> list[str]:
        """What ``moescope steer --set``` takes; empty when no candidate was confirmed.

        Experts that are more active with the property are boosted, the others suppressed.

        Args:
            strength: logits to add or take away.
        """
        return self.plan(strength).settings() if any(p.confirmed for p in self.proposals) else []

    def plan(self, strength: float = 2.0) -> Plan:
        """The confirmed experts with what to do to them, why, and the model that they hold for.

        Raises:
            BadInputError: no candidate was confirmed, or a strength that is not positive.
        """
        if not strength > 0:
            raise BadInputError(f"a strength of {strength:g}: give logits above 0")
        confirmed = [p for p in self.proposals if p.confirmed]
        if not confirmed:
            raise BadInputError(
                "no expert's difference is confirmed, so there is nothing to steer by; give more "
                "or other texts"
            )
        entries = [
            PlanEntry(
                ExpertRef.parse(p.expert),
                f"{'more' if p.boost else 'less'} active with the property: {_in_short(p)}",
                p.delta,
                f"{'+' if p.boost else '-'}{strength:g}",
            )
            for p in confirmed
        ]
        by = f"moescope contrast {version('moescope')}"
        split = PlanSplit(seed=self.seed) if self.holdout else None
        return Plan.of(self.model, entries, by, by_weights=True, split=split, found_by=self.about())


def _in_short(p: Proposal) -> str:
    low, high = _points(p.low), _points(p.high)
    return f"{p.expert} ({_points(p.delta)} points [{low}, {high}], q = {p.q:.2g})"


def _points(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")


def contrast_result(found: ContrastResult, strength: float = 2.0) -> Result:
    """The `Result` that is kept and shown on a page.

    Args:
        found: of `moescope.intervene.contrast`.
        strength: of the settings that are proposed.
    """
    names = Proposal._fields
    proposed = {n: pa.array([getattr(p, n) for p in found.proposals]) for n in names}
    tables = {"differences": found.to_arrow(), "candidates": pa.table(proposed)}
    about = {**found.about(), "model": found.model, "settings": found.settings(strength)}
    notes = tuple(Note("warn", text) for text in found.notes)
    return Result(CONTRAST, found.identity, tables, tuple(found.answers()), notes, about)
