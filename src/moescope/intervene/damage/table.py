"""From sums by window to the table of damages: one row for each trial and group of documents."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moescope.intervene.damage.choices import Prepared
from moescope.intervene.damage.scopes import Scopes
from moescope.measure.controls import lowest_p
from moescope.measure.trials import Measured
from moescope.metrics.intervals import Means, contrast, document_means, minimum_detectable
from moescope.metrics.statistics import add_q

MEASURES = ("ce_change", "kl", "flips")

Floats = NDArray[np.float64]


class Selectivity(NamedTuple):
    """Change of cross-entropy on target against off target (nats per token).

    ``ratio`` is None where the off-target damage is not clearly above 0. ``p``: share of the
    controls (and the plan itself) whose difference is at least the plan's; ``p_overlap`` allows for
    experts that controls share and for unequal loads. Intervals at 95 %, of two independent sides.
    """

    on: float
    off: float
    ratio: float
    ratio_low: float
    ratio_high: float
    difference: float
    difference_low: float
    difference_high: float
    p: float
    p_overlap: float


def damage_table(
    measured: Measured, prepared: Prepared, scopes: Scopes, chance: list[float]
) -> pa.Table:
    """All figures of the plan (trial 0) and its controls.

    Returns:
        Columns: see docs/concepts/damage.md. What a control has no figure for is null.
    """
    chosen_NJ, total_N = scopes.add_up(prepared.chosen.T), scopes.add_up(prepared.total)
    rows: list[dict[str, Any]] = []
    for on, shared, means in group_means(measured, scopes):
        loads = chosen_NJ[on].sum(0) / max(1, total_N[on].sum())
        rows += _group_rows(shared, means, loads, chance, prepared.matched_loads)
    _add_q(rows)
    return pa.Table.from_pylist(rows)


def group_means(
    measured: Measured, scopes: Scopes
) -> Iterator[tuple[NDArray[np.bool_], dict[str, Any], Means]]:
    """Of each group of documents with tokens: which they are, what it is, and its means.

    The means are those of all trials under the first of `MEASURES`, then under the next.
    """
    sums_NM = scopes.add_up(np.concatenate([getattr(measured, m) for m in MEASURES]).T)
    tokens_N, ce_N = scopes.add_up(measured.tokens), scopes.add_up(measured.ce)
    for group in scopes.groups():
        on, tokens = group.mask, int(tokens_N[group.mask].sum())
        if tokens:
            known = {
                "scope": group.scope,
                "domain": group.domain,
                "documents": int((tokens_N[on] > 0).sum()),
                "tokens": tokens,
                "ce": float(ce_N[on].sum() / tokens),
            }
            yield on, known, document_means(sums_NM[on], tokens_N[on])


def _group_rows(
    shared: dict[str, Any], means: Means, loads: Floats, chance: list[float], load_J: Floats
) -> list[dict[str, Any]]:
    trials = loads.size
    rows = []
    for j in range(trials):
        row = {"trial": "plan" if j == 0 else f"control-{j:02d}", **shared, "load": float(loads[j])}
        for m, name in enumerate(MEASURES):
            at = m * trials + j
            row |= {
                name: float(means.mean[at]),
                f"{name}_low": float(means.low[at]),
                f"{name}_high": float(means.high[at]),
            }
        row["ce_change_se"] = float(means.se[j])
        row["detectable"] = float(minimum_detectable(means.se[j : j + 1])[0])
        row["p_lowest"] = lowest_p(chance) if j == 0 and chance else None
        for m, name in enumerate(MEASURES):
            own = means.mean[m * trials : (m + 1) * trials]
            row |= _against(name, own, chance, load_J) if j == 0 else dict.fromkeys(_names(name))
        rows.append(row)
    return rows


def _names(measure: str) -> list[str]:
    ends = ("mean", "min", "max", "low", "high")
    return [*(f"{measure}_controls_{e}" for e in ends), f"{measure}_p", f"{measure}_p_overlap"]


def _against(
    measure: str, values_J: Floats, chance: list[float], load_J: Floats
) -> dict[str, float | None]:
    """The plan (place 0) beside its controls: their span, quantiles and the two p."""
    others = values_J[1:]
    if not others.size:
        return dict.fromkeys(_names(measure))
    low, high = np.quantile(others, [0.025, 0.975])
    p, p_overlap = beyond(values_J, chance, load_J)
    figures = (others.mean(), others.min(), others.max(), low, high, p, p_overlap)
    return {n: float(v) for n, v in zip(_names(measure), figures, strict=True)}


def beyond(values_J: Floats, chance: list[float], load_J: Floats) -> tuple[float, float]:
    """Two p of the first value among all: (1 + #{others ≥ it}) / (1 + #others); the careful one.

    The second allows for what controls and plan do not share: for experts that controls share with
    each other (``chance``), and for their loads, which are like and not equal. Harm may follow
    load or not, so values are compared as they are and per load, and the larger p counts. It is
    never below the first.
    """
    counts = [int((v[1:] >= v[0]).sum()) for v in (values_J, values_J / load_J)]
    plain = (1 + counts[0]) / values_J.size
    most = max(counts)
    return plain, max((1 + most) / values_J.size, chance[most])


def _add_q(rows: list[dict[str, Any]]) -> None:
    """Benjamini–Hochberg over the domains, of the plan's p for the change of cross-entropy."""
    family = [
        r
        for r in rows
        if r["scope"] == "domain" and r["trial"] == "plan" and r["ce_change_p"] is not None
    ]
    for row in rows:
        row["ce_change_q"] = None
    add_q(family, "ce_change_p_overlap", "ce_change_q")


def selectivity(
    measured: Measured, prepared: Prepared, scopes: Scopes, chance: list[float]
) -> Selectivity | None:
    """On target against off target; None without targets.

    Raises:
        ValueError: never for scopes that have both sides, which `Scopes` makes sure of.
    """
    if not scopes.targets:
        return None
    sums_NJ = scopes.add_up(measured.ce_change.T)
    tokens_N, on = scopes.add_up(measured.tokens), scopes.on_target
    made = contrast(sums_NJ, tokens_N, on)
    on_mean = float(sums_NJ[on, 0].sum() / max(1, tokens_N[on].sum()))
    p = p_overlap = float("nan")
    if sums_NJ.shape[1] > 1:
        p, p_overlap = beyond(made.difference, chance, prepared.matched_loads)
    return Selectivity(
        on=on_mean,
        off=on_mean - float(made.difference[0]),
        ratio=float(made.ratio[0]),
        ratio_low=float(made.ratio_low[0]),
        ratio_high=float(made.ratio_high[0]),
        difference=float(made.difference[0]),
        difference_low=float(made.low[0]),
        difference_high=float(made.high[0]),
        p=p,
        p_overlap=p_overlap,
    )
