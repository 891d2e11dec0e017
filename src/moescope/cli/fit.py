"""How a table fits the width of a terminal: what is said once, left out, shortened or moved below.

A number is never broken or cut. It knows nothing of files or models.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import count
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

from rich.cells import cell_len
from rich.text import Text

if TYPE_CHECKING:
    import pyarrow as pa

GAP = 2
"""Columns of the terminal between two of the table."""

_SHORTEST = 12
"""A name is not cut below this width."""

_WORDS = 20
"""Words are not folded below this width while anything else can be done."""

_LINES = 3
"""A heading is folded into at most this many lines."""


class Head(NamedTuple):
    """A column as it is printed.

    Attributes:
        name: its heading.
        kind: a number stands on the right and is never broken; a name is cut in the middle when
            nothing else helps; words go on over several lines.
        key: tells rows apart: never left out, and there again in what goes on below.
        keep: never left out.
        of: the column that it says more of; shown wherever that is.
        percent: its numbers are shares, to be shown in percent.
    """

    name: str
    kind: Literal["number", "name", "words"] = "number"
    key: bool = False
    keep: bool = False
    of: str = ""
    percent: bool = False

    @classmethod
    def of_word(cls, word: str) -> Self:
        """``loss``, or ``<domain`` for a name."""
        name = word.removeprefix("<")
        return cls(name, "name", key=True) if name != word else cls(name)

    @classmethod
    def of_type(cls, name: str, kind: pa.DataType) -> Self:
        """The column of a table about which nothing else is known."""
        return cls(name, "name" if str(kind) in ("string", "large_string") else "number")


class Layout(NamedTuple):
    """Which columns are printed, and how wide; by their numbers.

    Attributes:
        blocks: columns side by side, one block below the other.
        widths: of every column that is shown.
        same: columns that are said once, because every row has the same.
        left_out: columns that there is no room for.
    """

    blocks: list[list[int]]
    widths: dict[int, int]
    same: list[int]
    left_out: list[int]


def fit(
    heads: Sequence[Head],
    cells: Sequence[Sequence[Text]],
    width: int | None,
    *,
    first: str | None = None,
    drop: bool = True,
) -> Layout:
    """Lay a table out.

    In this order, until it fits: what is the same in every row is said once, headings are folded,
    columns are left out from the right, names are cut, and columns go on below.

    Args:
        heads: the columns, the most important first.
        cells: those of each column.
        width: columns of the terminal; None for as many as it takes.
        first: the column by which rows are sorted; else the first that is no key.
        drop: may columns be left out?
    """
    fitter = _Fitter(heads, cells)
    shown = list(range(len(heads)))
    if width is None or fitter.total(shown, 1) <= width:
        return Layout([shown], fitter.widths(shown, 1, width), [], [])
    lead = _lead(heads, first)
    staying = [i for i, h in enumerate(heads) if h.keep or h.name in (lead, first)]
    same = [i for i in shown if i not in staying and fitter.is_same(i)] if drop else []
    shown = [i for i in shown if i not in same]
    left_out: list[int] = []
    for group in _droppable(heads, lead) if drop else ():
        if fitter.total(shown, _LINES) <= width:
            break
        if not set(group) <= set(same):
            left_out += group
            shown, same = ([i for i in own if i not in group] for own in (shown, same))
    lines = next((n for n in range(1, _LINES) if fitter.total(shown, n) <= width), _LINES)
    widths = fitter.widths(shown, lines, width)
    return Layout(_blocks(heads, shown, widths, width), widths, same, sorted(left_out))


def _lead(heads: Sequence[Head], first: str | None) -> str | None:
    """The column that the table is about; what says more of it stays with it."""
    known = {h.name: h for h in heads}
    if first not in known:
        return next((h.name for h in heads if not (h.key or h.keep or h.of)), None)
    return known[first].of if known[first].of in known else first


def _droppable(heads: Sequence[Head], lead: str | None) -> list[list[int]]:
    """Columns that may be left out, each with what says more of it, from the right."""
    names = {h.name for h in heads}
    staying = {lead, *(h.name for h in heads if h.key or h.keep)}
    groups: dict[str, list[int]] = {}
    for i, head in enumerate(heads):
        if not staying & {head.name, head.of}:
            groups.setdefault(head.of if head.of in names else head.name, []).append(i)
    return list(reversed(groups.values()))


def _blocks(
    heads: Sequence[Head], shown: list[int], widths: dict[int, int], width: int
) -> list[list[int]]:
    """The columns in as many blocks as they need, each with the keys before it."""
    keys = [i for i in shown if heads[i].key]
    blocks, block = [], list(keys)
    for i in (i for i in shown if i not in keys):
        if len(block) > len(keys) and _total(widths[j] for j in [*block, i]) > width:
            blocks.append(block)
            block = list(keys)
        block.append(i)
    whole = [*blocks, block]
    return [shown] if len(whole) == 1 else whole


def _total(widths: Iterable[int]) -> int:
    sizes = list(widths)
    return sum(sizes) + GAP * (len(sizes) - 1)


class _Fitter:
    """The widths that columns need."""

    def __init__(self, heads: Sequence[Head], cells: Sequence[Sequence[Text]]) -> None:
        self._heads, self._cells = heads, cells
        lines = [[line for c in own for line in c.plain.split("\n")] for own in cells]
        self._sizes = [max(map(cell_len, own), default=0) for own in lines]

    def is_same(self, i: int) -> bool:
        """Has every one of several rows the same cell?"""
        plain = [c.plain for c in self._cells[i]]
        return len(plain) > 1 and len(set(plain)) == 1

    def total(self, shown: list[int], lines: int) -> int:
        """What the columns need side by side before a name is cut."""
        return _total(self._least(i, lines, _WORDS) for i in shown)

    def widths(self, shown: list[int], lines: int, width: int | None) -> dict[int, int]:
        """What each of them gets: words as much as there is, names less where it must be."""
        if width is None:
            return {i: max(self._sizes[i], cell_len(self._heads[i].name)) for i in shown}
        made = {i: self._least(i, lines, _WORDS) for i in shown}
        whole = {i: self._least(i, lines, self._sizes[i]) for i in shown}
        least = {i: self._shortest(i, lines) for i in shown}
        self._change(made, whole, width)
        self._change(made, least, width)
        return made

    def _change(self, made: dict[int, int], to: dict[int, int], width: int) -> None:
        """Bring widths towards others, evenly, as long as that helps to use the width."""
        step = 1 if _total(made.values()) < width else -1
        while _total(made.values()) * step < width * step:
            able = [i for i in made if (to[i] - made[i]) * step > 0]
            if not able:
                break
            made[min(able, key=lambda i: made[i] * step)] += step

    def _least(self, i: int, lines: int, words: int) -> int:
        head, size = self._heads[i], self._sizes[i]
        own = min(size, words) if head.kind == "words" else size
        return max(own, _heading(head.name, lines))

    def _shortest(self, i: int, lines: int) -> int:
        head, size = self._heads[i], self._sizes[i]
        own = size if head.kind == "number" else min(size, _SHORTEST)
        return max(own, _heading(head.name, lines))


def _heading(name: str, lines: int) -> int:
    """The least width at which a heading takes no more lines."""
    longest = max((cell_len(p.rstrip(" ")) for p in _pieces(name)), default=0)
    return next(w for w in count(longest) if len(_cuts(name, w)) < lines or w >= cell_len(name))


def _pieces(text: str) -> list[str]:
    """What a line may not be broken inside: words, and their parts behind ``_`` and ``-``."""
    return re.findall(r"\n| *[^ \n]+?(?:[_-](?=\w)| +|(?=\n)|$)| +", text)


def _cuts(text: str, width: int) -> list[int]:
    """Where a text is broken so that no line is longer; a longer piece is broken anywhere."""
    cuts, at, used = [], 0, 0
    for piece in _pieces(text):
        size = cell_len(piece.rstrip(" "))
        if piece == "\n":
            used = -1
        elif used and used + size > width:
            cuts.append(at)
            used = 0
        while size > width > 0:
            taken = len(_start(piece, width))
            at, piece = at + taken, piece[taken:]
            size = cell_len(piece.rstrip(" "))
            cuts.append(at)
        used = 0 if used < 0 else used + cell_len(piece)
        at += len(piece)
    return cuts


def folded(text: Text, width: int) -> Text:
    """The text with as many line breaks as keep its lines within the width."""
    parts = text.divide(_cuts(text.plain, width))
    for part in parts:
        part.rstrip()
    return Text("\n").join(parts)


def shortened(names: Sequence[str], width: int) -> list[str]:
    """Names of at most this width, cut in the middle; those that differ stay different.

    Example:
        >>> shortened(["technical_german", "technical_english"], 12)
        ['techni…erman', 'techni…glish']
    """
    known = list(dict.fromkeys(names))
    for head in sorted(range(width), key=lambda n: abs(2 * n - width)):
        made = {name: _cut(name, head, width) for name in known}
        if len(set(made.values())) == len(made):
            return [made[name] for name in names]
    made = {name: name for name in known if cell_len(name) <= width}
    number = count(1)
    for name in (n for n in known if n not in made):  # no cut tells them apart
        tried = (f"…{n}" for n in number)
        ended = (f"{_start(name, width - len(end))}{end}" for end in tried)
        made[name] = next(one for one in ended if one not in made.values())
    return [made[name] for name in names]


def _cut(name: str, head: int, width: int) -> str:
    if cell_len(name) <= width:
        return name
    return f"{_start(name, head)}…{_start(name[::-1], width - 1 - head)[::-1]}"


def _start(text: str, width: int) -> str:
    """The first characters, up to a width."""
    end = min(len(text), max(0, width))
    while end and cell_len(text[:end]) > width:
        end -= 1
    return text[:end]
