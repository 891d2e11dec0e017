"""The files of an import: found, told apart by a checksum, and read one entry at a time.

JSON lines (also ``.gz``), a JSON object or list, ``.npz``, ``.safetensors``, and for llama.cpp
``.csv`` with a JSON file beside it. Nothing is unpickled. It does not know what an engine is.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import safe_open

from moescope.corpus.json_files import MAX_JSON_BYTES, read_json, why_no_json
from moescope.corpus.lines import open_bytes, whole_lines
from moescope.corpus.records import MEND, Problem, SourceFile, corpus_error
from moescope.errors import CorpusError
from moescope.files import sha256_of
from moescope.trace.importers.common import MAX_ARRAY_BYTES, Item, RefusedError, npy_bytes
from moescope.words import listing, said_by


class CaptureFile(NamedTuple):
    """One file: where it is, its name in messages and ids, its size and its checksum."""

    path: Path
    name: str
    size: int
    sha256: str

    @property
    def packed(self) -> bool:
        """Its size says nothing of how much there is to read."""
        return self.name.endswith(".gz")


def find_captures(paths: Sequence[str | Path], suffixes: tuple[str, ...]) -> list[CaptureFile]:
    """The files that these paths name, in their order; of a folder, all that fit, by name.

    Raises:
        CorpusError: a path is not there, a folder holds no such file, a file has another suffix,
            or one is named twice.
    """
    found = [path for given in paths for path in _files_of(Path(given), suffixes)]
    made = [_capture(path) for path in found]
    names = [file.name for file in made]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise corpus_error(f"two files of the name {twice[0]}; ids are told apart by it")
    if not made:
        raise corpus_error("no file to import")
    return made


def _files_of(given: Path, suffixes: tuple[str, ...]) -> list[Path]:
    try:
        inside = [p for p in given.iterdir() if p.is_file()] if given.is_dir() else None
        there = given.is_file()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise corpus_error(f"{str(given)[:200]}: {why}") from error
    if inside is not None:
        fitting = sorted(path for path in inside if _fits(path, suffixes))
        if not fitting:
            raise corpus_error(f"{given}: no capture file in it; expected {listing(suffixes)}")
        return fitting
    if not there:
        kind = "no regular file" if given.exists() else "no such file"
        raise corpus_error(f"{given}: {kind}; give files that an engine's routing was saved to")
    if not _fits(given, suffixes):
        raise corpus_error(
            f"{given}: unknown kind of file; expected {listing(suffixes)} (text also as .gz)"
        )
    return [given]


def _fits(path: Path, suffixes: tuple[str, ...]) -> bool:
    return path.name.lower().removesuffix(".gz").endswith(suffixes)


def _capture(path: Path) -> CaptureFile:
    try:
        return CaptureFile(path, path.name, path.stat().st_size, sha256_of(path))
    except OSError as error:
        raise corpus_error(f"{path}: cannot be read ({error.strerror})") from error


def beside(file: CaptureFile) -> list[CaptureFile]:
    """The JSON file that tells what a CSV does not, if there is one."""
    path = file.path.with_name(f"{_stem(file.name)}.json")
    return [_capture(path)] if _is_table(file.name) and path.is_file() else []


def _is_table(name: str) -> bool:
    return name.lower().removesuffix(".gz").endswith(".csv")


def _stem(name: str) -> str:
    """The name without ``.csv`` and ``.gz``, whatever their case."""
    return name[: len(name.lower().removesuffix(".gz").removesuffix(".csv"))]


def read_items(file: CaptureFile) -> Iterator[Item | RefusedError]:
    """The entries of a file; an entry that cannot be read is given as the reason why.

    Raises:
        CorpusError: the file as a whole cannot be read, or is not what its name says.
    """
    name = file.name.lower().removesuffix(".gz")
    source = SourceFile(file.path, file.name, str(file.path), None)
    if name.endswith((".jsonl", ".ndjson")):
        yield from _lines(source)
    elif name.endswith(".json"):
        yield from _document(source, file.size)
    elif _is_table(name):
        yield _table(source, file)
    else:
        values = _npz(file.path) if name.endswith(".npz") else _safetensors(file.path)
        stem = Path(file.name).stem
        yield Item(str(file.path), stem, {"id": stem, **values}, file.size)


def _lines(source: SourceFile) -> Iterator[Item | RefusedError]:
    for line in whole_lines(source):
        content = line.data.strip()
        if not content:
            continue
        where = f"{source.label}:{line.number}"
        made = _object(content, where)
        if isinstance(made, RefusedError):
            yield made
        else:
            read = line.offset + len(line.data)
            yield Item(where, f"{source.name}:{line.number}", made, read)


def _object(content: bytes, where: str) -> dict[str, Any] | RefusedError:
    try:
        made = json.loads(content)
    except (ValueError, RecursionError) as error:
        return RefusedError(Problem("not valid JSON", where, why_no_json(error), MEND))
    if not isinstance(made, dict):
        return RefusedError(Problem("not an object", where, f"got {type(made).__name__}", MEND))
    return made


def _document(source: SourceFile, size: int) -> Iterator[Item | RefusedError]:
    """One answer of a server saved as a file, or a list of entries."""
    with open_bytes(source) as stream:
        head = stream.read(64).lstrip()
        content = head + stream.read(MAX_JSON_BYTES) if head.startswith(b"{") else b""
    if len(content) > MAX_JSON_BYTES:
        raise corpus_error(
            f"{source.label}: one answer of more than {MAX_JSON_BYTES >> 20} MB; write one request "
            "per line and name it .jsonl"
        )
    if content:
        made = _object(content, source.label)
        if isinstance(made, RefusedError):
            raise CorpusError(made.problem.message())
        yield Item(source.label, Path(source.name).stem, made, size)
        return
    for record in read_json(source):
        if isinstance(record, Problem):
            yield RefusedError(record)
        else:
            yield Item(record.source, record.place, dict(record.values), size)


def _table(source: SourceFile, file: CaptureFile) -> Item:
    """A CSV is one request; what it does not say stands in the JSON file beside it."""
    stem = _stem(file.name)
    values: dict[str, Any] = {}
    for other in beside(file):
        if other.size > MAX_JSON_BYTES:
            raise corpus_error(f"{other.path}: more than {MAX_JSON_BYTES >> 20} MB of JSON")
        made = _object(other.path.read_bytes(), str(other.path))
        if isinstance(made, RefusedError):
            raise CorpusError(made.problem.message())
        values = made
    return Item(source.label, stem, {"id": stem, **values, "csv": source}, file.size)


def _npz(path: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as packed:
            _refuse_bombs(packed)
        with np.load(path, allow_pickle=False) as archive:
            return {name: _plain(archive[name]) for name in archive.files}
    except Exception as error:  # whatever the libraries say of a file of unknown origin
        raise corpus_error(
            f"{path}: not a .npz archive of plain arrays ({said_by(error, 120)})"
        ) from error


def _refuse_bombs(packed: zipfile.ZipFile) -> None:
    """What an archive declares is estimated before anything of it is unpacked."""
    total = 0
    for member in packed.infolist():
        with packed.open(member) as stream:
            declared = npy_bytes(stream)
        if declared > member.file_size:
            raise ValueError(
                f"{member.filename} declares {declared:,} bytes and holds {member.file_size:,}"
            )
        total += member.file_size
    if total > MAX_ARRAY_BYTES:
        raise ValueError(f"it unpacks to {total:,} bytes, expected at most {MAX_ARRAY_BYTES:,}")


def _plain(array: Any) -> Any:
    """A text or a single number as such."""
    return array.item() if array.ndim == 0 else array


def _safetensors(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="np") as archive:
            arrays = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118
            metadata = archive.metadata() or {}
    except Exception as error:  # whatever the library says of a file of unknown origin
        raise corpus_error(
            f"{path}: not a safetensors file of whole numbers ({said_by(error, 120)})"
        ) from error
    labels = {name: metadata[name] for name in ("id", "domain", "prompt") if name in metadata}
    return {**{name: _plain(a) for name, a in arrays.items()}, **labels}
