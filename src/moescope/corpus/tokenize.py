"""Documents in, windows of token ids out, with a mask of the tokens that count.

A token counts when it stands for the document's own text. Tokens that the tokenizer adds (BOS,
EOS) and tokens that a chat template writes go through the model but are left out of every figure.
Text that merely looks like a special token (``<|endoftext|>`` inside a web page) is encoded as the
plain characters it is: a document must not be able to forge the model's control tokens.

The tokenizer is whatever transformers' ``AutoTokenizer`` returns; this module imports neither
transformers nor torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moescope.corpus.chat import render_chat
from moescope.corpus.control import control_ids
from moescope.corpus.documents import Document
from moescope.corpus.pieces import WHOLE, EncodedPiece, encoded_pieces
from moescope.errors import CorpusError

__all__ = ["Sequence", "TokenizedDocument", "tokenize_corpus", "tokenize_document"]


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
    """

    doc_index: int
    doc_id: str
    domain: str
    num_tokens: int
    num_uncounted: int
    sequences: list[Sequence]
    num_truncated: int = 0


class _Encoded(NamedTuple):
    """A piece of the document's token list, and the special tokens that open each later window."""

    ids: npt.NDArray[np.int32]
    counted: npt.NDArray[np.bool_]
    lead: npt.NDArray[np.int32]


def tokenize_document(
    tokenizer: Any,
    document: Document,
    doc_index: int,
    *,
    context_length: int,
    chat_template: bool = False,
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
        chat_template: render the text as a user's message, followed by the generation prompt.
        count_template: count the tokens that the template writes too, except the opening BOS.
        truncate: keep the first window only; ``num_truncated`` says what it cost.
        limit: stop behind the window with which this many tokens count; what follows of a very
            long document is not encoded.

    Returns:
        The windows and their counts.

    Raises:
        CorpusError: ``context_length`` leaves no room for text, or the chat template is missing
            or changes the text.
    """
    if chat_template:
        encoded = _encode_chat(tokenizer, document, count_template)
    else:
        encoded = _encode_plain(tokenizer, document.text)
    windows = _windows(encoded, doc_index, context_length)
    return _collect(windows, document, doc_index, truncate, limit)


def tokenize_corpus(
    tokenizer: Any,
    documents: Iterable[Document],
    *,
    context_length: int,
    chat_template: bool = False,
    count_template: bool = False,
    truncate: bool = False,
) -> Iterator[TokenizedDocument]:
    """Encode documents one after the other, numbered from 0; see ``tokenize_document``."""
    for doc_index, document in enumerate(documents):
        yield tokenize_document(
            tokenizer,
            document,
            doc_index,
            context_length=context_length,
            chat_template=chat_template,
            count_template=count_template,
            truncate=truncate,
        )


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


def _windows(
    encoded: Iterable[_Encoded], doc_index: int, context_length: int
) -> Iterator[Sequence]:
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


def _encode_plain(tokenizer: Any, text: str) -> Iterator[_Encoded]:
    """Encode text as the tokenizer does by default, control tokens in the text as characters."""
    if len(text) <= WHOLE or not getattr(tokenizer, "is_fast", False):
        yield _encode_at_once(tokenizer, text)
        return
    for piece in encoded_pieces(text, lambda part: _with_spans(tokenizer, part)):
        yield _of_piece(tokenizer, piece)


def _encode_at_once(tokenizer: Any, text: str) -> _Encoded:
    encoding = _call(tokenizer, text, add_special_tokens=True, return_special_tokens_mask=True)
    ids = np.asarray(encoding["input_ids"], dtype=np.int32)
    added = np.asarray(encoding["special_tokens_mask"], dtype=np.bool_)
    forged = _are_control(tokenizer, ids) & ~added
    counted = ~added
    # Unigram and WordLevel vocabularies hold "</s>" as an ordinary piece and find it in text even
    # when special tokens are not looked for.
    if forged.any() and getattr(tokenizer, "is_fast", False):
        offsets = _call(tokenizer, text, add_special_tokens=True, return_offsets_mapping=True)
        spans = np.asarray(offsets["offset_mapping"], dtype=np.int64)
        ids, counted, _ = _spell_out(tokenizer, text, ids, counted, spans, forged)
    else:
        counted &= ~forged
    lead_length = 0 if added.all() else int(np.argmin(added))
    return _Encoded(ids, counted, ids[:lead_length])


def _with_spans(tokenizer: Any, text: str) -> tuple[Any, npt.NDArray[np.int64]]:
    """What the tokenizer makes of a text by default, and the characters of what is not added."""
    encoding = _call(
        tokenizer,
        text,
        add_special_tokens=True,
        return_special_tokens_mask=True,
        return_offsets_mapping=True,
    )
    spans = np.asarray(encoding["offset_mapping"], dtype=np.int64).reshape(-1, 2)
    added = np.asarray(encoding["special_tokens_mask"], dtype=np.bool_)
    return encoding, np.where(added[:, None], -1, spans)


def _of_piece(tokenizer: Any, piece: EncodedPiece) -> _Encoded:
    """A piece of a long text: added tokens before the first piece and behind the last one only."""
    ids = np.asarray(piece.made["input_ids"], dtype=np.int32)
    added = np.asarray(piece.made["special_tokens_mask"], dtype=np.bool_)
    lead_length = 0 if added.all() else int(np.argmin(added))
    leads = np.arange(len(ids)) < lead_length
    kept = np.where(added, np.where(leads, piece.first, piece.last), piece.kept)
    ids, added, spans = ids[kept], added[kept], piece.spans[kept]
    forged = _are_control(tokenizer, ids) & ~added
    lead = ids[:lead_length] if piece.first else ids[:0]
    ids, counted, _ = _spell_out(tokenizer, piece.text, ids, ~added, spans, forged)
    return _Encoded(ids, counted, lead)


def _encode_chat(tokenizer: Any, document: Document, count_template: bool) -> Iterator[_Encoded]:
    """Render and encode; only tokens whose characters lie inside the text count."""
    if not getattr(tokenizer, "is_fast", False):
        raise CorpusError(
            "a chat template needs a fast tokenizer, which knows the characters of every token; "
            f"got {type(tokenizer).__name__}; trace the plain text instead"
        )
    rendered, begin, end = render_chat(tokenizer, document)

    def encode(part: str) -> tuple[Any, npt.NDArray[np.int64]]:
        encoding = _call(
            # The template writes its own special tokens, so none may be added a second time.
            tokenizer,
            part,
            add_special_tokens=False,
            split_special_tokens=False,
            return_offsets_mapping=True,
        )
        return encoding, np.asarray(encoding["offset_mapping"], dtype=np.int64).reshape(-1, 2)

    for piece in encoded_pieces(rendered, encode):
        spans = piece.spans[piece.kept]
        ids = np.asarray(piece.made["input_ids"], dtype=np.int32)[piece.kept]
        inside = _inside(spans + piece.offset, begin, end)
        forged = inside & _are_control(tokenizer, ids)
        ids, counted, inside = _spell_out(tokenizer, piece.text, ids, inside, spans, forged)
        opens_with_bos = piece.first and len(ids) > 0 and int(ids[0]) == tokenizer.bos_token_id
        if count_template:
            counted = counted | ~inside
            counted[: int(opens_with_bos)] = False
        yield _Encoded(ids, counted, ids[: int(opens_with_bos)])


def _inside(spans: npt.NDArray[np.int64], begin: int, end: int) -> npt.NDArray[np.bool_]:
    """Tell which character spans lie inside [begin, end).

    Byte-level tokenizers trim spaces off the spans: a token of spaces only has an empty span at
    its end, so an empty span belongs to the character before it.
    """
    first, last = spans[:, 0], spans[:, 1]
    return (last <= end) & np.where(first == last, first > begin, first >= begin)


def _spell_out(
    tokenizer: Any,
    text: str,
    ids: npt.NDArray[np.int32],
    counted: npt.NDArray[np.bool_],
    spans: npt.NDArray[np.int64],
    forged: npt.NDArray[np.bool_],
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Replace each forged control token by the tokens of its characters.

    Returns:
        The ids, which of them count, and which stand for text of the document. A tokenizer that
        has no other token for those characters keeps the control token, which then does not count.
    """
    if not forged.any():
        return ids, counted, counted.copy()
    reserved = control_ids(tokenizer)
    parts: list[tuple[list[int], bool, bool]] = []
    for i in range(len(ids)):
        spelt = None
        if forged[i]:
            spelt = _plain_ids(tokenizer, text[spans[i, 0] : spans[i, 1]], reserved)
        mine = bool(counted[i])
        counts = mine and not (forged[i] and spelt is None)
        parts.append(([int(ids[i])] if spelt is None else spelt, counts, mine))
    return (
        np.asarray([t for tokens, _, _ in parts for t in tokens], dtype=np.int32),
        np.asarray([c for tokens, c, _ in parts for _ in tokens], dtype=np.bool_),
        np.asarray([m for tokens, _, m in parts for _ in tokens], dtype=np.bool_),
    )


def _plain_ids(tokenizer: Any, piece: str, reserved: frozenset[int]) -> list[int] | None:
    """Encode a few characters without control tokens; None when the tokenizer cannot."""
    # Encoded behind a line break, because SentencePiece puts a blank before the start of a text.
    break_ids, ids = (
        [int(i) for i in _call(tokenizer, text, add_special_tokens=False)["input_ids"]]
        for text in ("\n", "\n" + piece)
    )
    if ids[: len(break_ids)] == break_ids:
        ids = ids[len(break_ids) :]
    else:
        ids = [int(i) for i in _call(tokenizer, piece, add_special_tokens=False)["input_ids"]]
    if ids and not reserved.intersection(ids):
        return ids
    by_character = [tokenizer.convert_tokens_to_ids(character) for character in piece]
    if not by_character or any(i is None or i in reserved for i in by_character):
        return None
    return by_character


def _are_control(tokenizer: Any, ids: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    """Which ids are control tokens, which text must never produce by itself."""
    return np.isin(ids, sorted(control_ids(tokenizer)))


def _call(tokenizer: Any, text: str, **options: Any) -> Any:
    """Call the tokenizer, neither truncating nor padding whatever its saved file asks for."""
    options.setdefault("split_special_tokens", True)
    return tokenizer(text, truncation=False, padding=False, verbose=False, **options)
