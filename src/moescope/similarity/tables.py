"""Similarities of pairs as rows: every pair, each layer in short, and whether the methods agree.

It knows matrices only; where they come from is for others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.stats import rankdata

from moescope.metrics.statistics import benjamini_hochberg
from moescope.metrics.view import Rows
from moescope.similarity.pair_values import PairValues, upper

__all__ = [
    "PERMUTATIONS",
    "add_q",
    "agreement_rows",
    "clustered_order",
    "mantel",
    "nearest",
    "pair_rows",
    "rank_correlation",
    "summary_row",
]

Floats = NDArray[np.float64]

PERMUTATIONS = 999
"""Relabellings of the experts behind each p of `mantel`."""

_FEWEST_EXPERTS = 4


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
        chance_sd=of(made.chance_sd), reference=_mean(made.reference), tokens=upper(made.tokens),
        value_routed=of(made.routed),
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
        "chance": _mean(upper(made.chance)), "reference": _mean(made.reference),
        "reference_low": _end(np.min, made.reference),
        "reference_high": _end(np.max, made.reference),
        "reference_pairs": int(np.isfinite(made.reference).sum()),
    }  # fmt: skip
    if made.debiased is not None:
        row["mean_debiased"] = _mean(upper(made.debiased))
    if made.centred is not None:
        row["max_centred"] = _end(np.max, upper(made.centred))  # the mean is −1/(E − 1) anyway
    if made.chance_sd is not None:
        row["chance_sd"] = _mean(upper(made.chance_sd))
    if made.halves is not None:
        row |= _halves(made.halves)
    return row


def _halves(halves_2EE: Floats) -> dict[str, Any]:
    """How far two halves of the documents agree."""
    first, second = upper(halves_2EE)
    gap = np.abs(first - second)
    gap = gap[np.isfinite(gap)]
    return {
        "halves_mean_difference": float(gap.mean()) if gap.size else None,
        "halves_max_difference": float(gap.max()) if gap.size else None,
        "halves_rank_correlation": rank_correlation(first, second),
    }


def nearest(matrix_EE: Floats) -> tuple[list[int | None], list[float | None]]:
    """For each expert the other one that is most like it, and how much; None where unknown."""
    others = matrix_EE.copy()
    np.fill_diagonal(others, np.nan)
    who: list[int | None] = []
    how: list[float | None] = []
    for row in others:
        if np.isfinite(row).any():
            best = int(np.nanargmax(row))
            who.append(best)
            how.append(float(row[best]))
        else:
            who.append(None)
            how.append(None)
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


def rank_correlation(x: Floats, y: Floats) -> float:
    """Spearman's correlation over the pairs that both know; NaN with fewer than 3, or no spread."""
    known = np.isfinite(x) & np.isfinite(y)
    if known.sum() < 3:
        return float("nan")
    a, b = rankdata(x[known]), rankdata(y[known])
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 0 else float("nan")


def mantel(
    x_EE: Floats, y_EE: Floats, rng: np.random.Generator, permutations: int = PERMUTATIONS
) -> dict[str, Any]:
    """Do two matrices rank the pairs of the same experts alike?

    Spearman's correlation over pairs, and a two-sided p from giving the experts of one matrix new
    numbers: pairs that share an expert are not independent, so pairs are never shuffled singly.

    Args:
        x_EE: one matrix, symmetric; the diagonal is not used.
        y_EE: the other.
        rng: random numbers.
        permutations: relabellings.

    Returns:
        ``rho``, ``pairs`` behind it, ``experts`` that both matrices know, ``p`` (NaN with fewer
        than 4 of them). p is never 0: its least value is 1/(1 + permutations).

    Reference:
        Mantel 1967, The detection of disease clustering and a generalized regression approach.
    """
    kept = _known_to_both(x_EE, y_EE)
    x, y = upper(x_EE[np.ix_(kept, kept)]), upper(y_EE[np.ix_(kept, kept)])
    rho = rank_correlation(x, y)
    made = {"rho": rho, "pairs": int(x.size), "experts": len(kept), "p": float("nan")}
    if len(kept) < _FEWEST_EXPERTS or not np.isfinite(rho):
        return made
    ranks_x = rankdata(x) - (x.size + 1) / 2
    ranks = np.zeros((len(kept), len(kept)))
    places = np.triu_indices(len(kept), 1)
    ranks[places] = rankdata(y) - (y.size + 1) / 2
    ranks += ranks.T
    observed = abs(float(ranks_x @ ranks[places]))
    hits = 0
    for _ in range(permutations):
        order = rng.permutation(len(kept))
        drawn = abs(float(ranks_x @ ranks[np.ix_(order, order)][places]))
        hits += drawn >= observed * (1 - 1e-12)
    return made | {"p": (1 + hits) / (1 + permutations)}


def agreement_rows(
    layer: int, matrices: Mapping[str, Floats], rng: np.random.Generator
) -> list[dict[str, Any]]:
    """`mantel` for every two measures of one layer; q is added over all layers by `add_q`."""
    names = list(matrices)
    return [
        {"layer": layer, "a": a, "b": b, **mantel(matrices[a], matrices[b], rng)}
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    ]


def add_q(rows: list[dict[str, Any]]) -> None:
    """Correct the p of all rows together (Benjamini–Hochberg)."""
    q = benjamini_hochberg(np.asarray([row["p"] for row in rows], np.float64))
    for row, value in zip(rows, q.tolist(), strict=True):
        row["q"] = value


def _known_to_both(x_EE: Floats, y_EE: Floats) -> NDArray[np.int64]:
    """The experts whose pairs are all known: those with the most unknown pairs go one by one."""
    unknown = ~(np.isfinite(x_EE) & np.isfinite(y_EE))
    np.fill_diagonal(unknown, False)
    kept = np.arange(x_EE.shape[0])
    while kept.size and (worst := unknown[np.ix_(kept, kept)].sum(1)).any():
        kept = np.delete(kept, int(worst.argmax()))
    return kept


def _mean(values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")


def _end(of: Any, values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(of(known)) if known.size else float("nan")
