"""Layer × expert × domain: the rates of all cells, and the cells worth a closer look.

Cells are numbered through: those of the first traced layer, then those of the next (``offsets``).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moescope.metrics.specialization import used
from moescope.metrics.view import ALL
from moescope.report.frames import Frame, scaled, tidy

MAX_TOP_CELLS = 400
"""Cells in the table of specialised experts, of all domains together."""

SHOWN = 10
"""Cells that are used more, and that are used less, of each domain in any case."""

_NAMED = 5
"""Experts that are named in the line of a domain."""

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
    if not len(spec):
        spec = Frame({name: np.zeros(0) for name in (*_TOP_COLUMNS, "domain")})
    tested, use = np.isfinite(spec["q"]), used(spec["q"], spec["value"], spec["others"])
    order = top_order(spec, use != "")
    each = max(SHOWN, MAX_TOP_CELLS // (2 * max(1, len(domains))))
    made: dict[str, list[Any]] = {n: [] for n in ("marks", "more", "less", "named", "compared")}
    kept: list[int] = []
    for name in domains:
        own = order[spec["domain"][order] == name]
        more, less, rest = (own[use[own] == way] for way in ("more", "less", ""))
        kept += [*more[:each], *less[:each], *rest[:SHOWN]]
        ways = {"more": spec.take(more), "less": spec.take(less)}
        made["marks"].append({way: _places(rows, offsets) for way, rows in ways.items()})
        made["more"].append(more.size)
        made["less"].append(less.size)
        made["named"].append(_names(spec.take(more[:_NAMED])))
        made["compared"].append(bool(tested[spec["domain"] == name].any()))
    shown = order[np.isin(order, kept)]
    top = spec.take(shown)
    return {
        "cells": len(spec),
        "tested": int(tested.sum()),
        "passed": int((use != "").sum()),
        "over": int((use == "more").sum()),
        "under": int((use == "less").sum()),
        "each": each,
        **made,
        "top": {**top.tidy(_TOP_COLUMNS), "name": _names(top), "used": use[shown].tolist()},
    }


def _names(rows: Frame) -> list[str]:
    return [f"L{n}E{e}" for n, e in zip(tidy(rows["layer"]), tidy(rows["expert"]), strict=True)]


def _places(rows: Frame, offsets: dict[int, int]) -> list[int]:
    """Cells numbered through, ascending."""
    pairs = zip(rows["layer"].tolist(), rows["expert"].tolist(), strict=True)
    return sorted(offsets[n] + e for n, e in pairs)


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
