"""What a contrast gives back: the difference of every expert, and the experts to steer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, NamedTuple

import pyarrow as pa
from numpy.typing import NDArray

from moescope.errors import BadInputError
from moescope.intervene.contrast.texts import Span
from moescope.intervene.steering.plan import SteeringPlan

__all__ = ["ContrastResult", "Proposal"]


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
class ContrastResult:
    """The difference of two sets of texts, expert by expert.

    Attributes:
        model: name of the model.
        hashes: of its configuration and of its weights.
        columns: one row per expert of each layer: ``layer``, ``expert``, ``name``, ``rate_with``,
            ``rate_without``, ``delta``, ``ci_low``, ``ci_high``, ``p``, ``q`` (over all rows),
            ``delta_shared``, ``by_token``; over all texts.
        proposals: the candidates, largest difference first.
        num_documents, num_tokens: of each set (with, without) that were counted.
        shared_tokens: share of the tokens of each set whose id occurs in both.
        paired, span, holdout, seed: how it was done.
        notes: what limits the result.
    """

    model: str
    hashes: tuple[str, str]
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
            f"<ContrastResult of {a} and {b} texts: {len(self.proposals)} candidates, {confirmed} "
            "confirmed>"
        )

    def to_arrow(self) -> pa.Table:
        """One row per expert."""
        return pa.table({k: pa.array(v) for k, v in self.columns.items()})

    def to_pandas(self) -> Any:
        """`to_arrow` as a data frame; needs pandas."""
        return self.to_arrow().to_pandas()

    def to_dict(self, strength: float = 2.0) -> dict[str, Any]:
        """Everything, as JSON values: ``experts`` is a list with one row per expert."""
        return {
            "model": self.model,
            "config_sha256": self.hashes[0],
            "weights_sha256": self.hashes[1],
            "documents": list(self.num_documents),
            "tokens": list(self.num_tokens),
            "shared_tokens": list(self.shared_tokens),
            "paired": self.paired,
            "span": self.span,
            "holdout": self.holdout,
            "seed": self.seed,
            "notes": list(self.notes),
            "settings": self.settings(strength),
            "proposals": [_finite(p._asdict()) for p in self.proposals],
            "experts": [_finite(row) for row in self.to_arrow().to_pylist()],
        }

    def settings(self, strength: float = 2.0) -> list[str]:
        """What ``moescope steer --set`` takes; empty when no candidate was confirmed.

        Experts that are more active with the property are boosted, the others suppressed.

        Args:
            strength: logits to add or take away.
        """
        made = []
        for sign, boost in (("+", True), ("-", False)):
            names = [p.expert for p in self.proposals if p.confirmed and p.boost == boost]
            if names:
                made.append(f"{','.join(names)}={sign}{strength:g}")
        return made

    def plan(self, strength: float = 2.0) -> SteeringPlan:
        """The settings with the model that they hold for and why.

        Raises:
            BadInputError: no candidate was confirmed, or a strength that is not positive.
        """
        if not strength > 0:
            raise BadInputError(f"a strength of {strength:g}: give logits above 0")
        settings = self.settings(strength)
        if not settings:
            raise BadInputError(
                "no plan was written: no expert's difference is confirmed, so there is nothing to "
                "steer by; give more or other texts"
            )
        return SteeringPlan(
            model=self.model,
            config_sha256=self.hashes[0],
            weights_sha256=self.hashes[1],
            settings=settings,
            experts=[_finite(p._asdict()) for p in self.proposals if p.confirmed],
            found_by={
                "command": "moescope contrast",
                "moescope": version("moescope"),
                "documents": list(self.num_documents),
                "tokens": list(self.num_tokens),
                "paired": self.paired,
                "span": self.span,
                "holdout": self.holdout,
                "seed": self.seed,
            },
        )


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
