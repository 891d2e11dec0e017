"""One phase of a run, in the shapes that the tables ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from moescope.errors import BadInputError
from moescope.run.aggregates import AggregateShape, unpack
from moescope.run.reader import Run, TokenRows
from moescope.words import brief, near_names

ALL = "all"
"""The name of the total over every domain."""

SUMS_BY_DOMAIN = ("gate_mass", "prob_sum", "last_prob_sum", "first_counts")
"""What `PhaseView.by_domain` gives."""


class Layer(NamedTuple):
    """A traced layer: its place in the arrays, its own number, E and K."""

    slot: int
    layer_idx: int
    num_experts: int
    top_k: int

    @classmethod
    def all_of(cls, shape: AggregateShape) -> list[Layer]:
        """The layers of a run."""
        numbers = zip(shape.layers, shape.num_experts, shape.top_k, strict=True)
        return [cls(slot, *own) for slot, own in enumerate(numbers)]


class Rows:
    """Columns that grow: ``rows.add(layer=3, expert=[…])`` repeats scalars to the longest list.

    Attributes:
        columns: the values of each column.
        note: what whoever reads the table must know of it, in one line; mostly nothing.
    """

    def __init__(self) -> None:
        self.note = ""
        self.columns: dict[str, list[object]] = {}

    def add(self, **values: object) -> None:
        """Append one block of rows."""
        sizes = [len(v) for v in values.values() if isinstance(v, list | np.ndarray)]
        size = sizes[0] if sizes else 1
        for name, value in values.items():
            column = self.columns.setdefault(name, [])
            if isinstance(value, np.ndarray):
                column.extend(value.tolist())
            elif isinstance(value, list):
                column.extend(value)
            else:
                column.extend([value] * size)


class PhaseView:
    """Counts of one phase with their axes named.

    Args:
        run: a finished run.
        phase: ``prefill`` or ``decode``.
        tables: gives a whole table of the run by its name; without columns where it has none.
    """

    def __init__(
        self,
        run: Run,
        phase: str,
        tables: Callable[[str], pa.Table] = lambda _: pa.table({}),
    ) -> None:
        self.run = run
        self.phase = phase
        self._tables = tables
        self.absent = run.shape.absent
        self.arrays = run.aggregates(phase).arrays
        self.seed = int(run.manifest.options["seed"])
        self.domains = run.domains
        self.places = {name: d for d, name in enumerate(run.domains)}
        self.layers = Layer.all_of(run.shape)
        self.cluster_tokens: NDArray[np.int64] = self.arrays["cluster_tokens"].astype(np.int64)
        self.cluster_domain = run.cluster_domain[: self.cluster_tokens.size]
        sums = np.bincount(self.cluster_domain, self.cluster_tokens, len(self.domains))
        self.domain_tokens = sums.astype(np.int64)

    def groups(self) -> Iterator[tuple[str, NDArray[np.bool_], int]]:
        """(name, mask over clusters, tokens) of the total and of every domain that has tokens."""
        yield ALL, np.ones(self.cluster_domain.size, np.bool_), int(self.domain_tokens.sum())
        if len(self.domains) > 1 or (self.domains and self.domains[0] != ALL):
            for d, name in enumerate(self.domains):
                if self.domain_tokens[d]:
                    yield name, self.cluster_domain == d, int(self.domain_tokens[d])

    def counts(self, layer: Layer) -> NDArray[np.int64]:
        """Assignments by document cluster and expert, (N, E)."""
        cut = self.arrays["cluster_counts"][:, layer.slot, : layer.num_experts]
        return cut.astype(np.int64)

    def by_domain(self, name: str, layer: Layer, group: str) -> NDArray[np.float64]:
        """A (C, L, E) sum, cut to one layer and one domain or the total: (E,).

        NaN where the source of the run did not know it.

        Args:
            name: one of `SUMS_BY_DOMAIN`.
            layer: which layer.
            group: name of a domain, or `ALL`.

        Raises:
            BadInputError: no such sum, or no such domain.
        """
        _require("sum by domain", name, SUMS_BY_DOMAIN)
        _require("domain", group, (ALL, *self.domains))
        if name not in self.arrays:
            return np.full(layer.num_experts, np.nan)
        cut = self.arrays[name][:, layer.slot, : layer.num_experts].astype(np.float64)
        chosen: NDArray[np.float64] = cut.sum(0) if group == ALL else cut[self.places[group]]
        return chosen

    def sums_by_domain(self, counts_NE: NDArray[np.int64]) -> NDArray[np.int64]:
        """Counts by document cluster, (N, E), added up by domain, (C, E)."""
        sums = np.zeros((len(self.domains), counts_NE.shape[1]), np.int64)
        np.add.at(sums, self.cluster_domain, counts_NE)
        return sums

    def table(self, name: str) -> pa.Table:
        """Another table of the run, this phase only; without a row where the run has none."""
        whole = self._tables(name)
        known = "phase" in whole.column_names
        return whole.filter(pc.equal(whole["phase"], self.phase)) if known else whole

    def rng(self, *stream: int) -> np.random.Generator:
        """Random numbers that depend on the run's seed and on ``stream`` only."""
        return np.random.default_rng([self.seed, *stream])

    @cached_property
    def tokens(self) -> TokenRows | None:
        """The sampled tokens of this phase."""
        return self.run.tokens(self.phase)

    def token_counts(self, kind: str, layer: Layer) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(token ids (X,), counts (X, E)) over all domains, for kind input, next or pred."""
        counter = self.run.aggregates(self.phase).sparse[f"{kind}_{layer.layer_idx}"]
        _, token, expert = unpack(counter.keys)
        return _by_row(token, expert, counter.counts, layer.num_experts)

    def token_counts_by_domain(
        self, layer: Layer
    ) -> tuple[NDArray[np.int64], Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]]:
        """Input-token counts by token id seen anywhere and expert, and by domain.

        Returns:
            Those of all domains, (X, E); and for each domain the rows of its own ids with its
            counts, one domain at a time: domains × ids × experts would not fit where they are many.
        """
        counter = self.run.aggregates(self.phase).sparse[f"input_{layer.layer_idx}"]
        domain, token, expert = unpack(counter.keys)
        ids, total_XE = self.token_counts("input", layer)
        row, counts = np.searchsorted(ids, token), counter.counts
        ends = np.searchsorted(domain, np.arange(len(self.domains) + 1))  # keys are by domain

        def parts() -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
            for begin, end in pairwise(ends):
                cut = slice(begin, end)
                yield _by_row(row[cut], expert[cut], counts[cut], layer.num_experts)

        return total_XE, parts()


def _require(what: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise BadInputError(f"there is no {what} {brief(name)}; {near_names(name, known)}")


def _by_row(
    row: NDArray[np.int64], expert: NDArray[np.int64], counts: NDArray[np.int64], num_experts: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows that occur, ascending, and the counts of each by expert."""
    rows, place = np.unique(row, return_inverse=True)
    table = np.zeros((rows.size, num_experts), np.int64)
    np.add.at(table, (place, expert), counts)
    return rows, table
