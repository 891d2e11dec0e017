"""Tables on stdout: for a person, as CSV, as JSON lines."""

from __future__ import annotations

import csv
import io
import json
import math
from typing import Any

import pyarrow as pa
from rich import box
from rich.table import Table
from rich.text import Text

from moescope.cli.settings import Format
from moescope.cli.terminal import clean, errors, output, write

_UPRIGHT = 6
"""Tables of at most this many rows are turned when they are too wide."""


def listing(title: str, *columns: str) -> Table:
    """Print a title and give a table to fill; columns are on the right unless ``<`` precedes."""
    output.print(Text(title, style="bold italic"))  # a table's own title is folded at its width
    made = Table(
        header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False,
        collapse_padding=True,
    )  # fmt: skip
    return _headed(made, columns, overflow="fold")


def titled(title: str, *columns: str) -> Table:
    """A table under its title to fill; columns as of `listing`."""
    return _headed(Table(title=title, title_justify="left", header_style="bold"), columns)


def _headed(table: Table, columns: tuple[str, ...], **more: Any) -> Table:
    for name in columns:
        side: Any = "left" if name.startswith("<") else "right"
        table.add_column(Text(name.removeprefix("<")), justify=side, **more)
    return table


def print_table(table: pa.Table, form: Format, title: str | None = None) -> None:
    """Print a table on stdout."""
    if form == "json":
        for row in table.to_pylist():
            write(json.dumps({k: _finite(v) for k, v in row.items()}) + "\n")
        return
    if form == "csv":
        made = io.StringIO()
        writer = csv.writer(made, lineterminator="\n")
        writer.writerow(table.column_names)
        writer.writerows(row.values() for row in table.to_pylist())
        write(made.getvalue())
        return
    if table.num_rows <= _UPRIGHT and _width(table) > output.width:
        _print_upright(table, title)
        return
    hidden = []
    while len(table.column_names) > 3 and _width(table) > output.width:
        hidden.append(table.column_names[-1])
        table = table.drop_columns(hidden[-1])
    if hidden:
        names = ", ".join(reversed(hidden))
        errors.print(f"left out to fit the width: {names}; --format csv has all")
    shown = Table(title=title, title_justify="left", header_style="bold")
    for name in table.column_names:
        numeric = pa.types.is_integer(table[name].type) or pa.types.is_floating(table[name].type)
        shown.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in table.to_pylist():
        shown.add_row(*(Text(_cell(v)) for v in row.values()))
    output.print(shown)


def _width(table: pa.Table) -> int:
    """Characters that a table needs: its longest cells, and three for every border."""
    columns = zip(table.column_names, table.columns, strict=True)
    widths: list[int] = [
        max(0, len(n), *(len(_cell(v)) for v in c.to_pylist())) for n, c in columns
    ]
    return sum(widths) + 3 * int(table.num_columns) + 1


def _print_upright(table: pa.Table, title: str | None) -> None:
    """One row of output per column, for short tables that are too wide."""
    shown = Table(title=title, title_justify="left", show_header=False)
    shown.add_column(style="bold", no_wrap=True)
    for _ in range(table.num_rows):
        shown.add_column(justify="right", overflow="fold")
    for name, column in zip(table.column_names, table.columns, strict=True):
        shown.add_row(name, *(Text(_cell(v)) for v in column.to_pylist()))
    output.print(shown)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    return clean(str(value))  # here too, so that the width of its column is right
