"""A CSV as columns by our own names, whatever it calls them; it knows no engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
from numpy.typing import NDArray

from moescope.corpus.json_files import MAX_JSON_BYTES
from moescope.corpus.lines import open_bytes
from moescope.corpus.records import SourceFile
from moescope.trace.importers.common import refuse
from moescope.words import listing, said_by


def first_row(source: SourceFile) -> list[str]:
    """The cells of the first row, in lower case."""
    with open_bytes(source) as stream:
        first = stream.readline(4096).decode("utf-8", "replace").strip()
    return [cell.strip().strip('"').lower() for cell in first.split(",")]


def read_columns(
    source: SourceFile,
    given: Sequence[str],
    names: Mapping[str, tuple[str, ...]],
    where: str,
    *,
    bare: bool,
    expected: str,
    needed: Sequence[str],
) -> dict[str, tuple[str, pa.ChunkedArray]]:
    """The columns that are known, each with what the file calls it.

    Args:
        source: the file; packed ones are measured before they are held.
        given: names of its columns, in their order.
        names: what each of our names may be called.
        where: how messages call the file.
        bare: it has no row of names.
        expected: what to write instead, for messages.
        needed: our names that must be there.

    Raises:
        RefusedError: a column is missing or named twice, or the rows are no table.
    """
    twice = sorted({c for c in given if given.count(c) > 1})
    if twice:
        refuse("two columns of one name", where, f"{listing(twice)}; its columns: {listing(given)}",
               "leave one of them")  # fmt: skip
    found = {name: next((c for c in given if c in known), None) for name, known in names.items()}
    missing = [name for name in needed if found[name] is None]
    if missing:
        refuse(f"no column {missing[0]!r}", where, f"its columns: {listing(given)}", expected)
    _refuse_bomb(source, where)
    options = pa_csv.ReadOptions(column_names=list(given), skip_rows=0 if bare else 1)
    try:
        with open_bytes(source) as stream:
            made = pa_csv.read_csv(stream, read_options=options)
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        refuse("not a CSV of rows like its first", where, said_by(error),
               "it was cut short or altered; trace again")  # fmt: skip
    return {name: (c, made[c]) for name, c in found.items() if c is not None}


def integers(name: str, column: pa.ChunkedArray, where: str) -> NDArray[np.int64]:
    """A column of whole numbers, none missing.

    Raises:
        RefusedError: it holds something else.
    """
    if not pa.types.is_integer(column.type) or column.null_count:
        refuse(f"column {name!r} holds something else than whole numbers", where, str(column.type))
    return np.asarray(column.to_numpy()).astype(np.int64)


def _refuse_bomb(source: SourceFile, where: str) -> None:
    """A packed table is held whole, so what it unpacks to is counted first."""
    if not source.name.lower().endswith(".gz"):
        return
    size, most = 0, MAX_JSON_BYTES
    with open_bytes(source) as stream:
        while chunk := stream.read(1 << 20):
            size += len(chunk)
            if size > most:
                refuse("a packed CSV that is too long", where,
                       f"it unpacks to more than {most >> 20} MB", "unpack it first")  # fmt: skip
