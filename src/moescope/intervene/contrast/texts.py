"""Two sets of texts through the model: which experts each counted token chose.

Texts are cut into windows as in a trace; BOS, padding and a chat template's tokens are not
counted. For pairs, the tokens that the members share can be told from those that differ.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moescope.corpus import (
    AnyText,
    TokenizedDocument,
    as_text,
    open_corpus,
    tokenize_document,
    warn_of_marks,
)
from moescope.errors import CorpusError
from moescope.intervene.contrast.statistics import DocumentCounts
from moescope.measure.forward import run_batches
from moescope.measure.journal import Journal
from moescope.measure.windows import TextWindow, WindowBatch, window_batches
from moescope.models.anatomy import MoELayer
from moescope.models.capture import Routing, RoutingCapture
from moescope.models.loading import LoadedModel
from moescope.progress import OnProgress, Progress, quiet
from moescope.run.options import TraceOptions
from moescope.run.sample import span_priority
from moescope.trace.record import context_length

Span = Literal["all", "differing", "shared"]
"""Which tokens of a pair count: all, those that the other member lacks, or those that both have."""

BATCH_TOKENS = 8192


@dataclass(frozen=True)
class TextSet:
    """Tokenized documents of one set.

    ``keys`` name the documents (for the choice of halves); ``counted``: for each document, which
    of its own tokens count. ``left_out``: documents beyond the budget of tokens.
    """

    documents: tuple[TokenizedDocument, ...]
    keys: tuple[str, ...]
    counted: tuple[NDArray[np.bool_], ...]
    left_out: int


@dataclass(frozen=True)
class RoutedTexts:
    """Counted tokens of one set with the experts that they chose.

    ``document``, ``token_id``: (T,). ``chosen``: by layer number, (T, K).
    """

    num_documents: int
    document: NDArray[np.int64]
    token_id: NDArray[np.int64]
    chosen: dict[int, NDArray[np.int16]]

    def counts(self, layers: Sequence[MoELayer]) -> DocumentCounts:
        """Tokens of each document that chose each expert, layer after layer."""
        n = self.num_documents
        parts = []
        for layer in layers:
            width = layer.num_experts
            cells = self.document[:, None] * width + self.chosen[layer.layer_idx]
            parts.append(np.bincount(cells.reshape(-1), minlength=n * width).reshape(n, width))
        tokens = np.bincount(self.document, minlength=n)
        return DocumentCounts(np.concatenate(parts, axis=1).astype(np.int64), tokens)

    def of_documents(self, rows: NDArray[np.bool_]) -> RoutedTexts:
        """Tokens of some documents; the documents keep their numbers."""
        kept = rows[self.document]
        chosen = {n: ids[kept] for n, ids in self.chosen.items()}
        return RoutedTexts(self.num_documents, self.document[kept], self.token_id[kept], chosen)


def read_texts(
    loaded: LoadedModel,
    with_texts: AnyText,
    without_texts: AnyText,
    *,
    paired: bool,
    span: Span,
    tokens: int,
    options: TraceOptions,
) -> tuple[TextSet, TextSet]:
    """Read and tokenize both sets, within a budget of tokens for each.

    Whole documents (pairs) are taken in the order of a hash until a set has so many ``tokens``.

    Raises:
        CorpusError: a set that cannot be read or is empty, or sets of unequal size when paired.
    """
    sides = [
        _tokenized(loaded, texts, name, options)
        for texts, name in ((with_texts, "with"), (without_texts, "without"))
    ]
    (a, keys_a), (b, _) = sides
    if paired and len(a) != len(b):
        raise CorpusError(
            f"`paired` needs as many texts on both sides; `with` has {len(a)}, `without` {len(b)} "
            "(a paragraph is a text in .txt files; `text_unit=line` takes lines)"
        )
    if paired:
        counted = _pair_spans(a, b, span)
        sizes = [max(x.num_tokens, y.num_tokens) for x, y in zip(a, b, strict=True)]
        kept = _within(keys_a, sizes, tokens, options.seed)
        return _text_set(a, keys_a, counted[0], kept), _text_set(b, keys_a, counted[1], kept)
    made = []
    for docs, keys in sides:
        kept = _within(keys, [d.num_tokens for d in docs], tokens, options.seed)
        every = [np.ones(d.num_tokens, np.bool_) for d in docs]
        made.append(_text_set(docs, keys, every, kept))
    return made[0], made[1]


def _tokenized(
    loaded: LoadedModel, texts: AnyText, name: str, options: TraceOptions
) -> tuple[list[TokenizedDocument], list[str]]:
    documents = list(open_corpus(as_text(texts)))
    context = context_length(loaded, options)
    made = [
        tokenize_document(
            loaded.tokenizer,
            d,
            i,
            context_length=context,
            chat_template=options.chat_template,
            chat_text=options.chat_text,
        )
        for i, d in enumerate(documents)
    ]
    warn_of_marks(d.marks for d in made)
    if not any(d.num_tokens for d in made):
        raise CorpusError(f"--{name}: no token was counted; give text")
    return made, [d.doc_id for d in documents]


def _within(keys: Sequence[str], sizes: Sequence[int], budget: int, seed: int) -> list[int]:
    """Documents in the order of a hash until the budget is used; given back in their own order."""
    order = sorted(range(len(keys)), key=lambda i: span_priority(keys[i], 0, seed))
    used = np.cumsum([0, *(sizes[i] for i in order)])[:-1]  # before each
    return sorted(order[: int((used < budget).sum())])


def _text_set(
    documents: Sequence[TokenizedDocument],
    keys: Sequence[str],
    counted: Sequence[NDArray[np.bool_]],
    kept: Sequence[int],
) -> TextSet:
    return TextSet(
        tuple(documents[i] for i in kept),
        tuple(keys[i] for i in kept),
        tuple(counted[i] for i in kept),
        len(documents) - len(kept),
    )


def _pair_spans(
    a: Sequence[TokenizedDocument], b: Sequence[TokenizedDocument], span: Span
) -> tuple[list[NDArray[np.bool_]], list[NDArray[np.bool_]]]:
    both: tuple[list[NDArray[np.bool_]], list[NDArray[np.bool_]]] = ([], [])
    for pair in zip(a, b, strict=True):
        ids = [_own_tokens(d) for d in pair]
        if span == "all":
            masks = [np.ones(len(own), np.bool_) for own in ids]
        else:
            masks = [shared if span == "shared" else ~shared for shared in _shared(*ids)]
        for side, mask in zip(both, masks, strict=True):
            side.append(mask)
    for name, side in zip(("with", "without"), both, strict=True):
        if not any(m.any() for m in side):
            why = "has no token that its partner lacks" if span == "differing" else "shares none"
            raise CorpusError(
                f"`span` {span}: no token of `{name}` counts: no text of it {why}; take another "
                "span"
            )
    return both


def _own_tokens(document: TokenizedDocument) -> list[int]:
    return [int(t) for s in document.sequences for t in s.token_ids[s.counted]]


def _shared(one: list[int], other: list[int]) -> list[NDArray[np.bool_]]:
    """Which tokens of each text the other has too, in the same order."""
    masks = [np.zeros(len(one), np.bool_), np.zeros(len(other), np.bool_)]
    matcher = difflib.SequenceMatcher(None, one, other, autojunk=False)
    for i, j, size in matcher.get_matching_blocks():
        masks[0][i : i + size] = True
        masks[1][j : j + size] = True
    return masks


def route_texts(
    loaded: LoadedModel,
    texts: TextSet,
    layers: Sequence[MoELayer],
    journal: Journal,
    side: str,
    on_progress: OnProgress = quiet,
) -> RoutedTexts:
    """Run one set through the model, batch by batch; what the journal holds is not run again."""
    windows, owner = text_windows(texts)
    if not windows:
        raise CorpusError("no token of a set counts within the budget; raise `tokens`")
    batches = list(window_batches(windows, BATCH_TOKENS, loaded.pad_id))
    pending = [n for n in range(len(batches)) if journal.find(side, n) is None]
    numbers = iter(pending)
    done, total = 0, sum(int(batches[n].counted.sum()) for n in pending)

    def keep(batch: WindowBatch, routing: dict[int, Routing]) -> None:
        nonlocal done
        journal.add(side, next(numbers), tables={"routing": _routed(batch, owner, routing)})
        done += int(batch.counted.sum())
        on_progress(Progress("reading texts", done, total, "tokens"))

    run_batches(
        loaded, [batches[n] for n in pending],
        RoutingCapture(loaded.model, [m.site for m in layers]), keep, setting="context",
    )  # fmt: skip
    parts = [journal.tables(side, n)["routing"] for n in range(len(batches))]
    whole = pa.concat_tables(parts).combine_chunks()
    # copies, which are free to be written to
    chosen = {}
    for number in (m.layer_idx for m in layers):
        flat = np.array(whole[f"L{number}"].combine_chunks().flatten())
        chosen[number] = flat.reshape(whole.num_rows, -1)
    document, token_id = (np.array(whole[name]) for name in ("document", "token_id"))
    return RoutedTexts(len(texts.documents), document, token_id, chosen)


def _routed(batch: WindowBatch, owner: NDArray[np.int64], routing: dict[int, Routing]) -> pa.Table:
    """The counted tokens of one batch: document, id, and chosen experts of each layer."""
    kept = batch.counted.reshape(-1)
    columns = {
        "document": np.repeat(owner[batch.rows], batch.token_ids.shape[1])[kept],
        "token_id": batch.token_ids.reshape(-1)[kept].astype(np.int64),
    }
    for number, seen in routing.items():
        chosen = seen.topk_ids.cpu().numpy()[kept].astype(np.int16)
        lists = pa.FixedSizeListArray.from_arrays(chosen.reshape(-1), chosen.shape[1])
        columns[f"L{number}"] = lists
    return pa.table(columns)


def text_windows(texts: TextSet) -> tuple[list[TextWindow], NDArray[np.int64]]:
    """Windows with a token that counts, and the document of each."""
    windows, owner = [], []
    for number, (document, mask) in enumerate(zip(texts.documents, texts.counted, strict=True)):
        start = 0
        for s in document.sequences:
            size = int(s.counted.sum())
            counted = s.counted.copy()
            counted[s.counted] = mask[start : start + size]
            start += size
            if counted.any():
                name = document.doc_id, document.domain
                windows.append(TextWindow(*name, s.window, s.start, s.token_ids, counted))
                owner.append(number)
    return windows, np.asarray(owner, np.int64)
