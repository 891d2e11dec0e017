"""The figures of a training page as plain lists: rows sorted, thinned, pivoted by layer or domain.

What was not logged is absent, never zero. Knows nothing of HTML.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moescope.metrics.balance import cv_by_chance
from moescope.words import counted

POINTS = 1000
"""Most points of a line; a longer run is drawn as means over equally many logged steps."""

_CELLS = 15_000
"""Most values of one measure over steps × layers, or steps × domains."""

_STEP_COLUMNS = (
    "tokens", "loss", "load_balancing_loss", "router_z_loss", "importance_loss", "load_loss",
    "learning_rate", "gradient_norm", "tokens_per_second", "dropped_share",
)  # fmt: skip
_LAYER_COLUMNS = (
    "cv", "max_violation", "load_entropy", "router_entropy", "dead_share", "dropped_share",
    "saturation",
)  # fmt: skip

Floats = NDArray[np.float64]


def figures_of(data: dict[str, Any]) -> dict[str, Any]:
    """Everything that the page draws, as lists that JSON takes."""
    model, loads = data.get("model") or {}, data.get("loads") or None
    domains = _domains(data.get("domains") or {})
    layers = model.get("layers") or (loads or {}).get("layers") or ()
    running = data["status"] == "running"
    return {
        "phases": ["training"],  # what the scripts of a report ask for: one view, its domains
        "views": {"training": {"domains": domains["names"] if domains else []}},
        "layers": [
            {"layer": n, "experts": model.get("num_experts") or 0, "top_k": model.get("top_k")}
            for n in layers
        ],
        "experts": model.get("num_experts"),
        "top_k": model.get("top_k"),
        "refresh": max(1, int(data.get("refresh_seconds") or 15)) if running else None,
        "steps": _steps(data.get("steps") or {}),
        "domains": domains,
        "routing": _routing(data.get("layers") or {}, model),
        "loads": loads,
        "drops": data.get("drops") or None,
        "checkpoints": [c.get("step") for c in data.get("checkpoints") or () if c.get("kept")],
    }


def present(figures: dict[str, Any]) -> dict[str, bool]:
    """Which figures there is something to draw for."""
    steps, routing = figures["steps"] or {}, figures["routing"]
    aux = ("load_balancing_loss", "router_z_loss", "importance_loss", "load_loss")
    return {
        "anything": bool(steps or figures["domains"] or routing or figures["loads"]),
        "loss": "loss" in steps or figures["domains"] is not None,
        "domains": figures["domains"] is not None,
        "routing": routing is not None,
        "loads": figures["loads"] is not None,
        "aux": any(name in steps for name in aux),
        "dropped": "dropped_share" in steps,
        "drops": figures["drops"] is not None,
        "optimizer": "learning_rate" in steps or "gradient_norm" in steps,
        "throughput": "tokens_per_second" in steps,
    }


def _steps(table: Mapping[str, Any]) -> dict[str, Any] | None:
    """Columns that hold a number, as means over ``each`` logged steps, and where each mean lies."""
    rows = last_rows(table.get("step") or ())
    if not rows:
        return None
    each = math.ceil(len(rows) / POINTS)
    step = _floats(table["step"])[rows]
    made: dict[str, Any] = {
        "each": each,
        "logged": len(rows),
        "step": _whole(_means(step, each)),
        "from": step[::each].astype(int),
        "to": step[[*range(each - 1, len(rows) - 1, each), len(rows) - 1]].astype(int),
    }
    for name in _STEP_COLUMNS:
        values = column(table, name, rows)
        if values is not None:
            mean = _means(values, each)
            made[name] = _whole(np.rint(mean)) if name == "tokens" else mean
            if name == "gradient_norm" and each > 1:
                made["gradient_norm_max"] = _highest(values, each)
    return made


def _routing(table: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any] | None:
    """Measures as step × layer, with those of the last logged step unthinned."""
    steps, layers, place = _pivot(table, "layer", sorted)
    if not steps:
        return None
    each = math.ceil(len(steps) / min(POINTS, max(60, _CELLS // len(layers))))
    measures, last = {}, {}
    for name in _LAYER_COLUMNS:
        matrix = place(name)
        if matrix is not None:
            measures[name] = _means(matrix, each)
            known = np.flatnonzero(np.isfinite(matrix).any(axis=1))
            last[name] = {"step": steps[known[-1]], "values": matrix[known[-1]]}
    if not measures:
        return None
    tokens, experts, top_k = place("tokens"), model.get("num_experts"), model.get("top_k")
    counted = 0 if tokens is None else int(np.nanmedian(tokens))
    chance = cv_by_chance(counted, experts, top_k) if counted and experts and top_k else None
    return {
        "each": each, "logged": len(steps), "layers": layers, "tokens": counted,
        "cv_chance": chance,
        "step": _whole(_means(_floats(steps), each)), "measures": measures, "last": last,
    }  # fmt: skip


def _domains(table: Mapping[str, Any]) -> dict[str, Any] | None:
    """Held-out losses as evaluation × domain, their means weighted by tokens, the latest apart."""
    steps, names, place = _pivot(table, "domain", lambda found: list(dict.fromkeys(found)))
    loss = place("loss")
    if not steps or loss is None:
        return None
    tokens, unigram = place("tokens"), place("unigram")
    each = math.ceil(len(steps) / min(POINTS, max(60, _CELLS // len(names))))
    latest = int(np.flatnonzero(np.isfinite(loss).any(axis=1))[-1])
    baseline = np.full(len(names), np.nan) if unigram is None else _latest(unigram)
    mean = _weighted(loss, tokens)
    return {
        "names": [str(n) for n in names], "each": each,
        "step": _whole(_means(_floats(steps), each)),
        "loss": _means(loss, each),
        "mean": _means(mean, each),
        "unigram": baseline,
        "last": {
            "step": steps[latest],
            "loss": loss[latest],
            "tokens": None if tokens is None else _whole(tokens[latest]),
            "mean": mean[latest],
            # over the same domains as the mean
            "unigram": _weighted(
                np.where(np.isfinite(loss), baseline, np.nan)[latest : latest + 1],
                None if tokens is None else tokens[latest : latest + 1],
            )[0],
        },
    }  # fmt: skip


# Columns to arrays.


def _floats(values: Any) -> Floats:
    """None and what is not finite become NaN."""
    array = np.array([math.nan if v is None else v for v in values], np.float64)
    array[~np.isfinite(array)] = np.nan
    return array


def last_rows(steps: Any) -> list[int]:
    """The last row of every step, by step."""
    found = {step: row for row, step in enumerate(steps)}
    return [found[step] for step in sorted(found)]


def column(table: Mapping[str, Any], name: str, rows: list[int]) -> Floats | None:
    """A column at these rows; None where nothing is known of it."""
    values = table.get(name)
    if not values:
        return None
    if len(values) != len(table["step"]):
        raise ValueError(
            f"column {name} has {counted(len(values), 'row')}, expected {len(table['step'])} as in "
            "step"
        )
    array = _floats(values)[rows]
    return array if np.isfinite(array).any() else None


def _pivot(table: Mapping[str, Any], by: str, order: Any) -> tuple[list[int], list[Any], Any]:
    """Steps, groups, and a function from a column's name to its step × group array."""
    at, groups = list(table.get("step") or ()), list(table.get(by) or ())
    if len(at) != len(groups):
        raise ValueError(
            f"column {by} has {counted(len(groups), 'row')}, expected {len(at)} as in step"
        )
    steps, names = sorted(set(at)), list(order(set(groups) if order is sorted else groups))
    row = {s: i for i, s in enumerate(steps)}
    place_of = {g: i for i, g in enumerate(names)}
    where = ([row[s] for s in at], [place_of[g] for g in groups])

    def place(name: str) -> Floats | None:
        values = column(table, name, list(range(len(at))))
        if values is None:
            return None
        matrix = np.full((len(steps), len(names)), np.nan)
        matrix[where] = values
        return matrix

    return steps, names, place


def in_blocks(values: Floats, each: int) -> Floats:
    """Rows in blocks of ``each``; the last one is filled up with NaN."""
    short = -len(values) % each
    full = np.concatenate([values, np.full((short, *values.shape[1:]), np.nan)])
    return full.reshape(-1, each, *values.shape[1:])


def _means(values: Floats, each: int) -> Floats:
    """Means of what is known in every block of ``each`` rows; NaN where nothing is."""
    blocks = in_blocks(values, each)
    known = np.isfinite(blocks)
    with np.errstate(invalid="ignore"):
        mean: Floats = np.where(known, blocks, 0.0).sum(axis=1) / known.sum(axis=1)
    return mean


def _whole(values: Floats) -> list[int | float | None]:
    """Whole numbers as such, so that none of their digits is rounded away."""
    return [None if math.isnan(v) else int(v) if v.is_integer() else v for v in map(float, values)]


def _highest(values: Floats, each: int) -> Floats:
    blocks = in_blocks(values, each)
    high: Floats = np.where(np.isfinite(blocks), blocks, -np.inf).max(axis=1)
    return high


def _latest(matrix: Floats) -> Floats:
    """The last known value of every column."""
    known = np.isfinite(matrix)
    last = matrix.shape[0] - 1 - known[::-1].argmax(axis=0)
    values: Floats = matrix[last, np.arange(matrix.shape[1])]
    return values


def _weighted(values: Floats, tokens: Floats | None) -> Floats:
    """Mean over the columns, weighted by tokens; evenly where they are not given."""
    weight = np.ones_like(values) if tokens is None else np.nan_to_num(tokens, nan=0.0)
    weight = np.where(np.isfinite(values), weight, 0.0)
    with np.errstate(invalid="ignore"):
        mean: Floats = (np.nan_to_num(values) * weight).sum(axis=1) / weight.sum(axis=1)
    return mean
