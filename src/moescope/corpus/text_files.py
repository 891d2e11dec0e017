"""Plain text as documents: by paragraph, by line or by file.

A document of more than a million characters is cut into parts ``name#0``, ``name#1`` …, at a
paragraph's end where there is one, else at a line's end, else between two characters, so that
memory stays bounded whatever the file holds. Parts joined give the document back.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from typing import Literal

from moescope.corpus.lines import Line, binary_lines, decode_fault
from moescope.corpus.records import Fields, Problem, Record, SourceFile

TextUnit = Literal["paragraph", "line", "file"]

MAX_PART = 1 << 20
"""Characters of the longest document that is not cut into parts."""

_PIECE = 1 << 16


def read_text(file: SourceFile, fields: Fields, unit: TextUnit) -> Iterator[Record | Problem]:
    """Read a text file.

    Args:
        file: the file, ``.gz`` or not.
        fields: the name under which records hold their text.
        unit: what one document is. Paragraphs are separated by blank lines; blank lines
            themselves are never documents.

    Yields:
        Records, and a Problem for each document that holds bytes that are not UTF-8.

    Raises:
        CorpusError: the file cannot be read or is not text.
    """
    builder = _Builder(file, fields, unit)
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    line = None
    for line in binary_lines(file, _PIECE):
        pending = len(decoder.getstate()[0])
        whole = line.starts and (line.ends or len(line.data) < _PIECE)
        blank = whole and not line.data.strip()
        if blank and unit != "file":
            yield from builder.flush()
            continue
        try:
            text = decoder.decode(line.data)
        except UnicodeDecodeError as error:
            decoder.reset()
            builder.spoil(line, decode_fault(error, line.offset - pending))
            text = ""
        builder.add(text, line)
        yield from builder.overflow()
        if unit == "line" and line.ends:
            yield from builder.flush()
    if line is not None and (pending := len(decoder.getstate()[0])):
        at = line.offset + len(line.data) - pending
        builder.spoil(line, f"the file ends inside a character, at byte {at}")
    yield from builder.flush()


class _Builder:
    """Gathers the pieces of one document at a time and lets go of parts when it grows long."""

    def __init__(self, file: SourceFile, fields: Fields, unit: TextUnit) -> None:
        self._file = file
        self._field = fields.text
        self._unit = unit
        self._begin()

    def _begin(self) -> None:
        self._pieces: list[str] = []
        self._size = 0
        self._line = 0
        self._parts = 0
        self._fault = ""

    def add(self, text: str, line: Line) -> None:
        """Append a piece of text."""
        self._line = self._line or line.number
        self._pieces.append(text)
        self._size += len(text)

    def spoil(self, line: Line, fault: str) -> None:
        """Mark the document at hand as unreadable."""
        self._line = self._line or line.number
        self._fault = self._fault or f"line {line.number}: {fault}"

    def overflow(self) -> Iterator[Record | Problem]:
        """Let go of the parts that are full."""
        while self._size > MAX_PART:
            text = "".join(self._pieces).replace("\r\n", "\n")
            cut = self._cut(text) if len(text) > MAX_PART else len(text)
            if cut < len(text):
                yield from self._emit(text[:cut], f"#{self._parts}")
                self._parts += 1
            self._pieces = [text[cut:] if cut < len(text) else text]
            self._size = len(self._pieces[0])

    @staticmethod
    def _cut(text: str) -> int:
        """Find the end of the last paragraph, else line, that fits into a part."""
        for boundary in ("\n\n", "\n"):
            found = text.rfind(boundary, 0, MAX_PART)
            if found >= 0:
                return found + len(boundary)
        return MAX_PART

    def flush(self) -> Iterator[Record | Problem]:
        """End the document at hand."""
        text = "".join(self._pieces).replace("\r\n", "\n")
        suffix = f"#{self._parts}" if self._parts else ""
        if self._unit != "file":
            text = text.rstrip("\n")
        if text.strip() or self._fault:
            yield from self._emit(text, suffix)
        self._begin()

    def _emit(self, text: str, suffix: str) -> Iterator[Record | Problem]:
        at = "" if self._unit == "file" else f":{self._line}"
        source = f"{self._file.label}{at or ':1'}"
        if self._fault:
            yield Problem(
                "not valid UTF-8",
                source,
                self._fault,
                "convert the file to UTF-8, or use `on_error=skip` to leave the passage out",
            )
            self._fault = ""
        elif text.strip():
            values = {self._field: text}
            yield Record(f"{self._file.name}{at}{suffix}", source, values, values)
