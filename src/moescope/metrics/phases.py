"""Early, middle and late layers side by side: how specialization changes with depth."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float64, Int64
from numpy.typing import NDArray

from moescope.metrics.intervals import MIN_CLUSTERS, contrast
from moescope.metrics.table import Column, table
from moescope.metrics.view import ALL, PhaseView, Rows

BANDS = ("early", "middle", "late")

_ENDS = ("low", "high", "chance")


def bands(layers: list[int]) -> dict[str, list[int]]:
    """Split layer numbers into three runs as equal as possible, the earlier ones larger.

    Example:
        >>> bands([0, 1, 2, 3, 4, 5, 6])
        {'early': [0, 1, 2], 'middle': [3, 4], 'late': [5, 6]}
    """
    parts = np.array_split(np.asarray(sorted(layers)), len(BANDS))
    return {name: part.tolist() for name, part in zip(BANDS, parts, strict=True) if part.size}


class MeanGap(NamedTuple):
    """Mean |rate in a domain − rate elsewhere| over the chance rate K/E, of M experts.

    ``value``: at least 0, and above 0 by noise alone. ``low``, ``high``: its 95 % interval over
    documents, which does not know of that noise. ``chance``: the noise, what the value would be
    if documents fell into the domain at random.
    """

    value: float
    low: float
    high: float
    chance: float


def mean_gap(
    counts_NM: Int64[np.ndarray, "N M"],
    tokens_N: Int64[np.ndarray, " N"],
    inside_N: Bool[np.ndarray, " N"],
    chance_M: Float64[np.ndarray, " M"],
) -> MeanGap:
    """How far a domain's rates lie from those of the other documents.

    The interval takes the signs of the M differences as known, so that the gap is a difference of
    two means. For ``chance`` each difference is normal with the variance that drawing the domain's
    documents out of all gives, so that its mean size is √(2/π) standard deviations.

    Args:
        counts_NM: tokens of each document that chose each expert.
        tokens_N: tokens of each document.
        inside_N: which documents are of the domain.
        chance_M: K/E of each expert.

    Returns:
        See `MeanGap`. All NaN without tokens on either side; interval and ``chance`` are NaN below
        5 documents on either side.

    Example:
        >>> counts, inside = np.array([[7], [4]]), np.array([True, False])
        >>> round(mean_gap(counts, np.array([10, 10]), inside, np.array([0.5])).value, 3)
        0.6
    """
    used = tokens_N > 0
    counts, tokens, inside = counts_NM[used].astype(np.float64), tokens_N[used], inside_N[used]
    ins, out = int(tokens[inside].sum()), int(tokens[~inside].sum())
    if not (ins and out):
        return MeanGap(*[float("nan")] * 4)
    sign = np.sign(counts[inside].sum(0) / ins - counts[~inside].sum(0) / out)
    signed = counts @ (sign / chance_M) / chance_M.size
    found = contrast(signed[:, None], tokens, inside)
    own, size = int(inside.sum()), inside.size
    chance = float("nan")
    if min(own, size - own) >= MIN_CLUSTERS:
        spread = counts - tokens[:, None] * (counts.sum(0) / tokens.sum())
        drawn = own * (1 - own / size) * (spread**2).sum(0) / (size - 1)  # variance of the sum
        noise = np.sqrt(2 / np.pi * drawn) * (1 / ins + 1 / out)
        chance = float((noise / chance_M).mean())
    low = max(float(found.low[0]), 0.0) if np.isfinite(found.low[0]) else float("nan")
    return MeanGap(float(found.difference[0]), low, float(found.high[0]), chance)


@table(
    "phases",
    columns={
        "band": Column("early, middle or late", key=True),
        "layers": Column("first and last layer of the band", key=True),
        "domain": Column("that the figures are of; all: over all domains", key=True),
        "specialized_share": "share of layer × expert × domain cells with q < 0.05",
        "used_more_share": "share of the cells with q < 0.05 and a rate above that of the other "
        "domains",
        "used_less_share": "the same with a rate below it",
        "mean_abs_gap": Column(
            "mean |rate in the domain − rate elsewhere| over K/E; of all domains their mean, "
            "without an interval",
            chance="mean_abs_gap_chance",
            interval=True,
        ),
        "mean_abs_gap_chance": Column(
            "the same if documents fell into domains at random", of="mean_abs_gap"
        ),
        "i_expert_domain_bits": Column("see information; all domains only", "bits", chance="0"),
        "i_expert_token_bits": Column("see information; all domains only", "bits", chance="0"),
        "i_expert_domain_given_token_bits": Column(
            "see information; all domains only", "bits", chance="0"
        ),
        "cv": "see balance",
        "router_entropy": "see decisiveness",
        "topk_mass": Column("see decisiveness", chance="K/E"),
        "first": Column("same first choice of neighbouring tokens", chance="1/E"),
        "committee": "members by all tokens; all domains only",
    },
    concept="depth",
)
def phases(view: PhaseView) -> Rows:
    """Early, middle and late thirds of the MoE layers, each figure the mean over their layers.

    NaN where an imported run does not know it.
    """
    rows = Rows()
    present = [name for name, *_ in view.groups() if name != ALL]
    for name, layers in bands([layer.layer_idx for layer in view.layers]).items():
        gaps = [_gap(view, layers, domain) for domain in present]
        for domain, gap in zip((ALL, *present), (_mean(gaps), *gaps), strict=True):
            figures = _band(view, layers, domain)
            rows.add(band=name, layers=_span(layers), domain=domain, **gap, **figures)
    return rows


def _gap(view: PhaseView, layers: list[int], domain: str) -> dict[str, float]:
    chosen = [layer for layer in view.layers if layer.layer_idx in layers]
    counts = np.concatenate([view.counts(layer) for layer in chosen], axis=1)
    chance = np.repeat([n.top_k / n.num_experts for n in chosen], [n.num_experts for n in chosen])
    inside = view.cluster_domain == view.places[domain]
    made = mean_gap(counts, view.cluster_tokens, inside, chance)
    return {"mean_abs_gap": made.value} | {f"mean_abs_gap_{e}": getattr(made, e) for e in _ENDS}


def _mean(gaps: list[dict[str, float]]) -> dict[str, float]:
    """Over domains; as they share documents, the mean has no interval here."""
    made = dict.fromkeys(("mean_abs_gap", *(f"mean_abs_gap_{e}" for e in _ENDS)), float("nan"))
    for name in ("mean_abs_gap", "mean_abs_gap_chance"):
        known = [gap[name] for gap in gaps if np.isfinite(gap[name])]
        made[name] = float(np.mean(known)) if known else float("nan")
    return made


def _band(view: PhaseView, layers: list[int], domain: str) -> dict[str, object]:
    of = {} if domain == ALL else {"domain": domain}
    spec = _where(view.table("domain_specialization"), layer=layers, **of)
    q, value, others = (_floats(spec, name) for name in ("q", "value", "others"))
    tested = np.isfinite(q)
    kinds = {"specialized": q < 0.05, "used_more": (q < 0.05) & (value > others)}
    kinds["used_less"] = kinds["specialized"] & (value < others)
    out: dict[str, object] = {
        f"{kind}_share": float(passed[tested].mean()) if tested.any() else float("nan")
        for kind, passed in kinds.items()
    }
    parts = ("expert_domain", "expert_token", "expert_domain_given_token")
    means: dict[str, tuple[list[str], dict[str, object]]] = {
        "information": ([f"i_{part}_bits" for part in parts], {"domain": ALL} if of else {}),
        "balance": (["cv"], {"domain": domain}),
        "decisiveness": (["router_entropy", "topk_mass"], {"domain": domain}),
        "repetition": (["first"], {"domain": domain}),
    }
    for source, (columns, chosen) in means.items():
        rows = _where(view.table(source), layer=layers, **chosen)
        for column in columns:
            out[column] = float(_floats(rows, column).mean()) if rows.num_rows else float("nan")
    members = _where(view.table("committee"), layer=layers, tokens_used="all")
    known = "member" in members.column_names  # an imported run may not know of probabilities
    known &= domain == ALL
    out["committee"] = float(_floats(members, "member").sum() / len(layers)) if known else np.nan
    return out


def _where(table: pa.Table, **wanted: object) -> pa.Table:
    for name, value in wanted.items():
        if name not in table.column_names:
            return table.slice(0, 0)
        allowed = value if isinstance(value, list) else [value]
        table = table.filter(pc.field(name).isin(allowed))
    return table


def _floats(table: pa.Table, name: str) -> NDArray[np.float64]:
    return np.asarray(table[name].to_pylist(), dtype=np.float64)


def _span(layers: list[int]) -> str:
    return str(layers[0]) if len(layers) == 1 else f"{layers[0]}–{layers[-1]}"
