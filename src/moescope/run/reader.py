"""A finished run, read back: sums by name, sampled tokens as arrays, documents.

`Run` needs no model. Files are read when first asked for, each checked against its checksum.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moescope.errors import RunError
from moescope.run.aggregates import ABSENT, AggregateShape, PhaseAggregates
from moescope.run.manifest import Manifest, claim_run, read_manifest
from moescope.run.shards import document_table
from moescope.run.state import RunState
from moescope.run.store import read_json, read_parquet, read_tensors, understood
from moescope.words import counted


class TokenRows(NamedTuple):
    """Single tokens with their routing.

    Shapes: everything (T,), except ``ids[layer]`` and ``weights[layer]``, which are (T, K).
    ``doc`` and ``domain`` are indices into ``doc_names`` and the run's domains. ``ids`` are by
    descending weight, but ascending by number in a run that does not know the order; where weights
    are not known, ``weights`` and ``entropy`` are NaN; an unknown ``token_id`` is −1.
    """

    doc: NDArray[np.int64]
    domain: NDArray[np.int64]
    window: NDArray[np.int64]
    pos: NDArray[np.int64]
    token_id: NDArray[np.int64]
    next_id: NDArray[np.int64]
    pred_id: NDArray[np.int64]
    nll: NDArray[np.float32]
    ids: dict[int, NDArray[np.int64]]
    weights: dict[int, NDArray[np.float32]]
    entropy: dict[int, NDArray[np.float32]]
    doc_names: list[str]


class Run:
    """A run folder.

    Args:
        path: the folder.
        require_complete: refuse a run that was interrupted.

    Raises:
        RunError: no run there, damaged, or not finished.
    """

    def __init__(self, path: str | Path, *, require_complete: bool = True) -> None:
        self.path = Path(path)
        self.manifest: Manifest = read_manifest(self.path)
        if require_complete and self.manifest.status != "complete":
            tokens = self.manifest.progress.get("tokens", 0)
            again = "" if self.manifest.merged else " and `resume`"
            raise RunError(
                f"{path} is not finished ({tokens:,} tokens so far); finish it with the command "
                f"that began it{again}"
            )

    def __repr__(self) -> str:
        layers, experts = len(self.shape.layers), self.shape.max_experts
        tokens = self.manifest.progress.get("tokens", 0)
        return (
            f"<{type(self).__name__} {self.path}: {counted(layers, 'layer')} × {experts} experts, "
            f"{counted(len(self.domains), 'domain')}, {tokens:,} tokens>"
        )

    def writing(self, wait: float = 2.0) -> AbstractContextManager[Path]:
        """Hold the folder, to write into it beside what is there; see `moescope.files.claim`."""
        return claim_run(self.path, wait=wait)

    @property
    def domains(self) -> list[str]:
        """Names of the domains, in order of first appearance."""
        return self.manifest.domains

    @property
    def absent(self) -> dict[str, str]:
        """What the source of this run did not know, each with the reason; empty for a trace."""
        return dict[str, str](**self.manifest.source.get("absent", {}))

    @cached_property
    def shape(self) -> AggregateShape:
        """Layers, experts per layer, experts per token."""
        return shape_of(self.manifest)

    @cached_property
    def state(self) -> RunState:
        """All sums and samples."""
        return stored_state(self.path, self.manifest, self.shape)

    @property
    def phases(self) -> list[str]:
        """``prefill``, and ``decode`` where text was generated."""
        return list(self.state.phases)

    def aggregates(self, phase: str = "prefill") -> PhaseAggregates:
        """The sums of one phase."""
        return self.state.phases[phase]

    @cached_property
    def cluster_domain(self) -> NDArray[np.int64]:
        """Domain index of each document cluster, (N,)."""
        return np.asarray(self.state.cluster_domain, np.int64)

    @cached_property
    def documents(self) -> pa.Table:
        """One row per document: doc, domain, tokens, left_out, loss, path."""
        with understood(f"the table of documents of {self.path}"):
            table = pa.concat_tables([read_parquet(self.path, p) for p in self.manifest.documents])
            return table.select(document_table([]).schema.names)

    @cached_property
    def sample_table(self) -> pa.Table | None:
        """The sampled tokens, or None when the run kept aggregates only."""
        stored = self.manifest.sample
        return None if stored is None else read_parquet(self.path, stored)

    @cached_property
    def vocabulary(self) -> dict[int, str]:
        """Text of every token id that occurred; pieces of characters are shown as stored."""
        stored = self.manifest.vocabulary
        if stored is None:
            return {}
        with understood(self.path / stored.file):
            return {int(k): str(v) for k, v in read_json(self.path, stored).items()}

    def token_text(self, token_id: int) -> str:
        """Text of a token id, with its leading space; ``#id`` for one that never occurred."""
        return self.vocabulary.get(int(token_id), f"#{token_id}")

    def tokens(self, phase: str = "prefill") -> TokenRows | None:
        """The sampled tokens of a phase as arrays, or None when the run kept aggregates only."""
        table = self.sample_table
        if table is None:
            return None
        with understood(f"the sample of {self.path}"):
            keep = np.asarray(table["phase"].combine_chunks().dictionary_decode()) == phase
            return token_rows(table.filter(pa.array(keep)), self.shape, self.domains)


def stored_state(run: Path, manifest: Manifest, shape: AggregateShape) -> RunState:
    """All sums and samples of a run, checked against its manifest.

    Raises:
        RunError: nothing was committed, or the file is not what the manifest describes.
    """
    options, stored = manifest.options, manifest.state
    if stored is None:
        raise RunError(f"{run} has no committed results yet; begin it again")
    arrays = read_tensors(run, stored)
    with understood(run / stored.file):
        state = RunState.from_arrays(arrays, shape, options["sample_tokens"], options["seed"])
        _require_counts(state, manifest)
    return state


def _require_counts(state: RunState, manifest: Manifest) -> None:
    """The sums are those of the run that the manifest describes.

    Raises:
        ValueError: other domains, or a layer that did not choose K experts for every token.
    """
    if state.domains != manifest.domains:
        raise ValueError("it has other domains than the manifest")
    for name, sums in state.phases.items():
        tokens = int(sums.arrays["cluster_tokens"].sum())
        chosen = sums.arrays["cluster_counts"].sum((0, 2)).tolist()
        for layer, found, top_k in zip(state.shape.layers, chosen, state.shape.top_k, strict=True):
            if found != tokens * top_k:
                raise ValueError(
                    f"layer {layer} has {found} assignments in {name}, expected {tokens} tokens × "
                    f"{top_k} experts"
                )


def shape_of(manifest: Manifest) -> AggregateShape:
    """What the arrays of a run are like, by its manifest."""
    model = manifest.model
    return AggregateShape(
        layers=tuple(model["layers"]),
        num_experts=tuple(model["num_experts"]),
        top_k=tuple(model["top_k"]),
        token_budget=int(manifest.options["token_budget"]),
        absent=frozenset(manifest.source.get("absent", {})) & frozenset(ABSENT),
    )


def token_rows(table: pa.Table, shape: AggregateShape, domains: list[str]) -> TokenRows:
    """Token rows of a sample or shard as arrays; ``domain`` is indexed by ``domains``."""
    if odd := [c for c in table.column_names if table[c].null_count]:
        raise ValueError(f"column {odd[0]} lacks values")
    docs, doc_index = _codes(table["doc"])
    names, domain_code = _codes(table["domain"])
    places = {name: d for d, name in enumerate(domains)}
    order = np.asarray([places[n] for n in names], np.int64)

    def column(name: str) -> NDArray[Any]:
        return np.asarray(table[name])

    def matrix(name: str, top_k: int) -> NDArray[Any]:
        chunk = table[name].combine_chunks()
        if chunk.type.list_size != top_k:
            raise ValueError(f"{name} has {chunk.type.list_size} per token, expected {top_k}")
        return np.asarray(chunk.flatten()).reshape(-1, top_k)

    whole = ("window", "pos", "token_id", "next_id", "pred_id")
    pairs = list(zip(shape.layers, shape.top_k, strict=True))
    ids = {n: matrix(f"e_{n}", k).astype(np.int64) for n, k in pairs}
    for layer, experts in zip(shape.layers, shape.num_experts, strict=True):
        if ids[layer].max(initial=0) >= experts:
            raise ValueError(f"e_{layer} names an expert that is not there")
    return TokenRows(
        doc=doc_index,
        domain=order[domain_code] if names else np.zeros(0, np.int64),
        **{n: column(n).astype(np.int64) for n in whole},
        nll=column("nll").astype(np.float32),
        ids=ids,
        weights={n: matrix(f"w_{n}", k).astype(np.float32) for n, k in pairs},
        entropy={n: column(f"h_{n}").astype(np.float32) for n, _ in pairs},
        doc_names=docs,
    )


def _codes(column: pa.ChunkedArray) -> tuple[list[str], NDArray[np.int64]]:
    texts = np.asarray(column.to_pylist(), dtype=object)
    if texts.size == 0:
        return [], np.zeros(0, np.int64)
    names, codes = np.unique(texts.astype(str), return_inverse=True)
    return names.tolist(), codes.astype(np.int64)
