"""Similarities of pairs as rows: every pair, each layer in short, and whether the methods agree.

It knows matrices only; where they come from is for others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import leaves_list, linkage

from moescope.metrics.ranks import mantel, spearman
from moescope.metrics.view import Rows
from moescope.similarity.pair_values import PairValues, upper

Floats = NDArray[np.float64]


def pair_rows(rows: Rows, layer: int, method: str, made: PairValues, lift: Floats | None) -> None:
    """Add one row for each pair a < b of a layer's experts.

    ``value``, its 95 % interval over documents, what chance gives, the mean of the pairs of
    shuffled experts (``reference``), tokens; for cosine also over the tokens given to one of the
    two, for CKA also debiased, for weights and router also without the mean of all experts; the
    lift of their co-activation in the run.
    """
    experts = made.value.shape[0]
    a, b = np.triu_indices(experts, 1)
    unknown = np.full(a.size, np.nan)

    def of(matrix: NDArray[Any] | None) -> NDArray[Any]:
        return unknown if matrix is None else upper(matrix)

    rows.add(
        layer=layer, method=method, expert_a=a, expert_b=b, value=made.pairs(),
        ci_low=of(made.low), ci_high=of(made.high), chance=of(made.chance),
        chance_sd=of(made.chance_sd), reference=_of_known(np.mean, made.reference),
        tokens=upper(made.tokens), value_routed=of(made.routed),
        tokens_routed=[None] * a.size if made.routed_tokens is None else upper(made.routed_tokens),
        value_debiased=of(made.debiased), value_centred=of(made.centred), lift=of(lift),
    )  # fmt: skip


def summary_row(layer: int, method: str, made: PairValues) -> dict[str, Any]:
    """A layer under one method in short; see the concept page for every key."""
    values = made.pairs()
    a, b = np.triu_indices(made.value.shape[0], 1)
    known = np.isfinite(values)
    row: dict[str, Any] = {
        "layer": layer, "method": method, "experts": made.value.shape[0], "pairs": int(known.sum()),
        "pairs_undefined": int((~known).sum()),
    }  # fmt: skip
    if not known.any():
        return row | {"mean": None}
    top, least = int(np.nanargmax(values)), int(np.nanargmin(values))
    row |= {
        "mean": float(values[known].mean()), "mean_low": made.mean_low,
        "mean_high": made.mean_high, "sd": float(values[known].std()),
        "max": float(values[top]), "max_pair": [int(a[top]), int(b[top])],
        "min": float(values[least]), "min_pair": [int(a[least]), int(b[least])],
        "chance": _of_known(np.mean, upper(made.chance)),
        "reference": _of_known(np.mean, made.reference),
        "reference_low": _of_known(np.min, made.reference),
        "reference_high": _of_known(np.max, made.reference),
        "reference_pairs": int(np.isfinite(made.reference).sum()),
    }  # fmt: skip
    if made.debiased is not None:
        row["mean_debiased"] = _of_known(np.mean, upper(made.debiased))
    if made.centred is not None:
        # the mean is −1/(E − 1) anyway
        row["max_centred"] = _of_known(np.max, upper(made.centred))
    if made.chance_sd is not None:
        row["chance_sd"] = _of_known(np.mean, upper(made.chance_sd))
    if made.halves is not None:
        row |= _halves(made.halves)
    return row


def _halves(halves_2EE: Floats) -> dict[str, Any]:
    """How far two halves of the documents agree."""
    both = upper(halves_2EE)
    kept = both[:, np.isfinite(both).all(0)]
    gap = np.abs(kept[0] - kept[1])
    return {
        "halves_mean_difference": float(gap.mean()) if gap.size else None,
        "halves_max_difference": float(gap.max()) if gap.size else None,
        "halves_rank_correlation": float(spearman(*kept)) if kept[0].size > 2 else float("nan"),
    }


def nearest(matrix_EE: Floats) -> tuple[list[int | None], list[float | None]]:
    """For each expert the other one that is most like it, and how much; None where unknown."""
    others = matrix_EE.copy()
    np.fill_diagonal(others, np.nan)
    who = [int(np.nanargmax(row)) if np.isfinite(row).any() else None for row in others]
    how = [None if e is None else float(others[i, e]) for i, e in enumerate(who)]
    return who, how


def clustered_order(matrix_EE: Floats) -> list[int]:
    """Experts in an order that puts similar ones side by side; those without a value come last.

    Average linkage on 1 − similarity, leaves in the order of least distance between neighbours.
    """
    shown = np.flatnonzero(np.isfinite(np.diag(matrix_EE)))
    rest = [e for e in range(matrix_EE.shape[0]) if e not in set(shown.tolist())]
    if shown.size < 3:
        return [*shown.tolist(), *rest]
    part = upper(matrix_EE[np.ix_(shown, shown)])
    part = np.where(np.isfinite(part), part, np.nanmin(part) if np.isfinite(part).any() else 0.0)
    apart = np.maximum(1.0 - part, 0.0)  # rounding may bring a similarity above 1
    leaves = leaves_list(linkage(apart, "average", optimal_ordering=True))
    return [*shown[leaves].tolist(), *rest]


def agreement_rows(
    layer: int, matrices: Mapping[str, Floats], rng: np.random.Generator
) -> list[dict[str, Any]]:
    """`mantel` for every two measures of one layer; q is added over all layers by `add_q`."""
    names = list(matrices)
    return [
        {"layer": layer, "a": a, "b": b, **mantel(matrices[a], matrices[b], rng)._asdict()}
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    ]


def _of_known(of: Any, values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(of(known)) if known.size else float("nan")
