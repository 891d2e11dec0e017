"""Which files a corpus is made of, and which reader each of them needs.

The suffix decides, upper or lower case, with or without ``.gz``. In a folder every file gives its
domain by its place: the sub-folder at the top that it lies in, or its own name. This module knows
nothing of what documents are made of records.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePath

from moescope.corpus.json_files import read_json, read_jsonl
from moescope.corpus.records import Fields, Problem, Record, SourceFile, corpus_error
from moescope.corpus.tables import read_csv, read_parquet
from moescope.corpus.text_files import TextUnit, read_text
from moescope.words import near_names, one_line

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv", ".txt", ".md")
"""What can be read; all but .json and .parquet also with .gz behind it."""

_NEVER_PACKED = (".json", ".parquet")
_IGNORED = ("README", "LICENSE", "LICENCE", "SOURCES")
_IGNORED_LOWER = ("readme", "license", "licence")


def find_files(path: str) -> list[SourceFile]:
    """List the files of a corpus in the order in which they are read.

    Hidden files and, inside folders, those called README, LICENSE or SOURCES are left out.

    Returns:
        At least one file, ordered by name, folder by folder.

    Raises:
        CorpusError: the path does not exist, a suffix is not supported, or nothing is there.
    """
    root = Path(path)
    try:
        if root.is_dir():
            files = list(_walk(root, path.rstrip("/\\") or path))
        elif root.is_file():
            files = [SourceFile(root, root.name, path, None)]
        else:
            raise corpus_error(_missing(root, path))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        shown = one_line(path, 200)
        raise corpus_error(f"{shown!r}: cannot be read ({reason}); check the path") from error
    if not files:
        raise corpus_error(
            f"{path}: no file in this folder can be read; put text there "
            f"({', '.join(SUFFIXES)}), one file or one sub-folder per domain"
        )
    for file in files:
        _suffix(file)
    return files


def read_file(file: SourceFile, fields: Fields, unit: TextUnit) -> Iterator[Record | Problem]:
    """Read one file with the reader of its suffix.

    Raises:
        CorpusError: the file cannot be read, or is not what its suffix says.
    """
    suffix = _suffix(file)
    if suffix in (".txt", ".md"):
        return read_text(file, fields, unit)
    if suffix in (".jsonl", ".ndjson"):
        return read_jsonl(file)
    if suffix == ".json":
        return read_json(file)
    if suffix == ".parquet":
        return read_parquet(file, fields)
    return read_csv(file, fields, "\t" if suffix == ".tsv" else ",")


def stem_of(file: SourceFile) -> str:
    """Give the name of a file without its folder and its suffixes."""
    name = PurePath(file.name).name
    name = name[: -len(".gz")] if name.lower().endswith(".gz") else name
    return PurePath(name).stem


def is_plain_text(file: SourceFile) -> bool:
    """Tell text, which has no fields, from records."""
    return _suffix(file) in (".txt", ".md")


def _walk(root: Path, label: str) -> Iterator[SourceFile]:
    seen = {os.path.realpath(root)}
    pending = [root]
    found: list[Path] = []
    while pending:
        for entry in sorted(pending.pop().iterdir()):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                real = os.path.realpath(entry)
                if real not in seen:  # a link may lead back up
                    seen.add(real)
                    pending.append(entry)
            elif not _speaks_of_the_data(entry.name):
                found.append(entry)
    for entry in sorted(found, key=lambda e: e.relative_to(root).parts):
        relative = entry.relative_to(root)
        name = relative.as_posix()
        file = SourceFile(entry, name, f"{label}/{name}", None)
        if not entry.is_file():
            raise corpus_error(f"{file.label}: not a regular file, or a link to nothing; remove it")
        yield file._replace(domain=relative.parts[0] if relative.parts[1:] else stem_of(file))


def _speaks_of_the_data(name: str) -> bool:
    """Tell README.md, LICENSE-MIT and SOURCES.txt from data such as sources.jsonl."""
    return name.startswith(_IGNORED) or name.lower().split(".")[0] in _IGNORED_LOWER


def _suffix(file: SourceFile) -> str:
    name = PurePath(file.name.lower())
    suffix = name.suffix
    if suffix == ".gz":
        suffix = PurePath(name.stem).suffix
        if suffix in SUFFIXES and suffix not in _NEVER_PACKED:
            return suffix
    elif suffix in SUFFIXES:
        return suffix
    raise corpus_error(
        f"{file.label}: files ending in {''.join(name.suffixes[-2:]) or 'nothing'!r} cannot be "
        f"read; supported: {', '.join(SUFFIXES)}, and .gz behind all but "
        f"{' and '.join(_NEVER_PACKED)}; convert or remove it"
    )


def _missing(root: Path, path: str) -> str:
    if os.path.lexists(root):
        return f"{path}: neither a file nor a folder; give a file or a folder of text"
    if not root.parent.is_dir():
        return f"{path}: no such file: the folder {root.parent} does not exist; check the path"
    neighbours = [entry.name for entry in sorted(root.parent.iterdir())]
    hint = near_names(root.name, neighbours) if neighbours else "that folder is empty"
    return f"{path}: no such file or folder; {hint}"
