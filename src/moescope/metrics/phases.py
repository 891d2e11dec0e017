"""Early, middle and late layers side by side: how specialization changes with depth."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from moescope.metrics.table import Column, table
from moescope.metrics.view import ALL, PhaseView, Rows

BANDS = ("early", "middle", "late")


def bands(layers: list[int]) -> dict[str, list[int]]:
    """Split layer numbers into three runs as equal as possible, the earlier ones larger.

    Example:
        >>> bands([0, 1, 2, 3, 4, 5, 6])
        {'early': [0, 1, 2], 'middle': [3, 4], 'late': [5, 6]}
    """
    parts = np.array_split(np.asarray(sorted(layers)), len(BANDS))
    return {name: part.tolist() for name, part in zip(BANDS, parts, strict=True) if part.size}


@table(
    "phases",
    columns={
        "band": Column("early, middle or late", key=True),
        "layers": Column("first and last layer of the band", key=True),
        "specialized_share": "share of layer × expert × domain cells with q < 0.05",
        "mean_abs_gap": "mean |rate in the domain − rate elsewhere| over K/E, which is above 0 "
        "even by chance",
        "i_expert_domain_bits": Column("see information", "bits", chance="0"),
        "i_expert_token_bits": Column("see information", "bits", chance="0"),
        "i_expert_domain_given_token_bits": Column("see information", "bits", chance="0"),
        "cv": "see balance; over all domains",
        "router_entropy": "see decisiveness; over all domains",
        "topk_mass": Column("see decisiveness; over all domains", chance="K/E"),
        "first": Column("same first choice of neighbouring tokens", chance="1/E"),
        "committee": "members by all tokens",
    },
    concept="depth",
)
def phases(view: PhaseView) -> Rows:
    """Early, middle and late thirds of the MoE layers, each figure the mean over their layers.

    NaN where an imported run does not know it.
    """
    rows = Rows()
    for name, layers in bands([layer.layer_idx for layer in view.layers]).items():
        rows.add(band=name, layers=_span(layers), **_band(view, layers))
    return rows


def _band(view: PhaseView, layers: list[int]) -> dict[str, object]:
    spec = _where(view.table("domain_specialization"), layer=layers)
    q, value, others = (_floats(spec, name) for name in ("q", "value", "others"))
    tested = np.isfinite(q)
    gap = np.abs(value - others) / _floats(spec, "chance")
    out: dict[str, object] = {
        "specialized_share": float((q[tested] < 0.05).mean()) if tested.any() else float("nan"),
        "mean_abs_gap": float(np.nanmean(gap)) if np.isfinite(gap).any() else float("nan"),
    }
    parts = ("expert_domain", "expert_token", "expert_domain_given_token")
    means: dict[str, tuple[list[str], dict[str, object]]] = {
        "information": ([f"i_{part}_bits" for part in parts], {}),
        "balance": (["cv"], {"domain": ALL}),
        "decisiveness": (["router_entropy", "topk_mass"], {"domain": ALL}),
        "repetition": (["first"], {"domain": ALL}),
    }
    for source, (columns, of) in means.items():
        rows = _where(view.table(source), layer=layers, **of)
        for column in columns:
            out[column] = float(_floats(rows, column).mean()) if rows.num_rows else float("nan")
    members = _where(view.table("committee"), layer=layers, tokens_used="all")
    known = "member" in members.column_names  # an imported run may not know of probabilities
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
