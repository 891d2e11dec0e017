"""Are two runs the run of the same text, whatever the order in which it was read?"""

import re
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.testing import assert_allclose, assert_array_equal

from moescope.metrics.runs import AnalyzedRun, table_names
from moescope.run.store import read_parquet

RESAMPLED = re.compile(r".*(_low|_high|_null|_p)$|^(p|q|p_max|null|excess|split_half)$|^i_.*_bits$")
"""Columns that resampling gives: they depend on the order of documents."""

MASK = (1 << 44) - 1
FLOATS = {"cluster_decisive", "gate_mass", "prob_sum", "last_prob_sum", "nll"}
OVER_ALL = {"coactivation", "flow"}


def by_document(run: AnalyzedRun, array: np.ndarray) -> dict[str, np.ndarray]:
    """Sums by document: while a domain has few, the cluster of a document is its row."""
    names = run.documents["doc"].to_pylist()
    assert len(names) == array.shape[0]
    return dict(zip(names, array, strict=True))


def assert_same_sums(one: AnalyzedRun, other: AnalyzedRun, *, documents: bool = True) -> None:
    """Whole numbers are equal, floats to rounding: by name of domain, and by document."""
    assert set(one.domains) == set(other.domains)
    assert one.phases == other.phases
    order = [other.domains.index(name) for name in one.domains]
    for phase in one.phases:
        left, right = (run.aggregates(phase).arrays for run in (one, other))
        assert left.keys() == right.keys()
        for name, a in left.items():
            b = right[name]
            compare = assert_close if name in FLOATS else assert_array_equal
            if name in OVER_ALL:
                compare(a, b)
            elif not name.startswith("cluster_"):
                compare(a, b[order])
            elif documents:
                mine, theirs = by_document(one, a), by_document(other, b)
                assert mine.keys() == theirs.keys()
                for doc in mine:
                    compare(mine[doc], theirs[doc])
            else:
                compare(a.sum(0), b.sum(0))


def assert_close(a: Any, b: Any) -> None:
    assert_allclose(a, b, rtol=2e-5, atol=1e-5)


def sparse_counts(run: AnalyzedRun, phase: str) -> dict[str, Counter]:
    """Every sparse table by plain reading of its keys, domains by name."""
    out: dict[str, Counter] = {}
    for name, counter in run.aggregates(phase).sparse.items():
        table: Counter = Counter()
        for key, count in zip(counter.keys.tolist(), counter.counts.tolist(), strict=True):
            if name == "paths":
                table[run.domains[key >> 44], key & MASK] += count
            else:
                domain, token, expert = key >> 36, (key >> 12) & 0xFFFFFF, key & 0xFFF
                owner = run.domains[domain] if name.startswith("input") else domain
                table[owner, token, expert] += count
        out[name] = table
    return out


def token_rows(run: AnalyzedRun, table: pa.Table) -> dict[tuple, dict[str, Any]]:
    """Rows of a sample or of shards by what names a token."""
    rows = {}
    for row in table.to_pylist():
        key = tuple(row[c] for c in ("phase", "doc", "window", "pos"))
        assert key not in rows
        rows[key] = row
    return rows


def kept_tokens(run: AnalyzedRun) -> pa.Table:
    parts = [read_parquet(run.path, s).unify_dictionaries() for s in run.manifest.shards]
    return pa.concat_tables(parts)


def assert_same_tokens(
    one: AnalyzedRun, other: AnalyzedRun, left: pa.Table, right: pa.Table
) -> None:
    mine, theirs = token_rows(one, left), token_rows(other, right)
    assert mine.keys() == theirs.keys()
    for key, row in mine.items():
        for column, value in row.items():
            if isinstance(value, float) or (isinstance(value, list) and column.startswith("w_")):
                assert_allclose(theirs[key][column], value, rtol=2e-3, atol=1e-4)
            else:
                assert theirs[key][column] == value


def assert_same_tables(one: AnalyzedRun, other: AnalyzedRun) -> None:
    """Rows matched by all that is no float; floats to rounding, resampled columns left out."""
    for name in table_names():
        if name == "phases":  # means of resampled columns among others
            continue
        left, right = (keyed_rows(run.table(name)) for run in (one, other))
        assert left.keys() == right.keys(), name
        for key, floats in left.items():
            assert_allclose(right[key], floats, rtol=1e-4, atol=1e-6, err_msg=f"{name} {key}")


def keyed_rows(table: pa.Table) -> dict[tuple, list[float]]:
    rows: dict[tuple, list[float]] = {}
    for row in table.to_pylist():
        if "domain_a" in row:  # a pair has no order
            row["domain_a"], row["domain_b"] = sorted((row["domain_a"], row["domain_b"]))
        shown = {c: v for c, v in row.items() if not RESAMPLED.match(c)}
        key = tuple((c, v) for c, v in shown.items() if not isinstance(v, float))
        assert key not in rows
        rows[key] = [v for v in shown.values() if isinstance(v, float)]
    return rows
