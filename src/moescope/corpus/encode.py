"""A document's text to token ids, with a mask of those that stand for the text itself.

Three ways to read a text: as the characters that it is, as a chat that a template is to render,
and as what a template wrote already. Each yields pieces; cutting them into windows is for
``tokenize``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moescope.corpus.chat import render_chat, render_messages
from moescope.corpus.documents import Document
from moescope.corpus.pieces import WHOLE, EncodedPiece, encoded_pieces
from moescope.corpus.spelling import are_control, encode, spell_out
from moescope.errors import CorpusError


class Encoded(NamedTuple):
    """A piece of the document's token list, and the special tokens that open each later window."""

    ids: npt.NDArray[np.int32]
    counted: npt.NDArray[np.bool_]
    lead: npt.NDArray[np.int32]


def encode_plain(tokenizer: Any, text: str) -> Iterator[Encoded]:
    """Encode text as the tokenizer does by default, control tokens in the text as characters."""
    if len(text) <= WHOLE or not getattr(tokenizer, "is_fast", False):
        yield _encode_at_once(tokenizer, text)
        return
    for piece in encoded_pieces(text, lambda part: _with_spans(tokenizer, part)):
        yield _of_piece(tokenizer, piece)


def _encode_at_once(tokenizer: Any, text: str) -> Encoded:
    encoding = encode(tokenizer, text, add_special_tokens=True, return_special_tokens_mask=True)
    ids = np.asarray(encoding["input_ids"], dtype=np.int32)
    added = np.asarray(encoding["special_tokens_mask"], dtype=np.bool_)
    forged = are_control(tokenizer, ids) & ~added
    counted = ~added
    # Unigram and WordLevel vocabularies hold "</s>" as an ordinary piece and find it in text even
    # when special tokens are not looked for.
    if forged.any() and getattr(tokenizer, "is_fast", False):
        offsets = encode(tokenizer, text, add_special_tokens=True, return_offsets_mapping=True)
        spans = np.asarray(offsets["offset_mapping"], dtype=np.int64)
        ids, origin, spelt = spell_out(tokenizer, text, ids, spans, forged)
        counted = counted[origin] & spelt
    else:
        counted &= ~forged
    lead_length = 0 if added.all() else int(np.argmin(added))
    return Encoded(ids, counted, ids[:lead_length])


def encode_rendered(tokenizer: Any, text: str, count_template: bool) -> Iterator[Encoded]:
    """Encode a text that a chat template wrote; its control tokens are read, and do not count.

    The opening tokens are not added where the template wrote them.
    """
    _require_fast(tokenizer, "rendered chats need")
    for piece in encoded_pieces(
        text, lambda part: _with_spans(tokenizer, part, split_special_tokens=False)
    ):
        ids, added, lead_length = _own(piece)
        lead = ids[:lead_length]
        if lead_length and ids[lead_length : 2 * lead_length].tolist() == lead.tolist():
            ids, added = ids[lead_length:], added[lead_length:]
        elif piece.first and ids[:1].tolist() == [tokenizer.bos_token_id]:
            lead = ids[:1]
        counted = ~added if count_template else ~added & ~are_control(tokenizer, ids)
        counted[: len(lead)] = False
        yield Encoded(ids, counted, lead)


def _with_spans(tokenizer: Any, text: str, **options: Any) -> tuple[Any, npt.NDArray[np.int64]]:
    """What the tokenizer makes of a text by default, and the characters of what is not added."""
    encoding = encode(
        tokenizer,
        text,
        add_special_tokens=True,
        return_special_tokens_mask=True,
        return_offsets_mapping=True,
        **options,
    )
    spans = np.asarray(encoding["offset_mapping"], dtype=np.int64).reshape(-1, 2)
    added = np.asarray(encoding["special_tokens_mask"], dtype=np.bool_)
    return encoding, np.where(added[:, None], -1, spans)


def _of_piece(tokenizer: Any, piece: EncodedPiece) -> Encoded:
    """A piece of a text that is read as the characters that it is."""
    ids, added, lead_length = _own(piece)
    spans = piece.spans[_kept(piece)]
    forged = are_control(tokenizer, ids) & ~added
    lead = ids[:lead_length]
    ids, origin, spelt = spell_out(tokenizer, piece.text, ids, spans, forged)
    return Encoded(ids, ~added[origin] & spelt, lead)


def _own(piece: EncodedPiece) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_], int]:
    """A piece's own ids, which of them the tokenizer added, and how many of those lead it."""
    kept = _kept(piece)
    added = np.asarray(piece.made["special_tokens_mask"], dtype=np.bool_)[kept]
    lead_length = int(np.argmin(added)) if piece.first and not added.all() else 0
    return np.asarray(piece.made["input_ids"], dtype=np.int32)[kept], added, lead_length


def _kept(piece: EncodedPiece) -> npt.NDArray[np.bool_]:
    """Added tokens stay before the first piece of a text and behind the last one only."""
    added = np.asarray(piece.made["special_tokens_mask"], dtype=np.bool_)
    lead_length = 0 if added.all() else int(np.argmin(added))
    leads = np.arange(len(added)) < lead_length
    return np.where(added, np.where(leads, piece.first, piece.last), piece.kept)


def encode_chat(tokenizer: Any, document: Document, count_template: bool) -> Iterator[Encoded]:
    """Render and encode; only tokens whose characters lie inside a text that counts do so."""
    _require_fast(tokenizer, "a chat template needs")
    if document.messages:
        rendered, texts = render_messages(tokenizer, document)
        counting = [m.counted for m in document.messages]
    else:
        rendered, *text = render_chat(tokenizer, document)
        texts, counting = [(text[0], text[1])], [True]

    def read(part: str) -> tuple[Any, npt.NDArray[np.int64]]:
        encoding = encode(
            # The template writes its own special tokens, so none may be added a second time.
            tokenizer,
            part,
            add_special_tokens=False,
            split_special_tokens=False,
            return_offsets_mapping=True,
        )
        return encoding, np.asarray(encoding["offset_mapping"], dtype=np.int64).reshape(-1, 2)

    for piece in encoded_pieces(rendered, read):
        spans = piece.spans[piece.kept]
        ids = np.asarray(piece.made["input_ids"], dtype=np.int32)[piece.kept]
        inside, counted = np.zeros(len(ids), np.bool_), np.zeros(len(ids), np.bool_)
        for (begin, end), counts in zip(texts, counting, strict=True):
            here = _inside(spans + piece.offset, begin, end)
            inside |= here
            counted |= here & counts
        forged = inside & are_control(tokenizer, ids)
        ids, origin, spelt = spell_out(tokenizer, piece.text, ids, spans, forged)
        inside, counted = inside[origin], counted[origin] & spelt
        opens_with_bos = piece.first and len(ids) > 0 and int(ids[0]) == tokenizer.bos_token_id
        if count_template:
            counted = counted | ~inside
            counted[: int(opens_with_bos)] = False
        yield Encoded(ids, counted, ids[: int(opens_with_bos)])


def _inside(spans: npt.NDArray[np.int64], begin: int, end: int) -> npt.NDArray[np.bool_]:
    """Tell which character spans lie inside [begin, end).

    Byte-level tokenizers trim spaces off the spans: a token of spaces only has an empty span at
    its end, so an empty span belongs to the character before it.
    """
    first, last = spans[:, 0], spans[:, 1]
    return (last <= end) & np.where(first == last, first > begin, first >= begin)


def _require_fast(tokenizer: Any, what: str) -> None:
    if not getattr(tokenizer, "is_fast", False):
        raise CorpusError(
            f"{what} a fast tokenizer, which knows the characters of every token; got "
            f"{type(tokenizer).__name__}; trace the plain text instead"
        )
