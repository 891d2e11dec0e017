"""A long text as pieces that can be tokenized one by one, with the tokens of the whole text.

A tokenizer needs some 150 bytes of memory for each character that it is given at once. So a text of
more than `WHOLE` characters is given in pieces. They are cut before white space that follows a
letter or a digit, and each is encoded with a little of the text on both sides; a token belongs to
the piece in which it begins. Tokenizers split text at such places, or decide by what is near, so
the tokens are those of the text encoded at once; only a tokenizer that looks further than `MARGIN`
characters could make others at a cut. It knows no tokenizer, only what characters tokens stand for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["MARGIN", "PIECE", "WHOLE", "Piece", "pieces"]

WHOLE = 1 << 20
"""Characters up to which a text is encoded at once."""

PIECE = 1 << 18
"""Characters of a piece of a longer text."""

MARGIN = 256
"""Characters of the text around a piece that are encoded with it."""

_SEARCHED = 4096


class Piece(NamedTuple):
    """A piece with its margins.

    Attributes:
        text: what is encoded.
        offset: where ``text`` begins in the whole.
        begin: the first character of ``text`` that is the piece's own; −1 in the first piece.
        end: behind the last one; past the end in the last piece.
        first: it is the first piece.
        last: it is the last one.
    """

    text: str
    offset: int
    begin: int
    end: int
    first: bool
    last: bool

    @property
    def own(self) -> str:
        """The piece without its margins."""
        return self.text[max(0, self.begin) : self.end]

    def holds(self, spans: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Tell which tokens begin in the piece, by their spans in ``text``, shape (T, 2).

        Every token of the whole text is held by one piece. An empty span, which byte-level
        tokenizers give to a token of spaces only, belongs to the character before it.
        """
        first, last = spans[:, 0], spans[:, 1]
        return np.where(
            first == last,
            (self.begin < first) & (first <= self.end),
            (self.begin <= first) & (first < self.end),
        )


def pieces(text: str) -> Iterator[Piece]:
    """Cut a text; one piece where it is not long."""
    if len(text) <= WHOLE:
        yield Piece(text, 0, -1, len(text) + 1, first=True, last=True)
        return
    begin = 0
    while begin < len(text):
        end = _cut(text, begin + PIECE) if begin + PIECE < len(text) else len(text)
        offset, last = max(0, begin - MARGIN), end == len(text)
        yield Piece(
            text[offset : end + MARGIN],
            offset,
            begin - offset if begin else -1,
            end - offset + last,
            first=begin == 0,
            last=last,
        )
        begin = end


def _cut(text: str, latest: int) -> int:
    """The last white space behind a letter or digit that is near, else ``latest``."""
    for at in range(latest, latest - _SEARCHED, -1):
        if text[at].isspace() and text[at - 1].isalnum():
            return at
    return latest
