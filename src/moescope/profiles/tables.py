"""From arrays by cell to the tables of profiles, with what is absent and why.

Here the minima are applied below which a part is not given, and chance levels put beside what they
belong to. An absent part has no rows, no figures, and a row in ``absent``. Every table names its
expert by ``layer`` and ``expert``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moescope.axes import ExpertRef
from moescope.metrics.specialization import used
from moescope.metrics.view import Layer
from moescope.metrics.vocabulary import MIN_TOKEN_COUNT
from moescope.profiles.columns import (
    COLUMNS,
    CONTRIBUTION,
    DOMAIN_LOAD,
    LOAD,
    SPECIAL,
    schema_of,
)
from moescope.profiles.contexts import AROUND, MAX_PER_DOCUMENT
from moescope.profiles.facts import Profiles
from moescope.profiles.partners import MIN_PAIR_COUNT
from moescope.profiles.pushes import MIN_HALF_TOKENS
from moescope.profiles.routed import Routed
from moescope.profiles.speech import SpeechTags, speech_mix
from moescope.profiles.stored import StoredMeasures
from moescope.profiles.summary import MIN_ASSIGNMENTS, describe

NO_MODEL = "made without the model"
"""Reason given for every part that needs it."""

CONSTANTS: dict[str, dict[str, Any]] = {
    "tokens_in": {"min_count": MIN_TOKEN_COUNT},
    "vocabulary": {"min_count": MIN_TOKEN_COUNT},
    "coactivated": {"min_count": MIN_PAIR_COUNT},
    "previous": {"min_count": MIN_PAIR_COUNT},
    "following": {"min_count": MIN_PAIR_COUNT},
    "contexts": {"around": AROUND, "per_document": MAX_PER_DOCUMENT},
}
"""Limits that are the same for every expert, as its JSON says them."""

_SUPER_PERCENTILE = 99.5
_SUPER_OF_LARGEST = 0.1
_SUPER_DEPTH = 0.75

_DOMAINS_AND_ALL = (slice(1, None), 0)

Array = NDArray[Any]
Columns = dict[str, Any]


def profile_tables(
    routed: Routed,
    measured: StoredMeasures | None,
    tags: SpeechTags | None,
    why_no_tags: str,
    wanted: Sequence[int],
) -> Profiles:
    """Put profiles of the cells ``wanted`` together, in their order."""
    slots = np.asarray([routed.cells.slot_of(cell) for cell in wanted], np.int64)
    made = []
    for layer in (routed.cells.layers[s] for s in np.unique(slots).tolist()):
        own = np.asarray(wanted)[slots == layer.slot] - routed.cells.offsets[layer.slot]
        made.append(_LayerTables(routed, measured, layer, np.sort(own)).tables(tags, why_no_tags))
    tables = {
        name: pa.concat_tables([schema_of(name).empty_table(), *(part[name] for part in made)])
        for name in COLUMNS
    }
    bare = Profiles(tables, _source(routed, measured), CONSTANTS)
    ruled = [describe(profile) for profile in bare]
    for at, field in enumerate(schema_of("experts")):
        if ruled and field.name in ruled[0]:
            values = pa.array([r[field.name] for r in ruled], field.type)
            tables["experts"] = tables["experts"].set_column(at, field, values)
    place = np.argsort(np.argsort(wanted))  # of each wanted cell among the sorted ones
    return Profiles(tables, bare.source, CONSTANTS).some(place.tolist())


def _source(routed: Routed, measured: StoredMeasures | None) -> dict[str, Any]:
    return {
        "moescope": version("moescope"),
        "phase": routed.view.phase,
        "tokens": routed.tokens,
        "sampled_documents": routed.sampled.documents if routed.sampled else 0,
        "measured": None
        if measured is None
        else {"settings": measured.about["settings"], "text": measured.about["text"]},
    }


class _LayerTables:
    """Tables of some experts of one layer; ``own`` (n,) are their numbers."""

    def __init__(
        self, routed: Routed, measured: StoredMeasures | None, layer: Layer, own: Array
    ) -> None:
        self._routed, self._measured, self._layer, self._own = routed, measured, layer, own
        self._cells = routed.cells.offsets[layer.slot] + own
        self._experts: Columns = {}
        self._absent: list[tuple[int, str, str]] = []

    def tables(self, tags: SpeechTags | None, why_no_tags: str) -> dict[str, pa.Table]:
        """Every table; those without a row too."""
        self._load()
        listed: dict[str, Columns] = {
            "domains": self._domains(),
            "tokens": self._tokens(),
            "partners": self._partners(),
            "speech": self._speech(tags, why_no_tags),
            **self._measured_parts(),
        }
        listed["experts"] = self._experts
        absent = zip(*self._absent, strict=True) if self._absent else ()
        listed["absent"] = dict(zip(("expert", "part", "reason"), absent, strict=False))
        return {name: self._table(name, listed[name]) for name in COLUMNS}

    def _table(self, name: str, columns: Columns) -> pa.Table:
        """A table with the columns of its schema, rows of an expert side by side."""
        schema = schema_of(name)
        if not columns:
            return schema.empty_table()
        expert = np.asarray(columns["expert"])
        columns["layer"] = np.full(expert.size, self._layer.layer_idx)
        arrays = [
            pa.array(columns[f.name], f.type)
            if f.name in columns
            else pa.nulls(expert.size, f.type)
            for f in schema
        ]
        whole = pa.Table.from_arrays(arrays, schema=schema)
        return whole.take(pa.array(np.argsort(expert, kind="stable")))

    def _say(self, part: str, reason: str, which: Array | None = None) -> None:
        """These experts, or all, have no such part."""
        chosen = self._own if which is None else self._own[which]
        self._absent += [(e, part, reason) for e in chosen.tolist()]

    def _need(self, part: str, counts: Array, least: int, what: str = "assignments") -> None:
        """Experts with fewer have no such part."""
        for e, count in zip(self._own.tolist(), counts.tolist(), strict=True):
            if count < least:
                self._absent.append((e, part, f"{count:,} {what}; at least {least} are needed"))

    def _known(self, part: str) -> NDArray[np.bool_]:
        missing = [e for e, name, _ in self._absent if name == part]
        return ~np.isin(self._own, missing)

    def _figures(self, part: str, columns: Mapping[str, Any]) -> None:
        """Columns of ``experts`` that belong to a part; null where the part is absent."""
        known = self._known(part)
        for name, values in columns.items():
            array = np.broadcast_to(np.asarray(values), known.shape)
            self._experts[f"{part}_{name}"] = pa.array(array.tolist(), mask=~known)

    def _load(self) -> None:
        load, at, layer = self._routed.load, self._cells, self._layer
        low, high = self._routed.gate_interval(layer)
        size = at.size
        self._experts |= {
            "expert": self._own,
            "name": _names(layer, self._own),
            "documents": self._routed.documents[0, at],
            "top_k": np.full(size, layer.top_k),
            "even": np.full(size, 1 / layer.num_experts),
            "rate_chance": np.full(size, layer.top_k / layer.num_experts),
            "gate_low": low[0, self._own],
            "gate_high": high[0, self._own],
            **{name: load[column][0, at] for name, column in LOAD.items()},
        }

    def _domains(self) -> Columns:
        routed, names, at = self._routed, self._routed.domains, self._cells
        if not names:
            self._say("domains", "the text of the run carries no domains")
            return {}
        low, high = (ends[1:, self._own] for ends in routed.gate_interval(self._layer))
        columns = {
            "documents": routed.documents[1:, at],
            "of_documents": np.repeat(routed.all_documents[1:, None], at.size, axis=1),
            "even_documents": routed.even_documents(self._layer)[:, self._own],
            "of_expert": _ratio(*(routed.load["count"][g, at] for g in _DOMAINS_AND_ALL)),
            "of_text": _ratio(*(routed.load["tokens"][g, at] for g in _DOMAINS_AND_ALL)),
            "gate_low": low,
            "gate_high": high,
            **{name: routed.load[column][1:, at] for name, column in DOMAIN_LOAD.items()},
            **{name: routed.special[column][:, at] for name, column in SPECIAL.items()},
        }
        columns["used"] = used(*(columns[name] for name in ("q", "rate", "others")))
        if self._measured is not None:
            known = self._measured.about["text"]["domains"]
            by_domain = self._measured.arrays["contribution_by_domain"][:, at]
            columns["contribution"] = by_domain[[known.index(name) for name in names]]
        return {
            "expert": np.repeat(self._own, len(names)),
            "domain": list(names) * at.size,
            **{name: values.T.reshape(-1) for name, values in columns.items()},
        }

    def _tokens(self) -> Columns:
        made, own = self._routed.layer_tokens(self._layer), self._own
        count, lists, v = made.assignments[own], made.lists, made.vocabulary
        for part in ("tokens_in", "vocabulary"):
            self._need(part, count, MIN_ASSIGNMENTS)
        known = self._known("tokens_in")
        self._figures("tokens_in", {"assignments": count, "overlap": made.overlap[own]})
        figures = ("value", "null", "excess", "top_share", "half_types")
        self._figures(
            "vocabulary",
            {
                **{name: getattr(v, name)[own] for name in figures},
                "excess_half_a": made.excess_halves[0, own],
                "excess_half_b": made.excess_halves[1, own],
                "top_token": self._texts(v.top_id[own]),
                "text_half_types": v.text_half_types,
            },
        )
        columns = {"token_id": lists.ids, "count": lists.counts, "documents": made.documents}
        columns |= {name: getattr(lists, name) for name in ("share", "of_token", "lift")}
        rows = self._listed(known[:, None] & (lists.ids[own] >= 0), columns)
        rows["token"] = self._texts(rows["token_id"])
        rows["documents"] = pa.array(rows["documents"], mask=rows["documents"] < 0)
        return rows

    def _texts(self, ids: Array) -> list[str]:
        """Texts of token ids; half a character becomes a sign that can be written as UTF-8."""
        texts = (self._routed.run.token_text(int(x)) if x >= 0 else "" for x in ids)
        return [text.encode("utf-8", "replace").decode() for text in texts]

    def _listed(self, keep_nR: Array, columns: Mapping[str, Array]) -> Columns:
        """Columns (E, R) as rows, those that are kept."""
        at, rank = np.nonzero(keep_nR)
        named = {name: values[self._own[at], rank] for name, values in columns.items()}
        return {**named, "expert": self._own[at], "rank": rank}

    def _partners(self) -> Columns:
        layers, layer = self._routed.cells.layers, self._layer
        size, top_k = layer.num_experts, layer.top_k
        within = size * (top_k - 1) / (top_k * (size - 1)) if size > 1 else np.nan
        parts = []
        for where, slot, chance in (
            ("coactivated", layer.slot, within),
            ("previous", layer.slot - 1, 1.0),
            ("following", layer.slot + 1, 1.0),
        ):
            beside = layers[slot] if 0 <= slot < len(layers) else None
            if beside is None:
                side = "before" if where == "previous" else "after"
                self._say(where, f"no traced MoE layer {side} this one")
            elif beside is layer and top_k < 2:
                self._say(where, "each token takes one expert of this layer")
            else:
                parts.append(self._partners_in(where, beside))
                self._figures(where, {"chance": chance})
        return {n: np.concatenate([p[n] for p in parts]) for n in parts[0]} if parts else {}

    def _partners_in(self, where: str, beside: Layer) -> Columns:
        made = self._routed.partners(self._layer, beside)
        columns = made._asdict() | {"partner": made.expert, "count": made.times}
        rows = self._listed(made.expert[self._own] >= 0, columns)
        names = np.asarray(_names(beside, rows["partner"]), dtype=object)
        return rows | {"partner": names, "where": np.full(len(names), where, dtype=object)}

    def _speech(self, tags: SpeechTags | None, why_no_tags: str) -> Columns:
        sampled, own = self._routed.sampled, self._own
        if tags is None or sampled is None:
            self._say("parts_of_speech", why_no_tags)
            return {}
        made = speech_mix(tags, sampled, self._layer)
        total = made.times.sum(1)[own]
        self._need("parts_of_speech", total, MIN_ASSIGNMENTS, "tagged assignments")
        self._figures("parts_of_speech", {"assignments": total, "pipeline": tags.pipeline})
        order = np.argsort(-made.share, axis=1, kind="stable")
        named = np.asarray(made.names, dtype=object)
        ordered = made._asdict() | {"tag": named, "count": made.times}
        columns = {
            name: np.take_along_axis(np.broadcast_to(ordered[name], order.shape), order, 1)
            for name in ("tag", "count", "share", "low", "high", "text_share", "lift")
        }
        known = np.repeat(self._known("parts_of_speech")[:, None], len(made.names), axis=1)
        return self._listed(known, columns)

    def _measured_parts(self) -> dict[str, Columns]:
        """Tables of what the model said."""
        lists = ("contexts", "pushes", "similar", "weights")
        if self._measured is None:
            for part in ("contribution", *lists):
                self._say(part, NO_MODEL)
            return {key: {} for key in lists}
        self._contribution(self._measured)
        return {
            "contexts": self._contexts(self._measured),
            "pushes": self._pushes(self._measured),
            "similar": self._similar(self._measured),
            "weights": self._weights(self._measured),
        }

    def _contribution(self, measured: StoredMeasures) -> None:
        a, at = measured.arrays, self._cells
        count, peak = a["count"][at], a["peak"]
        known = count > 0
        self._say("contribution", "none of the measured tokens chose it", ~known)
        total = int(a["count"][self._routed.cells.of_layer(self._layer)].sum())
        columns = {
            "tokens": count,
            "load_share": count / max(total, 1),
            "peak_ratio": peak[at] / (np.median(peak[peak > 0]) if known.any() else np.nan),
            "super_rule": self._super_rule(peak)[at],
            **{name: a[column][at] for name, column in CONTRIBUTION.items()},
        }
        self._figures("contribution", columns)

    def _super_rule(self, peaks: Array) -> Array:
        """Above the 99.5th percentile of all, above a tenth of the largest, not late in depth."""
        depth = int(self._routed.run.manifest.model["decoder_layers"])
        early = self._layer.layer_idx < _SUPER_DEPTH * depth
        least = max(np.percentile(peaks, _SUPER_PERCENTILE), _SUPER_OF_LARGEST * peaks.max())
        found: Array = (peaks > least) & early
        return found

    def _own_rows(self, table: pa.Table) -> Columns:
        """Rows of a stored table that belong to these experts."""
        here = np.asarray(table["layer"]) == self._layer.layer_idx
        kept = table.filter(pa.array(here & np.isin(table["expert"], self._own), pa.bool_()))
        return {name: kept[name].combine_chunks() for name in kept.column_names if name != "layer"}

    def _without(self, rows: Columns) -> Array:
        return ~np.isin(self._own, np.asarray(rows["expert"]))

    def _contexts(self, measured: StoredMeasures) -> Columns:
        rows = self._own_rows(measured.contexts)
        self._say("contexts", "none of the measured tokens chose it", self._without(rows))
        return rows

    def _pushes(self, measured: StoredMeasures) -> Columns:
        about, a, at = measured.about, measured.arrays, self._cells
        number = self._layer.layer_idx
        reason = about["absent"].get("lens") or about["absent"].get(f"lens L{number}")
        if reason:
            self._say("pushes", reason)
            return {}
        rows = self._own_rows(measured.pushes)
        counts = a["push_counts"][:, at].sum(0)
        few = self._without(rows)
        for e, count in zip(self._own[few].tolist(), counts[few].tolist(), strict=True):
            reason = f"{count:,} measured assignments; at least {MIN_HALF_TOKENS} are needed"
            self._absent.append((e, "pushes", f"{reason} in each half of the documents"))
        columns = {
            "tokens": counts,
            "agreement": a["push_agreement"][at],
            "promoted_overlap": a["push_overlap"][0, at],
            "suppressed_overlap": a["push_overlap"][1, at],
            "spread": a["push_spread"][at],
            "factor": float(about["lens"]["paths"][str(number)]),
            "note": str(about["lens"]["note"]),
        }
        self._figures("pushes", columns)
        return rows

    def _similar(self, measured: StoredMeasures) -> Columns:
        a, at = measured.arrays, self._cells
        rank_of = a["nearest"][at] >= 0
        why = "its outputs could not be compared: they are zero, or it is alone"
        self._say("similar", why, ~rank_of.any(1))
        self._figures("similar", {"tokens": int(measured.about["compared"][self._layer.slot])})
        i, rank = np.nonzero(rank_of)
        return {
            "expert": self._own[i],
            "rank": rank,
            "partner": _names(self._layer, a["nearest"][at][i, rank]),
            "cosine": a["cosine"][at][i, rank],
            "half_a": a["cosine_halves"][0, at][i, rank],
            "half_b": a["cosine_halves"][1, at][i, rank],
        }

    def _weights(self, measured: StoredMeasures) -> Columns:
        about, whole = measured.about, self._routed.cells.of_layer(self._layer)
        norms = np.asarray(measured.arrays["norms"])
        known = np.isfinite(norms[:, whole]).all(1)
        names = [name for name, there in zip(about["norms"], known, strict=True) if there]
        if not names:
            reason = about["absent"].get(f"weights L{self._layer.layer_idx}", "no stacked weights")
            self._say("weights", reason)
            return {}
        layer, own = norms[known][:, whole], norms[known][:, self._cells]
        mean = layer.mean(1, keepdims=True)
        return {
            "expert": np.repeat(self._own, len(names)),
            "tensor": names * self._own.size,
            "norm": own.T.reshape(-1),
            "layer_mean": np.broadcast_to(mean, own.shape).T.reshape(-1),
            "z": _ratio(own - mean, layer.std(1, keepdims=True)).T.reshape(-1),
        }


def _names(layer: Layer, experts: Array) -> list[str]:
    return [str(ExpertRef(layer.layer_idx, e)) for e in experts.tolist()]


def _ratio(top: Array, bottom: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Array = np.where(bottom != 0, top / bottom, np.nan)
    return found
