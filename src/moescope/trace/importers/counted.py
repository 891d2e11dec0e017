"""A run of counts alone: sums by domain, phase, layer and expert, and nothing that needs more.

What stands in such a run is what counts can say. Tables of single tokens, of neighbours and of
documents are refused with the reason; a domain is one sum, so nothing has an interval or a test.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moescope.errors import CorpusError
from moescope.models.spec import AnySpec
from moescope.progress import Progress
from moescope.run.options import TraceOptions
from moescope.trace.importers.common import RefusedError
from moescope.trace.importers.counts import Counted, counts_of
from moescope.trace.importers.files import read_items
from moescope.trace.importers.source import Import

_Sums = dict[tuple[str, str], NDArray[np.int64]]


class CountsImporter(Import):
    """One call of `import_traces` with counts; takes what the importer of requests takes."""

    def __init__(self, engine: str, files: Any, folder: Path, model: AnySpec, options: TraceOptions,
                 *asked: Any) -> None:  # fmt: skip
        only_sums = options.model_copy(update={"keep": "aggregates"})
        super().__init__(engine, files, folder, model, only_sums, *asked)
        self.unnamed = False

    def go(self, resume: bool) -> Path:
        """Read all files, then write the run in one commit."""
        run = self.run
        if run.take_up(resume):
            return run.folder
        if not run.done:
            sums = self._read()
            tokens = {key: self._tokens(key, counts) for key, counts in sums.items()}
            run.tokens = sum(tokens.values())
            if not run.tokens:
                raise CorpusError(f"{self.files[0].path}: no choice of an expert was counted")
            self._add_up(sums, tokens)
            run.manifest.source["notes"] = self._notes()
            self.commit()
        self.finish(run.manifest.source["notes"])
        return run.folder

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
                    self.run.counters["skipped"][error.problem.reason] += 1
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
            mine = one.counts[places, : self.run.shape.max_experts]
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

    def _add_up(self, sums: _Sums, tokens: dict[tuple[str, str], int]) -> None:
        state, domains = self.run.state, self.run.counters["domain_tokens"]
        clusters = {name: state.place(name)[1] for name in dict.fromkeys(d for d, _ in sums)}
        for (domain, phase), counts in sorted(
            sums.items(), key=lambda item: item[0][1] == "decode"
        ):
            arrays = state.phase(phase)[0].arrays
            arrays["cluster_tokens"][clusters[domain]] += tokens[domain, phase]
            arrays["cluster_counts"][clusters[domain]] += counts
        for (domain, _), number in tokens.items():
            domains[domain] += number

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
