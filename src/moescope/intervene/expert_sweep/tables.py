"""From sums by window to the tables of a sweep: importance by expert, and what foretold it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.stats import rankdata

from moescope.axes import ExpertRef
from moescope.intervene.damage.scopes import Scopes
from moescope.intervene.damage.table import MEASURES, group_means
from moescope.intervene.expert_sweep.scores import SCORES
from moescope.measure.trials import Measured
from moescope.metrics.intervals import minimum_detectable
from moescope.metrics.ranks import RankCorrelation, rank_correlation, repeatability
from moescope.metrics.statistics import add_q

IMPORTANCE = ("ce_change", "kl")
"""Measures that scores are held against; the first is what importance means."""


def expert_table(
    experts: Sequence[ExpertRef],
    measured: Measured,
    scopes: Scopes,
    scores: dict[int, dict[str, Any]],
) -> pa.Table:
    """One row for each expert and group of documents.

    Returns:
        Columns: see docs/concepts/damage.md. ``rank``: 1 for the largest change of cross-entropy in
        the layer, ties share the mean of their places; it and the scores are null outside ``all``.
    """
    columns: dict[str, list[Any]] = {}
    layer, count = np.asarray([ref.layer_idx for ref in experts]), len(experts)
    for _, known, means in group_means(measured, scopes):
        block: dict[str, list[Any]] = {
            "layer": layer.tolist(),
            "expert": [ref.expert for ref in experts],
            "name": [str(ref) for ref in experts],
            **{name: [value] * count for name, value in known.items()},
        }
        for m, name in enumerate(MEASURES):
            part = slice(m * count, (m + 1) * count)
            for end, values in (("", means.mean), ("_low", means.low), ("_high", means.high)):
                block[name + end] = values[part].tolist()
        block["ce_change_se"] = means.se[:count].tolist()
        block["detectable"] = minimum_detectable(means.se[:count]).tolist()
        block |= _score_columns(experts, scores, layer, means.mean[:count], known["scope"] == "all")
        for name, column in block.items():
            columns.setdefault(name, []).extend(column)
    return pa.table(columns)


def _score_columns(
    experts: Sequence[ExpertRef],
    scores: dict[int, dict[str, Any]],
    layer: NDArray[np.int64],
    importance: NDArray[np.float64],
    known: bool,
) -> dict[str, list[Any]]:
    if not known:
        return {name: [None] * len(experts) for name in ("rank", "chosen", *SCORES)}
    rank = np.zeros(len(experts))
    for number in np.unique(layer):
        rank[layer == number] = rankdata(-importance[layer == number])
    made: dict[str, list[Any]] = {"rank": rank.tolist()}
    made["chosen"] = [int(scores[r.layer_idx]["chosen"][r.expert]) for r in experts]
    for name in SCORES:
        made[name] = [float(scores[r.layer_idx][name][r.expert]) for r in experts]
    return made


def correlation_table(table: pa.Table, layers: Sequence[int], seed: int) -> pa.Table:
    """Spearman's ρ of every score with measured importance.

    ``basis``: ``layer``, one layer; ``within layers``, the mean over layers; ``pooled``, all
    experts as one list, where differences between layers pass for agreement (the last two with
    several layers only). Experts that were never chosen are left out, as nothing was measured of
    them. ``q``: Benjamini–Hochberg over the rows of one basis and importance.
    """
    rows = table.filter(pc.equal(table["scope"], "all"))
    rows = rows.filter(pc.greater(rows["chosen"], 0))
    number = np.asarray(rows["layer"])
    found: list[dict[str, Any]] = []
    for m, importance in enumerate(IMPORTANCE):
        measured = np.asarray(rows[importance], np.float64)
        for s, score in enumerate(SCORES):
            values = np.asarray(rows[score], np.float64)
            pairs = {n: (values[number == n], measured[number == n]) for n in layers}
            bases: list[tuple[str, int | None, list[Any]]] = [
                ("layer", n, [pair]) for n, pair in pairs.items()
            ]
            if len(layers) > 1:
                bases.append(("within layers", None, list(pairs.values())))
                bases.append(("pooled", None, [(values, measured)]))
            for place, (basis, layer, several) in enumerate(bases):
                rng = np.random.default_rng([seed, 4, m, s, place])
                made: RankCorrelation = rank_correlation(several, rng)
                found.append(
                    {"basis": basis, "layer": layer, "importance": importance, "score": score}
                    | made._asdict()
                )
    for family in {(r["basis"], r["importance"]) for r in found}:
        add_q([r for r in found if (r["basis"], r["importance"]) == family])
    return pa.Table.from_pylist(found)


def repeatabilities(
    experts: Sequence[ExpertRef], measured: Measured, scopes: Scopes, seed: int
) -> dict[int, float]:
    """By layer, ρ of the change of cross-entropy between halves of the documents."""
    sums_NE, tokens_N = scopes.add_up(measured.ce_change.T), scopes.add_up(measured.tokens)
    layer = np.asarray([ref.layer_idx for ref in experts])
    return {
        int(n): repeatability(
            sums_NE[:, layer == n], tokens_N, scopes.domain_of, np.random.default_rng([seed, 5, n])
        )
        for n in np.unique(layer)
    }
