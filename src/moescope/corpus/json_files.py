"""JSON lines, read one line at a time, and small JSON lists, read whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from moescope.corpus.lines import Line, decode_fault, open_bytes, whole_lines
from moescope.corpus.records import MEND, Problem, Record, SourceFile, corpus_error
from moescope.words import said_by

MAX_JSON_BYTES = 512 << 20
"""A JSON list cannot be streamed, so a longer one is refused."""


def read_jsonl(file: SourceFile) -> Iterator[Record | Problem]:
    """Read a file of one JSON object per line; blank lines are passed over.

    Yields:
        Records, and a Problem for each line that is not UTF-8, not JSON or not an object.

    Raises:
        CorpusError: the file cannot be read, or is not JSON lines at all.
    """
    first = True
    for line in whole_lines(file):
        content = line.data.strip()
        if not content:
            continue
        if first:
            _refuse_other_layout(file, content)
        first = False
        yield _parse_line(file, line, content)


def read_json(file: SourceFile) -> Iterator[Record | Problem]:
    """Read a file that is one JSON list of objects.

    Yields:
        Records named by their index in the list, from 0.

    Raises:
        CorpusError: the file cannot be read, is larger than 512 MB, or holds no list of objects.
    """
    with open_bytes(file) as stream:
        data = stream.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        raise corpus_error(
            f"{file.label}: a JSON list of more than {MAX_JSON_BYTES >> 20} MB cannot be "
            "streamed; write one object per line and name it .jsonl"
        )
    if not data.strip():
        return
    items = _parse_list(file, data)
    for index, item in enumerate(items):
        yield _as_record(f"{file.name}:{index}", f"{file.label}:{index}", item)


def _parse_list(file: SourceFile, data: bytes) -> list[Any]:
    try:
        items = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise corpus_error(
            f"{file.label}: not valid UTF-8 ({decode_fault(error, 0)}); convert it to UTF-8"
        ) from error
    except (ValueError, RecursionError) as error:
        raise corpus_error(
            f"{file.label}: not a JSON document ({why_no_json(error)}); if it holds one object per "
            "line, name it .jsonl"
        ) from error
    if not isinstance(items, list):
        raise corpus_error(
            f"{file.label}: holds {_kind(items)}, expected a list of objects; "
            "write [{...}, {...}] or one object per line in a .jsonl file"
        )
    return items


def _parse_line(file: SourceFile, line: Line, content: bytes) -> Record | Problem:
    source = f"{file.label}:{line.number}"
    try:
        item = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        at = line.offset + line.data.index(content)
        return Problem("not valid UTF-8", source, decode_fault(error, at), MEND)
    except (ValueError, RecursionError) as error:
        advice = MEND
        if content in (b"{", b"{}") or content.endswith(b"{"):
            advice = "one object must stand on one line; " + advice
        return Problem("not valid JSON", source, why_no_json(error), advice)
    return _as_record(f"{file.name}:{line.number}", source, item)


def _as_record(place: str, source: str, item: Any) -> Record | Problem:
    if isinstance(item, dict):
        return Record(place, source, item, item.keys())
    return Problem("not an object", source, f"got {_kind(item)}", 'expected {"text": ...}; ' + MEND)


def _refuse_other_layout(file: SourceFile, content: bytes) -> None:
    if content.startswith(b"["):
        raise corpus_error(
            f"{file.label}: starts with '[', so it is a JSON list and not one object per line; "
            "name it .json"
        )
    if content.startswith(b"<"):
        raise corpus_error(
            f"{file.label}: starts with '<', so it is a web page or XML and not JSON lines; "
            "download the data file itself"
        )


def why_no_json(error: Exception) -> str:
    """What `json.loads` says, in a few words."""
    return "nested too deeply" if isinstance(error, RecursionError) else said_by(error, 120)


def _kind(item: Any) -> str:
    kinds = {list: "a list", dict: "an object", str: "a string", bool: "a boolean"}
    return "null" if item is None else kinds.get(type(item), "a number")
