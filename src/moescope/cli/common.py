"""What every verb shares: the progress of a trace, output formats, the copy of the settings."""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import yaml
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from moescope.cli.terminal import bar, clean, errors, output, write

if TYPE_CHECKING:  # the libraries below it take seconds to import; --help should not
    from moescope.trace import Progress as TraceProgress

__all__ = ["Format", "print_table", "tracing_progress", "write_config"]

Format = Literal["table", "csv", "json"]


_UPRIGHT = 6
"""Tables of at most so many rows are turned when they are too wide."""


class TraceBar:
    """A progress bar on stderr: share of the corpus, tokens, tokens per second, time left."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("starting", total=None, tokens="", rate="")
        self._first: tuple[float, int] | None = None

    def stage(self, words: str) -> None:
        """Say what is being done."""
        self._progress.update(self._task, description=words)

    def update(self, at: TraceProgress) -> None:
        """Show how far the trace is."""
        now = time.monotonic()
        if self._first is None:
            self._first = (now, at.tokens)
        seconds, tokens = now - self._first[0], at.tokens - self._first[1]
        rate = f"{tokens / seconds:,.0f} tok/s" if seconds > 0.5 else ""
        if at.layer is not None:
            done, layers = at.layer
            self._progress.update(self._task, description=f"tracing, layer {done}/{layers}")
        self._progress.update(
            self._task,
            completed=at.chars,
            total=at.total_chars,
            tokens=f"{at.tokens:,} tokens",
            rate=rate,
        )


@contextmanager
def tracing_progress() -> Iterator[TraceBar]:
    """Show a `TraceBar` while the block runs."""
    with bar("tokens", "rate") as progress:
        yield TraceBar(progress)


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
        errors.print(f"not shown for want of width: {names}; --format csv has all")
    shown = Table(title=title, title_justify="left", header_style="bold")
    for name in table.column_names:
        numeric = pa.types.is_integer(table[name].type) or pa.types.is_floating(table[name].type)
        shown.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in table.to_pylist():
        shown.add_row(*(Text(_cell(v)) for v in row.values()))
    output.print(shown)


def _cells(column: pa.ChunkedArray) -> list[str]:
    return [_cell(v) for v in column.to_pylist()]


def _width(table: pa.Table) -> int:
    """Characters that a table needs: its longest cells, and three for every border."""
    columns = zip(table.column_names, table.columns, strict=True)
    widths: list[int] = [max(len(n), *map(len, _cells(c)), 0) for n, c in columns]
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


def write_config(folder: Path, settings: dict[str, Any], *, begun: bool) -> None:
    """Write the resolved settings beside the output, as YAML that ``--config`` reads.

    Args:
        folder: is held.
        settings: of now.
        begun: the folder holds what is only gone on with, which keeps the settings of its start.
    """
    from moescope.files import write_bytes

    path = folder / "config.yaml"
    if not (begun and path.exists()):
        write_bytes(path, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True).encode())
