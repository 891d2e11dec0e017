"""Everything a run knows so far, as one thing that can be stored and restored exactly.

`RunState` holds domains, clusters, the aggregates and the sample of each phase. Restoring what was
stored and going on gives the same bits as never having stopped. It knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moescope.memory import give_memory_back
from moescope.run.aggregates import AggregateShape, PhaseAggregates, unpack
from moescope.run.sample import Sample, SampledSpan
from moescope.run.sparse import SparseCounter
from moescope.run.spill import Parts
from moescope.words import counted

PHASES = ("prefill", "decode")
"""``prefill``: the document's own tokens; ``decode``: tokens that the model wrote, step by step."""

_LEAST = 16_000_000
"""Bytes that counts by token id have at least: with fewer they would be on disk all the time."""


@dataclass
class RunState:
    """Domains, clusters, aggregates and samples of a run.

    Attributes:
        shape: layers, experts and limits.
        domains: names in order of first appearance.
        cluster_domain: the domain of each cluster, (N,).
        domain_docs: documents seen of each domain.
        phases: aggregates by phase; a phase appears when it has tokens.
        samples: samples by phase.
    """

    shape: AggregateShape
    sample_tokens: int
    seed: int
    domains: list[str] = field(default_factory=list)
    cluster_domain: list[int] = field(default_factory=list)
    domain_docs: list[int] = field(default_factory=list)
    phases: dict[str, PhaseAggregates] = field(default_factory=dict)
    samples: dict[str, Sample] = field(default_factory=dict)
    _clusters: dict[int, list[int]] = field(default_factory=dict)
    _places: dict[str, int] = field(default_factory=dict)
    _bound: tuple[int, Path] | None = None

    def phase(self, name: str) -> tuple[PhaseAggregates, Sample]:
        """Aggregates and sample of a phase, made when first asked for, grown to all clusters."""
        if name not in self.phases:
            self.phases[name] = PhaseAggregates(self.shape)
            self.samples[name] = Sample(self.sample_tokens, seed=self.seed)
        self.phases[name].grow(len(self.cluster_domain), len(self.domains))
        return self.phases[name], self.samples[name]

    def number(self, domain: str) -> int:
        """The index of a domain, registered when it is new."""
        index = self._places.setdefault(domain, len(self.domains))
        if index == len(self.domains):
            self.domains.append(domain)
            self.domain_docs.append(0)
        return index

    def place(self, domain: str) -> tuple[int, int]:
        """Register the next document of a domain; returns (domain index, cluster)."""
        index = self.number(domain)
        clusters = self._clusters.setdefault(index, [])
        ordinal = self.domain_docs[index]
        self.domain_docs[index] += 1
        if ordinal < self.shape.max_clusters:
            clusters.append(len(self.cluster_domain))
            self.cluster_domain.append(index)
        return index, clusters[ordinal % self.shape.max_clusters]

    def token_ids(self) -> list[int]:
        """Every token id that entered a token-id table or the sample, ascending."""
        ids = np.zeros(0, np.int64)
        sampled: list[NDArray[Any]] = [ids]
        first = self.shape.layers[0]
        for name, aggregates in self.phases.items():
            for kind in ("input", "next", "pred"):
                for keys, _ in aggregates.sparse[f"{kind}_{first}"].chunks():
                    ids = np.union1d(ids, unpack(keys)[1])
            for span in self.samples[name].ordered():
                sampled += [span.columns[c] for c in ("token_id", "next_id", "pred_id")]
        ids = np.union1d(ids, np.concatenate(sampled))
        return [int(i) for i in ids[ids >= 0]]

    def bound(self, memory: int, folder: Path) -> None:
        """From now on keep to so much memory: what is counted by token id goes to disk beyond it.

        Args:
            memory: bytes for all sums and samples, copies while they are written included.
            folder: on the disk where it goes.
        """
        self._bound = memory, folder

    def make_room(self, *, all_of_it: bool = False) -> None:
        """Keep to what `bound` was told; nothing is done without it.

        Raises:
            WriteError: the disk is full.
        """
        if self._bound is None:
            return
        counters = [c for a in self.phases.values() for c in a.sparse.values()]
        left = max(_LEAST, self._bound[0] - self.dense_bytes())
        if all_of_it or sum(c.nbytes for c in counters) > left:
            for counter in counters:
                counter.spill(self._bound[1])
            give_memory_back()

    def dense_bytes(self) -> int:
        """Bytes of what cannot go to disk; of the sample twice, since a table is made of it."""
        sums = sum(a.nbytes for p in self.phases.values() for a in p.arrays.values())
        return sums + 2 * sum(sample.nbytes for sample in self.samples.values())

    def to_arrays(self) -> dict[str, NDArray[Any] | Parts]:
        """Everything numeric, by name; strings are packed as UTF-8 bytes."""
        folder = None if self._bound is None else self._bound[1]
        arrays: dict[str, NDArray[Any] | Parts] = {
            "cluster_domain": np.asarray(self.cluster_domain, np.int64),
            "domain_docs": np.asarray(self.domain_docs, np.int64),
            **_pack_strings("domains", self.domains),
        }
        for name, aggregates in self.phases.items():
            aggregates.grow(len(self.cluster_domain), len(self.domains))
            for key, array in aggregates.arrays.items():
                arrays[f"{name}/{key}"] = array
            for key, counter in aggregates.sparse.items():
                keys, counts = counter.stored(folder)
                arrays[f"{name}/sparse/{key}/keys"] = keys
                arrays[f"{name}/sparse/{key}/counts"] = counts
            arrays.update(_pack_sample(f"{name}/sample", self.samples[name]))
        return arrays

    @classmethod
    def from_arrays(
        cls, arrays: dict[str, NDArray[Any]], shape: AggregateShape, sample_tokens: int, seed: int
    ) -> RunState:
        """Rebuild a state from what `to_arrays` gave.

        Raises:
            LookupError, ValueError: the arrays are not those of a run of this shape.
        """
        state = cls(shape, sample_tokens, seed)
        state.domains = _unpack_strings(arrays, "domains")
        state.cluster_domain = arrays["cluster_domain"].tolist()
        state.domain_docs = arrays["domain_docs"].tolist()
        if len(state.domain_docs) != len(state.domains):
            raise ValueError(
                f"{len(state.domain_docs)} counts for {counted(len(state.domains), 'domain')}"
            )
        if not set(state.cluster_domain) <= set(range(len(state.domains))):
            raise ValueError("cluster_domain names a domain that is not there")
        state._places = {name: d for d, name in enumerate(state.domains)}
        for cluster, domain in enumerate(state.cluster_domain):
            state._clusters.setdefault(domain, []).append(cluster)
        for name in PHASES:
            if f"{name}/last_tokens" not in arrays:
                continue
            prefix = f"{name}/"
            mine = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
            aggregates = PhaseAggregates(shape, {k: v for k, v in mine.items() if "/" not in k})
            for key in aggregates.sparse:
                counts = mine[f"sparse/{key}/counts"]
                aggregates.sparse[key] = SparseCounter(mine[f"sparse/{key}/keys"], counts)
            aggregates.require_fit(len(state.cluster_domain), len(state.domains))
            state.phases[name] = aggregates
            state.samples[name] = _unpack_sample(mine, sample_tokens, seed)
        return state


def _pack_strings(name: str, texts: list[str]) -> dict[str, NDArray[Any]]:
    """The bytes of all, and the length of each: a text may hold any character."""
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    return {
        name: np.frombuffer(b"".join(encoded), np.uint8),
        f"{name}_bytes": np.asarray([len(e) for e in encoded], np.int64),
    }


def _unpack_strings(arrays: dict[str, NDArray[Any]], name: str) -> list[str]:
    packed = arrays[name].tobytes()
    if f"{name}_bytes" not in arrays:  # as states were written at first: one line each
        return packed.decode().split("\n") if packed else []
    ends = np.cumsum(arrays[f"{name}_bytes"]).tolist()
    starts = [0, *ends[:-1]]
    if ends and (ends[-1] != len(packed) or min(arrays[f"{name}_bytes"]) < 0):
        raise ValueError(f"{name} has {len(packed)} bytes, expected {ends[-1]}")
    return [
        packed[a:b].decode("utf-8", "surrogatepass") for a, b in zip(starts, ends, strict=False)
    ]


def _pack_sample(prefix: str, sample: Sample) -> dict[str, NDArray[Any] | Parts]:
    spans = sample.ordered()
    arrays: dict[str, NDArray[Any] | Parts] = {
        **_pack_strings(f"{prefix}/keys", [span.key for span in spans]),
        f"{prefix}/spans": np.asarray(
            [(s.priority, s.domain, s.num_tokens) for s in spans], np.int64
        ).reshape(-1, 3),
    }
    if spans:
        tokens = sum(span.num_tokens for span in spans)
        for column, first in spans[0].columns.items():
            arrays[f"{prefix}/columns/{column}"] = Parts(
                first.dtype, (tokens, *first.shape[1:]), partial(_column, spans, column)
            )
    return arrays


def _column(spans: list[SampledSpan], name: str) -> Iterator[NDArray[Any]]:
    return (span.columns[name] for span in spans)


def _unpack_sample(arrays: dict[str, NDArray[Any]], sample_tokens: int, seed: int) -> Sample:
    keys = _unpack_strings(arrays, "sample/keys")
    prefix = "sample/columns/"
    columns = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
    spans, start = [], 0
    for key, (priority, domain, size) in zip(keys, arrays["sample/spans"].tolist(), strict=True):
        rows = {name: values[start : start + size] for name, values in columns.items()}
        spans.append(SampledSpan(priority, key, domain, size, rows))
        start += size
    return Sample.restore(spans, sample_tokens, Sample.span_tokens, seed)
