"""All experts of a run in one row: the order in which every profile array keeps them.

Cells are numbered through: the experts of the first traced layer, then those of the next. Tables
of a run are spread over cells here, and halves of documents are chosen. It knows no model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moescope.axes import ExpertRef, named_experts
from moescope.metrics.view import Layer
from moescope.run.aggregates import AggregateShape


class Cells(NamedTuple):
    """The traced layers, and where the experts of each begin. M is the number of all cells."""

    layers: tuple[Layer, ...]
    offsets: tuple[int, ...]

    @classmethod
    def of(cls, shape: AggregateShape) -> Cells:
        """The cells of a run."""
        layers = tuple(Layer.all_of(shape))
        starts = np.cumsum([0, *(layer.num_experts for layer in layers)]).tolist()
        return cls(layers, tuple(starts))

    @property
    def total(self) -> int:
        """M."""
        return self.offsets[-1]

    def of_layer(self, layer: Layer) -> slice:
        """The cells of one layer."""
        return slice(self.offsets[layer.slot], self.offsets[layer.slot + 1])

    def slot_of(self, cell: int) -> int:
        """Place of a cell's layer among the traced ones."""
        return int(np.searchsorted(self.offsets, cell, side="right")) - 1

    def ref(self, cell: int) -> ExpertRef:
        """The name of a cell."""
        slot = self.slot_of(cell)
        return ExpertRef(self.layers[slot].layer_idx, cell - self.offsets[slot])

    def named(self, selectors: Iterable[str]) -> list[int]:
        """The cells of experts, in their order, each once; see `moescope.axes.named_experts`.

        Raises:
            BadInputError: the run has no such expert; says which it has.
        """
        sizes = {layer.layer_idx: layer.num_experts for layer in self.layers}
        model, names = "this run's model as far as it was traced", list(selectors)
        known = named_experts(names, sizes, model) if names else []
        start = dict(zip(sizes, self.offsets, strict=False))
        return [start[ref.layer_idx] + ref.expert for ref in known]


def spread(
    table: pa.Table, phase: str, column: str, cells: Cells, groups: Sequence[str]
) -> NDArray[np.float64]:
    """A column of a table by layer, expert and domain, as (groups, M); NaN where it has no row."""
    out = np.full((len(groups), cells.total), np.nan)
    row_of = {name: g for g, name in enumerate(groups)}
    start_of = {layer.layer_idx: cells.offsets[layer.slot] for layer in cells.layers}
    group = np.asarray([row_of.get(n, -1) for n in table["domain"].to_pylist()], np.int64)
    keep = (group >= 0) & np.asarray([p == phase for p in table["phase"].to_pylist()], np.bool_)
    layer: NDArray[Any] = np.asarray(table["layer"])
    start = np.asarray([start_of[int(n)] for n in layer], np.int64)
    cell = start + np.asarray(table["expert"]).astype(np.int64)
    out[group[keep], cell[keep]] = np.asarray(table[column]).astype(np.float64)[keep]
    return out


def half_of_documents(names: Sequence[str], domains: Sequence[int]) -> NDArray[np.int64]:
    """0 or 1 for each document, alternating within its domain in the order of the names.

    So both halves have as many documents of every domain, to within one, whatever the order in
    which they are given.

    Example:
        >>> half_of_documents(["b", "a", "c", "d"], [0, 0, 0, 1]).tolist()
        [1, 0, 0, 0]
    """
    half = np.zeros(len(names), np.int64)
    seen: Counter[int] = Counter()
    for i in sorted(range(len(names)), key=lambda i: (domains[i], names[i])):
        half[i] = seen[domains[i]] % 2
        seen[domains[i]] += 1
    return half
