"""``--where "q < 0.05 and domain = law"``: which rows of a table are wanted.

A condition is a column, an operator and a value; ``and`` joins several. Nothing is evaluated.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from moescope.cli.settings import require_column
from moescope.errors import BadInputError
from moescope.words import brief, listing

_ORDERED: dict[str, Callable[..., Any]] = {
    "<=": pc.less_equal, ">=": pc.greater_equal, "<": pc.less, ">": pc.greater,
}  # fmt: skip
_OPERATORS = {**_ORDERED, "!=": pc.not_equal, "==": pc.equal, "=": pc.equal}

_MOST = 10_000
"""Characters of an expression."""


def rows_where(table: pa.Table, expression: str) -> pa.Table:
    """The rows for which all conditions hold; one whose number is not known is not among them.

    Raises:
        BadInputError: it is no such expression, a column is not there, or a value is of another
            kind than its column.
    """
    for column, operator, value in _conditions(expression):
        require_column(column, table.column_names, "where")
        values = table[column]
        if pa.types.is_floating(values.type):
            values = pc.if_else(pc.is_nan(values), None, values)
        wanted = _value(column, operator, value, values.type)
        table = table.filter(_OPERATORS[operator](values, wanted))
    return table


def _conditions(expression: str) -> list[tuple[str, str, str]]:
    """``q < 0.05 and domain = "law"`` → its conditions."""
    spaced = re.sub(r"""("[^"]*"|'[^']*')|([<>!=]+)""", lambda m: m[1] or f" {m[2]} ", expression)
    try:
        words = shlex.split(spaced[:_MOST])
    except ValueError as error:
        raise _refused(expression, "a quotation mark is not closed") from error
    conditions = []
    for start in range(0, max(1, len(words)), 4):
        part = words[start : start + 4]
        if len(part) < 3 or (len(part) == 4 and start + 4 >= len(words)):
            raise _refused(expression, "a condition is COLUMN OPERATOR VALUE")
        if part[1] not in _OPERATORS:
            raise _refused(
                expression, f"no operator {brief(part[1])}; there is {listing(_OPERATORS)}"
            )
        if part[3:] and part[3].lower() != "and":
            raise _refused(expression, f"expected 'and' between conditions, got {brief(part[3])}")
        conditions.append((part[0], part[1], part[2]))
    return conditions


def _refused(expression: str, why: str) -> BadInputError:
    return BadInputError(
        f'`where` {brief(expression)}: {why}; write it as "q < 0.05 and domain = law"'
    )


def _value(column: str, operator: str, text: str, kind: pa.DataType) -> pa.Scalar:
    """The value as the column's kind of value."""
    numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    if operator in _ORDERED and not numeric:
        raise BadInputError(
            f"`where`: {column} is no number, so {operator} says nothing of it; use = or !="
        )
    if numeric:
        with suppress(ValueError):
            if math.isfinite(number := float(text)):
                return pa.scalar(number, pa.float64())
        raise BadInputError(f"`where`: {column} holds numbers, and {brief(text)} is none")
    if pa.types.is_boolean(kind):
        known = {"yes": True, "true": True, "no": False, "false": False}
        if text.lower() not in known:
            raise BadInputError(f"`where`: {column} is yes or no, got {brief(text)}")
        return pa.scalar(known[text.lower()])
    return pa.scalar(text)
