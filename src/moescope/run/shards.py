"""Tables of single tokens and of documents: the Parquet schema of a run.

A token row: ``phase``, ``doc``, ``domain``, ``window``, ``pos``, ``token_id``, ``next_id``,
``pred_id`` (−1 where there is none), ``nll`` in nats (NaN where unknown), and for MoE layer N the
columns ``e_N`` (K expert ids by descending weight), ``w_N`` (their weights, half precision),
``h_N`` (normalised router entropy) and ``m_N`` (margin of the least chosen over the best other).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from moescope.run.aggregates import AggregateShape
from moescope.run.sample import Sample

_TOKEN_COLUMNS = ("window", "pos", "token_id", "next_id", "pred_id", "nll")


def document_table(rows: list[dict[str, Any]]) -> pa.Table:
    """One row per document: id, domain, counted tokens, tokens left out, mean loss, and its path.

    The path names, for every traced layer, the expert with the most gate mass over the document.
    """
    schema = pa.schema(
        [
            ("doc", pa.string()),
            ("domain", pa.string()),
            ("tokens", pa.int64()),
            ("left_out", pa.int64()),
            ("loss", pa.float64()),
            ("path", pa.list_(pa.int16())),
        ]
    )
    return pa.Table.from_pylist(rows, schema=schema)


def shard_table(rows: list[dict[str, Any]], shape: AggregateShape, domains: list[str]) -> pa.Table:
    """Every token of a pool, in the order in which it was run."""
    tables = []
    for part in rows:
        block, facts, ids = part["block"], part["facts"], part["ids"]
        columns = {name: getattr(block, name) for name in ("domain", *_TOKEN_COLUMNS)}
        for layer, f in zip(shape.layers, facts, strict=True):
            columns[f"ids_{layer}"] = f.topk_ids
            columns[f"weights_{layer}"] = f.topk_weights
            columns[f"entropy_{layer}"] = f.router_entropy
            columns[f"margin_{layer}"] = f.margin_kth
        docs = [ids[i] for i in block.doc]
        tables.append(_token_table(part["phase"], docs, columns, shape, domains))
    return pa.concat_tables(tables)


def sample_table(samples: dict[str, Sample], shape: AggregateShape, domains: list[str]) -> pa.Table:
    """The sampled tokens of all phases, by phase, domain, document id and window."""
    tables = []
    for phase, sample in samples.items():
        for span in sample.ordered():
            docs = [span.key.rpartition("\0")[0]] * span.num_tokens
            tables.append(_token_table(phase, docs, dict(span.columns), shape, domains))
    return pa.concat_tables(tables).combine_chunks()


def _token_table(
    phase: str, docs: list[str], columns: dict[str, Any], shape: AggregateShape, domains: list[str]
) -> pa.Table:
    n = len(docs)
    names = np.asarray(domains, dtype=object)[columns["domain"]]
    out: dict[str, Any] = {
        "phase": _dictionary([phase] * n),
        "doc": _dictionary(docs),
        "domain": _dictionary(names.tolist()),
    }
    for name in _TOKEN_COLUMNS:
        kind = pa.float32() if name == "nll" else pa.int32()
        out[name] = pa.array(columns[name], kind)
    for layer, experts in zip(shape.layers, shape.num_experts, strict=True):
        ids, weights = columns[f"ids_{layer}"], columns[f"weights_{layer}"]
        top_k = ids.shape[1]
        id_type = np.uint8 if experts <= 256 else np.uint16
        flat_ids = pa.array(ids.astype(id_type).reshape(-1))
        flat_weights = pa.array(weights.astype(np.float16).reshape(-1))
        out[f"e_{layer}"] = pa.FixedSizeListArray.from_arrays(flat_ids, top_k)
        out[f"w_{layer}"] = pa.FixedSizeListArray.from_arrays(flat_weights, top_k)
        out[f"h_{layer}"] = pa.array(columns[f"entropy_{layer}"], pa.float32())
        out[f"m_{layer}"] = pa.array(columns[f"margin_{layer}"], pa.float32())
    return pa.table(out)


def _dictionary(values: list[str]) -> pa.DictionaryArray:
    return pa.array(values, pa.string()).dictionary_encode()
