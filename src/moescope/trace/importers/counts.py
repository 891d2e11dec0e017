"""Sums by layer and expert, as recorders of serving engines log them; nothing about single tokens.

Read off SGLang's expert distribution recorder: ``layer_id,expert_id,count`` in CSV files, one for
each rank (0.4), and ``logical_count``, [steps, layers, experts], since. vLLM's EPLB holds the same
numbers as [MoE layers, experts] and leaves it to its user to write them down. So three spellings
are read: CSV with a header, one JSON object for each row, and arrays named ``logical_count``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moescope.corpus.records import SourceFile
from moescope.models.anatomy import Anatomy
from moescope.run.state import PHASES
from moescope.trace.importers.common import OTHER_MODEL, Item, label_of, refuse, whole_numbers
from moescope.trace.importers.csv_columns import first_row, integers, read_columns
from moescope.trace.importers.served import ServedModel
from moescope.words import counted, listing

NAME = "aggregated counts"
"""What a run says that it was imported from, where no engine is known."""

SUFFIXES = (".csv", ".jsonl", ".ndjson", ".json", ".npz", ".safetensors")
_NAMES = {
    "layer": ("layer", "layer_id", "layer_idx"),
    "expert": ("expert", "expert_id", "expert_idx"),
    "count": ("count", "num_tokens"),
    "domain": ("domain",),
    "phase": ("phase",),
}
_READ = {"prefill": "prefill", "prompt": "prefill", "decode": "decode", "": "prefill"}
_EXPECTED = "expected layer, expert and count, if known also domain and phase"
_MOST = 1 << 53
"""Of one count; sums of that many still are whole numbers."""


class Counted(NamedTuple):
    """Sums of one domain and phase: (L, E) over all MoE layers of the model.

    ``named``: the source says which phase they are of; else they stand under ``prefill``.
    """

    domain: str
    phase: str
    counts: NDArray[np.int64]
    named: bool


def counts_of(item: Item, served: ServedModel, domain: str | None) -> Iterator[Counted]:
    """The sums of one entry, apart by domain and phase.

    Raises:
        RefusedError: they do not fit the model, or are of another form.
    """
    anatomy, values = served.anatomy, item.values
    if "csv" in values:
        yield from _of_table(item, values["csv"], anatomy, domain)
        return
    phase = _phase(values.get("phase"), item.where)
    label = label_of(item, domain)[1]
    if values.get("logical_count") is not None:
        counts = _of_array(values["logical_count"], anatomy, item.where)
    else:
        row = {name: _cell(values, known, item.where) for name, known in _NAMES.items()
               if name in ("layer", "expert", "count")}  # fmt: skip
        counts = _sums(row["layer"], row["expert"], row["count"], anatomy, item.where)
    yield Counted(label, phase, counts, values.get("phase") is not None)


def _of_table(
    item: Item, source: SourceFile, anatomy: Anatomy, domain: str | None
) -> Iterator[Counted]:
    where = item.where
    found = read_columns(source, first_row(source), _NAMES, where, bare=False, expected=_EXPECTED,
                         needed=("layer", "expert", "count"))  # fmt: skip
    layer, expert, count = (integers(*found[n], where) for n in ("layer", "expert", "count"))
    rows = layer.size
    labels = [
        np.asarray([str(v or "").strip() for v in found[name][1].to_pylist()], dtype=object)
        if name in found
        else np.full(rows, "", dtype=object)
        for name in ("domain", "phase")
    ]
    beside = {k: v for k, v in item.values.items() if k != "csv"}
    for label, phase in sorted(set(zip(*labels, strict=True))):
        mine = (labels[0] == label) & (labels[1] == phase)
        named = {**beside, "domain": label} if label else beside
        yield Counted(
            label_of(item._replace(values=named), domain)[1],
            _phase(phase or None, where),
            _sums(layer[mine], expert[mine], count[mine], anatomy, where),
            bool(phase),
        )


def _cell(values: Mapping[str, Any], known: tuple[str, ...], where: str) -> NDArray[np.int64]:
    name = next((n for n in known if values.get(n) is not None), None)
    if name is None:
        refuse(f"no field {known[0]!r}", where, f"its fields: {listing(values)}",
               f"{_EXPECTED}, or an array named logical_count")  # fmt: skip
    return whole_numbers([values[name]], name, where).astype(np.int64)


def _phase(value: Any, where: str) -> str:
    made = _READ.get("" if value is None else str(value).strip().lower())
    if made is None:
        refuse("an unknown phase", where, f"got {str(value)[:40]!r}, expected {listing(PHASES)}")
    return made


def _sums(
    layer: NDArray[np.int64],
    expert: NDArray[np.int64],
    count: NDArray[np.int64],
    anatomy: Anatomy,
    where: str,
) -> NDArray[np.int64]:
    """Rows added up: rows of one layer and expert are of several steps, or ranks."""
    places = {m.layer_idx: i for i, m in enumerate(anatomy.layers)}
    odd = sorted(set(layer.tolist()) - places.keys())
    if odd:
        refuse("a layer that is not an MoE layer of the model", where,
               f"got {listing(odd)}, expected among {listing(places)}",
               f"write the model's own numbers of layers, or {OTHER_MODEL}")  # fmt: skip
    made = _empty(anatomy)
    slot = np.asarray([places[n] for n in layer.tolist()], np.int64)
    size = np.asarray([m.num_experts for m in anatomy.layers])[slot]
    bad = (expert < 0) | (expert >= size)
    if bad.any():
        row = int(bad.argmax())
        refuse("an expert that the model does not have", where,
               f"layer {layer[row]}: got {expert[row]}, expected 0 to {size[row] - 1}",
               f"{OTHER_MODEL}; of redundant experts, write the logical ones")  # fmt: skip
    _refuse_counts(count, where)
    np.add.at(made, (slot, expert), count)
    return made


def _of_array(value: Any, anatomy: Anatomy, where: str) -> NDArray[np.int64]:
    """[layers, experts], or with steps before; one row for each decoder or each MoE layer."""
    array = whole_numbers(value, "logical_count", where)
    shape = list(array.shape)
    widest = max(m.num_experts for m in anatomy.layers)
    rows = (anatomy.num_decoder_layers, len(anatomy.layers))
    if array.ndim not in (2, 3) or shape[-1] != widest or shape[-2] not in rows:
        refuse("logical_count does not fit the model", where,
               f"got the shape {shape}, expected [layers, {widest}] or [steps, layers, {widest}] "
               f"with {counted(rows[0], 'layer')} (all decoder layers) or {rows[1]} (all MoE "
               "layers)",
               OTHER_MODEL)  # fmt: skip
    _refuse_counts(array, where)
    sums = array.astype(np.int64).reshape(-1, *shape[-2:]).sum(0)
    if shape[-2] == rows[0]:
        sums = sums[[m.layer_idx for m in anatomy.layers]]
    made = _empty(anatomy)
    for i, layer in enumerate(anatomy.layers):
        made[i, : layer.num_experts] = sums[i, : layer.num_experts]
    return made


def _refuse_counts(count: NDArray[Any], where: str) -> None:
    if count.size and (int(count.min()) < 0 or int(count.max()) > _MOST):
        odd = int(count.min()) if int(count.min()) < 0 else int(count.max())
        refuse("a count out of range", where, f"got {odd}, expected 0 to 2^53")


def _empty(anatomy: Anatomy) -> NDArray[np.int64]:
    return np.zeros((len(anatomy.layers), max(m.num_experts for m in anatomy.layers)), np.int64)
