"""From the sums of a step to the rows of the log, for each layer and position."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

from moescope.training.losses import max_violation
from moescope.training.objective import LayerSums, StepResult

_POSITION_BINS = 8


def routing_row(sums: LayerSums, limited: bool) -> dict[str, Any]:
    """The row of ``layers`` for one layer of one step; ``limited``: there is a capacity."""
    load_E = sums.counts.double()
    share_E = load_E / load_E.sum().clamp(min=1)
    num_experts, wanted = len(load_E), max(1, int(load_E.sum()))
    entropy = -(share_E * share_E.clamp_min(1e-30).log()).sum()
    return {
        "tokens": sums.tokens,
        "cv": float(load_E.std(correction=0) / load_E.mean().clamp(min=1e-30)),
        "max_violation": float(max_violation(load_E)),
        "load_entropy": float(entropy) / math.log(num_experts) if num_experts > 1 else 1.0,
        "router_entropy": sums.entropy / sums.tokens / math.log(max(2, num_experts)),
        "dead_share": float((load_E == 0).double().mean()),
        "dropped_share": sums.dropped / wanted if limited else None,
        "rerouted_share": sums.rerouted / wanted if limited else None,
        "noise_scale": sums.noise / sums.tokens or None,
        "load": share_E.tolist(),
    }


def drop_rows(step: int, done: StepResult, context: int) -> list[dict[str, Any]]:
    """Dropped share by position, all layers together."""
    lost = sum(sums.dropped_by_position for sums in done.layers.values())
    wanted = sum(int(sums.counts.sum()) for sums in done.layers.values()) / context
    bins = min(_POSITION_BINS, context)
    edges = [round(i * context / bins) for i in range(bins + 1)]
    return [
        {
            "step": step,
            "position_from": first,
            "position_to": last - 1,
            "dropped_share": float(lost[first:last].sum()) / (wanted * (last - first)),  # type: ignore[index]
        }
        for first, last in pairwise(edges)
    ]
