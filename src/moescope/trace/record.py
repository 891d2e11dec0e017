"""`trace`: run a corpus through a model and write a run folder that everything else reads.

The corpus is a stream of pools of whole documents. After each pool the sums are up to date in
memory; every few seconds they are committed: state file, document rows and shards first, then the
manifest that names them. A process that dies loses at most what came after the last commit, and a
resumed run takes up at the pool after it with exactly the sums it had, so the result is the same
to the last bit as if it had never stopped.
"""

from __future__ import annotations

import datetime
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from moescope.corpus import (
    Corpus,
    CorpusSpec,
    Document,
    Fingerprint,
    TokenizedDocument,
    control_ids,
    cut_alike,
    iter_pools,
    open_corpus,
    tokenize_document,
)
from moescope.errors import BadInputError, CorpusError, RunError
from moescope.files import drop_scratch, keep_scratch, nothing_of_bad_input
from moescope.models.anatomy import Anatomy, MoELayer
from moescope.models.loading import LoadedModel
from moescope.progress import OnProgress, Progress, quiet
from moescope.run.aggregates import AggregateShape
from moescope.run.commit import PoolResult, commit, coverage, finish
from moescope.run.manifest import (
    Manifest,
    Progressed,
    WholeCorpus,
    claim_run,
    has_progress,
    read_manifest,
    write_manifest,
)
from moescope.run.options import TraceOptions
from moescope.run.reader import stored_state
from moescope.run.same import require_same_run
from moescope.run.state import RunState
from moescope.trace.engine import Engine, ResidentEngine
from moescope.trace.pool import PoolRecorder
from moescope.trace.room import document_bytes, require_room
from moescope.trace.streamed import StreamedEngine

__all__ = ["Progress", "context_length", "describe_layers", "trace"]

_DEFAULT_CONTEXT = 2048
STREAMING = "streaming"
"""Folder of what layers put out, while the streamed engine takes a pool through them."""


def trace(
    loaded: LoadedModel,
    corpus_spec: CorpusSpec,
    run: Path,
    options: TraceOptions | None = None,
    *,
    resume: bool = False,
    engine: Engine | None = None,
    on_progress: OnProgress = quiet,
    wait: float = 2.0,
) -> Path:
    """Record how every MoE layer routes every token of a corpus.

    Args:
        loaded: the model, from `load_model`.
        corpus_spec: the text.
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
    asked = options or TraceOptions()
    with claim_run(run, reads=[corpus_spec.path], wait=wait) as folder:
        tracer = _Tracer(loaded, corpus_spec, folder, asked, engine, on_progress)
        with nothing_of_bad_input(folder, unless=lambda: tracer.tokens > 0):
            return tracer.go(resume)


class _Tracer:
    """One call of `trace`."""

    def __init__(
        self,
        loaded: LoadedModel,
        corpus_spec: CorpusSpec,
        run: Path,
        options: TraceOptions,
        engine: Engine | None,
        on_progress: OnProgress,
    ) -> None:
        self.loaded, self.options, self.run = loaded, options, run
        self.corpus_spec = corpus_spec
        self.corpus: Corpus = open_corpus(corpus_spec)
        self.layers = loaded.anatomy.select(options.layers)
        self.engine = engine or _engine(loaded, self.layers, options, run, self._advance_layer)
        self.on_progress = on_progress
        self.shape = AggregateShape(
            layers=tuple(m.layer_idx for m in self.layers),
            num_experts=tuple(m.num_experts for m in self.layers),
            top_k=tuple(m.top_k for m in self.layers),
            token_budget=options.token_budget,
        )
        self.state = RunState(self.shape, options.sample_tokens, options.seed)
        self.manifest = Manifest(
            model=_describe_model(loaded, self.layers),
            corpus=corpus_spec.model_dump(mode="json"),
            options=options.identity(),
        )
        need = loaded.streamed.need if loaded.streamed is not None else None
        self.sums = None if need is None else need.sums
        self.context = context_length(loaded, options)
        self.done_documents = 0
        self.prefix = ""
        self.fingerprint = Fingerprint()
        self.chars = self.tokens = self.documents = 0
        self.total_chars: int | None = None
        self.left_out: Counter[str] = Counter()
        self.domain_tokens: Counter[str] = Counter()
        self.spelt_out: Counter[str] = Counter()
        self.unknown_marks: Counter[str] = Counter()
        self.pending: list[PoolResult] = []

    def go(self, resume: bool) -> Path:
        if has_progress(self.run):
            if not resume:
                raise RunError(f"{self.run} already holds a run; resume it, or give another folder")
            self._restore()
            if self.manifest.status == "complete":
                self._require_no_more()
                return self.run
        self._count_ahead()  # a corpus that cannot be read leaves no folder behind
        if not self.manifest.created:
            self._start()
        if self.loaded.streamed is not None:
            keep_scratch(self.run / STREAMING)
        self._trace()
        self._finish()
        drop_scratch(self.run / STREAMING)
        return self.run

    def _require_no_more(self) -> None:
        """A finished run stays as it is, so what is asked for must be what it holds."""
        for _ in self._read():
            raise RunError(
                f"{self.corpus_spec.path} has more documents than the {self.done_documents} that "
                f"{self.run} was made of; trace them into another folder"
            )

    def _start(self) -> None:
        self.manifest.created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        names = ("moescope", "torch", "transformers", "numpy", "pyarrow")
        self.manifest.versions = {n: version(n) for n in names}
        self.manifest.versions["python"] = platform.python_version()
        write_manifest(self.run, self.manifest)

    def _restore(self) -> None:
        old = read_manifest(self.run)
        require_same_run(self.run, old, self.manifest)
        self.manifest = old
        self.state = stored_state(self.run, old, self.shape)
        self.done_documents = int(old.progress["documents_read"])
        self.prefix = str(old.progress["fingerprint"])
        self.tokens = int(old.progress["tokens"])
        self.left_out.update(old.progress["left_out"])
        self.domain_tokens.update(old.progress["domain_tokens"])
        self.spelt_out.update(old.progress.get("spelt_out", {}))
        self.unknown_marks.update(old.progress.get("unknown_marks", {}))

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
            require_room(self.sums, self.shape, self.options, documents, characters)

    def _read(self) -> Iterator[Document]:
        """The documents not yet traced, in order, checking that the earlier ones are the same."""
        for document in self.corpus:
            self.fingerprint.update(document)
            self.documents += 1
            self.chars += len(document.text)
            if self.documents > self.done_documents:
                yield document
            elif self.documents == self.done_documents and (
                self.fingerprint.hexdigest() != self.prefix
            ):
                raise RunError(
                    f"{self.corpus_spec.path} is not the corpus that {self.run} was started with: "
                    f"its first {self.documents} documents differ; give another folder"
                )
        if self.documents < self.done_documents:
            raise RunError(
                f"{self.corpus_spec.path} has {self.documents} documents, but {self.run} has "
                f"already traced {self.done_documents}; give another folder"
            )

    def _tokenized(self) -> Iterator[TokenizedDocument]:
        limit = self.options.limit
        for document in self._read():
            seen = self.domain_tokens[document.domain]
            if limit is not None and seen >= limit:
                self.left_out["documents past --limit"] += 1
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
            self.domain_tokens[document.domain] += made.num_tokens
            self.left_out["special and template tokens"] += made.num_uncounted
            self.spelt_out.update(made.marks.spelt_out)
            self.unknown_marks.update(made.marks.unknown)
            if not made.sequences:
                short = self.options.match_length is not None
                what = "shorter than --match-length" if short else "without a counted token"
                self.left_out[f"documents {what}"] += 1
            yield made

    def _trace(self) -> None:
        recorder = PoolRecorder(
            self.engine,
            self.layers,
            self.options,
            self.loaded.pad_id,
            self._advance,
            stop=_stop_ids(self.loaded),
            control=_control_ids(self.loaded, self.options),
        )
        pool_tokens = self.options.pool_tokens or self.engine.pool_tokens
        most = None
        if self.sums is not None:
            self.state.bound(self.sums, self.run)
            most = max(1, self.sums // 4 // document_bytes(self.shape))
        last_commit = time.monotonic()
        for pool in iter_pools(self._tokenized(), pool_tokens, most):
            traced = [doc for doc in pool if doc.sequences]
            result = recorder.record(traced, self.state)
            self.pending.append(result)
            if result.control:
                self.left_out["control tokens that the model wrote"] += result.control
            read = self.documents
            if time.monotonic() - last_commit >= self.options.checkpoint_seconds:
                self._commit(read)
                last_commit = time.monotonic()
        self._commit(self.documents)
        self.state.make_room(all_of_it=True)  # the sample is made into a table next

    def _advance(self, tokens: int) -> None:
        self.tokens += tokens
        self._tell("tracing")

    def _advance_layer(self, done: int, layers: int) -> None:
        self._tell(f"tracing, layer {done}/{layers}")

    def _tell(self, stage: str) -> None:
        """In tokens; how many there will be is known by the characters, if those are."""
        known = self.total_chars is not None and self.chars > 0
        total = self.tokens * (self.total_chars or 0) / self.chars if known else None
        self.on_progress(Progress(stage, self.tokens, total, "tokens"))

    def _commit(self, documents_read: int) -> None:
        progress: Progressed = {
            "documents_read": documents_read,
            "tokens": self.tokens,
            "fingerprint": self.fingerprint.hexdigest(),
            "left_out": dict(self.left_out),
            "domain_tokens": dict(self.domain_tokens),
        }
        if self.spelt_out:
            progress["spelt_out"] = dict(self.spelt_out)
        if self.unknown_marks:
            progress["unknown_marks"] = dict(self.unknown_marks)
        commit(self.run, self.manifest, self.state, self.pending, progress)
        self.pending = []

    def _finish(self) -> None:
        manifest, whole = self.manifest, self.corpus.whole
        if not self.tokens and whole is None:
            length = self.options.match_length
            reason = (
                "the text is empty once special tokens are left out"
                if length is None
                else f"no document has the {length} tokens of `match_length`; give a smaller number"
            )
            raise CorpusError(f"{self.corpus_spec.path}: no token was counted; {reason}")
        manifest.coverage = coverage(self.state, self.tokens, ("prefill",))
        manifest.coverage["skipped_records"] = {s.reason: s.count for s in self.corpus.skipped}
        if whole is not None:  # a shard, which may be empty: of how much text it is a part
            manifest.coverage["corpus"] = WholeCorpus(
                documents=whole.documents, fingerprint=whole.fingerprint
            )
        texts = _token_texts(self.loaded.tokenizer, self.state.token_ids())
        finish(self.run, manifest, self.state, keep=self.options.keep, texts=texts)


def _token_texts(tokenizer: Any, ids: list[int]) -> dict[str, str]:
    """Readable text of token ids; a piece of a character keeps the tokenizer's own spelling."""
    pieces = tokenizer.convert_ids_to_tokens(ids)
    texts = {}
    for token_id, piece in zip(ids, pieces, strict=True):
        text = tokenizer.decode([token_id], clean_up_tokenization_spaces=False)
        if piece is None or (text and "\ufffd" not in text and "▁" not in piece):
            texts[str(token_id)] = text
        else:
            texts[str(token_id)] = piece.replace("▁", " ")
    return texts


def _engine(
    loaded: LoadedModel,
    layers: tuple[MoELayer, ...],
    options: TraceOptions,
    run: Path,
    on_layer: Callable[[int, int], None],
) -> Engine:
    """The engine that suits how the model was loaded."""
    asked: dict[str, Any] = {
        "predictions": options.predictions,
        "batch_tokens": options.batch_tokens,
    }
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


def _control_ids(loaded: LoadedModel, options: TraceOptions) -> frozenset[int]:
    """What does not count where the model writes it: what a template may write either."""
    return frozenset() if options.count_template else control_ids(loaded.tokenizer)


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
        **describe_layers(loaded.anatomy, layers),
    }


def describe_layers(anatomy: Anatomy, layers: tuple[MoELayer, ...]) -> dict[str, Any]:
    """What a manifest says of a model's layers, and of those of them that the run holds."""
    return {
        "decoder_layers": anatomy.num_decoder_layers,
        "moe_layers": list(anatomy.layer_numbers),
        "layers": [m.layer_idx for m in layers],
        "num_experts": [m.num_experts for m in layers],
        "top_k": [m.top_k for m in layers],
        "scoring": sorted({m.scoring for m in layers}),
        "normalized": sorted({m.normalized for m in layers}),
        "selection_bias": sorted({m.selection_bias for m in layers}),
        "total_params": anatomy.total_params,
        "active_params": anatomy.active_params,
    }
