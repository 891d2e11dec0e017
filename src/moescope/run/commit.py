"""How a run folder grows: what is pending, then the manifest that names it; and how it is finished.

Both a trace and an import write this way, so a process that dies leaves a run that can be resumed.
It does not know where the sums came from.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from moescope.errors import CoverageError
from moescope.files import owned, remove, write_bytes
from moescope.run.manifest import (
    PART_NAME,
    Coverage,
    Manifest,
    Progressed,
    Stored,
    write_manifest,
)
from moescope.run.shards import document_table, sample_table, shard_table
from moescope.run.state import RunState
from moescope.run.store import read_parquet, write_parquet, write_tensors

__all__ = ["PoolResult", "commit", "coverage", "finish"]


class PoolResult(NamedTuple):
    """What a pool adds to the files.

    ``documents``: one dict per document; ``rows``: one dict of columns per batch (``keep="all"``);
    ``control``: control tokens that the model wrote, which are not counted.
    """

    documents: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    tokens: int
    control: int = 0


def commit(
    run: Path,
    manifest: Manifest,
    state: RunState,
    pending: Sequence[PoolResult],
    progress: Progressed,
) -> None:
    """Write what is pending, then the manifest that names it, then drop what it replaced.

    Args:
        run: the folder.
        manifest: is brought up to date and written.
        state: all sums, those of ``pending`` included.
        pending: what pools added to the files since the last commit.
        progress: how far the run is; ``documents_read`` numbers the state file and ``tokens`` are
            those in it.

    Raises:
        WriteError: disk full or no permission; the commit before stays.
    """
    _write_documents(run, manifest, pending)
    for result in pending:
        if result.rows:
            file = f"shards/{len(manifest.shards):05d}.parquet"
            table = shard_table(result.rows, state.shape, state.domains)
            sha = write_parquet(run / file, table)
            manifest.shards.append(Stored(file=file, sha256=sha, tokens=table.num_rows))
    old = manifest.state
    file = f"aggregates/state-{progress['documents_read']:09d}.safetensors"
    sha = write_tensors(run / file, state.to_arrays())
    manifest.state = Stored(file=file, sha256=sha, tokens=progress["tokens"])
    manifest.domains = state.domains
    manifest.progress = progress
    write_manifest(run, manifest)
    if old is not None and old.file != file:
        remove(run / old.file)


def _write_documents(run: Path, manifest: Manifest, pending: Sequence[PoolResult]) -> None:
    rows = [row for result in pending for row in result.documents]
    if not rows:
        return
    file = f"documents/{len(manifest.documents):05d}.parquet"
    sha = write_parquet(run / file, document_table(rows))
    tokens = sum(result.tokens for result in pending)
    manifest.documents.append(Stored(file=file, sha256=sha, tokens=tokens, documents=len(rows)))


def finish(
    run: Path, manifest: Manifest, state: RunState, *, keep: str, texts: dict[str, str]
) -> None:
    """Join the parts, write sample and vocabulary, mark the run complete, remove what is left over.

    Args:
        run: the folder.
        manifest: of a run whose last commit is written.
        state: its sums.
        keep: what was asked to be kept; with ``aggregates`` no sample is written.
        texts: text of the token ids that occur.
    """
    parts = (read_parquet(run, part) for part in manifest.documents)
    documents = pa.concat_tables([document_table([]), *parts])
    file = "documents.parquet"
    sha = write_parquet(run / file, documents)
    tokens = int(manifest.progress["tokens"])
    whole = Stored(file=file, sha256=sha, tokens=tokens, documents=documents.num_rows)
    manifest.documents = [whole]
    if keep != "aggregates" and state.samples:
        table = sample_table(state.samples, state.shape, state.domains)
        sha = write_parquet(run / "sample.parquet", table)
        manifest.sample = Stored(file="sample.parquet", sha256=sha, tokens=table.num_rows)
    sha = write_bytes(run / "vocabulary.json", json.dumps(texts).encode())
    manifest.vocabulary = Stored(file="vocabulary.json", sha256=sha)
    manifest.status = "complete"
    write_manifest(run, manifest)
    _sweep(run, manifest)


def _sweep(run: Path, manifest: Manifest) -> None:
    """Remove parts that the manifest no longer names, and what a killed process may have left."""
    stored = [manifest.state, *manifest.documents, *manifest.shards]
    named = {s.file for s in stored if s is not None}
    for name in owned(run):
        if PART_NAME.fullmatch(name.removesuffix(".partial")) and name not in named:
            remove(run / name)


def coverage(state: RunState, tokens: int, phases: Sequence[str]) -> Coverage:
    """Check that every router saw every token, and say which experts were never chosen.

    Args:
        state: all sums.
        tokens: how many each router must have seen in ``phases``.
        phases: those that are checked; the run may have others.

    Raises:
        CoverageError: the counts of a layer do not add up to tokens × K.
    """
    shape = state.shape
    counts = np.zeros((len(shape.layers), shape.max_experts), np.int64)
    for name in phases:
        if name in state.phases:  # an empty shard of a corpus has none
            counts += state.phases[name].arrays["cluster_counts"].sum(0)
    never: dict[str, list[int]] = {}
    for i, layer in enumerate(shape.layers):
        seen = int(counts[i].sum())
        if seen != tokens * shape.top_k[i]:
            raise CoverageError(
                f"layer {layer}: {seen} assignments were counted, expected {tokens} tokens × "
                f"{shape.top_k[i]} experts; the run cannot be trusted"
            )
        unused = np.flatnonzero(counts[i, : shape.num_experts[i]] == 0)
        if unused.size and tokens:
            never[str(layer)] = unused.tolist()
    return {
        "routers_expected": len(shape.layers),
        "routers_seen": int((counts.sum(-1) > 0).sum()),
        "tokens_per_router": tokens,
        "tokens_by_phase": {
            name: int(a.arrays["cluster_tokens"].sum()) for name, a in state.phases.items()
        },
        "experts_never_chosen": never,
    }
