"""What the documents of a run chose, and the halves and sides that a selection makes of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moescope.adapt.scores import Floats, Sums
from moescope.axes import ExpertRef
from moescope.errors import BadInputError, RunError
from moescope.intervene.contrast.statistics import DocumentCounts
from moescope.metrics.intervals import MIN_CLUSTERS
from moescope.metrics.view import Layer, PhaseView
from moescope.plan import PlanSplit
from moescope.run.reader import Run
from moescope.words import counted, listing, near_names

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Evidence:
    """Counts by document, in the order of the run's clusters; those without a token are left out.

    Attributes:
        layers: the traced layers.
        domains: their names.
        keys: of each document its id; of several that share a cluster the first one's.
        domain: index of its domain, (N,).
        tokens: its counted tokens, (N,).
        counts: how many of them chose each expert, (N, M).
        mass: gate mass by expert over its sampled tokens, (N, M); None where it is not asked for.
    """

    layers: list[Layer]
    domains: list[str]
    keys: list[str]
    domain: NDArray[np.int64]
    tokens: NDArray[np.int64]
    counts: NDArray[np.int64]
    mass: Floats | None

    @property
    def sizes(self) -> list[int]:
        """Experts of each layer."""
        return [layer.num_experts for layer in self.layers]

    @property
    def experts(self) -> list[ExpertRef]:
        """Their names, (M,)."""
        return [ExpertRef(n, e) for _, n, size, _ in self.layers for e in range(size)]

    def of(self, names: Iterable[str]) -> Mask:
        """The documents of these domains, (N,)."""
        return np.isin(self.domain, [self._places[name] for name in names])

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.domains)}

    def sums(self, weights: Floats | Mask) -> Sums:
        """Sums over documents, each as often as its weight says, (N,) or (B, N)."""
        used = np.flatnonzero(np.any(np.atleast_2d(weights), axis=0))
        times = weights[..., used].astype(np.float64)
        counts = times @ self.counts[used]
        mass = np.zeros_like(counts) if self.mass is None else times @ self.mass[used]
        return Sums(counts, mass, (times @ self.tokens[used])[..., None])

    def names(self, rows: NDArray[np.int64]) -> dict[str, Any]:
        """Columns that name some experts."""
        experts = [self.experts[row] for row in rows]
        return {
            "name": [str(ref) for ref in experts],
            "layer": [ref.layer_idx for ref in experts],
            "expert": [ref.expert for ref in experts],
        }

    def marks(self) -> Iterator[tuple[Any, Any]]:
        """Two things of each document, of which none is another document's but by accident."""
        names = [self.domains[d] for d in self.domain]
        named = zip(self.keys, names, self.tokens.tolist(), strict=True)
        yield from zip(named, (row.tobytes() for row in self.counts), strict=True)

    def number(self, names: Iterable[str], mask: Mask) -> int:
        """How many of these documents are of these domains."""
        return int((self.of(names) & mask).sum())

    def documents(self, mask: Mask, rows: NDArray[np.int64]) -> DocumentCounts:
        """Counts of some experts in some of the documents, as the tests take them."""
        return DocumentCounts(self.counts[mask][:, rows], self.tokens[mask])

    def require_documents(
        self, target: Sequence[str], others: Sequence[str], parts: Sequence[Mask]
    ) -> None:
        """Refuse a side with too few documents for an interval in each part.

        Raises:
            BadInputError: says which side, how many it has and how many it needs.
        """
        for name, side in ((listing(target), target), ("the other text", others)):
            if min(self.number(side, part) for part in parts) >= MIN_CLUSTERS:
                continue
            have = counted(sum(self.number(side, part) for part in parts), "document")
            halves = f": {MIN_CLUSTERS} to choose by and {MIN_CLUSTERS} to confirm"
            raise BadInputError(
                f"{name} has {have} and needs {MIN_CLUSTERS * len(parts)}"
                f"{halves if len(parts) > 1 else ''}; give more text"
            )

    def first_half(self, split: PlanSplit) -> Mask:
        """The documents of the first half of every domain, (N,)."""
        half = np.zeros(self.domain.size, np.bool_)
        for d in np.unique(self.domain):
            rows = np.flatnonzero(self.domain == d)
            half[rows] = split.first([self.keys[i] for i in rows])
        return half

    def resamples(self, mask: Mask, number: int, rng: np.random.Generator) -> Floats:
        """How often each document is drawn when those of each domain are resampled, (B, N)."""
        times = np.zeros((number, self.domain.size))
        for d in np.unique(self.domain[mask]):
            rows = np.flatnonzero(mask & (self.domain == d))
            times[:, rows] = rng.multinomial(rows.size, np.full(rows.size, 1 / rows.size), number)
        return times


def read_evidence(run: Run, *, gate: bool = False) -> Evidence:
    """The counts of a run by document.

    Args:
        run: a finished run.
        gate: the gate mass of the sampled tokens too.

    Raises:
        RunError: a run that does not know its documents, or the weights where they are asked for.
    """
    if "tokens" in run.absent:
        raise RunError(f"{run.path} cannot be halved by documents: {run.absent['tokens']}")
    view = PhaseView(run, "prefill" if "prefill" in run.phases else run.phases[0])
    counts = np.concatenate([view.counts(layer) for layer in view.layers], axis=1)
    keys, cluster_of = _documents(run, view)
    mass = _gate_mass(run, view, cluster_of) if gate else None
    used = view.cluster_tokens > 0
    return Evidence(
        layers=view.layers,
        domains=view.domains,
        keys=[keys[i] for i in np.flatnonzero(used)],
        domain=view.cluster_domain[used],
        tokens=view.cluster_tokens[used],
        counts=counts[used],
        mass=None if mass is None else mass[used],
    )


def _documents(run: Run, view: PhaseView) -> tuple[list[str], dict[str, int]]:
    """The key of every cluster, and the cluster of every document, as `RunState.place` gave it."""
    clusters = [np.flatnonzero(view.cluster_domain == d) for d in range(len(view.domains))]
    seen = [0] * len(clusters)
    keys, cluster_of = [""] * view.cluster_domain.size, {}
    rows = zip(*(run.documents[name].to_pylist() for name in ("doc", "domain")), strict=True)
    for doc, domain in rows:
        d = view.places[domain]
        place = int(clusters[d][seen[d] % clusters[d].size])
        seen[d] += 1
        keys[place] = keys[place] or doc
        cluster_of[doc] = place
    return keys, cluster_of


def _gate_mass(run: Run, view: PhaseView, cluster_of: dict[str, int]) -> Floats:
    """Summed weights of the sampled tokens by cluster and expert."""
    if "weights" in run.absent:
        raise RunError(f"`score=gate` needs the router's weights: {run.absent['weights']}")
    tokens = run.tokens(view.phase)
    if tokens is None:
        raise RunError(
            f"`score=gate` needs sampled tokens, and {run.path} kept aggregates only; trace it "
            "with `keep=sample`, or take `score=token`"
        )
    cluster = np.asarray([cluster_of[name] for name in tokens.doc_names], np.int64)[tokens.doc]
    number, parts = view.cluster_domain.size, []
    for _, layer, size, _ in view.layers:
        ids, weights = tokens.ids[layer], tokens.weights[layer].astype(np.float64)
        cells = (cluster[:, None] * size + ids).reshape(-1)
        parts.append(np.bincount(cells, weights.reshape(-1), number * size).reshape(-1, size))
    return np.concatenate(parts, axis=1)


def require_domains(
    run: Run, domains: str | Sequence[str], against: str | Sequence[str]
) -> tuple[list[str], list[str]]:
    """The domains of the target and those to compare with: by default all others.

    Raises:
        BadInputError: none is named, one that the run does not have, one on both sides, or nothing
            to compare with.
    """
    domains, against = ([g] if isinstance(g, str) else list(g) for g in (domains, against))
    for name, given in (("domain", domains), ("against", against)):
        unknown = [d for d in given if d not in run.domains]
        if unknown:
            near = near_names(unknown[0], run.domains)
            raise BadInputError(f"`{name}`: {run.path} has no domain {unknown[0]!r}; {near}")
    target = list(dict.fromkeys(domains))
    if not target:
        raise BadInputError(f"`domain` is missing: name one or more of {listing(run.domains)}")
    both = [d for d in against if d in target]
    if both:
        raise BadInputError(f"{both[0]!r} is in `domain` and in `against`; leave it out of one")
    others = list(dict.fromkeys(against)) or [d for d in run.domains if d not in target]
    if not others:
        raise BadInputError(
            f"{run.path} has no text of another domain to compare {listing(target)} with; trace "
            "some together with it"
        )
    return target, others
