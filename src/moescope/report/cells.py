"""Layer × expert × domain: the rates of all cells, and the cells worth a closer look.

Cells are numbered through: those of the first traced layer, then those of the next (``offsets``).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moescope.metrics.specialization import used
from moescope.metrics.view import ALL
from moescope.report.frames import Frame, scaled

MAX_TOP_CELLS = 200
"""Cells in the table of specialised experts."""

MAX_INTERVAL_CELLS = 150_000
"""With more cells the page leaves the interval of each out; the table ``load`` has them."""

_TOP_COLUMNS = (
    "layer", "expert", "domain", "tokens", "value", "chance", "others", "lift_over_others",
    "ci_low", "ci_high", "lift_low", "lift_high", "p", "q", "p_max", "by_token", "beyond_token",
    "on_shared", "shared_tokens",
)  # fmt: skip


def rates(load: Frame, domains: list[str]) -> dict[str, Any]:
    """Activation rates in 1/10,000, by group (the total first, then domains) and cell."""
    groups = [ALL, *domains]
    kept = [load.where(domain=name) for name in groups]

    def column(name: str) -> list[list[int | None]]:
        return [scaled(frame[name]) for frame in kept]

    with_intervals = len(kept[0]) * len(groups) <= MAX_INTERVAL_CELLS
    return {
        "groups": groups,
        "tokens": [int(frame["tokens"][0]) if len(frame) else 0 for frame in kept],
        "rate": column("activation_rate"),
        "low": column("ci_low") if with_intervals else None,
        "high": column("ci_high") if with_intervals else None,
    }


def special(spec: Frame, domains: list[str], offsets: dict[int, int]) -> dict[str, Any]:
    """Which cells pass, how many were tested, experts used more and less, by domain; top rows."""
    q, value, others = (spec[n] if len(spec) else np.zeros(0) for n in ("q", "value", "others"))
    tested, use = np.isfinite(q), used(q, value, others)
    passed, over = use != "", use == "more"
    marks, uses = [], []
    for name in domains:
        own = (spec["domain"] == name) if len(spec) else passed
        rows = spec.take(passed & own) if len(spec) else spec
        places = zip(rows["layer"].tolist(), rows["expert"].tolist(), strict=True)
        marks.append([offsets[n] + e for n, e in places])
        uses.append(use[own].tolist())
    top = spec.take(top_order(spec, passed)[:MAX_TOP_CELLS]) if len(spec) else spec
    columns = top.tidy(_TOP_COLUMNS)
    columns["name"] = [
        f"L{n}E{e}" for n, e in zip(columns["layer"], columns["expert"], strict=True)
    ]
    return {
        "cells": len(spec),
        "tested": int(tested.sum()),
        "passed": int(passed.sum()),
        "over": int(over.sum()),
        "under": int(passed.sum() - over.sum()),
        "more": [own.count("more") for own in uses],
        "less": [own.count("less") for own in uses],
        "marks": marks,
        "top": columns,
    }


def top_order(spec: Frame, passed: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Passing cells first: those used more, by the low end of the lift, then those used less.

    The low end, not the lift itself, so that a large lift of few tokens does not lead. Cells that
    do not pass follow by p, untested ones are left out unless nothing was tested at all.
    """
    low = np.nan_to_num(spec["lift_low"], nan=0.0, posinf=1e9)
    high = np.nan_to_num(spec["lift_high"], nan=1e9, posinf=1e9)
    more = spec["value"] > spec["others"]
    strength = np.where(more, low, 1.0 / np.maximum(high, 1e-9))
    p = np.nan_to_num(spec["p"], nan=2.0)
    rank = np.where(passed, np.where(more, 0, 1), 2)
    second = np.where(passed, -strength, p)
    gap = -np.abs(np.nan_to_num(spec["value"] - spec["others"]))
    order = np.lexsort((np.arange(len(p)), gap, second, rank)).astype(np.int64)
    tested: NDArray[np.int64] = order[p[order] <= 1.0]
    return tested
