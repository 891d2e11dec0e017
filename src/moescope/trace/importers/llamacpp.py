"""Routing that llama.cpp's ``moe-trace`` example wrote: one CSV for each request.

Read off pull request 28544 as it was in review: no header, one ``layer,expert`` row for each routed
activation, in the order of evaluation. Such a file names neither tokens nor the prompt's end, so a
JSON file of the same name beside it must: ``prompt_token_ids`` (or ``prompt``), ``id``, ``domain``,
``output_token_ids`` if known. Variants with a header are read by the names of their columns.

Two things are known of these files. The model's last layer is computed only for tokens whose logits
are asked for, so of a prompt it holds one token a batch. And the first revision of the pull request
read the ranking of all experts as if it were the chosen ones; such rows are recognised and refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moescope.corpus.records import SourceFile
from moescope.models.anatomy import MoELayer
from moescope.trace.importers.common import (
    MAX_TOKENS,
    Item,
    Request,
    counted_mask,
    label_of,
    prompt_ids_of,
    refuse,
    token_ids,
)
from moescope.trace.importers.csv_columns import first_row, integers, read_columns
from moescope.trace.importers.served import ServedModel
from moescope.words import counted, listing, ranges

NAME = "llama.cpp"
SUFFIXES = (".csv",)
_NAMES = {
    "layer": ("layer", "layer_idx", "layer_id", "il", "block"),
    "expert": ("expert", "expert_id", "expert_idx"),
    "token": ("token", "token_idx", "token_index", "pos", "position", "tok"),
    "rank": ("rank", "slot", "k", "choice"),
    "phase": ("phase",),
    "token_id": ("token_id",),
}
_READ = ("prefill", "prompt")
_BLOCKS, _CERTAIN = 4, 1e-6

_Table = dict[str, NDArray[Any]]


def requests(
    item: Item, served: ServedModel, domain: str | None, layers: tuple[MoELayer, ...]
) -> Iterator[Request]:
    """The one request of a CSV.

    Raises:
        RefusedError: the columns or rows do not give K experts for each token of each layer.
    """
    where = item.where
    table = _read(item.values["csv"], where)
    beside = {k: v for k, v in item.values.items() if k != "csv"}
    doc_id, label = label_of(item._replace(values=beside), domain)
    if "token" in table:
        experts, start = _by_token(table, layers, where)
    else:
        experts, start = _in_order(table, layers, served, where), 0
    end = start + experts.shape[0]
    prompt_ids, output_ids = _tokens(item.values, table, end, where, served)
    _refuse_rankings(experts[: max(0, prompt_ids.size - start)], layers, where)
    yield Request(
        where=where,
        doc_id=doc_id,
        domain=label,
        prompt_ids=prompt_ids,
        output_ids=output_ids,
        experts=experts,
        start=start,
        counted=counted_mask(item.values, where),
        slots=tuple(layer.layer_idx for layer in layers),
        all_fed=prompt_ids.size + output_ids.size == end,
    )


def _read(source: SourceFile, where: str) -> _Table:
    """Columns by our own names; a first row of numbers is not a header."""
    cells = first_row(source)
    bare = all(c.lstrip("-").isdigit() for c in cells)
    if bare and len(cells) != 2:
        refuse("a CSV without header", where, f"got {counted(len(cells), 'column')}, expected "
            "layer,expert",
               "write a header: phase,token,layer,rank,expert")  # fmt: skip
    found = read_columns(
        source,
        ["layer", "expert"] if bare else cells,
        _NAMES,
        where,
        bare=bare,
        expected="expected layer and expert, better also phase, token and rank",
        needed=("layer", "expert"),
    )
    return {name: _column(column, c, where) for name, (c, column) in found.items()}


def _column(column: pa.ChunkedArray, name: str, where: str) -> NDArray[Any]:
    if name == "phase":
        return np.asarray([str(v).strip().lower() for v in column.to_pylist()])
    made = integers(name, column, where)
    if name in _NAMES["token"] and made.size:
        low, high = int(made.min()), int(made.max())
        if low < 0 or high >= MAX_TOKENS:
            refuse(f"column {name!r} holds no positions", where, f"got {low} to {high}",
                   f"expected 0 to {MAX_TOKENS - 1:,}")  # fmt: skip
    return made


def _in_order(
    table: _Table, layers: tuple[MoELayer, ...], served: ServedModel, where: str
) -> NDArray[np.int64]:
    """Rows without token numbers: each layer's stand in the order of its tokens, K for each."""
    found = {m.layer_idx: table["expert"][table["layer"] == m.layer_idx] for m in layers}
    sizes = {m.layer_idx: found[m.layer_idx].size / m.top_k for m in layers}
    most = max(sizes.values())
    for layer, size in sizes.items():
        if size != most or not float(size).is_integer():
            last = layer == served.anatomy.num_decoder_layers - 1
            others = ranges(tuple(n for n in sizes if n != layer))
            _refuse_short(layer, (size, most), others if last else None, where)
    return np.stack([found[m.layer_idx].reshape(-1, m.top_k) for m in layers], axis=1)


def _refuse_short(layer: int, sizes: tuple[float, float], others: str | None, where: str) -> None:
    got, expected = sizes
    advice = "trace again, or give the model that was traced by `model`"
    if others and 0 < got < expected:
        advice = (
            "llama.cpp computes the last layer only for tokens whose logits are asked for; leave "
            f"it out by `layers` {others.replace(' ', '')}"
        )
    refuse("a layer without K experts for each token", where,
           f"layer {layer}: rows of {got:g} tokens, expected {expected:g}", advice)  # fmt: skip


def _by_token(
    table: _Table, layers: tuple[MoELayer, ...], where: str
) -> tuple[NDArray[np.int64], int]:
    """Rows with token numbers, in any order; the first token need not be 0."""
    chosen = np.isin(table["layer"], [m.layer_idx for m in layers])
    if not chosen.any():
        refuse("no row of a MoE layer", where, f"its layers: {listing(np.unique(table['layer']))}",
               "give the model that was traced by `model`")  # fmt: skip
    tokens = np.unique(table["token"][chosen])
    start, size = int(tokens[0]), int(tokens[-1]) - int(tokens[0]) + 1
    if start < 0 or tokens.size != size:
        refuse("tokens are missing", where, f"got {tokens.size} of {start} to {tokens[-1]}",
               "expected positions from the first token on, each one")  # fmt: skip
    made = []
    for layer in layers:
        mine = table["layer"] == layer.layer_idx
        each = np.bincount(table["token"][mine] - start, minlength=size)
        if (each != layer.top_k).any():
            bad = int((each != layer.top_k).argmax())
            refuse("a layer without K experts for each token", where,
                   f"layer {layer.layer_idx}, token {start + bad}: got {each[bad]}, expected "
                   f"{layer.top_k}", "leave the layer out by `layers`, or trace again")  # fmt: skip
        rank = table["rank"][mine] if "rank" in table else np.zeros(int(mine.sum()), np.int64)
        order = np.lexsort((rank, table["token"][mine]))
        made.append(table["expert"][mine][order].reshape(-1, layer.top_k))
    return np.stack(made, axis=1), start


def _tokens(
    values: Mapping[str, Any], table: _Table, end: int, where: str, served: ServedModel
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids of prompt and output: from the JSON beside the CSV, else from columns, else unknown."""
    prompt_ids = prompt_ids_of(values, where, served, ("prompt_token_ids",))
    read = _read_until(table)
    if prompt_ids is None and read is None:
        refuse("where the prompt ends is not known", where, "no column phase, no prompt_token_ids",
               "put prompt_token_ids into a JSON file of the same name")  # fmt: skip
    if prompt_ids is not None and read is not None and prompt_ids.size != read:
        refuse("the prompt's ids do not fit the phases", where,
               f"got {prompt_ids.size} ids, the column phase has {read} tokens")  # fmt: skip
    named = np.full(end, -1, np.int64)
    if "token_id" in table:
        named[table["token"]] = token_ids(table["token_id"], "token_id", where, served)
    if prompt_ids is None:
        prompt_ids = named[:read]
    if values.get("output_token_ids") is None:
        return prompt_ids, named[prompt_ids.size :]
    return prompt_ids, token_ids(values["output_token_ids"], "output_token_ids", where, served)


def _read_until(table: _Table) -> int | None:
    if "phase" not in table or "token" not in table:
        return None
    read = np.isin(table["phase"], _READ)
    return int(table["token"][read].max()) + 1 if read.any() else 0


def _refuse_rankings(experts: NDArray[np.int64], layers: tuple[MoELayer, ...], where: str) -> None:
    """Refuse prompts whose ids, E at a time, name every expert once: whole rankings.

    Such rows come of reading the ranking of all experts without its stride. Random choices look
    like that too, but hardly in several tokens of all layers; where that is not unlikely enough to
    be certain (few experts, few tokens) nothing is said.
    """
    hits, chance = 0, 1.0
    for slot, layer in enumerate(layers):
        size, top_k = layer.num_experts, layer.top_k
        if size <= top_k:
            continue
        flat = experts[:, slot].reshape(-1)
        blocks = flat[: flat.size // size * size].reshape(-1, size)[:_BLOCKS]
        if (np.sort(blocks, axis=1) != np.arange(size)).any():
            return
        hits += len(blocks)
        chance *= _all_distinct(size, top_k) ** len(blocks)
    if hits and chance < _CERTAIN:
        refuse("rows of whole rankings instead of choices", where,
               "the first tokens of the prompt name every expert in turn, in every layer",
               "this is a fault of the first revision of moe-trace, which read past the chosen "
               "experts; trace again with a later one")  # fmt: skip


def _all_distinct(experts: int, top_k: int) -> float:
    """Chance that random choices of E/K tokens have no expert in common."""
    made = 1.0
    for r in range(experts // top_k):
        made *= math.comb(experts - r * top_k, top_k) / math.comb(experts, top_k)
    return made
