"""The figures of a similarity page as plain lists: matrices, layers in short, agreement, maps.

Numbers are whole thousandths, as a page holds a hundred thousand of them. Where there are too many
pairs, intervals are left out first and then the experts that the text used least; the table
beside the page has all. Knows nothing of HTML.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from moescope.report.frames import scaled, tidy
from moescope.similarity.answers import METHOD_NAMES
from moescope.similarity.pair_values import upper
from moescope.similarity.result import Similarity
from moescope.similarity.tables import clustered_order

PAIRS_WITH_INTERVALS = 200_000
"""With more pairs × layers × methods the page leaves intervals out."""

PAIRS_AT_MOST = 600_000
"""With more the page shows only the experts that were used most."""

_BESIDE = {
    "cosine": "value_routed", "cka": "value_debiased", "weights": "value_centred",
    "router": "value_centred",
}  # fmt: skip
_THOUSAND = 1000
_REACH = 10_000


def similarity_data(made: Similarity) -> dict[str, Any]:
    """What the scripts of the page draw."""
    about = made.about
    domains = [d["name"] for d in (about["text"] or {}).get("domains", [])]
    kept = _kept_experts(made)
    pairs = sum(len(k) * (len(k) - 1) // 2 for k in kept.values()) * len(made.methods)
    tables = _Tables(made, kept, pairs <= PAIRS_WITH_INTERVALS)
    maps, texts = _maps(made, domains)
    return {
        "phases": ["sample"],  # what the scripts of a report ask for: one view, its domains
        "views": {"sample": {"domains": domains}},
        "layers": [{key: r[key] for key in ("layer", "experts", "top_k")} for r in about["layers"]],
        "methods": [{"key": m, "name": METHOD_NAMES[m]} for m in made.methods],
        "matrices": {m: [tables.of(r, m) for r in about["layers"]] for m in made.methods},
        "orders": [tables.orders(r["layer"]) for r in about["layers"]],
        "shown": [kept[r["layer"]] for r in about["layers"]],
        "summary": tidy(about["summary"]),
        "agreement": tidy(about["agreement"]),
        "maps": maps,
        "texts": texts,
    }


def _kept_experts(made: Similarity) -> dict[int, list[int]]:
    """The experts of each layer that the page shows: all, or those that the text used most."""
    rows = made.about["layers"]
    room = PAIRS_AT_MOST / max(1, len(rows) * len(made.methods))
    most = int((1 + np.sqrt(1 + 8 * room)) / 2)  # the n with n(n − 1)/2 pairs
    kept = {}
    for row in rows:
        used = np.asarray(row["given"] or np.zeros(row["experts"]))
        first = np.argsort(-used, kind="stable")[:most]
        kept[row["layer"]] = np.sort(first).tolist()
    return kept


class _Tables:
    """Matrices of one result, cut to what the page shows."""

    def __init__(self, made: Similarity, kept: dict[int, list[int]], intervals: bool) -> None:
        self._made, self._kept, self._intervals = made, kept, intervals
        self._computed = {(row["layer"], row["method"]) for row in made.about["summary"]}

    def _cut(self, layer: int, method: str, column: str) -> NDArray[np.float64]:
        kept = self._kept[layer]
        return self._made.matrix(layer, method, column)[np.ix_(kept, kept)]

    def of(self, row: dict[str, Any], method: str) -> dict[str, Any] | None:
        """Values above the diagonal, row by row; None where the method was not computed."""
        layer = row["layer"]
        if (layer, method) not in self._computed:
            return None
        columns = {"value": "value", "beside": _BESIDE[method]}
        if self._intervals and method in ("cosine", "cka"):
            columns |= {"low": "ci_low", "high": "ci_high"}
        out: dict[str, Any] = {
            name: scaled(upper(self._cut(layer, method, column)), _THOUSAND)
            for name, column in columns.items()
        }
        out["undefined"] = row["undefined"].get(method, {})
        return out

    def orders(self, layer: int) -> dict[str, list[int]]:
        """For each method the places of the shown experts, similar ones side by side."""
        return {
            m: clustered_order(self._cut(layer, m, "value"))
            for m in self._made.methods
            if (layer, m) in self._computed
        }


def _maps(made: Similarity, domains: list[str]) -> tuple[list[dict[str, Any] | None], list[str]]:
    """Points by layer, with one pair of coordinates for each kind of map; texts of tokens."""
    table, about = made.maps, made.about["maps"]
    if not table.num_rows:
        return [], []
    texts = Counter(table["token"].to_pylist())
    names = [text for text, _ in texts.most_common()]
    token_of, domain_of = {t: i for i, t in enumerate(names)}, {d: i for i, d in enumerate(domains)}
    layers: list[dict[str, Any] | None] = []
    for row in made.about["layers"]:
        own = [m for m in about if m["layer"] == row["layer"]]
        part = table.filter(pc.equal(table["layer"], row["layer"]))
        if not own:
            layers.append(None)
            continue
        first = part.filter(pc.equal(part["map"], own[0]["map"]))
        out: dict[str, Any] = {
            "expert": first["expert"].to_pylist(),
            "domain": [domain_of[d] for d in first["domain"].to_pylist()],
            "token": [token_of[t] for t in first["token"].to_pylist()],
            "weight": scaled(first["weight"].to_numpy().astype(np.float64), _THOUSAND),
            "kinds": {},
        }
        for m in own:
            drawn = part.filter(pc.equal(part["map"], m["map"]))
            out["kinds"][m["map"]] = {
                **_to_square({axis: drawn[axis].to_numpy() for axis in "xy"}),
                **tidy({k: m[k] for k in ("explained", "parameters", "neighbours")}, 6),
            }
        layers.append(out)
    return layers, names


def _to_square(axes: dict[str, NDArray[np.float64]]) -> dict[str, Any]:
    """Whole numbers from −10,000 to 10,000, both axes by the same factor, and the way back."""
    middle = {axis: float(v.max() + v.min()) / 2 for axis, v in axes.items()}
    centred = {axis: v - middle[axis] for axis, v in axes.items()}
    reach = max(float(np.abs(v).max()) for v in centred.values()) or 1.0
    whole = {a: np.rint(v / reach * _REACH).astype(int).tolist() for a, v in centred.items()}
    return {**whole, "middle": tidy(middle, 6), "unit": tidy(reach / _REACH, 6)}
