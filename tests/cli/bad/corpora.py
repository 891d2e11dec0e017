"""Text that cannot be read: records, tables, packed files, and what is not a file."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tests.cli.bad import Case, case

_TRACE = "trace MOE {file} -o r --engine resident"


def _file(name: str, content: bytes) -> Callable[[Path], None]:
    def prepare(here: Path) -> None:
        (here / name).write_bytes(content)

    return prepare


def _line(**record: Any) -> bytes:
    return json.dumps(record).encode() + b"\n"


_LINE = _line(id="a", domain="d", text="the plan covers daily living")


def _parquet(damage: Callable[[bytes], bytes] = bytes, **columns: Any) -> Callable[[Path], None]:
    def prepare(here: Path) -> None:
        pq.write_table(pa.table(columns), here / "c.parquet")
        (here / "c.parquet").write_bytes(damage((here / "c.parquet").read_bytes()))

    return prepare


def _folder(fill: Callable[[Path], object]) -> Callable[[Path], None]:
    def prepare(here: Path) -> None:
        (here / "c").mkdir()
        fill(here / "c")

    return prepare


_LINES = {
    "a deep list": (b"[" * 100_000 + b"\n", "JSON list"),
    "a deep object": (_LINE + b'{"a":' * 100_000 + b"\n", "c.jsonl:2: not valid JSON (nested too"),
    "half a character": (b'{"text": "\\ud800 plan", "domain": "d"}\n', "c.jsonl:1"),
    "half a character in a domain": (b'{"text": "plan", "domain": "\\udfff"}\n', "c.jsonl:1"),
    "a number for text": (_line(text=7, domain="d"), "c.jsonl:1"),
    "a list for text": (_line(text=["a"], domain="d"), "c.jsonl:1"),
    "null for text": (_line(text=None, domain="d"), "c.jsonl:1"),
    "an object for a domain": (_line(text="plan", domain={}), "c.jsonl:1"),
    "a list for an id": (_line(text="plan", domain="d", id=["a"]), "c.jsonl:1"),
    "5,000 digits": (b'{"text": "a", "id": ' + b"9" * 5000 + b"}\n", "c.jsonl:1: not valid JSON"),
    "an id twice": (_LINE * 2, "c.jsonl:2"),
    "a half line": (_LINE + _LINE[:20], "c.jsonl:2: not valid JSON"),
    "zeros": (bytes(1000), "NUL byte"),
    "no byte": (b"", "c.jsonl"),
    "blank lines": (b"\n\n\n", "c.jsonl"),
    "UTF-16": (_LINE.decode().encode("utf-16"), "UTF-16"),
}

_FILES = {
    "garbage in a table": ("c.parquet", bytes(range(256)), "not a Parquet file"),
    "an empty table": ("c.parquet", b"", "empty file"),
    "NULs in a table": ("c.csv", b"text,domain\na\0b,c\n", "NUL byte"),
    "an open quote": ("c.csv", b'text,domain\n"never closed,\n' * 9, "c.csv"),
    "a column twice": ("c.csv", b"text,text,domain\na,b,c\n", "c.csv"),
    "a short row": ("c.csv", b"text,domain\na\n", "c.csv:2"),
    "a list of numbers": ("c.json", b"[1, 2]", "c.json:0: not an object"),
    "one object": ("c.json", b'{"a": 1}', "expected a list of objects"),
    "half a packed file": ("c.jsonl.gz", gzip.compress(_LINE)[:-9], "cut short"),
    "no packed file": ("c.jsonl.gz", _LINE, "not gzip"),
    "packed zeros": ("c.jsonl.gz", gzip.compress(bytes(64 << 20), 1), "NUL byte"),
    "an unknown suffix": ("c.pdf", b"%PDF", "c.pdf"),
}

_TABLES = {
    "numbers for text": (_parquet(text=[1, 2], domain=["a", "b"]), "c.parquet"),
    "lists for text": (_parquet(text=[["a"]], domain=["b"]), "c.parquet"),
    "no column of text": (_parquet(body=["a"], domain=["b"]), "c.parquet"),
    "half a table": (_parquet(lambda b: b[:-30], text=["a"], domain=["b"]), "cut short"),
    "a damaged table": (
        _parquet(lambda b: b[:-40] + b"\xff" * 28 + b[-12:], text=["a"], domain=["b"]),
        "the Parquet file is damaged"),
}  # fmt: skip


def _cases() -> list[Case]:
    lines = [
        case(f"line: {name}", _TRACE.format(file="c.jsonl"), says, prepare=_file("c.jsonl", data))
        for name, (data, says) in _LINES.items()
    ]
    files = [
        case(f"file: {name}", _TRACE.format(file=file), says, prepare=_file(file, data))
        for name, (file, data, says) in _FILES.items()
    ]
    tables = [
        case(f"table: {name}", _TRACE.format(file="c.parquet"), says, prepare=prepare)
        for name, (prepare, says) in _TABLES.items()
    ]
    return [*lines, *files, *tables]


_CHAT = "trace MOE c.jsonl -o r --engine resident --text-field messages"
_TURN = {"role": "user", "content": "the plan"}
_CHATS = {
    "messages without a choice of turns": (_CHAT, [_TURN], "--turns all or --turns assistant"),
    "a text for messages": (f"{_CHAT} --turns all", "the plan", "expected a list of messages"),
    "no message": (f"{_CHAT} --turns all", [], "an empty list"),
    "numbers for messages": (f"{_CHAT} --turns all", [7], "message 0: expected an object"),
    "a message without words": (f"{_CHAT} --turns all", [{"role": "user"}], "got null"),
    "no answer": (f"{_CHAT} --turns assistant", [_TURN], "of its 1 message none counts"),
    "messages without a template": (f"{_CHAT} --turns all", [_TURN], "has no chat template"),
    "turns of another name": (f"{_CHAT} --turns user", [_TURN], "--turns"),
    "two ways to a chat": (f"{_CHAT} --turns all --chat-text", [_TURN], "exclude each other"),
    "a template around a chat": (
        "ablate MOE --experts L0E0 --corpus c.jsonl -o r --chat-template --chat-text",
        [_TURN],
        "--chat-template and --chat-text exclude each other",
    ),
}


CASES = [
    *_cases(),
    *(
        case(name, words, says, prepare=_file("c.jsonl", _line(domain="d", messages=value)))
        for name, (words, value, says) in _CHATS.items()
    ),
    case("a name of 5,000 letters for a text", ["trace", "MOE", "x" * 5000, "-o", "r"], "too long"),
    case("a pipe for a text", _TRACE.format(file="p"), "p", prepare=lambda h: os.mkfifo(h / "p")),
    case(
        "a pipe among texts",
        _TRACE.format(file="c"),
        "not a regular file",
        prepare=_folder(lambda c: os.mkfifo(c / "x.jsonl")),
    ),
    case(
        "a device among texts",
        _TRACE.format(file="c"),
        "not a regular file",
        prepare=_folder(lambda c: (c / "x.jsonl").symlink_to("/dev/zero")),
    ),
    case(
        "a folder called like a file",
        _TRACE.format(file="c"),
        "no file in this folder",
        prepare=_folder(lambda c: (c / "x.jsonl").mkdir()),
    ),
    case(
        "a damaged file among good ones",
        _TRACE.format(file="c"),
        "b.parquet",
        prepare=_folder(
            lambda c: ((c / "a.jsonl").write_bytes(_LINE), (c / "b.parquet").write_bytes(b"PAR1"))
        ),
    ),
]
