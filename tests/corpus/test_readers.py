"""The suffix chooses the reader, a folder's places name the domains, and junk stays outside."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.corpus.helpers import read
from tests.corpus.test_documents import complaint

from moescope.corpus import SUFFIXES, CorpusSpec, Document, open_corpus
from moescope.errors import CorpusError

ALL_SUFFIXES = [*SUFFIXES, *(s + ".gz" for s in SUFFIXES if s not in (".json", ".parquet"))]
ROWS = [{"id": "1", "domain": "web", "text": "one\ntwo"}, {"id": "2", "domain": "law", "text": "ü"}]


def sample(suffix: str) -> bytes:
    """Two good documents in the format of a suffix."""
    if suffix == ".parquet":
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(ROWS), sink)
        return sink.getvalue().to_pybytes()
    if suffix.endswith(".gz"):
        return gzip.compress(sample(suffix.removesuffix(".gz")), mtime=0)
    if suffix == ".json":
        return json.dumps(ROWS).encode()
    if suffix in (".jsonl", ".ndjson"):
        return "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS).encode()
    if suffix in (".csv", ".tsv"):
        tab = "," if suffix == ".csv" else "\t"
        rows = [["id", "domain", "text"], ["1", "web", '"one\ntwo"'], ["2", "law", "ü"]]
        return "\n".join(tab.join(row) for row in rows).encode()
    return "one\ntwo\n\nü\n".encode()


@pytest.mark.parametrize("suffix", ALL_SUFFIXES)
def test_every_supported_suffix_is_read_in_either_case(tmp_path: Path, suffix: str) -> None:
    for name in (f"data{suffix}", f"DATA{suffix.upper()}"):
        (tmp_path / name).write_bytes(sample(suffix))
        documents = read(tmp_path / name)
        assert [d.text for d in documents] == ["one\ntwo", "ü"]
        is_text = suffix.removesuffix(".gz") in (".txt", ".md")
        domains = [Path(name).name.split(".")[0]] * 2 if is_text else ["web", "law"]
        assert [d.domain for d in documents] == domains


@pytest.mark.parametrize("suffix", [s for s in ALL_SUFFIXES if s != ".parquet"])
def test_byte_order_marks_and_windows_line_ends_change_nothing(tmp_path: Path, suffix: str) -> None:
    data = sample(suffix.removesuffix(".gz"))
    windows = b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n")
    path = tmp_path / f"data{suffix}"
    path.write_bytes(gzip.compress(windows, mtime=0) if suffix.endswith(".gz") else windows)
    assert [d.text for d in read(path)] == ["one\ntwo", "ü"]


@pytest.mark.parametrize("suffix", ALL_SUFFIXES)
def test_an_empty_file_is_an_error(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"data{suffix}"
    path.write_bytes(b"")
    assert "empty file" in complaint(path)


@pytest.mark.parametrize("suffix", [s for s in ALL_SUFFIXES if s.endswith((".gz", ".parquet"))])
def test_a_file_cut_short_is_an_error_even_when_skipping(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"data{suffix}"
    path.write_bytes(sample(suffix)[:-9])
    assert "cut short" in complaint(path)
    assert "cut short" in complaint(path, on_error="skip")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", b'[\n{"text": "x"}]', "starts with '[', so it is a JSON list"),
        ("a.jsonl", b"<!doctype html>", "it is a web page or XML"),
        ("a.jsonl", b'{\n"text": "x"}', "one object must stand on one line"),
        ("a.jsonl", sample(".parquet"), "it is a Parquet file; name it .parquet"),
        ("a.txt", b"%PDF-1.7\n...", "it is a PDF; extract its text first"),
        ("a.csv", b"PK\x03\x04....", "it is a zip archive; unpack it first"),
        ("a.csv", gzip.compress(b"x", mtime=0), "it is a gzip file; add .gz to its name"),
        ("a.txt", "x".encode("utf-16"), "it is UTF-16 text; convert it to UTF-8"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "run: git lfs pull"),
        ("a.jsonl.gz", b'{"text": "x"}', "the name ends in .gz but the file is not gzip"),
        ("a.txt.gz", gzip.compress(b"x" * 9, mtime=0)[:-8] + b"\0" * 8, "the gzip file is damaged"),
        ("a.txt.gz", gzip.compress(b"%PDF-", mtime=0), "it is a PDF"),
        ("a.parquet", b"id,text\n1,x\n", "not a Parquet file (it starts with b'id,t'"),
        ("a.parquet", b"PAR1" + b"\0" * 60 + b"PAR1", "the Parquet file is damaged"),
        ("a.csv", b"text,domain\nx\0y,web\n", ":2: NUL byte at byte 13"),
        ("a.csv", b"a;text\n1;x\n", "the columns are separated by ';', expected ','"),
        ("a.csv", b"id,body\n1,x\n", "no column 'text'; there is: id, body"),
        ("a.csv", b"text,text\n1,x\n", "2 columns are called 'text', expected one"),
        ("a.csv", b"text,domain\nx,web,more\n", ":2: a ragged row (3 cells, the header names 2"),
        ("a.csv", b'text,domain\n"x"y,web\n', ":2: a badly quoted row ("),
        ("a.csv", b'text,domain\n"x,web\n', ":2: a badly quoted row (unexpected end of data)"),
        ("a.csv", b"text,domain\nx\xff,web\n", ":2: not valid UTF-8 (line 2: byte 0xff at byte 13"),
        ("a.json", b'{"text": "x"}', "holds an object, expected a list of objects"),
        ("a.json", b'{"text": "x"}\n{"text": "y"}', "if it holds one object per line, name it"),
        ("a.json", b'["x"]', "a.json:0: not an object (got a string)"),
        ("a.txt", b"fine\n\nb\xffd\n", ":3: not valid UTF-8 (line 3: byte 0xff at byte 7"),
        ("a.txt", b"fine \xc3", "the file ends inside a character, at byte 5"),
        ("a.docx", b"PK", "files ending in '.docx' cannot be read; supported: .jsonl"),
        ("a.tar.gz", b"", "files ending in '.tar.gz' cannot be read"),
        ("a.parquet.gz", b"", "files ending in '.parquet.gz' cannot be read"),
        ("data", b"", "files ending in 'nothing' cannot be read"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_says_why_and_what_to_do(
    tmp_path: Path, name: str, content: bytes, expected: str
) -> None:
    (tmp_path / name).write_bytes(content)
    message = complaint(tmp_path / name, domain="web")
    assert message.startswith(str(tmp_path / name))
    assert expected in message


def test_a_missing_path_suggests_near_names(tmp_path: Path) -> None:
    (tmp_path / "domains.jsonl").touch()
    path = tmp_path / "domain.jsonl"
    assert complaint(path) == f"{path}: no such file or folder; did you mean domains.jsonl?"
    assert "the folder" in complaint(tmp_path / "x" / "y.jsonl")
    assert complaint(" ").startswith("the path of the corpus is empty; give a file")


def folder(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text of {path.name}\n")
    return root


def test_files_and_sub_folders_of_a_folder_are_domains(tmp_path: Path) -> None:
    root = folder(
        tmp_path / "corpus", "web.txt", "law/b.txt", "law/deep/er.md", "law/a.txt", ".git/x.bin",
        ".hidden", "README.md", "law/LICENSE", "SOURCES.txt", "readme", "sources.txt",
    )  # fmt: skip
    (root / "code.jsonl").write_text('{"text": "x"}\n{"text": "y", "domain": "python"}\n')
    assert [(d.doc_id, d.domain) for d in read(root)] == [
        ("code.jsonl:1", "code"),
        ("code.jsonl:2", "python"),
        ("law/a.txt:1", "law"),
        ("law/b.txt:1", "law"),
        ("law/deep/er.md:1", "law"),
        ("sources.txt:1", "sources"),
        ("web.txt:1", "web"),
    ]
    assert {d.domain for d in read(root, domain="mine")} == {"mine", "python"}
    assert read(root)[3].source == f"{root}/law/b.txt:1"


def test_a_folder_with_a_file_of_another_kind_names_it(tmp_path: Path) -> None:
    root = folder(tmp_path / "corpus", "web.txt", "law/b.docx")
    assert complaint(root).startswith(f"{root}/law/b.docx: files ending in '.docx' cannot be read")


def test_an_empty_file_in_a_folder_is_named_or_counted(tmp_path: Path) -> None:
    root = folder(tmp_path / "corpus", "web.txt")
    (root / "law.txt").write_text("\n \n")
    assert complaint(root).startswith(f"{root}/law.txt: empty file")
    corpus = open_corpus(CorpusSpec(path=str(root), on_error="skip"))
    assert len(list(corpus)) == 1
    assert [(s.reason, s.count) for s in corpus.skipped] == [("empty file", 1)]


def test_an_empty_folder_and_a_folder_called_all_are_refused(tmp_path: Path) -> None:
    assert "no file in this folder can be read" in complaint(tmp_path)
    root = folder(tmp_path / "corpus", "all/web.txt")
    assert "the domain 'all' is reserved" in complaint(root)


def test_links_are_followed_once_and_broken_ones_are_named(tmp_path: Path) -> None:
    root = folder(tmp_path / "corpus", "law/a.txt")
    (root / "law" / "up").symlink_to(root)
    assert len(read(root)) == 1
    (root / "gone.txt").symlink_to(tmp_path / "nowhere")
    assert "gone.txt: not a regular file, or a link to nothing" in complaint(root)


def test_files_are_opened_only_when_their_turn_comes(tmp_path: Path) -> None:
    root = folder(tmp_path / "corpus", "a.txt", "b.txt")
    (root / "b.txt").write_bytes(b"\xff\xfe")
    documents = iter(open_corpus(CorpusSpec(path=str(root))))
    assert next(documents).doc_id == "a.txt:1"
    with pytest.raises(CorpusError, match="UTF-16"):
        next(documents)


@pytest.mark.parametrize("suffix", ALL_SUFFIXES)
@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_whatever_the_bytes_only_a_corpus_error_comes_out(
    tmp_path: Path, suffix: str, data: st.DataObject
) -> None:
    path = tmp_path / f"data{suffix}"
    good = sample(suffix)
    mutated = st.lists(
        st.tuples(st.integers(0, len(good) - 1), st.integers(0, 255)), min_size=1, max_size=12
    ).map(lambda edits: _edited(good, edits))
    path.write_bytes(data.draw(st.binary(max_size=200) | mutated))
    options = data.draw(
        st.fixed_dictionaries(
            {
                "on_error": st.sampled_from(["fail", "skip"]),
                "text_unit": st.sampled_from(["paragraph", "line", "file"]),
                "domain": st.none() | st.just("web"),
            }
        )
    )
    documents, message = outcome(path, **options)
    assert "\n" not in message
    assert bool(documents) != bool(message)
    assert all(d.text.strip() and d.domain and d.doc_id for d in documents)


def outcome(path: Path, **options: object) -> tuple[list[Document], str]:
    """Read a corpus, or give the message with which it was refused."""
    try:
        return read(path, **options), ""
    except CorpusError as error:
        return [], str(error)


def _edited(good: bytes, edits: list[tuple[int, int]]) -> bytes:
    data = bytearray(good)
    for index, value in edits:
        data[index] = value
    return bytes(data)
