"""`moescope table`: print one table of a run, or list them."""

from __future__ import annotations

from typing import Annotated

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from moescope.cli.settings import FormatArgs
from moescope.cli.tables import print_table
from moescope.cli.terminal import errors, output
from moescope.cli.verb import Argument, note, verb
from moescope.errors import BadInputError
from moescope.words import listing

_SHOWN = 40
_KEYS = ("layer", "expert", "domain")


class TableArgs(FormatArgs):
    """Everything that `table` can be told."""

    run: Annotated[str, Argument("RUN")]
    """run folder"""
    name: Annotated[str | None, Argument("NAME")] = None
    """name of a table"""
    layer: int | None = None
    """only this layer"""
    domain: str | None = None
    """only this domain ('all': the total)"""
    sort: str | None = None
    """sort by this column, largest first"""
    rows: int | None = Field(
        None, ge=0, description="at most this many rows; 0: all; 40 by default as table"
    )
    about: bool = False
    """say what the columns mean"""


@verb()
def table(settings: TableArgs) -> None:
    """Print a table of a run; without NAME, list the tables.

    Example: moescope table my-run load --layer 3 --domain ndis_policy --format csv
    """
    from moescope.metrics.runs import note_of, open_run
    from moescope.metrics.tables import every_table, find_table

    opened, form = open_run(settings.run), settings.format
    if settings.name is None:
        known, problems = every_table()
        what = [made.title.rstrip(".") for made in known.values()]
        print_table(pa.table({"table": list(known), "what": what}), form)
        for line in problems:
            errors.print(f"left out: {line}", soft_wrap=True)
        return
    data = opened.table(settings.name)
    if settings.about:
        known_as = find_table(settings.name)
        output.print(known_as.about + "\n")
        for column in data.column_names:
            output.print(f"{column}: {known_as.meaning(column)}")
        return
    remark = note_of(data)
    data = _filtered(data, layer=settings.layer, domain=settings.domain)
    if settings.sort is not None:
        _require(data, settings.sort)
        data = _sorted(data, settings.sort)
    most = settings.rows if settings.rows is not None else (_SHOWN if form == "table" else 0)
    total = data.num_rows
    if most and total > most:
        data = data.slice(0, most)
    if not total and opened.manifest.options["keep"] == "aggregates":
        errors.print("empty: this run kept aggregates only; trace it with --keep sample or all")
    if settings.sort is not None and form == "table":  # what is too wide is left out at the end
        names = data.column_names
        first = [n for n in _KEYS if n in names and n != settings.sort]
        data = data.select(dict.fromkeys((*first, settings.sort, *names)))
    computed = f", in {opened.precision}" if opened.precision else ""
    print_table(data, form, title=f"{settings.name} of {settings.run}{computed}")
    if remark:
        note(remark, "")
    if data.num_rows < total:
        errors.print(f"{data.num_rows} of {total:,} rows; --rows 0 shows all")


def _filtered(data: pa.Table, **wanted: int | str | None) -> pa.Table:
    for column, value in wanted.items():
        if value is None:
            continue
        _require(data, column)
        known = data[column].unique().to_pylist()
        if value not in known:
            raise BadInputError(f"--{column} {value} is not in this table; it has {listing(known)}")
        data = data.filter(pc.equal(data[column], value))
    return data


def _sorted(data: pa.Table, column: str) -> pa.Table:
    """Largest first; what is not a finite number goes last."""
    values = data[column]
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_finite(values), values, None)
    order = pc.sort_indices(values, sort_keys=[("", "descending")])  # nulls go last
    return data.take(order)


def _require(data: pa.Table, column: str) -> None:
    if column not in data.column_names:
        raise BadInputError(
            f"this table has no column {column!r}; its columns are {', '.join(data.column_names)}"
        )
