"""Profiles as rows of tables, and one profile as the rows of one expert.

`Profiles` holds the tables that a researcher reads with pandas (see `moescope.profiles.tables` for
their columns). A single `Profile` is made from its rows when it is asked for: figures by name, in
parts. A part that could not be measured is an `Absent` with the reason, never a zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from moescope.axes import ExpertRef
from moescope.metrics.specialization import much
from moescope.result import plain
from moescope.words import counted

PARTS = (
    "role", "sure", "domains", "tokens_in", "vocabulary", "coactivated", "previous", "following",
    "parts_of_speech", "contribution", "contexts", "pushes", "similar", "weights",
)  # fmt: skip
"""Parts of a profile. A column ``contribution_mean`` of ``experts`` is the figure ``mean`` of the
part ``contribution``; columns of no part say how often the expert is used (the part ``load``)."""

LISTS = {
    "domains": "domains", "tokens_in": "tokens", "coactivated": "partners",
    "previous": "partners", "following": "partners", "parts_of_speech": "speech",
    "contexts": "contexts", "pushes": "pushes", "similar": "similar", "weights": "weights",
}  # fmt: skip
"""Part → the table that holds its rows."""

USES = ("more", "much more", "less", "much less")
"""How an expert may be used for a domain beside the others; "more" counts those "much more" too."""

_KEYS = ("layer", "expert", "rank", "where", "side")
_DIGITS = 6


@dataclass(frozen=True)
class Absent:
    """A part that is not there, and why."""

    absent: str


class Part(dict[str, Any]):
    """Figures by name, as keys and as attributes.

    Example:
        >>> Part(rate=0.125).rate
        0.125
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"there is no {name} here; there is: {', '.join(self)}") from None

    def __or__(self, changes: dict[str, Any]) -> Part:  # type: ignore[override]
        """The same with other figures."""
        return type(self)({**self, **changes})


class Profile(Part):
    """Everything that is known of one expert, with how sure it is.

    ``expert``, ``summary`` (made by rule, see `moescope.profiles.summary`), ``flags`` (``never
    chosen``, ``dead``, ``cold``, ``super``, ``token expert``), ``load``, `PARTS` and ``source``.
    The figures of a part are columns of the tables; a part with a list has it as ``rows`` (pushes:
    ``promoted`` and ``suppressed``), and ``domains`` and ``weights`` are lists.
    """

    def __repr__(self) -> str:
        return f"<Profile {self.summary}>"

    def _repr_html_(self) -> str:
        of = f" of {self.sure.domain}" if self.sure.domain else ""
        figures = {
            "chosen": f"{100 * self.load.rate:.1f} % of tokens, by chance "
            f"{100 * self.load.rate_chance:.1f} %",
            "role": self.role.words,
            "sure": f"{self.sure.level}, from {self.sure.assignments:,} assignments in "
            f"{counted(self.sure.documents, 'document')}{of}",
        }
        rows = "".join(f"<tr><th>{k}</th><td>{escape(v)}</td></tr>" for k, v in figures.items())
        return f"<p>{escape(self.summary)}</p><table>{rows}</table>"

    def to_dict(self) -> dict[str, Any]:
        """The profile as JSON values: 6 significant digits, None for what is not a number."""
        made: dict[str, Any] = plain({**self, "expert": str(self.expert)}, _DIGITS)
        return made


class Profiles(Sequence[Profile]):
    """Profiles of some experts.

    Args:
        tables: ``experts`` (a row for each), ``absent`` and those of `LISTS`, rows of an expert
            side by side in the order of ``experts``.
        source: what they were made from.
        constants: figures that are the same for every expert, by part.
    """

    def __init__(
        self,
        tables: dict[str, pa.Table],
        source: dict[str, Any],
        constants: dict[str, dict[str, Any]],
    ) -> None:
        self.tables, self.source, self.constants = tables, source, constants

    def __len__(self) -> int:
        return int(self.tables["experts"].num_rows)

    def __iter__(self) -> Iterator[Profile]:
        return (self[i] for i in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> Profile: ...
    @overload
    def __getitem__(self, index: slice) -> Profiles: ...
    def __getitem__(self, index: int | slice) -> Profile | Profiles:
        if isinstance(index, slice):
            return self.some(range(len(self))[index])
        return self._profile(range(len(self))[index])

    def column(self, name: str) -> list[Any]:
        """A column of ``experts``."""
        found: list[Any] = self.tables["experts"][name].to_pylist()
        return found

    def uses(self) -> dict[str, dict[str, int]]:
        """By domain, how many experts are used ``more``, ``much more``, ``less`` and ``much less``.

        See `moescope.metrics.specialization.RULE`; the report of the run counts the same. Domains
        that could not be tested, for want of documents, are not there.
        """
        table = self.tables["domains"].filter(pc.is_finite(self.tables["domains"]["q"]))
        strong = much(np.asarray(table["lift"], np.float64)).tolist()
        found: dict[str, dict[str, int]] = {}
        for name, way, far in zip(
            *(table[c].to_pylist() for c in ("domain", "used")), strong, strict=True
        ):
            row = found.setdefault(name, dict.fromkeys(USES, 0))
            if way:
                row[way] += 1
                row[f"much {way}"] += far
        return found

    @cached_property
    def starts(self) -> dict[str, list[int]]:
        """For each table where the rows of each expert begin, and the end."""
        order = _keys(self.tables["experts"])
        place = {key: i for i, key in enumerate(order)}
        out = {}
        for name, table in self.tables.items():
            counts = np.bincount([place[key] for key in _keys(table)], minlength=len(order))
            out[name] = np.cumsum([0, *counts]).tolist()
        return out

    @cached_property
    def _columns(self) -> dict[str, dict[str, list[Any]]]:
        return {
            name: {c: table[c].to_pylist() for c in table.column_names}
            for name, table in self.tables.items()
        }

    def some(self, chosen: Iterable[int]) -> Profiles:
        """Profiles of some of the experts, by their place."""
        wanted = list(chosen)
        rows = {
            name: [r for i in wanted for r in range(starts[i], starts[i + 1])]
            for name, starts in self.starts.items()
        }
        tables = {n: t.take(pa.array(rows[n], pa.int64())) for n, t in self.tables.items()}
        return Profiles(tables, self.source, self.constants)

    def rows(self, name: str, index: int) -> list[Part]:
        """The rows of one table that belong to one expert."""
        columns, starts = self._columns[name], self.starts[name]
        return [
            Part({c: values[at] for c, values in columns.items()})
            for at in range(starts[index], starts[index + 1])
        ]

    def _profile(self, index: int) -> Profile:
        (figures,) = self.rows("experts", index)
        missing = {row.part: Absent(row.reason) for row in self.rows("absent", index)}
        made = Profile(expert=ExpertRef(figures.pop("layer"), figures.pop("expert")))
        made |= {name: figures.pop(name) for name in ("summary", "flags") if name in figures}
        figures.pop("name")
        parts: dict[str, Any] = {p: Part(self.constants.get(p, {})) for p in PARTS}
        load = Part()
        for name, value in figures.items():
            part = next((p for p in PARTS if name.startswith(f"{p}_")), None)
            if part is None:
                load[name] = value
            else:
                parts[part][name.removeprefix(f"{part}_")] = value
        halves = [parts["vocabulary"].pop(f"excess_half_{half}") for half in "ab"]
        parts["vocabulary"]["excess_halves"] = halves
        for name in LISTS:
            if name not in missing:
                parts[name] = self._with_rows(name, parts[name], index)
        made["load"] = load
        return Profile(made | parts | missing | {"source": self.source})

    def _with_rows(self, name: str, part: Part, index: int) -> Any:
        listed: dict[str | None, list[Part]] = {}
        for row in self.rows(LISTS[name], index):
            kept = Part({_named(k): v for k, v in row.items() if k not in _KEYS})
            listed.setdefault(row.get("side") or row.get("where"), []).append(kept)
        if name in ("domains", "weights"):
            return listed.get(None, [])
        if name == "pushes":
            return part | {side: listed.get(side, []) for side in ("promoted", "suppressed")}
        return part | {"rows": listed.get(name if LISTS[name] == "partners" else None, [])}


def _named(column: str) -> str:
    """The other expert of a row is its ``expert`` once the row's own is known."""
    return "expert" if column == "partner" else column


def _keys(table: pa.Table) -> list[tuple[int, int]]:
    return list(zip(table["layer"].to_pylist(), table["expert"].to_pylist(), strict=True))
