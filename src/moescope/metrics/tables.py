"""The tables of a run by name: moescope's own, and those of installed packages.

A package adds tables by an entry point of the group ``moescope.tables`` that names a module, or one
table in it. Packages are looked at only when a name is asked for that moescope does not have; one
that fails is said in a line of its own and takes nothing else along.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from types import ModuleType

from moescope.errors import BadInputError
from moescope.metrics import expert_tables, phases, token_tables
from moescope.metrics.table import Table

GROUP = "moescope.tables"
"""The group of entry points."""


def _tables_in(found: object) -> list[Table]:
    values = vars(found).values() if isinstance(found, ModuleType) else [found]
    return [value for value in values if isinstance(value, Table)]


TABLES: dict[str, Table] = {
    made.name: made for room in (expert_tables, token_tables, phases) for made in _tables_in(room)
}
"""Every table of moescope's own."""


def every_table() -> tuple[dict[str, Table], list[str]]:
    """All tables, and one line for each entry point that gives none.

    Example:
        >>> every_table()[0]["load"].title
        'How often each expert is used, by domain.'
    """
    known, problems = dict(TABLES), []
    for point in sorted(entry_points(group=GROUP), key=lambda p: (_package(p), p.name)):
        try:
            known |= _load(point, known)
        except BadInputError as error:
            problems.append(str(error))
    return known, problems


def find_table(name: str) -> Table:
    """The table of that name.

    Raises:
        BadInputError: there is none; says which there are, or which package failed.
    """
    if name in TABLES:
        return TABLES[name]
    known, problems = every_table()
    if name not in known:
        more = "; " + "; ".join(problems) if problems else ""
        raise BadInputError(f"no table {name!r}; the tables are {', '.join(known)}{more}")
    return known[name]


def _load(point: EntryPoint, known: dict[str, Table]) -> dict[str, Table]:
    """The tables of one entry point."""
    package = _package(point)
    where = f"entry point {point.name} = {point.value} of {package} ({GROUP})"
    try:
        found = point.load()
    except Exception as error:  # whatever another package's code raises
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise BadInputError(f"{where} cannot be imported: {why}") from error
    own = [made.of(package) for made in _tables_in(found) if made is not TABLES.get(made.name)]
    if not own:
        raise BadInputError(f"{where} holds no table; make one with @moescope.metrics.table.table")
    for made in own:
        if made.name in known:
            whose = known[made.name].package or "moescope"
            raise BadInputError(f"{where}: {whose} has a table {made.name!r} already; rename it")
    return {made.name: made for made in own}


def _package(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else "a package"
