"""`@table`: all there is to say about a table, at the function that makes it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from moescope.errors import BadInputError, MoescopeError
from moescope.metrics.view import PhaseView, Rows
from moescope.run.aggregates import ABSENT


class Column(NamedTuple):
    """What a column says, and how it is shown where there is little room.

    Columns are named in the order of their importance: those at the end are left out first.

    Attributes:
        chance: what it would be if experts knew nothing of the text.
        interval: the columns ``NAME_low`` and ``NAME_high`` hold its 95 % interval over documents.
        of: the column that it says more of, such as its interval or chance; shown wherever that is.
        key: tells rows apart, and is never left out.
        keep: is never left out either, such as q.
        words: may go on over several lines.
        small: the smallest is looked for first, as of q or a loss.
    """

    meaning: str
    unit: str = ""
    chance: str = ""
    interval: bool = False
    of: str = ""
    key: bool = False
    keep: bool = False
    words: bool = False
    small: bool = False

    def __str__(self) -> str:
        unit = f"; in {self.unit}" if self.unit else ""
        return f"{self.meaning}{unit}" + (f"; chance: {self.chance}" if self.chance else "")


COMMON = {
    "phase": Column(
        "prefill, the text of the corpus, or decode, the text that the model wrote", key=True
    ),
    "layer": Column("the model's own number of the layer", key=True),
    "expert": Column("number of the expert in its layer", key=True),
    "domain": Column("name of the domain; all is the total", key=True),
    "tokens": Column("counted tokens"),
}
"""Columns that mean the same in every table; a table that has them need not describe them."""


@dataclass(frozen=True)
class Table:
    """A table: made by `table`.

    Attributes:
        name: also of its file.
        make: gives the rows of one phase.
        columns: what each column says, without those of `COMMON`.
        concept: page of docs/concepts that defines it, or an address.
        needs: a key of `moescope.run.aggregates.ABSENT`; a run without it refuses the table.
        phases: those that it can be made of.
        package: name and version of the package that it comes from; empty for moescope's own.
    """

    name: str
    make: Callable[[PhaseView], Rows]
    columns: Mapping[str, Column]
    concept: str = ""
    needs: str | None = None
    phases: tuple[str, ...] = ("prefill", "decode")
    package: str = ""

    @property
    def title(self) -> str:
        """What it answers, in one line."""
        return self.about.partition("\n")[0]

    @property
    def about(self) -> str:
        """The function's docstring."""
        return re.sub(r"\n[ ]+", "\n", self.make.__doc__ or "").strip()

    def meaning(self, column: str) -> Column:
        """What a column says."""
        own = self.columns.get(column)
        return own if own is not None else COMMON[column]

    def rows(self, view: PhaseView) -> Rows:
        """The rows of one phase.

        Raises:
            BadInputError: the function of another package fails, or gives what it did not declare.
        """
        if view.phase not in self.phases:
            return Rows()
        if not self.package:
            return self.make(view)
        try:
            rows = self.make(view)
            unknown = [c for c in rows.columns if c not in self.columns and c not in COMMON]
            sizes = {c: len(values) for c, values in rows.columns.items()}
        except MoescopeError:  # of the run, not of the package
            raise
        except Exception as error:
            raise self._broken(f"{type(error).__name__}: {error}") from error
        if unknown:
            raise self._broken(f"it gives a column {unknown[0]!r} that its @table does not name")
        if len(set(sizes.values())) > 1:
            raise self._broken(f"its columns differ in length: {sizes}")
        return rows

    def of(self, package: str) -> Table:
        """The same table, as one of another package."""
        return replace(self, package=package)

    def _broken(self, why: str) -> BadInputError:
        line = " ".join(why.split())
        return BadInputError(f"table {self.name!r} of {self.package} cannot be made: {line}")


def table(
    name: str,
    *,
    columns: Mapping[str, str | Column],
    concept: str = "",
    needs: str | None = None,
    phases: tuple[str, ...] = ("prefill", "decode"),
) -> Callable[[Callable[[PhaseView], Rows]], Table]:
    """Make a table of the function below: from one phase of a run to rows.

    The function's docstring says in its first line what the table answers.

    Args:
        name: lower-case letters, digits and underscores.
        columns: what each says, as words or a `Column`, the most important first; those of
            `COMMON` may be left out.
        concept: page of docs/concepts that defines it, or an address.
        needs: ``weights``, ``order`` or ``tokens``, where there is nothing to say without.
        phases: leave one out where the table has nothing to say about it.

    Raises:
        BadInputError: a name or need of another form, or no docstring.

    Example::

        @table("top_share", columns={"share": Column("largest load", chance="1/E")})
        def top_share(view: PhaseView) -> Rows:
            '''How much of a layer's work its busiest expert does.'''
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", name):
        raise BadInputError(
            f"@table({name!r}): a name is lower-case letters, digits and underscores"
        )
    if needs is not None and needs not in ABSENT:
        raise BadInputError(f"@table({name!r}): needs={needs!r}; choose {', '.join(ABSENT)}")
    known: dict[str, Column] = {}
    for column, words in columns.items():
        known[column] = words if isinstance(words, Column) else Column(words)
        if known[column].interval:
            for side, end in (("low", "lower"), ("high", "upper")):
                known[f"{column}_{side}"] = Column(
                    f"{end} end of its 95 % interval over documents", known[column].unit, of=column
                )

    def made(make: Callable[[PhaseView], Rows]) -> Table:
        if not (make.__doc__ or "").strip():
            raise BadInputError(f"@table({name!r}): the docstring says what the table answers")
        return Table(name, make, known, concept, needs, phases)

    return made
