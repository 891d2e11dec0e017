"""Sums of several runs added up as if one run had read all their documents, one after the other.

Runs number domains and document clusters in the order in which they met them; here both are
renumbered, in every array and in every packed key. Whole numbers come out exactly as a single run
would have counted them, sums of floats to rounding. It knows no files.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moescope.run.aggregates import AggregateShape, PhaseAggregates, pack, unpack
from moescope.run.sample import Sample
from moescope.run.sparse import SparseCounter
from moescope.run.state import RunState

_OVER_ALL = ("coactivation", "flow")
"""Arrays that have neither clusters nor domains."""

_PATH_BITS = 44
"""A key of the table of paths: the domain above, the path below."""


class JoinedState:
    """A `RunState` that other states are added to, in an order that decides its numbering."""

    def __init__(self, shape: AggregateShape, sample_tokens: int, seed: int) -> None:
        self.state = RunState(shape, sample_tokens, seed)
        self._slots: dict[int, list[int]] = {}

    def add(self, part: RunState) -> None:
        """Add the sums and the sample of one part.

        Domains are matched by name, new ones follow those that are there. Documents take clusters
        as they would if this run had read them next: one each until their domain has
        ``shape.max_clusters``, then in turn. The sample keeps what one sample over everything
        would have kept, because that is decided by a hash of each span alone.
        """
        domains = np.asarray([self.state.number(name) for name in part.domains], np.int64)
        clusters = self._place_clusters(part, domains)
        for name, sums in part.phases.items():
            sums.grow(len(part.cluster_domain), len(part.domains))
            mine, sample = self.state.phase(name)
            _add_arrays(mine, sums, domains, clusters)
            for key, counter in sums.sparse.items():
                mine.sparse[key].merge(_renumbered(key, counter, domains))
            sample.merge(_with_domains(part.samples[name], domains))

    def _place_clusters(self, part: RunState, domains: NDArray[np.int64]) -> NDArray[np.int64]:
        """For each cluster of the part its number here, as `RunState.place` would have given it.

        Cluster j of a part holds its documents j, j + max, …; behind d earlier documents of the
        domain these are d + j, d + j + max, …, which share a cluster here too.
        """
        state, limit = self.state, self.state.shape.max_clusters
        ordinal = [state.domain_docs[d] for d in domains]
        placed = np.zeros(len(part.cluster_domain), np.int64)
        for cluster, domain in enumerate(part.cluster_domain):
            mine = int(domains[domain])
            slots = self._slots.setdefault(mine, [])
            if ordinal[domain] < limit:
                slots.append(len(state.cluster_domain))
                state.cluster_domain.append(mine)
            placed[cluster] = slots[ordinal[domain] % limit]
            ordinal[domain] += 1
        for domain, documents in enumerate(part.domain_docs):
            state.domain_docs[int(domains[domain])] += documents
        return placed


def _add_arrays(
    mine: PhaseAggregates,
    part: PhaseAggregates,
    domains: NDArray[np.int64],
    clusters: NDArray[np.int64],
) -> None:
    """Add dense sums. No number occurs twice in ``domains`` or ``clusters``, so ``+=`` is exact."""
    for name, array in part.arrays.items():
        if name in _OVER_ALL:
            mine.arrays[name] += array
        else:
            mine.arrays[name][clusters if name.startswith("cluster_") else domains] += array


def _renumbered(name: str, counter: SparseCounter, domains: NDArray[np.int64]) -> SparseCounter:
    """A counter whose keys name domains by their numbers here.

    Only input tokens and paths are counted by domain; tables of next and predicted tokens are over
    all text and have zeros in the place of the domain.
    """
    keys, counts = counter.keys, counter.counts
    if not keys.size or not name.startswith(("input_", "paths")):
        return counter
    if name == "paths":
        path = keys & ((1 << _PATH_BITS) - 1)
        renamed = (domains[keys >> _PATH_BITS] << _PATH_BITS) | path
    else:
        domain, token, expert = unpack(keys)
        renamed = pack(domains[domain], token, expert)
    order = np.argsort(renamed, kind="stable")
    return SparseCounter(renamed[order], counts[order])


def _with_domains(sample: Sample, domains: NDArray[np.int64]) -> Sample:
    """A sample whose spans name domains by their numbers here."""
    spans = []
    for span in sample.ordered():
        domain = int(domains[span.domain])
        column = np.full_like(span.columns["domain"], domain)
        spans.append(span._replace(domain=domain, columns={**span.columns, "domain": column}))
    return Sample.restore(spans, sample.tokens_per_domain, sample.span_tokens, sample.seed)
