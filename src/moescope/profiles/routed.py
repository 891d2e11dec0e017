"""What a run alone says of its experts: load, domains, tokens, partners. No model is needed.

`Routed` computes by layer, and only the layers that are asked for, so that one expert of a large
run is quick. Definitions are those of the tables; here they are put by cell.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moescope.metrics.intervals import Interval, ratio_interval
from moescope.metrics.runs import AnalyzedRun
from moescope.metrics.view import ALL, Layer, PhaseView
from moescope.profiles.cells import Cells, spread
from moescope.profiles.columns import LOAD, SPECIAL
from moescope.profiles.partners import Partners, partner_intervals, strongest_partners
from moescope.profiles.sampled import SampledDocuments
from moescope.profiles.tokens_in import (
    TokenLists,
    Vocabulary,
    list_overlap,
    top_tokens,
    vocabulary_of_experts,
)

TOKEN_ROWS = 16
"""Token ids in an expert's list."""

PARTNER_ROWS = 8
"""Partners in a list."""

_PHASE = "prefill"


class LayerTokens(NamedTuple):
    """Token ids of one layer's experts.

    ``assignments`` (E,): in the token-id tables, which hold at most the run's token budget.
    ``documents`` (E, rows): sampled documents in which the expert served the id, −1 without a
    sample. ``overlap`` (E,): what two halves of the sampled documents agree on (`list_overlap`).
    ``excess_halves`` (2, E): `Vocabulary.excess` of each half.
    """

    assignments: NDArray[np.int64]
    lists: TokenLists
    vocabulary: Vocabulary
    documents: NDArray[np.int64]
    overlap: NDArray[np.float64]
    excess_halves: NDArray[np.float64]


class Routed:
    """The facts of a run by cell."""

    def __init__(self, run: AnalyzedRun) -> None:
        self.run = run
        self.view = PhaseView(run, _PHASE)
        self.cells = Cells.of(run.shape)
        self.tokens = int(self.view.domain_tokens.sum())
        labelled = len(run.domains) > 1 or run.domains != [ALL]
        self.domains = [
            name
            for name, held in zip(run.domains, self.view.domain_tokens, strict=True)
            if held and labelled
        ]
        self._gates: dict[int, Interval] = {}
        self._tokens: dict[int, LayerTokens] = {}
        self._partners: dict[tuple[int, int], Partners] = {}

    @cached_property
    def load(self) -> dict[str, NDArray[np.float64]]:
        """Columns of the table ``load``, each (1 + C, M): the total, then each domain."""
        table, groups = self.run.table("load"), [ALL, *self.domains]
        return {c: spread(table, _PHASE, c, self.cells, groups) for c in LOAD.values()}

    @cached_property
    def special(self) -> dict[str, NDArray[np.float64]]:
        """Columns of the table ``domain_specialization``, each (C, M)."""
        table = self.run.table("domain_specialization")
        return {c: spread(table, _PHASE, c, self.cells, self.domains) for c in SPECIAL.values()}

    @cached_property
    def documents(self) -> NDArray[np.int64]:
        """Document clusters with a token of each cell: (1 + C, M), the total first."""
        seen_NM = np.concatenate([self.view.counts(n) > 0 for n in self.cells.layers], axis=1)
        masks = self._of_groups(self.view.cluster_domain)
        return np.stack([seen_NM[mask].sum(0) for mask in masks])

    @cached_property
    def all_documents(self) -> NDArray[np.int64]:
        """Document clusters with a token: (1 + C,), the total first."""
        held = self.view.cluster_tokens > 0
        masks = self._of_groups(self.view.cluster_domain)
        return np.asarray([np.count_nonzero(held & mask) for mask in masks])

    def _of_groups(self, domain_N: NDArray[np.int64]) -> list[NDArray[np.bool_]]:
        """Which documents are in the total, and in each domain."""
        numbers = [self.view.domains.index(name) for name in self.domains]
        return [np.ones(domain_N.size, np.bool_), *(domain_N == d for d in numbers)]

    @cached_property
    def sampled(self) -> SampledDocuments | None:
        """Sampled tokens by document, or None when the run kept aggregates only."""
        tokens = self.view.tokens
        if tokens is None or not tokens.doc.size:
            return None
        return SampledDocuments(self.view, tokens)

    def gate_interval(self, layer: Layer) -> Interval:
        """95 % interval of gate mass over sampled documents, (1 + C, E) each; NaN without."""
        if layer.slot not in self._gates:
            shape = (1 + len(self.domains), layer.num_experts)
            low, high = np.full(shape, np.nan), np.full(shape, np.nan)
            if self.sampled is not None:
                for g, ends in enumerate(self._gate_ends(layer, self.sampled)):
                    low[g], high[g] = ends
            self._gates[layer.slot] = Interval(low, high)
        return self._gates[layer.slot]

    def _gate_ends(self, layer: Layer, sampled: SampledDocuments) -> Iterator[Interval]:
        weights = sampled.tokens.weights[layer.layer_idx].astype(np.float64)
        mass_NE = sampled.by_document_and_expert(layer, weights)
        for mask in self._of_groups(sampled.domain_N):
            weight = sampled.weight_N[mask, None]
            tokens = sampled.tokens_N[mask, None] * weight
            yield ratio_interval(mass_NE[mask] * weight, tokens, sampled.domain_N[mask])

    def layer_tokens(self, layer: Layer) -> LayerTokens:
        """Token lists and vocabulary of one layer's experts."""
        if layer.slot not in self._tokens:
            ids, counts_XE = self.view.token_counts("input", layer)
            overlap = np.full(layer.num_experts, np.nan)
            halves = np.full((2, layer.num_experts), np.nan)
            lists = top_tokens(ids, counts_XE, layer.top_k, TOKEN_ROWS)
            documents = np.full(lists.ids.shape, -1, np.int64)
            if self.sampled is not None:
                split = [self._half_counts(layer, ids, h) for h in (0, 1)]
                overlap = list_overlap(ids, split, layer.top_k, TOKEN_ROWS)
                for h, counts in enumerate(split):
                    halves[h] = vocabulary_of_experts(ids, counts, layer.top_k).excess
                documents = self._token_documents(layer, lists.ids)
            vocabulary = vocabulary_of_experts(ids, counts_XE, layer.top_k)
            self._tokens[layer.slot] = LayerTokens(
                counts_XE.sum(0), lists, vocabulary, documents, overlap, halves
            )
        return self._tokens[layer.slot]

    def _half_counts(self, layer: Layer, ids_X: NDArray[np.int64], half: int) -> NDArray[np.int64]:
        """Counts (X, E) from the sampled documents of one half, over the ids of the run."""
        sampled = self.sampled
        assert sampled is not None
        mine = sampled.half_N[sampled.doc_T] == half
        row = np.searchsorted(ids_X, sampled.tokens.token_id[mine])
        row = np.minimum(row, ids_X.size - 1)
        known = ids_X[row] == sampled.tokens.token_id[mine]
        chosen = sampled.tokens.ids[layer.layer_idx][mine][known]
        table = np.zeros((ids_X.size, layer.num_experts), np.int64)
        np.add.at(table, (row[known][:, None], chosen), 1)
        return table

    def _token_documents(self, layer: Layer, listed_ER: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sampled documents in which each expert served each id of its list."""
        sampled = self.sampled
        assert sampled is not None
        out = np.zeros(listed_ER.shape, np.int64)
        for e, rows in enumerate(sampled.rows_by_expert(layer)):
            token, doc = sampled.tokens.token_id[rows], sampled.doc_T[rows]
            pairs = np.unique(token * sampled.documents + doc) // sampled.documents
            found, count = np.unique(pairs, return_counts=True)
            times = dict(zip(found.tolist(), count.tolist(), strict=True))
            out[e] = [times.get(int(x), 0) for x in listed_ER[e]]
        return out

    def partners(self, layer: Layer, beside: Layer) -> Partners:
        """Partners of a layer's experts in the same layer, the one before, or the one after."""
        key = (layer.slot, beside.slot)
        if key not in self._partners:
            counts, others = (self.view.counts(n).sum(0) for n in (layer, beside))
            made = strongest_partners(
                self._pairs(layer, beside), counts, others, self.tokens, PARTNER_ROWS
            )
            if self.sampled is not None:
                made = partner_intervals(made, self.sampled, layer, beside)
            self._partners[key] = made
        return self._partners[key]

    def _pairs(self, layer: Layer, beside: Layer) -> NDArray[np.int64]:
        """Tokens that chose an expert of each layer, (E, E'); no expert is its own partner."""
        arrays, first = self.view.arrays, min(layer.slot, beside.slot)
        if layer.slot == beside.slot:
            size = layer.num_experts
            pairs = arrays["coactivation"][layer.slot, :size, :size].astype(np.int64)
            np.fill_diagonal(pairs, 0)
            return pairs
        table: NDArray[np.int64] = arrays["flow"][first].astype(np.int64)
        oriented = table if layer.slot < beside.slot else table.T
        return oriented[: layer.num_experts, : beside.num_experts]
