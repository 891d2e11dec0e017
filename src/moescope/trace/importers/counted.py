"""A run of counts alone: sums by domain, phase, layer and expert, and nothing that needs more.

What stands in such a run is what counts can say. Tables of single tokens, of neighbours and of
documents are refused with the reason; a domain is one sum, so nothing has an interval or a test.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moescope.errors import CorpusError, RunError
from moescope.models.loading import ModelSpec
from moescope.progress import OnProgress, Progress
from moescope.run.aggregates import AggregateShape
from moescope.run.commit import commit, coverage, finish
from moescope.run.manifest import Manifest, has_progress, read_manifest
from moescope.run.options import TraceOptions
from moescope.run.same import require_same_run
from moescope.run.state import RunState
from moescope.trace.importers.common import RefusedError
from moescope.trace.importers.counts import SUFFIXES, Counted, counts_of
from moescope.trace.importers.files import find_captures, read_items
from moescope.trace.importers.served import describe_served, open_served
from moescope.trace.importers.source import (
    begin,
    corpus_name,
    describe_source,
    fingerprint,
)

__all__ = ["CountsImporter"]

_Sums = dict[tuple[str, str], NDArray[np.int64]]


class CountsImporter:
    """One call of `import_traces` with counts; takes what the importer of requests takes."""

    def __init__(
        self,
        engine: str,
        files: Sequence[str | Path],
        run: Path,
        model: ModelSpec,
        options: TraceOptions,
        source: dict[str, Any],
        on_progress: OnProgress,
    ) -> None:
        options = options.model_copy(update={"keep": "aggregates"})
        self.run, self.source, self.on_progress = run, source, on_progress
        self.served = open_served(model)
        self.layers = self.served.anatomy.select(options.layers)
        self.files = find_captures(files, SUFFIXES)
        described = describe_source(engine, self.files, source)
        self.shape = AggregateShape(
            layers=tuple(m.layer_idx for m in self.layers),
            num_experts=tuple(m.num_experts for m in self.layers),
            top_k=tuple(m.top_k for m in self.layers),
            token_budget=options.token_budget,
            absent=frozenset({"weights", "order", "tokens"}),
        )
        self.state = RunState(self.shape, options.sample_tokens, options.seed)
        self.manifest = Manifest(
            model=describe_served(self.served, self.layers),
            corpus={"path": corpus_name(engine, self.files)},
            options=options.identity(),
            source=described,
        )
        self.entries = 0
        self.skipped: Counter[str] = Counter()
        self.unnamed = False

    def go(self, resume: bool) -> Path:
        """Read all files, then write the run; one that was interrupted is begun again."""
        if has_progress(self.run):
            if not resume:
                raise RunError(f"{self.run} already holds a run; resume it, or give another folder")
            old = read_manifest(self.run)
            require_same_run(self.run, old, self.manifest)
            if old.status == "complete":
                return self.run
        sums = self._read()
        tokens = {key: self._tokens(key, counts) for key, counts in sums.items()}
        if not sum(tokens.values()):
            raise CorpusError(f"{self.files[0].path}: no choice of an expert was counted")
        self._write(sums, tokens)
        return self.run

    def _read(self) -> _Sums:
        """Sums by domain and phase, (L, E); files of several ranks or days add up."""
        sums: _Sums = {}
        read = 0
        for file in self.files:
            for item in read_items(file):
                self.entries += 1
                try:
                    if isinstance(item, RefusedError):
                        raise item
                    made = list(counts_of(item, self.served, self.source["domain"]))
                except RefusedError as error:
                    if self.source["on_error"] == "fail":
                        raise CorpusError(error.problem.message()) from error
                    self.skipped[error.problem.reason] += 1
                    continue
                self._add(sums, made)
            read += file.size
            total = sum(f.size for f in self.files)
            self.on_progress(Progress("importing", read, total, "bytes"))
        return sums

    def _add(self, sums: _Sums, made: list[Counted]) -> None:
        places = [self.served.anatomy.layers.index(m) for m in self.layers]
        for one in made:
            key = one.domain, one.phase
            mine = one.counts[places, : self.shape.max_experts]
            sums[key] = sums[key] + mine if key in sums else mine
            self.unnamed |= not one.named

    def _tokens(self, key: tuple[str, str], counts: NDArray[np.int64]) -> int:
        """Tokens of a domain and phase: in every layer each has chosen K experts.

        Raises:
            CorpusError: the layers do not agree.
        """
        found = [
            int(row.sum()) / layer.top_k for layer, row in zip(self.layers, counts, strict=True)
        ]
        most = max(found)
        for layer, tokens in zip(self.layers, found, strict=True):
            if tokens != most or not tokens.is_integer():
                raise CorpusError(
                    f"{self.files[0].path}: the counts are not those of whole tokens (domain "
                    f"{key[0]}, {key[1]}, layer {layer.layer_idx}: {tokens * layer.top_k:,.0f} "
                    f"choices, expected {most * layer.top_k:,.0f} as in the other layers, a "
                    f"multiple of {layer.top_k}); give the files of all ranks, or choose layers "
                    "by `layers`"
                )
        return int(most)

    def _write(self, sums: _Sums, tokens: dict[tuple[str, str], int]) -> None:
        clusters = {name: self.state.place(name)[1] for name in dict.fromkeys(d for d, _ in sums)}
        for (domain, phase), counts in sorted(
            sums.items(), key=lambda item: item[0][1] == "decode"
        ):
            arrays = self.state.phase(phase)[0].arrays
            arrays["cluster_tokens"][clusters[domain]] += tokens[domain, phase]
            arrays["cluster_counts"][clusters[domain]] += counts
        by_domain: Counter[str] = Counter()
        for (domain, _), number in tokens.items():
            by_domain[domain] += number
        total = sum(tokens.values())
        manifest = self.manifest
        begin(self.run, manifest)
        commit(
            self.run,
            manifest,
            self.state,
            [],
            {
                "documents_read": self.entries,
                "tokens": total,
                "fingerprint": fingerprint(self.files),
                "left_out": {},
                "domain_tokens": dict(by_domain),
                "skipped": dict(self.skipped),
                "requests": {},
            },
        )
        manifest.coverage = coverage(self.state, total, tuple(self.state.phases))
        manifest.coverage["skipped_records"] = dict(self.skipped)
        manifest.source["notes"] = self._notes()
        finish(self.run, manifest, self.state, keep="aggregates", texts={})

    def _notes(self) -> list[str]:
        made = [
            "Counts have no documents: each domain is one sum, so nothing has an interval or a "
            "test.",
            "Control tokens, padding and the words of chat templates are in them if the engine "
            "counted them.",
        ]
        if self.unnamed:
            made.append(
                "The counts do not say which tokens were read and which were written; all stand "
                "under prefill."
            )
        return made
