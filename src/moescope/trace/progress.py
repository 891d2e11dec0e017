"""How far a trace or an import has come."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Progress"]


class Progress(NamedTuple):
    """How far a trace has come: characters and documents read, tokens counted.

    ``total_chars`` is None when the corpus is too large to be counted first. ``layer``: decoder
    layers done and in all, while the streamed engine takes a pool through them.
    """

    chars: int
    total_chars: int | None
    documents: int
    tokens: int
    layer: tuple[int, int] | None = None
