"""A bounded, reproducible choice of text for measures that need the model itself.

Profiles, similarity and ablations run the model on some thousands of tokens of each domain. Which
windows those are is decided as in a run's own sample: by a hash of document, window and seed, so
the choice does not depend on the order of reading, and every measure of a run sees the same text.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moescope.corpus import (
    IN_MEMORY,
    AnyText,
    CorpusSpec,
    Fingerprint,
    Marks,
    as_text,
    cut_alike,
    make_batches,
    open_corpus,
    tokenize_document,
    warn_of_marks,
)
from moescope.corpus.tokenize import Sequence as CorpusSequence
from moescope.corpus.tokenize import TokenizedDocument
from moescope.errors import BadInputError, CorpusError, RunError
from moescope.models.loading import LoadedModel
from moescope.run.manifest import TEXTS
from moescope.run.options import TraceOptions
from moescope.run.reader import Run
from moescope.run.sample import span_priority
from moescope.trace.record import context_length


class TextWindow(NamedTuple):
    """One window of one document.

    ``token_ids`` and ``counted`` (S,): what the model reads, and which tokens stand for the
    document's own text (False for BOS and the like). ``start``: position of the first token in the
    document.
    """

    doc: str
    domain: str
    window: int
    start: int
    token_ids: NDArray[np.int32]
    counted: NDArray[np.bool_]

    @property
    def num_tokens(self) -> int:
        """Counted tokens."""
        return int(self.counted.sum())


class WindowBatch(NamedTuple):
    """Windows of nearly one length, padded on the right.

    ``token_ids``, ``attention_mask``, ``counted``: (B, S). ``rows`` (B,): place of each row in the
    list of windows.
    """

    token_ids: NDArray[np.int64]
    attention_mask: NDArray[np.bool_]
    counted: NDArray[np.bool_]
    rows: NDArray[np.int64]


class _Lowest:
    """Keeps the windows of lowest hash, per domain, within a budget of counted tokens."""

    def __init__(self, budget: int | None, seed: int) -> None:
        self._budget, self._seed = budget, seed
        self._kept: dict[str, int] = {}
        self.heaps: dict[str, list[tuple[int, str, TextWindow]]] = {}

    def offer(self, window: TextWindow) -> None:
        """Keep it, and drop the highest that the budget can spare."""
        heap = self.heaps.setdefault(window.domain, [])
        priority = span_priority(window.doc, window.window, self._seed)
        heapq.heappush(heap, (-priority, f"{window.doc}\0{window.window:09d}", window))
        kept = self._kept.get(window.domain, 0) + window.num_tokens
        while self._budget is not None and kept - heap[0][2].num_tokens >= self._budget:
            kept -= heapq.heappop(heap)[2].num_tokens
        self._kept[window.domain] = kept

    def ordered(self) -> list[TextWindow]:
        """By domain (in the order of arrival), document and window."""
        return [
            entry[2]
            for heap in self.heaps.values()
            for entry in sorted(heap, key=lambda e: (e[2].doc, e[2].window))
        ]


def choose_windows(
    loaded: LoadedModel,
    texts: AnyText,
    *,
    tokens_per_domain: int | None = 8192,
    window_tokens: int = 512,
    options: TraceOptions | None = None,
    fingerprint: str | None = None,
) -> list[TextWindow]:
    """Windows of a corpus: of each domain those of lowest hash, up to a budget of tokens.

    Args:
        loaded: the model whose tokenizer cuts the text.
        texts: a path, a `CorpusSpec`, or a list of texts.
        tokens_per_domain: counted tokens of each domain; the last window may exceed it. None for
            all.
        window_tokens: a longer window gives its first so many tokens.
        options: context length, chat template, limit and seed; those of a trace by default.
        fingerprint: of the corpus that is expected (`moescope.corpus.Fingerprint`).

    Returns:
        Windows in the order of domain (by first appearance), document and window.

    Raises:
        BadInputError: a budget or a length below 1.
        CorpusError: the text cannot be read, or has no token.
        RunError: the corpus is not the one expected.
    """
    sizes = {"tokens_per_domain": tokens_per_domain, "window_tokens": window_tokens}
    for name, value in sizes.items():
        if value is not None and value < 1:
            raise BadInputError(f"{name} must be 1 or more, got {value}")
    options, corpus = options or TraceOptions(), as_text(texts)
    context = context_length(loaded, options)
    seen = Fingerprint()
    chosen = _Lowest(tokens_per_domain, options.seed)
    read: dict[str, int] = {}
    marks: list[Marks] = []
    for number, document in enumerate(open_corpus(corpus)):
        seen.update(document)
        room = None if options.limit is None else options.limit - read.get(document.domain, 0)
        if room is not None and room <= 0:
            continue
        made = tokenize_document(
            loaded.tokenizer,
            document,
            number,
            context_length=context,
            chat_template=options.chat_template,
            chat_text=options.chat_text,
            count_template=options.count_template,
            limit=options.match_length or room,
        )
        if options.match_length is not None:
            made = cut_alike(made, options.match_length)
        marks.append(made.marks)
        read[made.domain] = read.get(made.domain, 0) + made.num_tokens
        for window in _windows(made, window_tokens):
            chosen.offer(window)
    if fingerprint is not None and seen.hexdigest() != fingerprint:
        raise RunError(
            f"{corpus.path} is not the corpus of this run any more (its documents differ); give "
            "the corpus itself instead of the run"
        )
    if fingerprint is None:  # what a run was made of, it has said
        warn_of_marks(marks)
    if not chosen.heaps:
        cut = "" if options.match_length is None else f"; {options.match_length} of each were asked"
        raise CorpusError(f"{corpus.path}: no token was counted{cut}")
    return chosen.ordered()


def run_windows(
    loaded: LoadedModel,
    run: Run,
    *,
    tokens_per_domain: int | None = None,
    window_tokens: int = 512,
) -> list[TextWindow]:
    """The windows that a run's own sample was taken from, read again from its corpus.

    Args:
        loaded: the model of the run.
        run: a finished run.
        tokens_per_domain: as many as the run sampled by default.
        window_tokens: a longer window gives its first so many tokens.

    Raises:
        RunError: the model is not the run's, or the corpus has changed.
        CorpusError: the corpus cannot be found any more.
    """
    require_model(loaded, run)
    fingerprint = run.manifest.progress.get("fingerprint")
    if not fingerprint or run.manifest.source:
        raise RunError(
            f"{run.path} does not tell which documents were read (it was imported, or merged from "
            "parts with a limit each or with one missing), so its text cannot be found again; give "
            "the corpus itself instead of the run"
        )
    options = TraceOptions(**run.manifest.options)
    return choose_windows(
        loaded,
        _corpus_of(run),
        tokens_per_domain=options.sample_tokens if tokens_per_domain is None else tokens_per_domain,
        window_tokens=window_tokens,
        options=options,
        fingerprint=str(fingerprint),
    )


def _corpus_of(run: Run) -> CorpusSpec:
    """The corpus of a run, to be read again.

    Raises:
        RunError: it was texts in memory, and they are not in the run any more.
    """
    stored = {k: v for k, v in run.manifest.corpus.items() if k in CorpusSpec.model_fields}
    if stored["path"] == IN_MEMORY:
        if not (run.path / TEXTS).is_file():
            raise RunError(
                f"{run.path} was made of texts in memory, and its {TEXTS} is not there any more; "
                "give the texts themselves instead of the run"
            )
        stored["path"] = str(run.path / TEXTS)
    return CorpusSpec(**stored)


def as_windows(
    loaded: LoadedModel, given: AnyText | Run | Sequence[TextWindow]
) -> list[TextWindow]:
    """The windows that are meant: those given, those of a run's sample, or a choice of a text.

    Args:
        loaded: the model whose tokenizer cuts the text.
        given: windows, a finished run, or what `choose_windows` takes.

    Raises:
        MoescopeError: as `choose_windows` and `run_windows`.
    """
    if isinstance(given, Run):
        return run_windows(loaded, given)
    if isinstance(given, Sequence) and given and isinstance(given[0], TextWindow):
        return [window for window in given if isinstance(window, TextWindow)]
    return choose_windows(loaded, given)  # type: ignore[arg-type]


def require_model(loaded: LoadedModel, run: Run) -> None:
    """Refuse a model that is not the one of the run.

    Raises:
        RunError: configuration, weights or tokenizer differ.
    """
    model = run.manifest.model
    for what in ("config", "weights", "tokenizer"):
        mine, theirs = getattr(loaded, f"{what}_hash"), model.get(f"{what}_sha256")
        if theirs is not None and mine != theirs:
            was = model.get("dtype")
            other = f", and {was} there, {loaded.dtype} here" if was != loaded.dtype else ""
            raise RunError(
                f"{run.path} is a run of another model ({model.get('name')}) than "
                f"{loaded.spec.model}: {what} not the same{other}; give the model of the run"
            )


def window_batches(
    windows: Sequence[TextWindow], batch_tokens: int, pad_id: int = 0
) -> Iterator[WindowBatch]:
    """Sort windows by length and fill padded batches within a budget of tokens."""
    documents = [
        TokenizedDocument(
            i, w.doc, w.domain, 0, 0,
            [CorpusSequence(i, w.window, w.start, w.token_ids, w.counted)],
        )
        for i, w in enumerate(windows)
    ]  # fmt: skip
    for batch in make_batches(documents, batch_tokens, pad_id=pad_id):
        rows = np.asarray([s.doc_index for s in batch.sequences], np.int64)
        yield WindowBatch(batch.token_ids, batch.attention_mask, batch.counted, rows)


def _windows(made: TokenizedDocument, longest: int) -> Iterable[TextWindow]:
    for s in made.sequences:
        lead = int(s.counted.argmax()) if s.counted.any() else 0
        stop = lead + longest
        counted = s.counted[:stop]
        if counted.any():
            yield TextWindow(
                made.doc_id, made.domain, s.window, s.start, s.token_ids[:stop], counted
            )
