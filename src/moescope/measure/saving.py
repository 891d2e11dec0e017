"""What a measurement computed, beside what full passes would have."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Saving:
    """Work done and work avoided.

    The naive way is a full forward pass over all text for every trial, with logits at every token,
    scored as here.

    Attributes:
        trials: edits that were measured.
        layer_tokens, layer_tokens_naive: decoder layers × tokens (padding included) computed under
            edits, and what full passes compute.
        head_tokens, head_tokens_naive: tokens that the output head was run on.
        windows, windows_naive: windows run under edits, of trials × windows.
        seconds: measured, all edited passes with their scoring. plain_seconds: the plain passes.
        naive_seconds: what the naive passes would take: the median time per token of
            ``naive_samples`` that were run in between, times all their tokens. None without any.
        mean_difference, max_difference: of the change of cross-entropy of single tokens (nats)
            between these samples and what was measured here.
        full_passes: layers below the edited ones could not be left out.
    """

    trials: int
    layer_tokens: int
    layer_tokens_naive: int
    head_tokens: int
    head_tokens_naive: int
    windows: int
    windows_naive: int
    seconds: float
    plain_seconds: float
    naive_seconds: float | None
    naive_samples: int
    mean_difference: float | None
    max_difference: float | None
    full_passes: bool

    @property
    def layer_share(self) -> float:
        """Layers × tokens computed, as a share of the naive way's."""
        return self.layer_tokens / self.layer_tokens_naive if self.layer_tokens_naive else 0.0

    @property
    def times_faster(self) -> float | None:
        """Naive seconds over ours, the plain pass (which both need) on either side."""
        if self.naive_seconds is None or not self.trials:
            return None
        naive = self.naive_seconds * (1 + 1 / self.trials)
        return naive / (self.seconds + self.plain_seconds)

    def to_dict(self) -> dict[str, Any]:
        """All numbers, with the two shares."""
        return {**asdict(self), "layer_share": self.layer_share, "times_faster": self.times_faster}


def saving_of(
    records: Sequence[dict[str, Any]],
    plain: Sequence[dict[str, Any]],
    naive: Sequence[dict[str, Any]],
) -> Saving:
    """Add up what was noted of each pass.

    Args:
        records: of the edited passes, with ``layer_tokens``, ``head_tokens``, ``windows_run`` and
            ``seconds``.
        plain: of the plain pass of each batch, with ``num_layers``, ``batch_tokens``, ``windows``
            and ``seconds``.
        naive: of the naive samples, with ``seconds``, ``batch_tokens`` and the two differences.
    """
    tokens = sum(p["batch_tokens"] for p in plain)
    windows = sum(p["windows"] for p in plain)
    trials = len(records) // len(plain) if plain else 0
    per_token = [n["seconds"] / n["batch_tokens"] for n in naive]
    return Saving(
        trials=trials,
        layer_tokens=sum(r["layer_tokens"] for r in records),
        layer_tokens_naive=sum(p["num_layers"] * p["batch_tokens"] for p in plain) * trials,
        head_tokens=sum(r["head_tokens"] for r in records),
        head_tokens_naive=tokens * trials,
        windows=sum(r["windows_run"] for r in records),
        windows_naive=windows * trials,
        seconds=sum(r["seconds"] for r in records),
        plain_seconds=sum(p["seconds"] for p in plain),
        naive_seconds=statistics.median(per_token) * tokens * trials if per_token else None,
        naive_samples=len(naive),
        mean_difference=max((n["mean_difference"] for n in naive), default=None),
        max_difference=max((n["max_difference"] for n in naive), default=None),
        full_passes=any(r["full_pass"] for r in records),
    )
