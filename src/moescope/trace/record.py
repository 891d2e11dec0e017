"""`trace`: run a corpus through a model and write a run folder that everything else reads.

The corpus is a stream of pools of whole documents. After each pool the sums are up to date in
memory; every few seconds they are committed: state file, document rows and shards first, then the
manifest that names them. A process that dies loses at most what came after the last commit, and a
resumed run takes up at the pool after it with exactly the sums it had, so the result is the same
to the last bit as if it had never stopped.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from moescope.corpus import (
    AnyText,
    Corpus,
    CorpusSpec,
    Document,
    Fingerprint,
    TokenizedDocument,
    as_lines,
    as_text,
    control_ids,
    cut_alike,
    iter_pools,
    open_corpus,
    tokenize_document,
)
from moescope.corpus.spelling import token_texts
from moescope.errors import BadInputError, CorpusError, RunError
from moescope.files import drop_scratch, keep_scratch, nothing_of_bad_input, write_bytes
from moescope.models.accept import AnyModel, as_model
from moescope.models.anatomy import MoELayer
from moescope.models.loading import LoadedModel
from moescope.progress import OnProgress, Progress, quiet
from moescope.run.commit import GrowingRun
from moescope.run.manifest import TEXTS, Manifest, WholeCorpus, claim_run
from moescope.run.options import TraceOptions
from moescope.trace.engine import Engine, ResidentEngine
from moescope.trace.pool import PoolRecorder
from moescope.trace.room import document_bytes, require_room
from moescope.trace.streamed import StreamedEngine
from moescope.words import counted

_DEFAULT_CONTEXT = 2048
_COUNTERS = ("left_out", "domain_tokens", "spelt_out", "unknown_marks")
STREAMING = "streaming"
"""Folder of what layers put out, while the streamed engine takes a pool through them."""


def trace(
    model: AnyModel,
    texts: AnyText,
    run: str | Path,
    options: TraceOptions | None = None,
    *,
    resume: bool = False,
    engine: Engine | None = None,
    on_progress: OnProgress = quiet,
    wait: float = 2.0,
) -> Path:
    """Record how every MoE layer routes every token of a corpus.

    Args:
        model: a hub id, a folder, a `ModelSpec`, or a `LoadedModel`.
        texts: a path, a `CorpusSpec`, or a list of texts, which are kept in the run.
        run: folder to write: new, empty, or a run to go on with.
        options: what to keep and how much; see `TraceOptions`.
        resume: go on with a run that was interrupted. A finished one is left as it is.
        engine: what runs the model; the resident engine by default.
        on_progress: called after every batch.
        wait: seconds to wait for another process that writes the folder and may be ending.

    Returns:
        The run folder.

    Raises:
        RunError: the folder holds a run and ``resume`` is off, a run of another model, corpus or
            options, or what moescope did not write.
        BusyError: another process is writing the folder.
        CorpusError: the text cannot be read; what was traced before stays.
        CoverageError: a router was not seen.
        WriteError: the disk is full.
    """
    asked, corpus_spec = options or TraceOptions(), as_text(texts)
    loaded = as_model(model, engine="auto", batch_tokens=asked.batch_tokens, window=asked.context)
    with claim_run(run, reads=corpus_spec.reads, wait=wait) as folder:
        tracer = _Tracer(loaded, corpus_spec, folder, asked, engine, on_progress)
        with nothing_of_bad_input(folder, unless=lambda: tracer.run.tokens > 0):
            return tracer.go(resume)


class _Tracer:
    """One call of `trace`."""

    def __init__(
        self,
        loaded: LoadedModel,
        corpus_spec: CorpusSpec,
        folder: Path,
        options: TraceOptions,
        engine: Engine | None,
        on_progress: OnProgress,
    ) -> None:
        self.loaded, self.options, self.corpus_spec = loaded, options, corpus_spec
        self.corpus: Corpus = open_corpus(corpus_spec)
        self.layers = loaded.anatomy.select(options.layers)
        self.engine = engine or _engine(loaded, self.layers, options, folder, self._advance_layer)
        self.on_progress = on_progress
        manifest = Manifest(
            model=_describe_model(loaded, self.layers),
            corpus=corpus_spec.model_dump(mode="json"),
            options=options.identity(),
        )
        self.run = GrowingRun(folder, manifest, options, _COUNTERS)
        need = loaded.streamed.need if loaded.streamed is not None else None
        self.sums = None if need is None else need.sums
        self.context = context_length(loaded, options)
        self.fingerprint = Fingerprint()
        self.chars = self.documents = 0
        self.total_chars: int | None = None

    def go(self, resume: bool) -> Path:
        folder = self.run.folder
        if self.run.take_up(resume):
            self._require_no_more()
            drop_scratch(folder / STREAMING)
            return folder
        self._count_ahead()  # a corpus that cannot be read leaves no folder behind
        if not self.run.manifest.created:
            if self.corpus_spec.held:  # whoever reads the run again wants the text again
                write_bytes(folder / TEXTS, as_lines(self.corpus_spec))
            self.run.begin("torch", "transformers")
        if self.loaded.streamed is not None:
            keep_scratch(folder / STREAMING)
        self._trace()
        self._finish()
        drop_scratch(folder / STREAMING)
        return folder

    def _require_no_more(self) -> None:
        """A finished run stays as it is, so what is asked for must be what it holds."""
        for _ in self._read():
            raise RunError(
                f"{self.corpus_spec.path} has more documents than the {self.run.done} that "
                f"{self.run.folder} was made of; trace them into another folder"
            )

    def _count_ahead(self) -> None:
        """Read the corpus once if that is quick: errors come early and progress has an end."""
        started, total = time.monotonic(), 0
        documents: Counter[str] = Counter()
        characters: Counter[str] = Counter()
        for document in self.corpus:
            total += len(document.text)
            documents[document.domain] += 1
            characters[document.domain] += len(document.text)
            if time.monotonic() - started > 5.0:
                return
        self.total_chars = total
        if self.sums is not None:
            require_room(self.sums, self.run.shape, self.options, documents, characters)

    def _read(self) -> Iterator[Document]:
        """The documents not yet traced, in order, checking that the earlier ones are the same."""
        run, name = self.run, self.corpus_spec.path
        before = run.manifest.progress.get("fingerprint")
        for document in self.corpus:
            self.fingerprint.update(document)
            self.documents += 1
            self.chars += len(document.text)
            if self.documents > run.done:
                yield document
            elif self.documents == run.done and self.fingerprint.hexdigest() != before:
                raise RunError(
                    f"{name} is not the corpus that {run.folder} was started with: its first "
                    f"{counted(self.documents, 'document')} differ; give another folder"
                )
        if self.documents < run.done:
            raise RunError(
                f"{name} has {counted(self.documents, 'document')}, but {run.folder} has already "
                f"traced {run.done}; give another folder"
            )

    def _tokenized(self) -> Iterator[TokenizedDocument]:
        limit, counters = self.options.limit, self.run.counters
        left_out, domain_tokens = counters["left_out"], counters["domain_tokens"]
        for document in self._read():
            seen = domain_tokens[document.domain]
            if limit is not None and seen >= limit:
                left_out["documents past --limit"] += 1
                yield TokenizedDocument(self.documents, document.doc_id, document.domain, 0, 0, [])
                continue
            made = tokenize_document(
                self.loaded.tokenizer,
                document,
                self.documents,
                context_length=self.context,
                chat_template=self.options.chat_template,
                chat_text=self.options.chat_text,
                count_template=self.options.count_template,
                limit=self.options.match_length or (None if limit is None else limit - seen),
            )
            if self.options.match_length is not None:
                made = cut_alike(made, self.options.match_length)
            domain_tokens[document.domain] += made.num_tokens
            left_out["special and template tokens"] += made.num_uncounted
            counters["spelt_out"].update(made.marks.spelt_out)
            counters["unknown_marks"].update(made.marks.unknown)
            if not made.sequences:
                short = self.options.match_length is not None
                what = "shorter than --match-length" if short else "without a counted token"
                left_out[f"documents {what}"] += 1
            yield made

    def _trace(self) -> None:
        recorder = PoolRecorder(
            self.engine,
            self.layers,
            self.options,
            self.loaded.pad_id,
            self._advance,
            stop=_stop_ids(self.loaded),
            control=frozenset()
            if self.options.count_template  # then what a template may write counts from the model
            else control_ids(self.loaded.tokenizer),
        )
        run = self.run
        pool_tokens = self.options.pool_tokens or self.engine.pool_tokens
        most = None
        if self.sums is not None:
            run.state.bound(self.sums, run.folder)
            most = max(1, self.sums // 4 // document_bytes(run.shape))
        for pool in iter_pools(self._tokenized(), pool_tokens, most):
            result = recorder.record([doc for doc in pool if doc.sequences], run.state)
            run.add(result)
            if result.control:
                run.counters["left_out"]["control tokens that the model wrote"] += result.control
            if run.is_due:
                run.commit(self.documents, self.fingerprint.hexdigest())
        run.commit(self.documents, self.fingerprint.hexdigest())
        run.state.make_room(all_of_it=True)  # the sample is made into a table next

    def _advance(self, tokens: int) -> None:
        self.run.tokens += tokens
        self._tell("tracing")

    def _advance_layer(self, done: int, layers: int) -> None:
        self._tell(f"tracing, layer {done}/{layers}")

    def _tell(self, stage: str) -> None:
        """In tokens; how many there will be is known by the characters, if those are."""
        known, tokens = self.total_chars is not None and self.chars > 0, self.run.tokens
        total = tokens * (self.total_chars or 0) / self.chars if known else None
        self.on_progress(Progress(stage, tokens, total, "tokens"))

    def _finish(self) -> None:
        whole = self.corpus.whole
        if not self.run.tokens and whole is None:
            length = self.options.match_length
            reason = (
                "the text is empty once special tokens are left out"
                if length is None
                else f"no document has the {length} tokens of `match_length`; give a smaller number"
            )
            raise CorpusError(f"{self.corpus_spec.path}: no token was counted; {reason}")
        part_of = None  # of a shard, which may be empty: of how much text it is a part
        if whole is not None:
            part_of = WholeCorpus(documents=whole.documents, fingerprint=whole.fingerprint)
        self.run.finish(
            ("prefill",),
            {s.reason: s.count for s in self.corpus.skipped},
            partial(token_texts, self.loaded.tokenizer),
            part_of,
        )


def _engine(
    loaded: LoadedModel,
    layers: tuple[MoELayer, ...],
    options: TraceOptions,
    run: Path,
    on_layer: Callable[[int, int], None],
) -> Engine:
    """The engine that suits how the model was loaded."""
    asked: Any = {n: getattr(options, n) for n in ("predictions", "batch_tokens")}
    if loaded.streamed is None:
        return ResidentEngine(loaded, layers, **asked)
    if options.generate:
        raise BadInputError(
            "`generate` needs the whole model in memory; use `engine=resident`, or leave it out"
        )
    return StreamedEngine(loaded, layers, run / STREAMING, on_layer=on_layer, **asked)


def context_length(loaded: LoadedModel, options: TraceOptions) -> int:
    """The longest window, in tokens: as asked for, or the model's context up to 2,048.

    Raises:
        BadInputError: the model's context is shorter than what was asked for.
    """
    config: Any = loaded.model.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    longest = getattr(text, "max_position_embeddings", None) or _DEFAULT_CONTEXT
    room = int(longest) - (options.generate + 1 if options.generate else 0)
    if options.context is None and room >= 2:
        return min(room, _DEFAULT_CONTEXT)
    if options.context is None or options.context > room:
        wanted = f"`context` {options.context}" if options.context else "a window of 2"
        and_text = f" and `generate` {options.generate}" if options.generate else ""
        raise BadInputError(
            f"{wanted}{and_text} do not fit this model's context of {longest} tokens"
        )
    return options.context


def _stop_ids(loaded: LoadedModel) -> frozenset[int]:
    given = getattr(loaded.model.generation_config, "eos_token_id", None)
    ids = given if isinstance(given, list) else [given]
    return frozenset(int(i) for i in ids if i is not None)


def _describe_model(loaded: LoadedModel, layers: tuple[MoELayer, ...]) -> dict[str, Any]:
    return {
        "name": loaded.spec.model,
        "revision": loaded.revision,
        "model_type": loaded.anatomy.model_type,
        "config_sha256": loaded.config_hash,
        "tokenizer_sha256": loaded.tokenizer_hash,
        "weights_sha256": loaded.weights_hash,
        "dtype": loaded.dtype,
        "stored_dtype": loaded.stored_dtype,
        "device": loaded.device,
        **loaded.anatomy.describe(layers),
    }
