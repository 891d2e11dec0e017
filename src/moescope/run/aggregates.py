"""Sums that a trace keeps as it goes: enough for most tables, flat in the number of tokens.

One `PhaseAggregates` each for prefill and decode. Everything is additive: adding two blocks one
after the other, or merging two aggregates, gives the same counts as adding them at once. The
document is the unit of every confidence interval and null, so counts are kept by *cluster*: one
document each, until a domain has `max_clusters` of them, then documents share clusters in turn.
It knows nothing of files or models.

A source that gives expert ids alone (an imported run) cannot fill every sum. What it cannot fill is
not there at all: no array of zeros that could be read as a result.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moescope.run.facts import LayerFacts, TokenBlock
from moescope.run.sparse import SparseCounter

DECISIVENESS = ("router_entropy", "topk_entropy", "topk_mass", "margin_first", "margin_kth")
"""Names of the per-token scalars that are summed by cluster, in storage order."""

HISTOGRAMS = ("logit", "probability", "topk_weight")
"""Quantities that get a histogram, in storage order; 64 bins each, the outer ones open."""

ABSENT: dict[str, tuple[str, ...]] = {
    "weights": ("cluster_decisive", "gate_mass", "prob_sum", "last_prob_sum", "histograms"),
    "order": ("first_counts", "cluster_repetition"),
    "tokens": ("coactivation", "flow", "cluster_pairs"),
}
"""What a source may not know, and the arrays that are then not kept: the weights and probabilities
of the router; which of a token's K experts was its first choice; single tokens at all, and the
documents that they were in."""

_BINS = 64
LOGIT_EDGES = np.linspace(-16.0, 16.0, _BINS - 1)
PROB_EDGES = np.logspace(-6.2, 0.0, _BINS - 1)
WEIGHT_EDGES = np.linspace(0.0, 1.0, _BINS - 1)
_EXPERT_BITS = 12
_TOKEN_BITS = 24


def pack(
    domain: NDArray[np.int64], token: NDArray[np.int64], expert: NDArray[np.int64]
) -> NDArray[np.int64]:
    """One int64 key from (domain, token id, expert), broadcast together."""
    key: NDArray[np.int64] = (
        (domain << (_TOKEN_BITS + _EXPERT_BITS)) | (token << _EXPERT_BITS) | expert
    )
    return key


def unpack(
    key: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """(domain, token id, expert) of packed keys, each of the shape of ``key``."""
    expert = key & ((1 << _EXPERT_BITS) - 1)
    token = (key >> _EXPERT_BITS) & ((1 << _TOKEN_BITS) - 1)
    return key >> (_TOKEN_BITS + _EXPERT_BITS), token, expert


@dataclass(frozen=True)
class AggregateShape:
    """The fixed axes of an aggregate.

    Attributes:
        layers: the model's own numbers of the traced MoE layers, ascending.
        num_experts: routed experts of each of those layers.
        top_k: experts per token of each of those layers.
        token_budget: tokens of each domain that enter the token-id tables.
        absent: keys of `ABSENT`: what the source of the run does not know.
    """

    layers: tuple[int, ...]
    num_experts: tuple[int, ...]
    top_k: tuple[int, ...]
    token_budget: int = 250_000
    absent: frozenset[str] = frozenset()

    @property
    def max_experts(self) -> int:
        """The widest layer, which sets the size of the expert axis."""
        return max(self.num_experts)

    @property
    def max_clusters(self) -> int:
        """Clusters a domain may have: 1,000, fewer where layers × experts would fill memory."""
        cells = len(self.layers) * self.max_experts
        return int(min(1000, max(64, 4_000_000 // cells)))


@dataclass
class PhaseAggregates:
    """Everything summed for one phase (prefill or decode).

    Shapes, with N clusters, C domains, L layers and E the widest layer's experts:
    ``cluster_tokens`` (N,), ``cluster_counts`` (N, L, E), ``cluster_decisive`` (N, L, 5),
    ``gate_mass``, ``prob_sum``, ``last_prob_sum`` (C, L, E), ``last_tokens`` (C,),
    ``histograms`` (C, 3, L, 64), ``coactivation`` (L, E, E), ``flow`` (L−1, E, E),
    ``first_counts`` (C, L, E): tokens whose first choice an expert was;
    ``cluster_repetition`` (N, L, 2): neighbouring tokens with the same first choice, and sharing
    any; ``cluster_pairs`` (N,): neighbouring tokens; ``nll`` (C, 2): sum in nats and tokens that
    have a target;
    ``token_tokens`` (C,): tokens that entered the token-id tables.

    Without weights, order or tokens (``shape.absent``) the arrays that need them are not kept;
    `ABSENT` names them. Without order there are no paths either, and ``cluster_shared`` (N, L)
    counts neighbouring tokens that share any expert. Without tokens a domain is one cluster.
    """

    shape: AggregateShape
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    sparse: dict[str, SparseCounter] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n_layers, n_experts = len(self.shape.layers), self.shape.max_experts
        per_expert, ints, floats = (n_layers, n_experts), np.int64, np.float64
        fresh = {
            "cluster_tokens": np.zeros(0, ints),
            "cluster_counts": np.zeros((0, *per_expert), ints),
            "cluster_decisive": np.zeros((0, n_layers, len(DECISIVENESS)), floats),
            "gate_mass": np.zeros((0, *per_expert), floats),
            "prob_sum": np.zeros((0, *per_expert), floats),
            "last_prob_sum": np.zeros((0, *per_expert), floats),
            "last_tokens": np.zeros(0, ints),
            "histograms": np.zeros((0, len(HISTOGRAMS), n_layers, _BINS), ints),
            "coactivation": np.zeros((n_layers, n_experts, n_experts), ints),
            "flow": np.zeros((max(0, n_layers - 1), n_experts, n_experts), ints),
            "cluster_repetition": np.zeros((0, n_layers, 2), ints),
            "cluster_pairs": np.zeros(0, ints),
            "first_counts": np.zeros((0, *per_expert), ints),
            "nll": np.zeros((0, 2), floats),
            "token_tokens": np.zeros(0, ints),
        }
        absent = self.shape.absent
        for name in (n for what in absent for n in ABSENT[what]):
            del fresh[name]
        if "order" in absent and "tokens" not in absent:
            fresh["cluster_shared"] = np.zeros((0, n_layers), ints)
        self.arrays = {**fresh, **self.arrays}
        kinds = ("input", "next", "pred")
        names = [
            *(() if "order" in absent else ("paths",)),
            *(f"{kind}_{n}" for kind in kinds for n in self.shape.layers),
        ]
        self.sparse = {name: self.sparse.get(name, SparseCounter()) for name in names}

    def require_fit(self, num_clusters: int, num_domains: int) -> None:
        """Refuse arrays that do not have the shapes that the class names.

        Raises:
            ValueError: names the array.
        """
        fresh = PhaseAggregates(self.shape)
        fresh.grow(num_clusters, num_domains)
        for name in sorted({*fresh.arrays, *self.arrays}):
            mine, wanted = self.arrays.get(name), fresh.arrays.get(name)
            if mine is None or wanted is None:
                raise ValueError(f"array {name} is {'missing' if mine is None else 'not known'}")
            if (mine.dtype, mine.shape) != (wanted.dtype, wanted.shape):
                raise ValueError(
                    f"{name} is {mine.dtype}{mine.shape}, expected {wanted.dtype}{wanted.shape}"
                )
            if mine.dtype == np.int64 and mine.size and mine.min() < 0:
                raise ValueError(f"{name} holds a negative count")
            if not np.isfinite(mine).all():
                raise ValueError(f"{name} holds a number that is not finite")

        for name, counter in self.sparse.items():
            self._require_keys(name, counter, num_domains)

    def _require_keys(self, name: str, counter: SparseCounter, num_domains: int) -> None:
        keys, counts = counter.keys, counter.counts
        if keys.dtype != np.int64 or counts.dtype != np.int64 or keys.shape != counts.shape:
            raise ValueError(f"the keys and counts of {name} are not of one length")
        if not keys.size:
            return
        domain, _, expert = unpack(keys)
        if name == "paths":
            domain, expert = keys >> 44, np.zeros_like(keys)
        if np.any(np.diff(keys) <= 0) or keys[0] < 0 or counts.min() < 1:
            raise ValueError(f"the keys of {name} are not distinct and ascending, each counted")
        if domain.max() >= num_domains or expert.max() >= self.shape.max_experts:
            raise ValueError(f"{name} names a domain or expert that is not there")

    def grow(self, num_clusters: int, num_domains: int) -> None:
        """Make room for clusters and domains seen for the first time; their sums start at zero."""
        for name, array in self.arrays.items():
            if name in ("coactivation", "flow"):
                continue
            rows = num_clusters if name.startswith("cluster_") else num_domains
            if rows > array.shape[0]:
                more = np.zeros((rows - array.shape[0], *array.shape[1:]), array.dtype)
                self.arrays[name] = np.concatenate([array, more])

    def add(self, block: TokenBlock, layers: list[LayerFacts]) -> None:
        """Add the tokens of one batch; ``layers`` are in the order of ``shape.layers``."""
        a = self.arrays
        a["cluster_tokens"] += np.bincount(block.cluster, minlength=a["cluster_tokens"].size)
        num_domains = a["last_tokens"].size
        follows = block.cluster[block.follows]
        a["cluster_pairs"] += np.bincount(follows, minlength=a["cluster_pairs"].size)
        a["last_tokens"] += np.bincount(block.domain[block.last], minlength=num_domains)
        scored = np.isfinite(block.nll)
        a["nll"][:, 0] += np.bincount(block.domain[scored], block.nll[scored], num_domains)
        a["nll"][:, 1] += np.bincount(block.domain[scored], minlength=num_domains)
        in_budget = self._within_budget(block.domain)
        previous: NDArray[np.float32] | None = None
        for i, facts in enumerate(layers):
            one_hot = _one_hot(facts.topk_ids, self.shape.max_experts)
            self._add_layer(i, block, facts, one_hot)
            self._add_tokens(self.shape.layers[i], block, facts, in_budget)
            if previous is not None:
                a["flow"][i - 1] += (previous.T @ one_hot).astype(np.int64)
            previous = one_hot
        if "order" not in self.shape.absent:
            self._add_paths(block, layers, in_budget)

    def merge(self, other: PhaseAggregates) -> None:
        """Add another aggregate whose clusters and domains have the same numbers."""
        self.grow(other.arrays["cluster_tokens"].shape[0], other.arrays["last_tokens"].shape[0])
        for name, array in other.arrays.items():
            mine = self.arrays[name]
            mine[: array.shape[0]] += array
        for name, counter in other.sparse.items():
            self.sparse[name].merge(counter)

    def _add_layer(
        self, i: int, block: TokenBlock, facts: LayerFacts, one_hot: NDArray[np.float32]
    ) -> None:
        a = self.arrays
        _add_grouped(a["cluster_counts"][:, i], block.cluster, facts.topk_ids, None)
        a["coactivation"][i] += (one_hot.T @ one_hot).astype(np.int64)
        if "weights" not in self.shape.absent:
            self._add_weights(i, block, facts)
        self._add_neighbours(i, block, facts, one_hot)

    def _add_weights(self, i: int, block: TokenBlock, facts: LayerFacts) -> None:
        a = self.arrays
        _add_grouped(a["gate_mass"][:, i], block.domain, facts.topk_ids, facts.topk_weights)
        for domain in np.unique(block.domain):
            rows = block.domain == domain
            width = facts.probs.shape[1]
            a["prob_sum"][domain, i, :width] += facts.probs[rows].sum(0, dtype=np.float64)
            last = rows & block.last
            a["last_prob_sum"][domain, i, :width] += facts.probs[last].sum(0, dtype=np.float64)
        for j, name in enumerate(DECISIVENESS):
            scalar = getattr(facts, name)
            sums = np.bincount(block.cluster, scalar, a["cluster_decisive"].shape[0])
            a["cluster_decisive"][:, i, j] += sums
        total = facts.topk_weights.sum(1, keepdims=True)
        shares = facts.topk_weights / np.maximum(total, 1e-30)
        for j, values in enumerate((facts.logits, facts.probs, shares)):
            _add_histogram(a["histograms"][:, j, i], block.domain, values, _BINS_OF[j])

    def _add_neighbours(
        self, i: int, block: TokenBlock, facts: LayerFacts, one_hot: NDArray[np.float32]
    ) -> None:
        a, ids = self.arrays, facts.topk_ids
        now, cluster, size = block.follows[1:], block.cluster[1:], a["cluster_pairs"].size
        narrow = ids.shape[1] < self.shape.max_experts
        shared = (one_hot[1:] * one_hot[:-1]).sum(1) > 0 if narrow else np.ones_like(now)
        if "order" in self.shape.absent:
            a["cluster_shared"][:, i] += np.bincount(cluster[now & shared], minlength=size)
            return
        _add_grouped(a["first_counts"][:, i], block.domain, ids[:, :1], None)
        same_first = now & (ids[1:, 0] == ids[:-1, 0])
        for j, hit in enumerate((same_first, now & shared)):
            a["cluster_repetition"][:, i, j] += np.bincount(cluster[hit], minlength=size)

    def _add_tokens(
        self, layer: int, block: TokenBlock, facts: LayerFacts, in_budget: NDArray[np.bool_]
    ) -> None:
        named = in_budget & (block.token_id >= 0)
        domain, token_id = block.domain[named, None], block.token_id[named, None]
        self.sparse[f"input_{layer}"].add(pack(domain, token_id, facts.topk_ids[named]))
        for kind, token in (("next", block.next_id), ("pred", block.pred_id)):
            known = in_budget & (token >= 0)
            zeros = np.zeros((int(known.sum()), 1), np.int64)
            self.sparse[f"{kind}_{layer}"].add(
                pack(zeros, token[known, None], facts.topk_ids[known])
            )

    def _add_paths(
        self, block: TokenBlock, layers: list[LayerFacts], in_budget: NDArray[np.bool_]
    ) -> None:
        digest = np.zeros(block.num_tokens, np.uint64)
        for facts in layers:
            step = (facts.topk_ids[:, 0].astype(np.uint64) + np.uint64(1)) * np.uint64(
                0x9E3779B97F4A7C15
            )
            digest = (digest ^ step) * np.uint64(0xBF58476D1CE4E5B9)
            digest ^= digest >> np.uint64(29)
        path = (digest >> np.uint64(20)).astype(np.int64)
        self.sparse["paths"].add((block.domain[in_budget] << 44) | path[in_budget])

    def _within_budget(self, domain: NDArray[np.int64]) -> NDArray[np.bool_]:
        seen = self.arrays["token_tokens"]
        keep = np.zeros(domain.size, np.bool_)
        for d in np.unique(domain):
            rows = np.flatnonzero(domain == d)[: max(0, self.shape.token_budget - int(seen[d]))]
            keep[rows] = True
            seen[d] += rows.size
        return keep


def _one_hot(ids_TK: NDArray[np.int64], num_experts: int) -> NDArray[np.float32]:
    out = np.zeros((ids_TK.shape[0], num_experts), np.float32)
    np.put_along_axis(out, ids_TK, 1.0, axis=1)
    return out


def _add_grouped(
    target: NDArray[np.int64] | NDArray[np.float64],
    group: NDArray[np.int64],
    ids_TK: NDArray[np.int64],
    weights_TK: NDArray[np.float32] | None,
) -> None:
    rows, width = target.shape
    keys = (group[:, None] * width + ids_TK).reshape(-1)
    weights = None if weights_TK is None else weights_TK.reshape(-1)
    sums = np.bincount(keys, weights, rows * width).reshape(rows, width)
    target += sums.astype(target.dtype)


class _Bins:
    """Which bin a float32 lies in: as `numpy.searchsorted` to the right of the edges, faster.

    The upper 16 bits of a float32 (sign, exponent, 7 bits of the fraction) say between which two
    numbers it lies, and that interval holds one edge at most. So a table gives the bin of its lower
    end and the edge, and one comparison the rest.
    """

    def __init__(self, edges: NDArray[np.float64]) -> None:
        nearest = edges.astype(np.float32)  # v ≥ edge is the same with the next float32 upwards
        up = np.nextafter(nearest, np.float32(np.inf))
        edges_32 = np.where(nearest < edges, up, nearest)
        first = np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)
        ends = np.stack([first, first | np.uint32(0xFFFF)]).view(np.float32)
        ends = np.where(np.isnan(ends), np.copysign(np.float32(np.inf), ends), ends)
        below = np.searchsorted(edges_32, ends.min(0), side="right")
        above = np.searchsorted(edges_32, ends.max(0), side="right")
        assert (above - below).max() <= 1, "two edges in one interval"
        self._below = below.astype(np.uint8)
        self._edge = np.where(
            above > below, np.append(edges_32, np.float32(np.nan))[below], np.float32(np.nan)
        )

    def __call__(self, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Bins, 0 to 63, of an array of any shape; NaN goes with the infinity of its sign."""
        upper = (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
        bins: NDArray[np.uint8] = self._below[upper] + (values >= self._edge[upper])
        return bins


_BINS_OF = (_Bins(LOGIT_EDGES), _Bins(PROB_EDGES), _Bins(WEIGHT_EDGES))


def _add_histogram(
    target: NDArray[np.int64],
    domain: NDArray[np.int64],
    values: NDArray[np.float32],
    bins_of: _Bins,
) -> None:
    keys = domain[:, None] * _BINS + bins_of(values)
    target += np.bincount(keys.reshape(-1), minlength=target.shape[0] * _BINS).reshape(-1, _BINS)
