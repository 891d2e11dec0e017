"""What is known of each layer: balance, decisiveness, information, pairs, repetition, committee."""

from __future__ import annotations

from typing import Any

import numpy as np

from moescope.metrics.view import ALL
from moescope.report.frames import Frame, tidy
from moescope.run.aggregates import DECISIVENESS

MAX_PAIR_CELLS = 150_000
"""Pairs of experts in all heatmaps together."""

_TOP_PAIRS = 12
_TOP_STEPS = 10
_MIN_EXPECTED = 5.0

COLUMNS: dict[str, tuple[str, ...]] = {
    "information": (
        "layer", "tokens", "documents", "shared_tokens", "shared_pairs", "max_bits",
        *(
            f"i_{name}_{part}"
            for name in (
                "expert_domain", "expert_token", "expert_domain_given_token",
                "expert_domain_given_pair",
            )
            for part in ("bits", "low", "high", "raw", "null", "most", "p")
        ),
    ),
    "phases": (
        "band", "layers", "domain", "specialized_share", "used_more_share", "used_less_share",
        "mean_abs_gap", "mean_abs_gap_low", "mean_abs_gap_high", "mean_abs_gap_chance",
        "i_expert_domain_bits",
        "i_expert_token_bits", "i_expert_domain_given_token_bits", "cv", "router_entropy",
        "topk_mass", "first", "committee",
    ),
    "balance": (
        "layer", "domain", "tokens", "cv", "cv_chance", "gini", "max_over_mean", "entropy",
        "dead_share", "cold_share",
    ),
    "decisiveness": (
        "layer", "domain", "topk_mass_chance",
        *(
            f"{name}{end}"
            for name in DECISIVENESS
            for end in ("", "_low", "_high")
        ),
    ),
    "repetition": (
        "layer", "domain", "pairs", "first", "first_low", "first_high", "first_chance",
        "first_by_load", "any", "any_low", "any_high", "any_chance",
    ),
    "vocabulary_specialization": (
        "layer", "kind", "value", "null", "excess", "types", "tokens", "covered", "min_count",
    ),
    "domain_loss": ("domain", "tokens", "scored", "loss", "unigram"),
    "path_entropy": (
        "domain", "tokens", "distinct", "entropy_bits", "entropy_corrected_bits", "max_bits",
    ),
}  # fmt: skip
"""Columns of each table that the page shows."""


def layer_columns(frame: Frame, name: str, groups: list[str]) -> dict[str, list[Any]]:
    """The shown columns of a table, of the groups that the page shows."""
    if "domain" in frame.columns:
        frame = frame.take(np.isin(frame["domain"].astype(str), groups))
    return frame.tidy(COLUMNS[name])


def histograms(frame: Frame, layers: list[int]) -> dict[str, Any]:
    """Counts by layer over all domains, with the edges of the bins once."""
    out: dict[str, Any] = {}
    total = frame.where(domain=ALL)
    for quantity in dict.fromkeys(total["quantity"].tolist() if len(total) else []):
        rows = total.where(quantity=quantity)
        first = rows.where(layer=layers[0])
        out[quantity] = {
            "low": tidy(first["low"]),
            "high": tidy(first["high"]),
            "counts": [rows.where(layer=n)["count"].tolist() for n in layers],
        }
    return out


def pairs(coactivation: Frame, load: Frame, layers: list[int]) -> list[dict[str, Any]]:
    """Lift of pairs by layer, thinned to the busiest experts where there are very many.

    ``lift`` is the upper triangle in 1/100, row by row; ``top`` the pairs furthest above chance
    among those that chance alone would make meet at least 5 times.
    """
    total = load.where(domain=ALL)
    widest = max((len(total.where(layer=n)) for n in layers), default=0)
    shown = widest
    while shown > 8 and len(layers) * shown * (shown - 1) // 2 > MAX_PAIR_CELLS:
        shown -= 8
    return [_pairs_of(coactivation.where(layer=n), total.where(layer=n), n, shown) for n in layers]


def _pairs_of(rows: Frame, load: Frame, layer: int, shown: int) -> dict[str, Any]:
    out: dict[str, Any] = {"layer": layer, "experts": [], "lift": [], "top": {}}
    if not len(rows):
        return out
    size = len(load)
    count = load["count"].astype(np.float64)
    tokens = float(load["tokens"][0])
    lift, met = np.full((size, size), np.nan), np.zeros((size, size))
    i, j = rows["expert_i"], rows["expert_j"]
    lift[i, j], met[i, j] = rows["lift"], rows["count"]
    busiest = np.sort(np.argsort(-count, kind="stable")[:shown])
    upper_i, upper_j = np.triu_indices(busiest.size, 1)
    flat = lift[busiest[upper_i], busiest[upper_j]]
    chance = float(rows["lift_chance"][0])
    out |= {
        "experts": busiest.tolist(),
        "all_experts": size,
        "lift": [round(v * 100) if np.isfinite(v) else None for v in flat.tolist()],
        "chance": tidy(chance),
    }
    all_i, all_j = np.triu_indices(size, 1)
    expected = count[all_i] * count[all_j] / tokens * chance
    candidates = np.flatnonzero((expected >= _MIN_EXPECTED) & np.isfinite(lift[all_i, all_j]))
    order = np.argsort(-lift[all_i, all_j][candidates], kind="stable")[:_TOP_PAIRS]
    a, b = all_i[candidates[order]], all_j[candidates[order]]
    out["top"] = {
        "a": a.tolist(),
        "b": b.tolist(),
        "count": met[a, b].astype(np.int64).tolist(),
        "lift": tidy(lift[a, b]),
        "b_given_a": tidy(met[a, b] / count[a]),
        "a_given_b": tidy(met[a, b] / count[b]),
        "expected": tidy(expected[candidates[order]]),
    }
    return out


def flow(frame: Frame, tokens: int, top_k: dict[int, int]) -> list[dict[str, Any]]:
    """From each layer to the next: how far from independent, and the ways taken most beyond that.

    ``moved``: the share of pairs (expert, next expert) that would have to be others if the layers
    routed independently, ½ Σ |count − expected| / (T·K·K'). ``moved_chance``: the same from noise
    alone, if tokens were independent of each other. ``top``: pairs by count − expected.
    """
    out = []
    for n in dict.fromkeys(frame["layer"].tolist() if len(frame) else []):
        rows = frame.where(layer=n)
        after, count = int(rows["next_layer"][0]), rows["count"].astype(np.float64)
        own = np.bincount(rows["expert"], count) / top_k[after]  # tokens of each expert
        expected = own[rows["expert"]] * rows["chance"]
        pairs = max(tokens, 1) * top_k[n] * top_k[after]
        best = np.argsort(expected - count, kind="stable")[:_TOP_STEPS]
        best = best[count[best] > expected[best]]
        out.append({
            "layer": n,
            "next": after,
            "moved": tidy(np.abs(count - expected).sum() / 2 / pairs),
            "moved_chance": tidy(np.sqrt(2 / np.pi * expected).sum() / 2 / pairs),
            "top": {
                "expert": rows["expert"][best].tolist(),
                "next_expert": rows["next_expert"][best].tolist(),
                "share": tidy(count[best] / max(tokens, 1)),
                "expected": tidy(expected[best] / max(tokens, 1)),
            },
        })  # fmt: skip
    return out


def committee(frame: Frame, layers: list[int]) -> list[dict[str, Any]]:
    """Members by layer, by all tokens and by the last token of each document."""
    out = []
    for used in ("all", "last"):
        part = frame.where(tokens_used=used)
        for n in layers:
            rows = part.where(layer=n)
            if not len(rows):
                continue
            chosen = rows.take(rows["member"].astype(np.bool_))
            chosen = chosen.take(np.argsort(-chosen["eci"], kind="stable"))
            out.append({
                "tokens_used": used, "layer": n, "members": chosen["expert"].tolist(),
                **{name: rows[name][0] for name in ("domains", "jaccard", "jaccard_chance")},
                "eci": chosen["eci"], "even": 1 / len(rows),
            })  # fmt: skip
    made: list[dict[str, Any]] = tidy(out)
    return made
