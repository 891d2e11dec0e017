"""How a run folder grows: what is pending, then the manifest that names it; and how it is finished.

Both a trace and an import write this way, so a process that dies leaves a run that can be resumed.
It does not know where the sums came from.
"""

from __future__ import annotations

import datetime
import json
import platform
import time
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from moescope.errors import CoverageError
from moescope.files import owned, remove, write_bytes
from moescope.run.facts import LayerFacts, TokenBlock
from moescope.run.manifest import (
    PART_NAME,
    Coverage,
    Manifest,
    Stored,
    WholeCorpus,
    has_progress,
    read_manifest,
    refuse_begun,
    write_manifest,
)
from moescope.run.options import TraceOptions
from moescope.run.reader import shape_of, stored_state
from moescope.run.same import require_same_run
from moescope.run.shards import document_table, sample_table, shard_table
from moescope.run.state import RunState
from moescope.run.store import read_parquet, write_parquet, write_tensors

_IF_ANY = ("spelt_out", "unknown_marks")
"""Counters that a manifest holds only where something was counted."""


class PoolResult(NamedTuple):
    """What a pool adds to the files.

    ``documents``: one dict per document; ``rows``: one dict of columns per batch (``keep="all"``);
    ``control``: control tokens that the model wrote, which are not counted.
    """

    documents: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    tokens: int
    control: int = 0


def add_block(
    state: RunState,
    keep: str,
    phase: str,
    block: TokenBlock,
    facts: list[LayerFacts],
    ids: list[str],
) -> list[dict[str, Any]]:
    """Add tokens to the sums and, where one is kept, to the sample.

    Returns:
        What a shard is to hold of them, where every token is kept.
    """
    aggregates, sample = state.phase(phase)
    aggregates.add(block, facts)
    if keep != "aggregates":
        sample.add(block, facts, state.shape.layers, ids)
    slim = [_kept_of(f) for f in facts] if keep == "all" else []
    return [{"phase": phase, "block": block, "facts": slim, "ids": ids}] if slim else []


def _kept_of(facts: LayerFacts) -> LayerFacts:
    """What a shard holds of the facts, in its types: the rest is most of their memory."""
    none = np.zeros((0, 0), np.float32)
    return facts._replace(
        topk_ids=facts.topk_ids.astype(np.uint16),
        topk_weights=facts.topk_weights.astype(np.float16),
        logits=none,
        probs=none,
        topk_entropy=none,
        topk_mass=none,
        margin_first=none,
    )


class GrowingRun:
    """A run while it is written: what a trace and an import have in common.

    Whoever fills it adds the results of pools and counts in ``counters``; this keeps the folder,
    so that a process that dies leaves a run that can be gone on with.

    Args:
        folder: of the run, held by the caller.
        manifest: what identifies the run.
        options: what was asked for.
        counters: names of the counters that the manifest's progress holds.

    Attributes:
        state: all sums.
        tokens: counted tokens so far.
        done: what ``documents_read`` was when the run was taken up; 0 for a new one.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, options: TraceOptions, counters: Sequence[str]
    ) -> None:
        self.folder, self.manifest, self.options = folder, manifest, options
        self.shape = shape_of(manifest)
        self.state = RunState(self.shape, options.sample_tokens, options.seed)
        self.counters = {name: Counter[str]() for name in counters}
        self.tokens = self.done = 0
        self._pending: list[PoolResult] = []
        self._committed = time.monotonic()

    def take_up(self, resume: bool) -> bool:
        """Go on with what the folder holds, if it holds something; is the run complete already?

        Raises:
            RunError: ``resume`` is off, the run is another one, or damaged.
        """
        if not has_progress(self.folder):
            return False
        refuse_begun(self.folder, resume)
        old = read_manifest(self.folder)
        require_same_run(self.folder, old, self.manifest)
        self.manifest = old
        self.state = stored_state(self.folder, old, self.shape)
        self.done, self.tokens = old.progress["documents_read"], old.progress["tokens"]
        progress: Any = old.progress
        for name, counter in self.counters.items():
            counter.update(progress.get(name, {}))
        if old.status != "complete":
            return False
        _sweep(self.folder, old)  # a process may have been killed just before it did
        return True

    def begin(self, *packages: str) -> None:
        """Write the manifest of a new run, with the versions of these packages."""
        manifest = self.manifest
        manifest.created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        manifest.versions = {n: version(n) for n in ("moescope", *packages, "numpy", "pyarrow")}
        manifest.versions["python"] = platform.python_version()
        write_manifest(self.folder, manifest)

    def add(self, result: PoolResult) -> None:
        """Take what a pool adds to the files; its sums are in the state already."""
        self._pending.append(result)

    @property
    def is_due(self) -> bool:
        """Is it time for a commit?"""
        return time.monotonic() - self._committed >= self.options.checkpoint_seconds

    def commit(self, documents_read: int, fingerprint: str) -> None:
        """Write what is pending, then the manifest that names it, then drop what it replaced.

        Args:
            documents_read: where a resumed run goes on; it also numbers the state file.
            fingerprint: of what was read so far.

        Raises:
            WriteError: disk full or no permission; the commit before stays.
        """
        manifest, state = self.manifest, self.state
        _write_documents(self.folder, manifest, self._pending)
        for result in self._pending:
            if result.rows:
                file = f"shards/{len(manifest.shards):05d}.parquet"
                table = shard_table(result.rows, state.shape, state.domains)
                sha = write_parquet(self.folder / file, table)
                manifest.shards.append(Stored(file=file, sha256=sha, tokens=table.num_rows))
        old = manifest.state
        file = f"aggregates/state-{documents_read:09d}.safetensors"
        sha = write_tensors(self.folder / file, state.to_arrays())
        manifest.state = Stored(file=file, sha256=sha, tokens=self.tokens)
        manifest.domains = state.domains
        progress: Any = {
            "documents_read": documents_read,
            "tokens": self.tokens,
            "fingerprint": fingerprint,
        }
        progress |= {n: dict(c) for n, c in self.counters.items() if c or n not in _IF_ANY}
        manifest.progress = progress
        write_manifest(self.folder, manifest)
        if old is not None and old.file != file:
            remove(self.folder / old.file)
        self._pending, self._committed = [], time.monotonic()

    def finish(
        self,
        phases: Sequence[str],
        skipped: dict[str, int],
        texts: Callable[[list[int]], Sequence[str]] | None,
        whole: WholeCorpus | None = None,
    ) -> None:
        """Check that every router saw every token, then `finish`.

        Args:
            phases: those of which all tokens must have been seen.
            skipped: records that were left out, by reason.
            texts: gives the texts of token ids; None where they are not known.
            whole: of a shard, what it is a part of.

        Raises:
            CoverageError: see `coverage`.
        """
        made = coverage(self.state, self.tokens, phases)
        made["skipped_records"] = skipped
        if whole is not None:
            made["corpus"] = whole
        self.manifest.coverage = made
        ids = [] if texts is None else self.state.token_ids()
        named = {} if texts is None else dict(zip(map(str, ids), texts(ids), strict=True))
        finish(self.folder, self.manifest, self.state, keep=self.options.keep, texts=named)


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
