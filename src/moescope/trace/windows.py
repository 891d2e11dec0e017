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
    CorpusSpec,
    Fingerprint,
    make_batches,
    open_corpus,
    tokenize_document,
)
from moescope.corpus.batching import Batch
from moescope.corpus.tokenize import Sequence as CorpusSequence
from moescope.corpus.tokenize import TokenizedDocument
from moescope.errors import CorpusError, RunError
from moescope.models.loading import LoadedModel
from moescope.trace.options import TraceOptions
from moescope.trace.reader import Run
from moescope.trace.record import context_length
from moescope.trace.sample import span_priority

__all__ = ["TextWindow", "WindowBatch", "choose_windows", "run_windows", "window_batches"]


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


def choose_windows(
    loaded: LoadedModel,
    corpus: CorpusSpec,
    *,
    tokens_per_domain: int | None = 8192,
    window_tokens: int = 512,
    options: TraceOptions | None = None,
    fingerprint: str | None = None,
) -> list[TextWindow]:
    """Windows of a corpus: of each domain those of lowest hash, up to a budget of tokens.

    Args:
        loaded: the model whose tokenizer cuts the text.
        corpus: the text.
        tokens_per_domain: counted tokens of each domain; the last window may exceed it. None for
            all.
        window_tokens: a longer window gives its first so many tokens.
        options: context length, chat template and seed; those of a trace by default.
        fingerprint: of the corpus that is expected (`moescope.corpus.Fingerprint`).

    Returns:
        Windows in the order of domain (by first appearance), document and window.

    Raises:
        CorpusError: the text cannot be read, or has no token.
        RunError: the corpus is not the one expected.
    """
    options = options or TraceOptions()
    context = context_length(loaded, options)
    seen = Fingerprint()
    heaps: dict[str, list[tuple[int, str, TextWindow]]] = {}
    kept: dict[str, int] = {}
    for number, document in enumerate(open_corpus(corpus)):
        seen.update(document)
        made = tokenize_document(
            loaded.tokenizer,
            document,
            number,
            context_length=context,
            chat_template=options.chat_template,
            count_template=options.count_template,
        )
        for window in _windows(made, window_tokens):
            priority = span_priority(window.doc, window.window, options.seed)
            heap = heaps.setdefault(window.domain, [])
            key = f"{window.doc}\0{window.window:09d}"
            heapq.heappush(heap, (-priority, key, window))
            kept[window.domain] = kept.get(window.domain, 0) + window.num_tokens
            while (
                tokens_per_domain is not None
                and kept[window.domain] - heap[0][2].num_tokens >= tokens_per_domain
            ):
                kept[window.domain] -= heapq.heappop(heap)[2].num_tokens
    if fingerprint is not None and seen.hexdigest() != fingerprint:
        raise RunError(
            f"{corpus.path} is not the corpus of this run any more (its documents differ); give "
            "the corpus itself instead of the run"
        )
    if not heaps:
        raise CorpusError(f"{corpus.path}: no token was counted")
    return [
        entry[2]
        for heap in heaps.values()
        for entry in sorted(heap, key=lambda e: (e[2].doc, e[2].window))
    ]


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
    stored = {k: v for k, v in run.manifest.corpus.items() if k in CorpusSpec.model_fields}
    options = TraceOptions(**{**run.manifest.options, "generate": 0})
    return choose_windows(
        loaded,
        CorpusSpec(**stored),
        tokens_per_domain=tokens_per_domain or options.sample_tokens,
        window_tokens=window_tokens,
        options=options,
        fingerprint=str(run.manifest.progress["fingerprint"]),
    )


def require_model(loaded: LoadedModel, run: Run) -> None:
    """Refuse a model that is not the one of the run.

    Raises:
        RunError: configuration or weights differ.
    """
    model = run.manifest.model
    for what in ("config", "weights"):
        mine, theirs = getattr(loaded, f"{what}_hash"), model.get(f"{what}_sha256")
        if theirs is not None and mine != theirs:
            raise RunError(
                f"{run.path} is a run of another model ({model.get('name')}): its {what} differ "
                f"from that of {loaded.spec.model}; give the model of the run"
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
        yield _with_index(batch)


def _with_index(batch: Batch) -> WindowBatch:
    index = np.asarray([s.doc_index for s in batch.sequences], np.int64)
    return WindowBatch(batch.token_ids, batch.attention_mask, batch.counted, index)


def _windows(made: TokenizedDocument, longest: int) -> Iterable[TextWindow]:
    for s in made.sequences:
        lead = int(s.counted.argmax()) if s.counted.any() else 0
        stop = lead + longest
        counted = s.counted[:stop]
        if counted.any():
            yield TextWindow(
                made.doc_id, made.domain, s.window, s.start, s.token_ids[:stop], counted
            )
