"""Documents in, windows of token ids out, with a mask of the tokens that count.

A token counts when it stands for the document's own text. Tokens that the tokenizer adds (BOS,
EOS) and tokens that a chat template writes go through the model but are left out of every figure;
of a chat given as messages, so are the turns that do not count. Text that merely looks like a
special token (``<|endoftext|>`` inside a web page) is encoded as the plain characters it is: a
document must not be able to forge the model's control tokens. Only ``chat_text`` says that a
template wrote the text, and its control tokens are read as such.

The tokenizer is whatever transformers' ``AutoTokenizer`` returns; this module imports neither
transformers nor torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moescope.corpus.control import Marks, find_marks
from moescope.corpus.documents import Document
from moescope.corpus.encode import Encoded, encode_chat, encode_plain, encode_rendered
from moescope.errors import CorpusError


class Sequence(NamedTuple):
    """One window of a document, ready for the model.

    Attributes:
        doc_index: ordinal of the document in the corpus.
        window: ordinal of the window in the document.
        start: ``start + i`` is the position, in the document's token list, of the counted token
            ``token_ids[i]``. In a window after the first, the repeated BOS stands where the
            token before the window stood; it is never counted.
        token_ids: int32, shape (S,).
        counted: bool, shape (S,); False for special tokens and for the chat template's.
    """

    doc_index: int
    window: int
    start: int
    token_ids: npt.NDArray[np.int32]
    counted: npt.NDArray[np.bool_]


class TokenizedDocument(NamedTuple):
    """A document as windows of token ids.

    Attributes:
        doc_index: ordinal of the document in the corpus.
        doc_id: its id.
        domain: its domain.
        num_tokens: counted tokens in the sequences.
        num_uncounted: the other tokens in the sequences (repeated BOS included).
        sequences: the windows; empty when no token of the document counts.
        num_truncated: tokens that would have counted, left out by ``truncate``.
        marks: marks of a rendered chat in its text that were spelt out.
    """

    doc_index: int
    doc_id: str
    domain: str
    num_tokens: int
    num_uncounted: int
    sequences: list[Sequence]
    num_truncated: int = 0
    marks: Marks = Marks()


def tokenize_document(
    tokenizer: Any,
    document: Document,
    doc_index: int,
    *,
    context_length: int,
    chat_template: bool = False,
    chat_text: bool = False,
    count_template: bool = False,
    truncate: bool = False,
    limit: int | None = None,
) -> TokenizedDocument:
    """Encode one document and cut it into windows of at most ``context_length`` tokens.

    Windows do not overlap; each opens with the same leading special tokens (BOS). One in which no
    token counts (a lone EOS, the tail of a chat template) is not made. The counted tokens of all
    windows, joined, are the document's tokens, each once. A very long document is encoded in
    pieces (`moescope.corpus.pieces`, which says when a token at a cut may be another), so that
    memory follows its tokens only.

    Args:
        tokenizer: a transformers tokenizer; ``chat_template`` needs a fast one.
        document: the document.
        doc_index: its ordinal in the corpus.
        context_length: the most tokens of one window, special tokens included.
        chat_template: render the text as a user's message, followed by the generation prompt. A
            document that has messages is rendered as they are, with or without it.
        chat_text: a template wrote the text: read the control tokens in it as such.
        count_template: count the tokens that the template writes too, except the opening BOS.
        truncate: keep the first window only; ``num_truncated`` says what it cost.
        limit: stop behind the window with which this many tokens count; what follows of a very
            long document is not encoded.

    Returns:
        The windows and their counts.

    Raises:
        CorpusError: ``context_length`` leaves no room for text, the chat template is missing or
            changes the text, or two of these say how a chat is read.
    """
    if chat_text and (chat_template or document.messages):
        raise CorpusError(
            f"{document.source}: chat_text reads what a template wrote, so nothing is rendered; "
            "leave it out, or the chat template and turns"
        )
    if document.messages or chat_template:
        encoded = encode_chat(tokenizer, document, count_template)
    elif chat_text:
        encoded = encode_rendered(tokenizer, document.text, count_template)
    else:
        encoded = encode_plain(tokenizer, document.text)
    windows = _windows(encoded, doc_index, context_length)
    made = _collect(windows, document, doc_index, truncate, limit)
    return made._replace(marks=find_marks(tokenizer, document.text, chat_text=chat_text))


def cut_alike(document: TokenizedDocument, length: int) -> TokenizedDocument:
    """The first ``length`` counted tokens of a document, so that domains do not differ in length.

    Returns:
        The windows up to the last of these tokens; none of a document with fewer.
    """
    if document.num_tokens < length:
        return document._replace(num_tokens=0, num_uncounted=0, sequences=[])
    kept: list[Sequence] = []
    missing = length
    for window in document.sequences:
        counted = int(window.counted.sum())
        if counted >= missing:
            end = int(np.flatnonzero(window.counted)[missing - 1]) + 1
            kept.append(
                window._replace(token_ids=window.token_ids[:end], counted=window.counted[:end])
            )
            break
        kept.append(window)
        missing -= counted
    uncounted = sum(len(window.token_ids) for window in kept) - length
    return document._replace(num_tokens=length, num_uncounted=uncounted, sequences=kept)


def tokenize_corpus(
    tokenizer: Any, documents: Iterable[Document], **options: Any
) -> Iterator[TokenizedDocument]:
    """Encode documents one after the other, numbered from 0; see ``tokenize_document``."""
    for doc_index, document in enumerate(documents):
        yield tokenize_document(tokenizer, document, doc_index, **options)


def _collect(
    windows: Iterable[Sequence],
    document: Document,
    doc_index: int,
    truncate: bool,
    limit: int | None,
) -> TokenizedDocument:
    """Keep the windows that are asked for, and count."""
    kept: list[Sequence] = []
    num_tokens = num_ids = num_truncated = 0
    for window in windows:
        counted = int(window.counted.sum())
        if truncate and kept:
            num_truncated += counted
            continue
        kept.append(window)
        num_tokens += counted
        num_ids += len(window.token_ids)
        if limit is not None and num_tokens >= limit:
            break
    return TokenizedDocument(
        doc_index=doc_index,
        doc_id=document.doc_id,
        domain=document.domain,
        num_tokens=num_tokens,
        num_uncounted=num_ids - num_tokens,
        sequences=kept,
        num_truncated=num_truncated,
    )


def _windows(encoded: Iterable[Encoded], doc_index: int, context_length: int) -> Iterator[Sequence]:
    """Cut the token list; later windows open with the leading special tokens."""
    ids, counted = np.zeros(0, np.int32), np.zeros(0, np.bool_)
    lead = ids
    begin = window = 0
    for number, part in enumerate(chain(encoded, [None])):
        if number == 0 and part is not None:
            lead = part.lead
            _require_room(context_length, len(lead))
        if part is not None:
            ids, counted = np.concatenate([ids, part.ids]), np.concatenate([counted, part.counted])
        while len(ids):
            repeated = len(lead) if begin else 0
            room = context_length - repeated
            if part is not None and len(ids) < room:
                break  # more is to come
            if counted[:room].any():
                yield Sequence(
                    doc_index=doc_index,
                    window=window,
                    start=begin - repeated,
                    token_ids=np.concatenate([lead[:repeated], ids[:room]]),
                    counted=np.concatenate([np.zeros(repeated, np.bool_), counted[:room]]),
                )
                window += 1
            begin += room
            ids, counted = ids[room:], counted[room:]


def _require_room(context_length: int, lead: int) -> None:
    if context_length <= lead:
        raise CorpusError(
            f"a context of {context_length} tokens leaves no room for text: this tokenizer opens "
            f"every window with {lead} special tokens; give a longer context"
        )
