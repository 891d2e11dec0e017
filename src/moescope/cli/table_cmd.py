"""`moescope table`: print one table of a run, or list them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from moescope.axes import ExpertRef, require_experts
from moescope.cli.fit import Head
from moescope.cli.settings import ColumnsArgs, require_column
from moescope.cli.tables import heads_of, print_table
from moescope.cli.terminal import errors, output
from moescope.cli.verb import Argument, note, verb
from moescope.cli.where import rows_where
from moescope.errors import BadInputError
from moescope.words import counted, listing

if TYPE_CHECKING:
    from moescope.metrics.table import Table

_SHOWN = 40

Direction = Literal["ascending", "descending"]


class TableArgs(ColumnsArgs):
    """Everything that `table` can be told."""

    run: Annotated[str, Argument("RUN")]
    """run folder"""
    name: Annotated[str | None, Argument("NAME")] = None
    """name of a table"""
    layer: int | None = None
    """only this layer"""
    expert: tuple[str, ...] = ()
    """only this expert, such as L3E7; may be repeated"""
    domain: str | None = None
    """only this domain ('all': the total)"""
    where: str | None = None
    """only rows of which this holds, such as "q < 0.05 and lift_over_others > 2\""""
    sort: str | None = None
    """sort by this column: what is small first where that is the best, as of q or a loss, and what
    is large first elsewhere; COLUMN:asc and COLUMN:desc say which"""
    rows: int | None = Field(
        None, ge=0, description="at most this many rows; 0: all; 40 by default as table"
    )
    about: bool = False
    """say what the columns mean"""


@verb()
def table(settings: TableArgs) -> None:
    """Print a table of a run; without NAME, list the tables.

    Example: moescope table my-run load --layer 3 --domain ndis_policy --format csv

    Example: moescope table my-run domain_specialization --where "q < 0.05" --sort lift_over_others
    """
    from moescope.metrics.runs import note_of, open_run
    from moescope.metrics.tables import find_table

    opened, form = open_run(settings.run), settings.format
    if settings.name is None:
        _print_list(settings)
        return
    experts = [ExpertRef.parse(name) for name in settings.expert]
    sizes = dict(zip(opened.shape.layers, opened.shape.num_experts, strict=True))
    require_experts(experts, sizes, "this run")
    data, known_as = opened.table(settings.name), find_table(settings.name)
    if settings.about:
        output.print(known_as.about + "\n")
        for column in data.column_names:
            output.print(f"{column}: {known_as.meaning(column)}")
        return
    remark = note_of(data)
    data, first = _chosen(data if not experts else _of_experts(data, experts), known_as, settings)
    most = settings.rows if settings.rows is not None else (_SHOWN if form == "table" else 0)
    total = data.num_rows
    if most and total > most:
        data = data.slice(0, most)
    if not total and opened.manifest.options["keep"] == "aggregates":
        errors.print("empty: this run kept aggregates only; trace it with --keep sample or all")
    heads = heads_of(data, known_as.columns, known_as.meaning)
    computed = f", in {opened.precision}" if opened.precision else ""
    title = f"{settings.name} of {settings.run}{computed}" if output.is_terminal else ""
    print_table(data, settings, title, heads, first)
    if remark:
        note(remark, "")
    if data.num_rows < total:
        errors.print(f"{data.num_rows} of {counted(total, 'row')}; --rows 0 shows all")


def _print_list(settings: TableArgs) -> None:
    """The names of the tables, and what each answers."""
    from moescope.metrics.tables import every_table

    known, problems = every_table()
    what = [made.title.rstrip(".") for made in known.values()]
    heads = {"table": Head("table", "name", key=True), "what": Head("what", "words", keep=True)}
    print_table(pa.table({"table": list(known), "what": what}), settings, heads=heads)
    for line in problems:
        errors.print(f"left out: {line}", soft_wrap=True)


def _chosen(data: pa.Table, known_as: Table, settings: TableArgs) -> tuple[pa.Table, str | None]:
    """The rows that were asked for, in the order that was; and the column of that order."""
    settings.require_columns(data.column_names)
    data = _filtered(data, layer=settings.layer, domain=settings.domain)
    if settings.where is not None:
        data = rows_where(data, settings.where)
    if settings.sort is None:
        return data, None
    name, way = _order(settings.sort, data)
    if way is None:
        what = known_as.meaning(name)
        text = pa.types.is_string(data[name].type)
        way = "ascending" if what.small or what.key or text else "descending"
    return _sorted(data, name, way), name


def _filtered(data: pa.Table, **wanted: int | str | None) -> pa.Table:
    for column, value in wanted.items():
        if value is None:
            continue
        require_column(column, data.column_names, column)
        known = data[column].unique().to_pylist()
        if value not in known:
            raise BadInputError(f"--{column} {value} is not in this table; it has {listing(known)}")
        data = data.filter(pc.equal(data[column], value))
    return data


def _of_experts(data: pa.Table, experts: list[ExpertRef]) -> pa.Table:
    """The rows of some experts; a pair is a row of both."""
    columns = [n for n in ("expert", "expert_i", "expert_j") if n in data.column_names]
    if not columns or "layer" not in data.column_names:
        raise BadInputError("`expert`: this table is not about single experts")
    kept = pa.array([False] * data.num_rows)
    for ref in experts:
        in_layer = pc.equal(data["layer"], ref.layer_idx)
        for name in columns:
            kept = pc.or_(kept, pc.and_(in_layer, pc.equal(data[name], ref.expert)))
    return data.filter(kept)


def _order(given: str, data: pa.Table) -> tuple[str, Direction | None]:
    """``q:desc`` → the column, and which way."""
    name, colon, way = given.rpartition(":")
    if not colon:
        name, way = given, ""
    require_column(name, data.column_names, "sort")
    known: dict[str, Direction | None] = {"": None, "asc": "ascending", "desc": "descending"}
    if way not in known or (colon and not way):
        raise BadInputError(
            f"`sort` {given}: {way!r} is no direction; give {name}:asc or {name}:desc"
        )
    return name, known[way]


def _sorted(data: pa.Table, column: str, way: Direction) -> pa.Table:
    """What is not a finite number goes last."""
    values = data[column]
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_finite(values), values, None)
    order = pc.sort_indices(values, sort_keys=[("", way)])  # nulls go last
    return data.take(order)
