"""A long text as pieces that can be tokenized one by one, each character once.

A tokenizer needs some 150 bytes of memory for each character that it is given at once. So a text of
more than `WHOLE` characters is given in pieces. They end before white space that follows a letter
or a digit, where there is some near, and each is encoded with a little of the text on both sides.
The next piece begins where the last token of this one ended, and its margin where an earlier token
began, so each character belongs to the tokens of one piece.

Tokenizers split text at white space, or decide by what is near, so the tokens are those of the text
encoded at once. That cannot be promised where a tokenizer looks further than `MARGIN` characters,
as it may in text without white space for so long: runs of one character keep their tokens with
byte-level BPE, other tokenizers may make others at a cut. It knows no tokenizer, only what
characters tokens stand for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

WHOLE = 1 << 20
"""Characters up to which a text is encoded at once."""

PIECE = 1 << 18
"""Characters of a piece of a longer text."""

MARGIN = 256
"""Characters of the text around a piece that are encoded with it."""

_SEARCHED = 4096

Spans = npt.NDArray[np.int64]


class EncodedPiece(NamedTuple):
    """What a tokenizer made of a piece and its margins.

    Attributes:
        text: what was encoded.
        offset: where ``text`` begins in the whole.
        made: what the tokenizer gave.
        spans: the characters of each token in ``text``, shape (T, 2).
        kept: which tokens are the piece's own, shape (T,).
        first: it is the first piece.
        last: it is the last one.
    """

    text: str
    offset: int
    made: Any
    spans: Spans
    kept: npt.NDArray[np.bool_]
    first: bool
    last: bool


def pieces(text: str) -> Iterator[str]:
    """Cut a text; one piece where it is not long."""
    begin, most = 0, PIECE if len(text) > WHOLE else WHOLE
    while begin < len(text):
        end = _cut(text, begin + most)
        yield text[begin:end]
        begin = end


def encoded_pieces(text: str, encode: Callable[[str], tuple[Any, Spans]]) -> Iterator[EncodedPiece]:
    """Encode a text piece by piece; at once where it is not long.

    Args:
        text: the whole.
        encode: gives what the tokenizer makes of a text, and the characters of each token in it,
            shape (T, 2); −1 for a token that stands for none.
    """
    if len(text) <= WHOLE:
        made, spans = encode(text)
        yield EncodedPiece(text, 0, made, spans, np.ones(len(spans), np.bool_), True, True)
        return
    begin = offset = 0
    while begin < len(text):
        cut = _cut(text, begin + PIECE)
        part = text[offset : cut + MARGIN]
        made, spans = encode(part)
        places = _places(spans, offset)
        if ((places[:, 0] < begin) & (places[:, 1] > begin)).any():  # another tokenization
            part, offset = part[begin - offset :], begin
            made, spans = encode(part)
            places = _places(spans, offset)
        starts, ends = places.T
        clean = starts[starts >= np.maximum.accumulate(np.append(-1, ends[:-1]))]
        behind = clean[clean >= cut]
        end = int(behind[0]) if behind.size else cut
        kept = (starts >= (begin or -1)) & (starts < end)
        reached = int(ends[kept].max(initial=-1))
        last = len(text) in (cut, reached)
        yield EncodedPiece(part, offset, made, spans, kept, begin == 0, last)
        begin = len(text) if last else reached if reached > begin else cut
        before = clean[clean <= begin - MARGIN]
        offset = max(0, int(before[-1]) if before.size else begin - MARGIN)


def _places(spans: Spans, offset: int) -> Spans:
    """Spans in the whole text.

    An empty span, which byte-level tokenizers give to a token of spaces only, belongs to the
    character before it.
    """
    empty = spans[:, :1] == spans[:, 1:]
    places: Spans = spans + offset - empty * np.asarray([1, 0])
    return places


def _cut(text: str, latest: int) -> int:
    """The last white space behind a letter or digit that is near, else ``latest``."""
    if latest >= len(text):
        return len(text)
    for at in range(latest, latest - _SEARCHED, -1):
        if text[at].isspace() and text[at - 1].isalnum():
            return at
    return latest
