"""Two sets of texts through the model: which experts each counted token chose.

Texts are cut into windows as in a trace; BOS, padding and a chat template's tokens are not
counted. For pairs, the tokens that the members share can be told from those that differ.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
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
from moescope.measure.windows import TextWindow, window_batches
from moescope.models.anatomy import MoELayer
from moescope.models.capture import RoutingCapture
from moescope.models.loading import LoadedModel
from moescope.run.options import TraceOptions
from moescope.run.sample import span_priority
from moescope.trace.record import context_length

__all__ = ["RoutedTexts", "Span", "TextSet", "read_texts", "route_texts"]

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

    Args:
        loaded: the model whose tokenizer cuts the text.
        with_texts: a corpus, or texts.
        without_texts: likewise.
        paired: text n of one belongs to text n of the other.
        span: which tokens count.
        tokens: whole documents (pairs) are taken in the order of a hash until a set has so many.
        options: context, chat template, seed.

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
            f"--paired needs as many texts on both sides; --with has {len(a)}, --without {len(b)} "
            "(a paragraph is a text in .txt files; --text-unit line takes lines)"
        )
    if paired:
        counted = _pair_spans(a, b, span)
        kept = _within(keys_a, [max(x.num_tokens, y.num_tokens) for x, y in zip(a, b, strict=True)],
                       tokens, options.seed)  # fmt: skip
        return tuple(
            _text_set(docs, keys_a, masks, kept)
            for docs, masks in zip((a, b), counted, strict=True)
        )  # type: ignore[return-value]
    return tuple(
        _text_set(
            docs,
            keys,
            [np.ones(d.num_tokens, np.bool_) for d in docs],
            _within(keys, [d.num_tokens for d in docs], tokens, options.seed),
        )
        for docs, keys in sides
    )  # type: ignore[return-value]


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
    kept, used = [], 0
    for i in order:
        if used >= budget:
            break
        kept.append(i)
        used += sizes[i]
    return sorted(kept)


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
    for one, other in zip(a, b, strict=True):
        ids = [_own_tokens(d) for d in (one, other)]
        masks = [np.ones(len(i), np.bool_) for i in ids]
        if span != "all":
            shared = _shared(*ids)
            masks = [m if span == "shared" else ~m for m in shared]
        for side, mask in zip(both, masks, strict=True):
            side.append(mask)
    for name, side in zip(("with", "without"), both, strict=True):
        if not any(m.any() for m in side):
            why = "has no token that its partner lacks" if span == "differing" else "shares none"
            raise CorpusError(
                f"--span {span}: no token of --{name} counts: no text of it {why}; take another "
                "span"
            )
    return both


def _own_tokens(document: TokenizedDocument) -> list[int]:
    return [int(t) for s in document.sequences for t in s.token_ids[s.counted]]


def _shared(one: list[int], other: list[int]) -> list[NDArray[np.bool_]]:
    """Which tokens of each text the other has too, in the same order."""
    masks = [np.zeros(len(one), np.bool_), np.zeros(len(other), np.bool_)]
    for i, j, size in difflib.SequenceMatcher(
        None, one, other, autojunk=False
    ).get_matching_blocks():
        masks[0][i : i + size] = True
        masks[1][j : j + size] = True
    return masks


@torch.inference_mode()
def route_texts(
    loaded: LoadedModel,
    texts: TextSet,
    layers: Sequence[MoELayer],
    on_tokens: Callable[[int], None] | None = None,
) -> RoutedTexts:
    """Run one set through the model.

    Args:
        loaded: the model.
        texts: one set.
        layers: whose routing is read.
        on_tokens: called after each batch with the counted tokens that it had.
    """
    windows, owner = _windows(texts)
    if not windows:
        raise CorpusError("no token of a set counts within the budget; raise --tokens")
    model: Any = loaded.model
    device = next(model.parameters()).device
    documents, token_ids = [], []
    chosen: dict[int, list[NDArray[np.int16]]] = {m.layer_idx: [] for m in layers}
    with RoutingCapture(model, [m.site for m in layers]) as capture:
        for batch in window_batches(windows, BATCH_TOKENS, loaded.pad_id):
            ids = torch.as_tensor(batch.token_ids, device=device)
            mask = torch.as_tensor(batch.attention_mask, device=device).long()
            model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
            routing = capture.take(expected_rows=ids.numel())
            kept = batch.counted.reshape(-1)
            documents.append(np.repeat(owner[batch.rows], batch.token_ids.shape[1])[kept])
            token_ids.append(batch.token_ids.reshape(-1)[kept])
            for number, seen in routing.items():
                chosen[number].append(seen.topk_ids.cpu().numpy()[kept].astype(np.int16))
            if on_tokens is not None:
                on_tokens(int(kept.sum()))
    return RoutedTexts(
        len(texts.documents),
        np.concatenate(documents).astype(np.int64),
        np.concatenate(token_ids).astype(np.int64),
        {n: np.concatenate(parts) for n, parts in chosen.items()},
    )


def _windows(texts: TextSet) -> tuple[list[TextWindow], NDArray[np.int64]]:
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
                windows.append(
                    TextWindow(
                        document.doc_id, document.domain, s.window, s.start, s.token_ids, counted
                    )
                )
                owner.append(number)
    return windows, np.asarray(owner, np.int64)
