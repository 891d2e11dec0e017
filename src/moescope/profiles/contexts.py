"""Where an expert contributed most: single tokens with the text around them, without repeats.

It knows windows of text and a tokenizer; which tokens are candidates is given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moescope.measure.windows import TextWindow

AROUND = 12
"""Tokens of text before and after."""

CONTEXT_ROWS = 12
"""Contexts that are kept of each expert."""

MAX_PER_DOCUMENT = 2
"""Contexts of one document in an expert's list."""


class Context(NamedTuple):
    """One token that an expert served, with its neighbours.

    ``pos``: position in the document; ``contribution`` = ‖w·E(x)‖; ``before``, ``token``,
    ``after``: the text, in order.
    """

    doc: str
    domain: str
    window: int
    pos: int
    token_id: int
    contribution: float
    weight: float
    before: str
    token: str
    after: str


class WindowTexts:
    """Tokens by their number in a list of windows.

    Args:
        windows: the measured windows, in the order in which tokens were numbered.
        tokenizer: to write text.
    """

    def __init__(self, windows: Sequence[TextWindow], tokenizer: Any) -> None:
        self._windows = windows
        self._tokenizer = tokenizer
        self._starts = np.cumsum([0, *(len(w.token_ids) for w in windows)])

    def pick(
        self,
        places: NDArray[np.int64],
        contributions: NDArray[np.float32],
        weights: NDArray[np.float32],
    ) -> list[Context]:
        """The first candidates that are not repeats of earlier ones.

        A token with the same token before and after it is taken once, and of one document at most
        `MAX_PER_DOCUMENT`.

        Args:
            places: numbers of tokens, by descending contribution.
            contributions: of each.
            weights: routing weight of each.
        """
        seen: set[tuple[int, int, int]] = set()
        per_document: Counter[str] = Counter()
        out: list[Context] = []
        for place, contribution, weight in zip(places, contributions, weights, strict=True):
            number = int(np.searchsorted(self._starts, place, side="right")) - 1
            window, at = self._windows[number], int(place - self._starts[number])
            key = self._neighbours(window, at)
            if key in seen or per_document[window.doc] >= MAX_PER_DOCUMENT:
                continue
            seen.add(key)
            per_document[window.doc] += 1
            out.append(
                Context(
                    window.doc, window.domain, window.window, window.start + at,
                    int(window.token_ids[at]), float(contribution), float(weight),
                    *self._texts(window, at),
                )
            )  # fmt: skip
            if len(out) == CONTEXT_ROWS:
                break
        return out

    @staticmethod
    def _neighbours(window: TextWindow, at: int) -> tuple[int, int, int]:
        ids = window.token_ids
        before = int(ids[at - 1]) if at else -1
        after = int(ids[at + 1]) if at + 1 < len(ids) else -1
        return before, int(ids[at]), after

    def _texts(self, window: TextWindow, at: int) -> tuple[str, str, str]:
        """Text before, of, and after a token; only tokens of the document's own text."""
        first, last = at, at + 1
        while first > max(0, at - AROUND) and window.counted[first - 1]:
            first -= 1
        while last < min(len(window.token_ids), at + 1 + AROUND) and window.counted[last]:
            last += 1
        ids = window.token_ids.tolist()
        before, until, whole = (self._decode(ids[first:end]) for end in (at, at + 1, last))
        # a character that the cut divides shows as a replacement sign in the shorter text only
        before, until = before.rstrip("\ufffd"), until.rstrip("\ufffd") or until
        if until.startswith(before) and whole.startswith(until):
            return before, until[len(before) :], whole[len(until) :]
        return before, self._decode([ids[at]]), self._decode(ids[at + 1 : last])

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, clean_up_tokenization_spaces=False))
