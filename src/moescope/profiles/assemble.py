"""From arrays by cell to the profile of one expert, with what is absent and why.

Here the minima are applied below which a part is not given. Besides, it
reckons what takes all experts at once: the published super rule, peak ratios, chance levels.
"""

from __future__ import annotations

import math
from functools import cached_property
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moescope.metrics.view import Layer
from moescope.metrics.vocabulary import MIN_TOKEN_COUNT
from moescope.profiles.cells import Cells
from moescope.profiles.contexts import AROUND, MAX_PER_DOCUMENT
from moescope.profiles.facts import (
    Absent,
    ContextList,
    Contribution,
    DomainUse,
    Load,
    PartnerList,
    PartnerUse,
    Profile,
    PushedToken,
    PushList,
    SimilarExpert,
    SimilarList,
    SpeechList,
    SpeechUse,
    TokenList,
    TokenUse,
    VocabularyUse,
    WeightNorm,
)
from moescope.profiles.partners import MIN_PAIR_COUNT
from moescope.profiles.pushes import MIN_HALF_TOKENS
from moescope.profiles.routed import LayerTokens, Routed
from moescope.profiles.speech import SpeechMix, SpeechTags, speech_mix
from moescope.profiles.stored import StoredMeasures
from moescope.profiles.summary import (
    MIN_ASSIGNMENTS,
    flags_of,
    role_of,
    summarize,
    sureness,
)

__all__ = ["Assembly"]

NO_MODEL = "made without the model"
"""Reason given for every part that needs it."""

_SUPER_PERCENTILE = 99.5
_SUPER_OF_LARGEST = 0.1
_SUPER_DEPTH = 0.75


class Assembly:
    """Puts profiles together.

    Args:
        routed: what the run says.
        measured: what the model says, or None.
        tags: parts of speech of the sampled tokens, or None.
        why_no_tags: the reason.
    """

    def __init__(
        self,
        routed: Routed,
        measured: StoredMeasures | None,
        tags: SpeechTags | None,
        why_no_tags: str,
    ) -> None:
        self._routed = routed
        self._measured = measured
        self._tags, self._why_no_tags = tags, why_no_tags
        self._cells: Cells = routed.cells
        self._mixes: dict[int, SpeechMix] = {}

    def profile(self, cell: int) -> Profile:
        """The profile of one cell."""
        layer = self._cells.layers[self._cells.slot_of(cell)]
        ref = self._cells.ref(cell)
        load, domains = self._load(cell), self._domains(cell)
        tokens, vocabulary = self._tokens(layer, ref.expert)
        contribution, pushes = self._contribution(layer, cell), self._pushes(layer, cell)
        flags = flags_of(load, layer.top_k, vocabulary, contribution)
        role, sure = role_of(load, flags, domains, vocabulary), sureness(load)
        return Profile(
            expert=ref,
            summary=summarize(
                str(ref), role, sure, flags, load, domains, tokens, vocabulary, pushes, contribution
            ),
            role=role,
            sure=sure,
            flags=flags,
            load=load,
            domains=domains,
            tokens_in=tokens,
            vocabulary=vocabulary,
            coactivated=self._partners(layer, layer.slot, ref.expert),
            previous=self._partners(layer, layer.slot - 1, ref.expert),
            following=self._partners(layer, layer.slot + 1, ref.expert),
            parts_of_speech=self._speech(layer, ref.expert),
            contribution=contribution,
            contexts=self._contexts(cell),
            pushes=pushes,
            similar=self._similar(layer, cell),
            weights=self._weights(layer, cell),
            source=self._source,
        )

    @cached_property
    def _source(self) -> dict[str, Any]:
        measured = self._measured
        return {
            "moescope": version("moescope"),
            "phase": self._routed.view.phase,
            "tokens": self._routed.tokens,
            "sampled_documents": self._routed.sampled.documents if self._routed.sampled else 0,
            "measured": None
            if measured is None
            else {"settings": measured.about["settings"], "text": measured.about["text"]},
        }

    def _load(self, cell: int) -> Load:
        columns, layer = self._routed.load, self._cells.layers[self._cells.slot_of(cell)]
        low, high = self._routed.gate_interval(layer)
        e = cell - self._cells.offsets[layer.slot]
        return Load(
            count=int(columns["count"][0, cell]),
            tokens=int(columns["tokens"][0, cell]),
            documents=int(self._routed.documents[0, cell]),
            load=float(columns["load"][0, cell]),
            even=1 / layer.num_experts,
            rate=float(columns["activation_rate"][0, cell]),
            rate_low=float(columns["ci_low"][0, cell]),
            rate_high=float(columns["ci_high"][0, cell]),
            rate_chance=layer.top_k / layer.num_experts,
            gate_mass=float(columns["gate_mass"][0, cell]),
            gate_low=float(low[0, e]),
            gate_high=float(high[0, e]),
            first_share=float(columns["first_share"][0, cell]),
        )

    def _domains(self, cell: int) -> list[DomainUse] | Absent:
        routed = self._routed
        if not routed.domains:
            return Absent("the text of the run carries no domains")
        load, special = routed.load, routed.special
        layer = self._cells.layers[self._cells.slot_of(cell)]
        low, high = routed.gate_interval(layer)
        e = cell - self._cells.offsets[layer.slot]
        made = []
        for d, name in enumerate(routed.domains):
            g = d + 1
            made.append(
                DomainUse(
                    domain=name,
                    tokens=int(load["tokens"][g, cell]),
                    count=int(load["count"][g, cell]),
                    documents=int(routed.documents[g, cell]),
                    rate=float(load["activation_rate"][g, cell]),
                    low=float(load["ci_low"][g, cell]),
                    high=float(load["ci_high"][g, cell]),
                    others=float(special["others"][d, cell]),
                    lift=float(special["lift_over_others"][d, cell]),
                    lift_low=float(special["lift_low"][d, cell]),
                    lift_high=float(special["lift_high"][d, cell]),
                    q=float(special["q"][d, cell]),
                    of_expert=_ratio(load["count"][g, cell], load["count"][0, cell]),
                    of_text=_ratio(load["tokens"][g, cell], load["tokens"][0, cell]),
                    gate_mass=float(load["gate_mass"][g, cell]),
                    gate_low=float(low[g, e]),
                    gate_high=float(high[g, e]),
                    by_token=float(special["by_token"][d, cell]),
                    contribution=self._domain_contribution(name, cell),
                )
            )
        return made

    def _domain_contribution(self, name: str, cell: int) -> float:
        if self._measured is None:
            return math.nan
        names = self._measured.about["text"]["domains"]
        if name not in names:
            return math.nan
        return float(self._measured.arrays["contribution_by_domain"][names.index(name), cell])

    def _tokens(self, layer: Layer, e: int) -> tuple[TokenList | Absent, VocabularyUse | Absent]:
        made = self._routed.layer_tokens(layer)
        assignments = int(made.assignments[e])
        if assignments < MIN_ASSIGNMENTS:
            few = Absent(f"{assignments:,} assignments; at least {MIN_ASSIGNMENTS} are needed")
            return few, few
        text = self._routed.run.token_text
        lists, v = made.lists, made.vocabulary
        rows = [
            TokenUse(
                token=text(int(x)),
                token_id=int(x),
                count=int(lists.counts[e, r]),
                share=float(lists.share[e, r]),
                of_token=float(lists.of_token[e, r]),
                lift=float(lists.lift[e, r]),
                documents=None if made.documents[e, r] < 0 else int(made.documents[e, r]),
            )
            for r, x in enumerate(lists.ids[e])
            if x >= 0
        ]
        listed = TokenList(rows, assignments, MIN_TOKEN_COUNT, float(made.overlap[e]))
        return listed, self._vocabulary(made, v.top_id[e], e)

    def _vocabulary(self, made: LayerTokens, top_id: int, e: int) -> VocabularyUse:
        v = made.vocabulary
        return VocabularyUse(
            value=float(v.value[e]),
            null=float(v.null[e]),
            excess=float(v.excess[e]),
            excess_halves=(float(made.excess_halves[0, e]), float(made.excess_halves[1, e])),
            top_token=self._routed.run.token_text(int(top_id)),
            top_share=float(v.top_share[e]),
            half_types=int(v.half_types[e]),
            text_half_types=v.text_half_types,
            min_count=MIN_TOKEN_COUNT,
        )

    def _partners(self, layer: Layer, slot: int, e: int) -> PartnerList | Absent:
        layers = self._cells.layers
        if not 0 <= slot < len(layers):
            where = "before" if slot < 0 else "after"
            return Absent(f"no traced MoE layer {where} this one")
        if slot == layer.slot and layer.top_k < 2:
            return Absent("each token takes one expert of this layer")
        beside = layers[slot]
        made = self._routed.partners(layer, beside)
        rows = [
            PartnerUse(
                expert=f"L{beside.layer_idx}E{partner}",
                count=int(made.times[e, r]),
                given=float(made.given[e, r]),
                lift=float(made.lift[e, r]),
                low=float(made.low[e, r]),
                high=float(made.high[e, r]),
            )
            for r, partner in enumerate(made.expert[e].tolist())
            if partner >= 0
        ]
        size, top_k = layer.num_experts, layer.top_k
        own = size * (top_k - 1) / (top_k * (size - 1)) if size > 1 else math.nan
        return PartnerList(rows, own if slot == layer.slot else 1.0, MIN_PAIR_COUNT)

    def _speech(self, layer: Layer, e: int) -> SpeechList | Absent:
        sampled = self._routed.sampled
        if self._tags is None or sampled is None:
            return Absent(self._why_no_tags)
        if layer.slot not in self._mixes:
            self._mixes[layer.slot] = speech_mix(self._tags, sampled, layer)
        made = self._mixes[layer.slot]
        total = int(made.times[e].sum())
        if total < MIN_ASSIGNMENTS:
            return Absent(f"{total:,} tagged assignments; at least {MIN_ASSIGNMENTS} are needed")
        rows = [
            SpeechUse(
                tag=made.names[p],
                count=int(made.times[e, p]),
                share=float(made.share[e, p]),
                low=float(made.low[e, p]),
                high=float(made.high[e, p]),
                text_share=float(made.text_share[p]),
                lift=float(made.lift[e, p]),
            )
            for p in np.argsort(-made.share[e], kind="stable").tolist()
        ]
        return SpeechList(rows, total, self._tags.pipeline)

    def _contribution(self, layer: Layer, cell: int) -> Contribution | Absent:
        if self._measured is None:
            return Absent(NO_MODEL)
        a = self._measured.arrays
        count = int(a["count"][cell])
        if not count:
            return Absent("none of the measured tokens chose it")
        middle = float(np.median(a["peak"][a["peak"] > 0]))
        total = int(a["count"][self._cells.of_layer(layer)].sum())
        return Contribution(
            tokens=count,
            documents=int(a["documents"][cell]),
            mean=float(a["contribution"][cell]),
            low=float(a["contribution_low"][cell]),
            high=float(a["contribution_high"][cell]),
            share=float(a["contribution_share"][cell]),
            load_share=count / total,
            weight=float(a["weight"][cell]),
            activation=float(a["activation"][cell]),
            activation_share=float(a["activation_share"][cell]),
            peak=float(a["peak"][cell]),
            counted_peak=float(a["counted_peak"][cell]),
            peak_ratio=_ratio(a["peak"][cell], middle),
            super_rule=self._super_rule(layer, float(a["peak"][cell]), a["peak"]),
        )

    def _super_rule(self, layer: Layer, peak: float, peaks: NDArray[np.float64]) -> bool:
        """Above the 99.5th percentile of all, above a tenth of the largest, not late in depth."""
        depth = int(self._routed.run.manifest.model["decoder_layers"])
        return (
            peak > float(np.percentile(peaks, _SUPER_PERCENTILE))
            and peak > _SUPER_OF_LARGEST * float(peaks.max())
            and layer.layer_idx < _SUPER_DEPTH * depth
        )

    @cached_property
    def _context_rows(self) -> dict[int, list[dict[str, Any]]]:
        return {} if self._measured is None else _by_cell(self._measured.contexts, self._cells)

    @cached_property
    def _push_rows(self) -> dict[int, list[dict[str, Any]]]:
        return {} if self._measured is None else _by_cell(self._measured.pushes, self._cells)

    def _contexts(self, cell: int) -> ContextList | Absent:
        if self._measured is None:
            return Absent(NO_MODEL)
        rows = self._context_rows.get(cell)
        if not rows:
            return Absent("none of the measured tokens chose it")
        return ContextList(rows, AROUND, MAX_PER_DOCUMENT)

    def _pushes(self, layer: Layer, cell: int) -> PushList | Absent:
        if self._measured is None:
            return Absent(NO_MODEL)
        about, a = self._measured.about, self._measured.arrays
        reason = about["absent"].get("lens") or about["absent"].get(f"lens L{layer.layer_idx}")
        if reason:
            return Absent(reason)
        rows = self._push_rows.get(cell)
        counts = a["push_counts"][:, cell]
        if not rows:
            return Absent(
                f"{int(counts.sum()):,} measured assignments; at least {MIN_HALF_TOKENS} are "
                "needed in each half of the documents"
            )
        made: dict[str, list[PushedToken]] = {"promoted": [], "suppressed": []}
        for row in rows:
            made[row.pop("side")].append(PushedToken(**{n: row[n] for n in _PUSHED}))
        return PushList(
            promoted=made["promoted"],
            suppressed=made["suppressed"],
            tokens=int(counts.sum()),
            agreement=float(a["push_agreement"][cell]),
            promoted_overlap=float(a["push_overlap"][0, cell]),
            suppressed_overlap=float(a["push_overlap"][1, cell]),
            spread=float(a["push_spread"][cell]),
            factor=float(about["lens"]["paths"][str(layer.layer_idx)]),
            note=str(about["lens"]["note"]),
        )

    def _similar(self, layer: Layer, cell: int) -> SimilarList | Absent:
        if self._measured is None:
            return Absent(NO_MODEL)
        a = self._measured.arrays
        rows = [
            SimilarExpert(
                expert=f"L{layer.layer_idx}E{other}",
                cosine=float(a["cosine"][cell, r]),
                half_a=float(a["cosine_halves"][0, cell, r]),
                half_b=float(a["cosine_halves"][1, cell, r]),
            )
            for r, other in enumerate(a["nearest"][cell].tolist())
            if other >= 0
        ]
        if not rows:
            return Absent("its outputs could not be compared: they are zero, or it is alone")
        return SimilarList(rows, int(self._measured.about["compared"][layer.slot]))

    def _weights(self, layer: Layer, cell: int) -> list[WeightNorm] | Absent:
        if self._measured is None:
            return Absent(NO_MODEL)
        about, cut = self._measured.about, self._cells.of_layer(layer)
        made = []
        for name, norms in zip(about["norms"], self._measured.arrays["norms"], strict=True):
            own = norms[cut]
            if np.isfinite(own).all():
                z = _ratio(float(norms[cell] - own.mean()), float(own.std()))
                made.append(WeightNorm(name, float(norms[cell]), float(own.mean()), z))
        if not made:
            return Absent(about["absent"].get(f"weights L{layer.layer_idx}", "no stacked weights"))
        return made


_PUSHED = ("token", "token_id", "own", "others", "beyond", "half_a", "half_b")


def _by_cell(table: pa.Table, cells: Cells) -> dict[int, list[dict[str, Any]]]:
    """Rows of a table with layer and expert, by cell and without those two."""
    start = {layer.layer_idx: cells.offsets[layer.slot] for layer in cells.layers}
    out: dict[int, list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        cell = start[row.pop("layer")] + row.pop("expert")
        row.pop("rank")
        out.setdefault(cell, []).append(row)
    return out


def _ratio(top: float, bottom: float) -> float:
    return float(top) / float(bottom) if bottom else math.nan
