"""Tables as records: CSV and TSV by the csv module, Parquet by batches of rows."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from moescope.corpus.lines import decode_fault, whole_lines
from moescope.corpus.records import MEND, Fields, Problem, Record, SourceFile, corpus_error
from moescope.words import counted, near_names, said_by

_BATCH_ROWS = 256
# The csv module holds four bytes per character of the cell at hand: an unclosed quote near the
# start of a large file must end before it fills the memory.
_MAX_CELL = 64 << 20


def read_csv(file: SourceFile, fields: Fields, delimiter: str) -> Iterator[Record | Problem]:
    """Read a table whose first row names the columns; blank lines are passed over.

    Cells may hold line breaks when quoted. A row is named by the line on which it starts.

    Yields:
        Records, and a Problem for each row that is ragged, badly quoted or not UTF-8.

    Raises:
        CorpusError: the file cannot be read, or its header lacks the text column.
    """
    csv.field_size_limit(max(csv.field_size_limit(), _MAX_CELL))
    lines = _Decoded(file)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        start = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            reason = said_by(error)
            if header is None or "field limit" in reason:
                raise corpus_error(
                    f"{file.label}:{start}: not a readable table ({reason}); check its quotes"
                ) from error
            yield Problem("a badly quoted row", f"{file.label}:{start}", reason, MEND)
            continue
        if row is None:
            return
        fault = lines.take_fault()
        if not row:
            continue
        if header is None:
            header = _header(file, row, fields, delimiter, fault)
            continue
        yield _row(file, start, header, row, fault)


def _row(
    file: SourceFile, start: int, header: list[str], row: list[str], fault: str
) -> Record | Problem:
    source = f"{file.label}:{start}"
    if fault:
        return Problem("not valid UTF-8", source, fault, MEND)
    if len(row) != len(header):
        detail = f"{len(row)} cells, the header names {counted(len(header), 'column')}"
        return Problem("a ragged row", source, detail, MEND)
    return Record(f"{file.name}:{start}", source, dict(zip(header, row, strict=True)), header)


class _Decoded:
    """The lines of a file as text; remembers the first byte that is not UTF-8."""

    def __init__(self, file: SourceFile) -> None:
        self._lines = whole_lines(file)
        self._fault = ""

    def __iter__(self) -> _Decoded:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        try:
            return line.data.decode("utf-8").replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            fault = f"line {line.number}: {decode_fault(error, line.offset)}"
            self._fault = self._fault or fault
            return line.data.decode("utf-8", "replace").replace("\r\n", "\n")

    def take_fault(self) -> str:
        """Give the fault of the lines read since the last call, or nothing."""
        fault, self._fault = self._fault, ""
        return fault


def _header(
    file: SourceFile, row: list[str], fields: Fields, delimiter: str, fault: str
) -> list[str]:
    if fault:
        raise corpus_error(f"{file.label}: not valid UTF-8 ({fault}); convert it to UTF-8")
    header = [name.strip() for name in row]
    if fields.text not in header and len(header) == 1:
        for other in (",", "\t", ";", "|"):
            if other != delimiter and other in header[0]:
                raise corpus_error(
                    f"{file.label}: the columns are separated by {other!r}, expected "
                    f"{delimiter!r}; name a table with tabs .tsv and one with commas .csv"
                )
    require_column(file.label, header, fields)
    return header


def require_column(label: str, columns: list[str], fields: Fields) -> None:
    """Refuse a table without the text column, or with two columns of a name that is read.

    Raises:
        CorpusError: names the columns there are.
    """
    if fields.text not in columns:
        raise corpus_error(
            f"{label}: no column {fields.text!r}; {near_names(fields.text, columns)}; "
            "name the text column with `text_field`"
        )
    for name, count in Counter(columns).items():
        if count > 1 and name in fields:
            raise corpus_error(
                f"{label}: {count} columns are called {name!r}, expected one; rename the others"
            )


def read_parquet(file: SourceFile, fields: Fields) -> Iterator[Record | Problem]:
    """Read a Parquet file a few hundred rows at a time, only the columns that are needed.

    Rows are numbered from 0.

    Yields:
        Records, and a Problem for each row whose text is not UTF-8.

    Raises:
        CorpusError: the file is not Parquet, is cut short or damaged, or lacks the text column.
    """
    _require_parquet(file)
    try:
        with pq.ParquetFile(file.path, buffer_size=1 << 20, pre_buffer=False) as table:
            columns = list(table.schema_arrow.names)
            require_column(file.label, columns, fields)
            wanted = [name for name in dict.fromkeys(fields) if name in columns]
            row = 0
            for batch in table.iter_batches(batch_size=_BATCH_ROWS, columns=wanted):
                for values in _batch_rows(batch):
                    place = f"{file.name}:{row}"
                    source = f"{file.label}:row {row}"
                    row += 1
                    if isinstance(values, str):
                        yield Problem("not valid UTF-8", source, values, MEND)
                    else:
                        yield Record(place, source, values, columns)
    except (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError) as error:
        raise corpus_error(
            f"{file.label}: the Parquet file is damaged ({said_by(error)}); copy or write it again"
        ) from error


def _batch_rows(batch: Any) -> Iterator[dict[str, Any] | str]:
    """Yield rows as dictionaries; a row with text that is not UTF-8 as the words saying so."""
    try:
        yield from batch.to_pylist()
        return
    except UnicodeDecodeError:
        pass  # one bad value spoils the whole conversion: go row by row
    for index in range(batch.num_rows):
        try:
            yield batch.slice(index, 1).to_pylist()[0]
        except UnicodeDecodeError as error:
            yield f"byte 0x{error.object[error.start]:02x} at byte {error.start} of a value"


def _require_parquet(file: SourceFile) -> None:
    """Check the four bytes that open and close every Parquet file."""
    try:
        with file.path.open("rb") as stream:
            head = stream.read(4)
            stream.seek(-min(4, stream.seek(0, 2)), 2)
            tail = stream.read(4)
    except OSError as error:
        raise corpus_error(
            f"{file.label}: cannot be read ({error.strerror}); check the file and its permissions"
        ) from error
    if not head:
        raise corpus_error(f"{file.label}: empty file; expected a Parquet table")
    if head != b"PAR1":
        raise corpus_error(
            f"{file.label}: not a Parquet file (it starts with {head!r}, expected b'PAR1'); "
            "give it the suffix of what it is"
        )
    if tail != b"PAR1":
        raise corpus_error(
            f"{file.label}: the Parquet file is cut short (it ends with {tail!r}, expected "
            "b'PAR1'); copy it again"
        )
