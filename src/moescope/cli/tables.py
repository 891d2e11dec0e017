"""Tables on stdout: for a person, as CSV, as JSON lines.

A `Sheet` is every table that a person reads. On a terminal it is fitted to the width, by
`moescope.cli.fit`; a file or another program gets all of it.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from moescope.cli.fit import Head, Layout, fit, folded, shortened
from moescope.cli.settings import ColumnsArgs, FormatArgs, WideArgs
from moescope.cli.terminal import CleanConsole, errors, output, safe, write
from moescope.cli.verb import flagged
from moescope.words import listing

if TYPE_CHECKING:
    import pyarrow as pa

    from moescope.metrics.table import Column

Cell = str | float | bool | Text | None


class Sheet:
    """A table to fill and to print.

    Args:
        title: printed above it.
        heads: columns, the most important first; a word stands for a number's column, and for a
            name that tells rows apart where ``<`` precedes it.
        digits: significant digits of numbers that are given as such.
    """

    def __init__(self, title: str, *heads: Head | str, digits: int = 4) -> None:
        self.title = title
        self.heads = [h if isinstance(h, Head) else Head.of_word(h) for h in heads]
        self._digits = digits
        self._rows: list[tuple[Cell, ...]] = []
        self._styles: list[str] = []

    def add(self, *cells: Cell, style: str = "") -> None:
        """Append a row; of a whole number as text nothing is rounded."""
        self._rows.append(cells)
        self._styles.append(style)

    def print(
        self, form: WideArgs | None = None, first: str | None = None, on: CleanConsole | None = None
    ) -> None:
        """Print it, and say on stderr what there was no room for.

        Args:
            form: ``wide`` and ``columns`` of the verb.
            first: the column by which rows are sorted.
            on: where to; stdout unless given.
        """
        on = on or output
        named = isinstance(form, ColumnsArgs) and form.columns is not None
        width = on.width if on.is_terminal and not (form and form.wide) else None
        columns = zip(*self._rows, strict=True) if self._rows else ([] for _ in self.heads)
        cells = [_texts(h, own, self._digits) for h, own in zip(self.heads, columns, strict=True)]
        made = fit(self.heads, cells, width, first=first, drop=not named)
        if self.title:
            on.print(safe(self.title, "bold italic"), soft_wrap=width is None)
        for block in made.blocks:
            on.print(self._drawn(block, made, cells), crop=False)
        if made.same:
            same = ", ".join(f"{self.heads[i].name} {cells[i][0].plain}" for i in made.same)
            on.print(Text(f"the same in every row: {same}", style="dim"))
        if made.left_out:
            names = listing((self.heads[i].name for i in made.left_out), 8)
            more = ", `columns` chooses" if isinstance(form, ColumnsArgs) else ""
            line = f"left out, for want of room: {names}; `wide` shows all{more}"
            errors.print(flagged(line), soft_wrap=True)

    def _drawn(self, block: list[int], made: Layout, cells: list[list[Text]]) -> _Exactly:
        """The columns of one block, each as wide as the layout says."""
        table = Table(
            box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False,
            header_style="bold", show_header=any(self.heads[i].name for i in block),
        )  # fmt: skip
        shown = []
        names = {i: folded(safe(self.heads[i].name), made.widths[i]) for i in block}
        lines = max(name.plain.count("\n") for name in names.values())
        for i in block:
            head, width = self.heads[i], made.widths[i]
            side: Any = "right" if head.kind == "number" else "left"
            above = "\n" * (lines - names[i].plain.count("\n"))
            table.add_column(Text(above) + names[i], justify=side, width=width, no_wrap=True)
            own = cells[i]
            if head.kind == "name":
                plain = shortened([c.plain for c in own], width)
                own = [
                    c if c.plain == p else Text(p, c.style) for c, p in zip(own, plain, strict=True)
                ]
            elif head.kind == "words":
                own = [folded(c, width) for c in own]
            shown.append(own)
        for row, style in zip(zip(*shown, strict=True), self._styles, strict=True):
            table.add_row(*row, style=style)
        total = sum(made.widths[i] for i in block) + 2 * (len(block) - 1)
        return _Exactly(table, total)


class _Exactly(NamedTuple):
    """A table that keeps its width where that is more than the console's."""

    table: Table
    width: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from console.render(self.table, options.update_width(self.width))


def print_table(
    table: pa.Table,
    form: FormatArgs,
    title: str = "",
    heads: Mapping[str, Head] | None = None,
    first: str | None = None,
) -> None:
    """Print a table of plain columns as the verb was told to.

    Args:
        table: the columns.
        form: how.
        title: printed above it for a person.
        heads: how columns are printed, by name and the most important first; a person sees them
            in this order unless columns are chosen.
        first: the column by which rows are sorted.
    """
    if isinstance(form, ColumnsArgs) and form.columns is not None:
        form.require_columns(table.column_names)
        table = table.select(dict.fromkeys(form.columns))
    elif heads is not None and form.format == "table":
        table = table.select(_arranged(heads, table.column_names, first))
    if form.format == "table":
        known = {n: Head.of_type(n, table[n].type) for n in table.column_names} | dict(heads or {})
        sheet = Sheet(title, *(known[n] for n in table.column_names))
        for row in table.to_pylist():
            sheet.add(*row.values())
        sheet.print(form, first)
    elif form.format == "json":
        for row in table.to_pylist():
            write_json(row)
    else:
        made = io.StringIO()
        writer = csv.writer(made, lineterminator="\n")
        writer.writerow(table.column_names)
        writer.writerows(row.values() for row in table.to_pylist())
        write(made.getvalue())


def heads_of(
    table: pa.Table, order: Iterable[str], meaning: Callable[[str], Column]
) -> dict[str, Head]:
    """How the columns of a table are printed, by what its definition says of them.

    Args:
        table: the columns.
        order: names, the most important first; what is not named comes last.
        meaning: gives the definition of a column.
    """
    made = {}
    for name in dict.fromkeys((*order, *table.column_names)):
        if name in table.column_names:
            what, usual = meaning(name), Head.of_type(name, table[name].type)
            kind = "words" if what.words else usual.kind
            made[name] = Head(name, kind, what.key, what.keep, what.of)
    return made


def _arranged(heads: Mapping[str, Head], names: list[str], first: str | None) -> list[str]:
    """Keys, then the column that rows are sorted by, then the rest; each before what is of it."""
    order = dict.fromkeys([*(n for n in heads if n in names), *names])
    keys = [n for n in names if n in heads and heads[n].key]
    made: dict[str, None] = {}
    for name in (*keys, *([first] if first else ()), *order):
        own = (n for n in order if n in heads and heads[n].of == name)
        made |= dict.fromkeys((name, *own))
    return list(made)


def write_json(value: Any) -> None:
    """Write a value as one line of JSON; what is no number is null, as JSON has no NaN."""
    write(json.dumps(_finite(value), allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _texts(head: Head, values: Iterable[Cell], most: int) -> list[Text]:
    """The cells of one column; its numbers with as many significant digits as they all need."""
    own = [100 * v if head.percent and isinstance(v, float) else v for v in values]
    floats = [v for v in own if isinstance(v, float) and math.isfinite(v)]
    if all(v.is_integer() and abs(v) < 1e9 for v in floats):  # such as ranks
        own = [int(v) if isinstance(v, float) and math.isfinite(v) else v for v in own]
    digits = max((_digits(v, most) for v in floats), default=1)
    comma = any(isinstance(v, int) and abs(v) >= 10_000 for v in own)
    whole, unit = "," if comma else "", " %" if head.percent else ""
    return [_cell(v, f"#.{digits}g", whole, unit) for v in own]


def _digits(value: float, most: int) -> int:
    """Significant digits that a number needs, up to a limit."""
    mantissa = f"{value:.{most - 1}e}".partition("e")[0]
    return len(mantissa.rstrip("0").lstrip("-").replace(".", "")) or 1


def _cell(value: Cell, decimal: str, whole: str, unit: str) -> Text:
    if isinstance(value, Text | str):
        return safe(value)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return Text("–")
    if isinstance(value, bool):
        return Text("yes" if value else "no")
    if isinstance(value, int):
        return Text(f"{value:{whole}}{unit}")
    shown = "0" if value == 0 else f"{value:{decimal}}".replace(".e", "e").removesuffix(".")
    return Text(shown + unit)
