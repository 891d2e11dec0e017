"""`import_traces`: what a serving engine captured becomes a run that tables and report read.

Files are read one entry after the other; requests gather in pools, and after each pool the sums are
up to date in memory and committed every few seconds, as in a trace. A process that dies is resumed
at the entry after the last commit, and the result is the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from moescope.corpus.seen import SeenIds
from moescope.errors import BadInputError, CorpusError, RunError
from moescope.files import nothing_of_bad_input
from moescope.models.spec import AnySpec
from moescope.progress import OnProgress, Progress, quiet
from moescope.run.manifest import claim_run
from moescope.run.options import TraceOptions
from moescope.run.store import read_parquet
from moescope.trace.importers.common import Item, RefusedError, refuse
from moescope.trace.importers.counted import CountsImporter
from moescope.trace.importers.files import read_items
from moescope.trace.importers.pool import RequestPool
from moescope.trace.importers.rows import count_request
from moescope.trace.importers.source import READERS, Import, notes

EngineKind = Literal["vllm", "sglang", "llamacpp", "counts"]
ENGINES: tuple[str, ...] = get_args(EngineKind)
"""The engines whose captures can be read; ``counts`` are sums that any of them logged."""

_OPTIONS = (
    "layers", "keep", "seed", "sample_tokens", "token_budget", "pool_tokens", "checkpoint_seconds",
    "predictions",
)  # fmt: skip
_POOL_TOKENS = 32_768


def import_traces(
    engine: EngineKind,
    files: Sequence[str | Path],
    run: str | Path,
    model: AnySpec,
    options: TraceOptions | None = None,
    *,
    domain: str | None = None,
    ordered: bool = False,
    on_error: Literal["fail", "skip"] = "fail",
    engine_version: str | None = None,
    resume: bool = False,
    on_progress: OnProgress = quiet,
) -> Path:
    """Write a run from routed-expert ids that a serving engine captured, or from counts.

    Weights, probabilities and losses are not in such a capture; what needs them is absent from the
    run. Without ``ordered`` so is everything about a token's first choice. Of counts, single tokens
    and documents are absent too, and with them all intervals and tests.

    Args:
        engine: ``vllm``, ``sglang`` or ``llamacpp``; ``counts`` for sums by layer and expert.
        files: capture files, or folders of them; see docs/how-to/import-serving-traces.md.
        run: folder to write: new, empty, or a run to go on with.
        model: the model that was served. Configuration and tokenizer are read, no weights.
        options: ``layers``, ``keep``, ``seed``, ``sample_tokens``, ``token_budget``,
            ``pool_tokens`` and ``checkpoint_seconds`` may be set; the others concern a trace only.
        domain: domain of every request that names none itself.
        ordered: the engine names the K experts of a token by descending weight.
        on_error: stop at the first request that cannot be used, or leave it out and count it.
        engine_version: to be written into the manifest.
        resume: go on with an import that was interrupted.
        on_progress: called after every entry.

    Returns:
        The run folder.

    Raises:
        BadInputError: an unknown engine, or an option that concerns a trace only.
        ModelError: the model is unknown or dense.
        CorpusError: a file or request cannot be used; what was imported before stays.
        RunError: the folder holds a run, or ``resume`` finds another one.
        WriteError: the disk is full.
    """
    if engine not in ENGINES:
        raise BadInputError(f"engine {engine!r} is unknown; choose {', '.join(ENGINES)}")
    label = " ".join((domain or "").split()) or None
    if label == "all":
        raise BadInputError("`domain` all: that is the name of the total; call it otherwise")
    source = {"domain": label, "ordered": ordered, "on_error": on_error}
    asked = _import_options(options or TraceOptions())
    if engine == "counts" and ordered:
        raise BadInputError("`ordered` is about a token's experts; counts have no tokens")
    with claim_run(run) as folder:
        kind = CountsImporter if engine == "counts" else _Importer
        maker = kind(engine, files, folder, model, asked, source, on_progress)
        maker.run.manifest.source["engine_version"] = engine_version
        with nothing_of_bad_input(folder, unless=lambda: maker.run.manifest.state is not None):
            return maker.go(resume)


def _import_options(options: TraceOptions) -> TraceOptions:
    """Those options, with nothing predicted; refused where one could have no effect."""
    for name, field in TraceOptions.model_fields.items():
        if name not in _OPTIONS and getattr(options, name) != field.default:
            raise BadInputError(f"the option {name} concerns a trace, not an import; leave it out")
    return options.model_copy(update={"predictions": False})


class _Importer(Import):
    """One call of `import_traces`."""

    def __init__(self, *asked: Any) -> None:
        super().__init__(*asked)
        self.pool, self.seen = RequestPool(self.options), SeenIds()
        self.bytes = 0

    def go(self, resume: bool) -> Path:
        if not self.run.take_up(resume):
            self._import()
            self.finish(notes(self.run.manifest, self.served))
        return self.run.folder

    def _import(self) -> None:
        run = self.run
        for part in run.manifest.documents:
            for doc_id in read_parquet(run.folder, part)["doc"].to_pylist():
                self.seen.add(doc_id)
        for item in self._entries():
            self.entries += 1
            if self.entries <= run.done:
                continue
            self._take(item)
            if self.pool.tokens >= (self.options.pool_tokens or _POOL_TOKENS):
                run.add(self.pool.record(run.state))
                if run.is_due:
                    self.commit()
        if self.entries < run.done:
            raise RunError(
                f"{run.folder} has read {run.done} entries, but the files hold {self.entries}; "
                "give another folder"
            )
        if self.pool.tokens:
            run.add(self.pool.record(run.state))
        if not run.tokens:
            raise CorpusError(self._nothing())
        self.commit()

    def _entries(self) -> Iterator[Item | RefusedError]:
        whole = 0
        for file in self.files:
            for item in read_items(file):
                if isinstance(item, Item):
                    self.bytes = whole + item.bytes_read
                yield item
            whole += file.size

    def _take(self, item: Item | RefusedError) -> None:
        """Add one entry's requests, all of them or, when one of them is refused, none."""
        try:
            if isinstance(item, RefusedError):
                raise item
            made = [
                count_request(r, self.served, self.layers, ordered=self.source["ordered"])
                for r in READERS[self.engine].requests(
                    item, self.served, self.source["domain"], self.layers
                )
            ]
            for one in made:
                if not self.seen.add(one.doc_id):
                    refuse("duplicate id", item.where, repr(one.doc_id), "make ids unique")
        except RefusedError as error:
            if self.source["on_error"] == "fail":
                raise CorpusError(error.problem.message()) from error
            self.run.counters["skipped"][error.problem.reason] += 1
            return
        for one in made:
            self.run.counters["left_out"].update(one.left_out)
            requests = self.run.counters["requests"]
            requests.update(imported=1, masked=int(one.masked), unnamed_tokens=one.unnamed)
            if not one.num_tokens:
                self.run.counters["skipped"]["requests without a counted token"] += 1
                continue
            self.run.counters["domain_tokens"][one.domain] += one.num_tokens
            self.run.tokens += one.num_tokens
            self.pool.add(one)
        self._advance()

    def _advance(self) -> None:
        packed = any(file.packed for file in self.files)
        total = None if packed else sum(file.size for file in self.files)
        expected = self.run.tokens * total / self.bytes if total and self.bytes else None
        self.on_progress(Progress("importing", self.run.tokens, expected, "tokens"))

    def _nothing(self) -> str:
        reasons = [f"{n} × {why}" for why, n in self.run.counters["skipped"].items()]
        skipped = f" (left out: {'; '.join(reasons)})" if reasons else ""
        return f"{self.files[0].path}: no token was counted{skipped}; check the captures"
