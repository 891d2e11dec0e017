"""Bytes in, lines out: opening, unpacking, telling one kind of file from another.

Knows gzip, UTF-8 and the first bytes by which other formats give themselves away; knows nothing of
records. Nothing here holds more than one line in memory.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple, cast

from moescope.corpus.records import SourceFile, corpus_error
from moescope.words import said_by

MAX_RECORD_BYTES = 256 << 20
"""A record longer than this is taken for a damaged or misnamed file rather than a text."""

_BOM = b"\xef\xbb\xbf"
_FOREIGN = {
    b"PAR1": "a Parquet file; name it .parquet",
    b"PK\x03\x04": "a zip archive; unpack it first",
    b"%PDF": "a PDF; extract its text first",
    b"\x1f\x8b": "a gzip file; add .gz to its name",
    b"\x28\xb5\x2f\xfd": "a zstd file; unpack it first",
    b"BZh": "a bzip2 file; unpack it first",
    b"\xfd7zXZ": "an xz file; unpack it first",
    b"ARROW1": "an Arrow file; convert it to Parquet",
    b"SQLite format 3": "an SQLite database; export its table as .csv",
    b"\xff\xfe": "UTF-16 text; convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)",
    b"\xfe\xff": "UTF-16 text; convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)",
    b"version https://git-lfs": "a Git LFS pointer, not the data; run: git lfs pull",
}


class Line(NamedTuple):
    """A line or, where a limit cut it, a piece of one.

    Attributes:
        number: of the line in the file, from 1.
        offset: of its first byte in the (unpacked) file.
        data: the bytes, with the line break if it has one.
        starts: whether this is the beginning of the line.
    """

    number: int
    offset: int
    data: bytes
    starts: bool

    @property
    def ends(self) -> bool:
        """Whether the line break is part of this piece."""
        return self.data.endswith(b"\n")


@contextmanager
def open_bytes(file: SourceFile) -> Iterator[BinaryIO]:
    """Open a file, unpacking ``.gz``, and turn every failure to read it into a CorpusError.

    Raises:
        CorpusError: the file cannot be opened or read, is not gzip although its name says so, or
            is cut short.
    """
    packed = file.name.lower().endswith(".gz")
    try:
        with file.path.open("rb") as raw:
            if packed:
                if raw.read(2) not in (b"\x1f\x8b", b""):
                    raise corpus_error(
                        f"{file.label}: the name ends in .gz but the file is not gzip; "
                        "rename it without .gz"
                    )
                raw.seek(0)
                with gzip.GzipFile(fileobj=raw, mode="rb") as unpacked:
                    yield cast(BinaryIO, unpacked)
            else:
                yield raw
    except EOFError as error:
        raise corpus_error(
            f"{file.label}: the gzip file ends too early (it was cut short); copy it again"
        ) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise corpus_error(
            f"{file.label}: the gzip file is damaged ({said_by(error)}); copy it again"
        ) from error
    except OSError as error:
        reason = error.strerror or said_by(error)
        raise corpus_error(
            f"{file.label}: cannot be read ({reason}); check the file and its permissions"
        ) from error


def binary_lines(file: SourceFile, limit: int) -> Iterator[Line]:
    """Yield lines as bytes, in pieces of about ``limit`` bytes where they are longer.

    The byte order mark of UTF-8 is left out. A piece never ends between CR and LF.

    Raises:
        CorpusError: see ``open_bytes``; or the first bytes are those of another format.
    """
    with open_bytes(file) as stream:
        number, offset, starts = 1, 0, True
        while data := stream.readline(limit):
            size = len(data)
            while data.endswith(b"\r") and (more := stream.readline(limit)):
                data += more
                size += len(more)
            if offset == 0:
                _refuse_foreign(file, data)
                if data.startswith(_BOM):
                    data = data[len(_BOM) :]
            if b"\0" in data:
                raise corpus_error(
                    f"{file.label}:{number}: NUL byte at byte {offset + data.index(0)}: this is "
                    "not a text file; convert it to UTF-8 text or leave it out"
                )
            line = Line(number, offset + size - len(data), data, starts)
            if data:
                yield line
            offset += size
            starts = line.ends
            number += int(starts)


def whole_lines(file: SourceFile) -> Iterator[Line]:
    """Yield lines uncut.

    Raises:
        CorpusError: see ``binary_lines``; or a line is longer than ``MAX_RECORD_BYTES``.
    """
    for line in binary_lines(file, MAX_RECORD_BYTES):
        if not line.ends and len(line.data) >= MAX_RECORD_BYTES:
            raise corpus_error(
                f"{file.label}:{line.number}: a line of more than {MAX_RECORD_BYTES >> 20} MB, "
                "which is not a record; check that the file holds one record per line"
            )
        yield line


def decode_fault(error: UnicodeDecodeError, offset: int) -> str:
    """Say which byte of the file is not UTF-8."""
    byte = error.object[error.start]
    return f"byte 0x{byte:02x} at byte {offset + error.start} of the file"


def _refuse_foreign(file: SourceFile, head: bytes) -> None:
    """Recognise what is plainly not text by its first bytes."""
    for magic, nature in _FOREIGN.items():
        if head.startswith(magic):
            raise corpus_error(f"{file.label}: not what its name says: it is {nature}")
