"""A run with its tables: `open_run(path).table("load")`.

A table is computed when first asked for and kept in ``RUN/tables/NAME.parquet``, marked with the
state that it was computed from, so that it is never shown for another one. No model is needed.
"""

from __future__ import annotations

import contextlib
import os
from functools import cached_property
from html import escape
from importlib.metadata import version

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from moescope.errors import BadInputError, BusyError, RunError, WriteError
from moescope.files import is_intact
from moescope.metrics.agreement import agreement
from moescope.metrics.intervals import mean_interval
from moescope.metrics.table import Column, Table
from moescope.metrics.tables import TABLES, every_table, find_table
from moescope.metrics.view import Layer, PhaseView, Rows
from moescope.run.reader import Run, TokenRows, token_rows
from moescope.run.store import read_parquet, understood, write_parquet

_TABLES = "tables"
_NOTE = b"note"


COMPARED = {
    "saturation": Column("|A∩B|/K", chance="K/E"),
    "ci_low": Column("lower end of its 95 % interval over documents", of="saturation"),
    "ci_high": Column("upper end of it", of="saturation"),
    "chance": Column("K/E", of="saturation"),
    "jaccard": Column("|A∩B|/|A∪B|"),
    "first": Column("the same first choice; NaN where an imported run does not know it"),
    "first_chance": Column("1/E", of="first"),
}
"""What the columns of `compare_runs` say."""


def table_names() -> list[str]:
    """The names of all tables, those of installed packages included."""
    return list(every_table()[0])


def note_of(table: pa.Table) -> str:
    """What a table of a run leaves out, in one line; empty where that is nothing."""
    note: bytes = (table.schema.metadata or {}).get(_NOTE, b"")
    return note.decode()


class AnalyzedRun(Run):
    """A run and its tables; see `open_run`."""

    def _repr_html_(self) -> str:
        page = self.path / "report.html"
        link = f'<p><a href="{escape(page.resolve().as_uri())}">report</a></p>'
        names = ", ".join(n for n in table_names() if n not in self.absent_tables)
        shown = link if page.is_file() else ""
        return f"<p>{escape(repr(self))}</p>{shown}<p>tables: {escape(names)}</p>"

    def table(self, name: str) -> pa.Table:
        """One table of this run.

        Args:
            name: one of `table_names()`.

        Returns:
            An Arrow table; ``.to_pandas()`` gives a data frame. The column ``phase`` says prefill
            or decode. What the other columns mean: ``moescope table RUN NAME --about``. What it
            leaves out, if anything, `note_of` says.

        Raises:
            BadInputError: no such table, or one of another package that fails.
            RunError: one that this run cannot know, or a damaged run.
        """
        wanted = find_table(name)
        if wanted.needs in self.absent:
            raise RunError(f"{self.path} has no table {name!r}: {self.absent[wanted.needs]}")
        mark = self._mark(wanted)
        known = self._kept(wanted, mark)
        if known is not None:
            return known
        table = self._compute(wanted)
        marks = {**(table.schema.metadata or {}), b"moescope": mark}
        table = table.replace_schema_metadata(marks)
        # a run that cannot be written can be read all the same
        with (
            contextlib.suppress(BusyError, RunError, WriteError),
            self.writing(wait=0.0),
        ):
            write_parquet(self.path / _TABLES / f"{name}.parquet", table)
        return table

    def _kept(self, wanted: Table, mark: bytes) -> pa.Table | None:
        """The table as an earlier call kept it: whole, of this mark, with the columns of now."""
        file = f"{_TABLES}/{wanted.name}.parquet"
        with contextlib.suppress(pa.ArrowInvalid, OSError, RunError):
            if is_intact(self.path, file):
                with pq.ParquetFile(self.path / file) as kept:
                    table = kept.read()
                whole = not table.num_rows or set(wanted.columns) <= set(table.column_names)
                if whole and (table.schema.metadata or {}).get(b"moescope") == mark:
                    return table
        return None

    @cached_property
    def absent_tables(self) -> dict[str, str]:
        """Tables that this run cannot have, each with the reason; empty for a trace."""
        return {s.name: self.absent[s.needs] for s in TABLES.values() if s.needs in self.absent}

    def compute_all(self) -> list[str]:
        """Compute and keep every table of moescope's own that the run can have; their names."""
        names = [name for name in TABLES if name not in self.absent_tables]
        for name in names:
            self.table(name)
        return names

    def _mark(self, table: Table) -> bytes:
        """What a table was computed by and from."""
        state = self.manifest.state
        by = f"{version('moescope')} {table.made_by}".strip()
        return f"{by} {state.sha256 if state else ''}".encode()

    def _table_or_none(self, name: str) -> pa.Table:
        """A table, without columns where the run cannot have it."""
        return pa.table({}) if name in self.absent_tables else self.table(name)

    def _compute(self, wanted: Table) -> pa.Table:
        parts, notes = [], []
        for phase in self.phases:
            rows = wanted.rows(PhaseView(self, phase, self._table_or_none))
            notes += [f"{phase}: {rows.note}"] if rows.note else []
            size = len(next(iter(rows.columns.values()), ()))
            if size:
                parts.append(_arrow(rows).add_column(0, "phase", pa.array([phase] * size)))
        if not parts:
            return pa.table({"phase": pa.array([], pa.string())})
        whole = pa.concat_tables(parts)
        return whole.replace_schema_metadata({_NOTE: "; ".join(notes)}) if notes else whole


AnyRun = AnalyzedRun | str | os.PathLike[str]
"""What stands for a run wherever one is needed: one that is open, or its folder."""


def open_run(path: AnyRun) -> AnalyzedRun:
    """Open a finished run; one that is open stays as it is.

    Example::

        run = open_run("demo-run")
        run.table("load").to_pandas().query("domain == 'ndis_policy' and layer == 3")

    Raises:
        BadInputError: neither a run nor a path.
        RunError: no run there, damaged, or not finished.
    """
    if isinstance(path, AnalyzedRun):
        return path
    if isinstance(path, str | os.PathLike):
        return AnalyzedRun(os.fspath(path))
    raise BadInputError(
        f"a run is the path of its folder, or what open_run gives; got {type(path).__name__}"
    )


def compare_runs(run_a: AnyRun, run_b: AnyRun) -> pa.Table:
    """Saturation and agreement of two runs over the same text, token by token.

    phase, layer, domain, tokens, saturation = |A∩B|/K (chance K/E) with a 95 % interval over
    documents, jaccard, first (same first choice, chance 1/E; NaN where an imported run does not
    know it). Tokens are matched by document, window, position and, where both runs know it, token
    id; of each run all tokens are used if it kept all, else its sample. Of what the models wrote
    (phase decode) only tokens before the first that differs are compared: behind it the two read
    other text.

    Raises:
        RunError: other experts or layers, no token in common, or a run without tokens.
    """
    run_a, run_b = open_run(run_a), open_run(run_b)
    for what in ("layers", "num_experts", "top_k"):
        a, b = (getattr(r.shape, what) for r in (run_a, run_b))
        if a != b:
            raise RunError(
                f"{run_a.path} and {run_b.path} differ in {what} ({a} against {b}); agreement is "
                "defined between runs of one architecture, such as two checkpoints"
            )
    rows = Rows()
    for phase in (name for name in run_a.phases if name in run_b.phases):
        _compare_phase(rows, phase, run_a, run_b)
    if not rows.columns:
        raise RunError(
            f"{run_a.path} and {run_b.path} share no token: they must see the same documents with "
            "the same tokenizer, `context` and `seed`"
        )
    return _arrow(rows)


def _compare_phase(rows: Rows, phase: str, run_a: Run, run_b: Run) -> None:
    """Add the rows of one phase; none where the runs share no token of it."""
    a, b = (_kept_tokens(r, phase) for r in (run_a, run_b))
    left, right = _matched(a, b, one_text=phase == "decode")
    doc = a.doc[left]
    ordered = not any("order" in r.shape.absent for r in (run_a, run_b))
    groups = {"all": np.ones(left.size, np.bool_)}
    groups |= {n: a.domain[left] == d for d, n in enumerate(run_a.domains)}
    for _, layer, experts, top_k in Layer.all_of(run_a.shape):
        made = agreement(a.ids[layer][left], b.ids[layer][right])
        stacked = np.stack(made, axis=1)
        for name, mask in groups.items():
            if not mask.any():
                continue
            docs = np.unique(doc[mask], return_inverse=True)[1].reshape(-1)
            sums = np.stack([np.bincount(docs, stacked[mask, j]) for j in range(3)], axis=1)
            ends = mean_interval(sums, np.bincount(docs), lowest=0.0, highest=1.0)
            mean = stacked[mask].mean(0)
            rows.add(
                phase=phase,
                layer=layer,
                domain=name,
                tokens=int(mask.sum()),
                saturation=float(mean[0]),
                ci_low=float(ends.low[0]),
                ci_high=float(ends.high[0]),
                chance=top_k / experts,
                jaccard=float(mean[1]),
                first=float(mean[2]) if ordered else float("nan"),
                first_chance=1 / experts,
            )


def _kept_tokens(run: Run, phase: str) -> TokenRows:
    if "tokens" in run.absent:
        raise RunError(f"{run.path} has no tokens to compare: {run.absent['tokens']}")
    if run.manifest.options["keep"] == "all":
        with understood(f"{run.path}/shards"):
            table = pa.concat_tables(
                [read_parquet(run.path, s).unify_dictionaries() for s in run.manifest.shards]
            ).unify_dictionaries()
            mine = pc.equal(pc.cast(table["phase"], pa.string()), phase)
            return token_rows(table.filter(mine), run.shape, run.domains)
    sampled = run.tokens(phase)
    if sampled is None:
        raise RunError(f"{run.path} kept aggregates only; trace it with `keep=sample` or all")
    return sampled


def _matched(a: TokenRows, b: TokenRows, *, one_text: bool) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the same tokens in both, by document, window, position and known id.

    With ``one_text`` only those of each document before the first whose ids differ.
    """
    keys = []
    for t in (a, b):
        places = zip(t.doc.tolist(), t.window.tolist(), t.pos.tolist(), strict=True)
        keys.append({(t.doc_names[d], w, p): i for i, (d, w, p) in enumerate(places)})
    common = sorted(keys[0].keys() & keys[1].keys())
    left, right = (np.asarray([place[k] for k in common], np.int64) for place in keys)
    ids_a, ids_b = a.token_id[left], b.token_id[right]
    same = (ids_a == ids_b) | (ids_a < 0) | (ids_b < 0)
    if one_text:  # sorted by document and position
        doc = a.doc[left]
        for number in np.unique(doc[~same]):
            mine = np.flatnonzero(doc == number)
            same[mine[int(same[mine].argmin()) :]] = False
    return left[same], right[same]


def _arrow(rows: Rows) -> pa.Table:
    return pa.table({name: pa.array(values) for name, values in rows.columns.items()})
