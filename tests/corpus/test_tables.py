"""Tables stream, long cells pass, and bad rows are told apart from bad files."""

from __future__ import annotations

import csv
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.corpus.helpers import read, texts
from tests.corpus.test_documents import complaint

from moescope.corpus import CorpusSpec, open_corpus


def test_a_cell_of_a_megabyte_passes(tmp_path: Path) -> None:
    text = 'a "quoted", broken\nline ' * 50_000
    path = tmp_path / "t.csv"
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([["text", "domain"], [text, "web"]])
    assert texts(path) == [text]


def test_csv_rows_are_named_by_the_line_on_which_they_start(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('text,domain\n"a\nb",web\n\nc,web\n')
    assert [d.doc_id for d in read(path)] == ["t.csv:2", "t.csv:5"]


def test_bad_csv_rows_are_skipped_alone(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b'text,domain\na,web\nb\n"c"c,web\nd\xff,web\n,web\ne,web\n')
    corpus = open_corpus(CorpusSpec(path=str(path), on_error="skip"))
    assert [d.text for d in corpus] == ["a", "e"]
    assert {s.reason: s.sources for s in corpus.skipped} == {
        "a ragged row": (f"{path}:3",),
        "a badly quoted row": (f"{path}:4",),
        "not valid UTF-8": (f"{path}:5",),
        "empty text": (f"{path}:6",),
    }


def test_an_empty_domain_cell_is_no_domain(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("text,domain\na,\n")
    assert "no domain in field 'domain'" in complaint(path)
    assert read(path, domain="web")[0].domain == "web"


def table(path: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_parquet_strings_of_every_width_are_read(tmp_path: Path, kind: pa.DataType) -> None:
    path = table(tmp_path / "t.parquet", text=pa.array(["a", "b"], kind), extra=[1, 2])
    documents = read(path, domain="web")
    assert [(d.doc_id, d.text) for d in documents] == [("t.parquet:0", "a"), ("t.parquet:1", "b")]
    assert documents[1].source == f"{path}:row 1"


def test_parquet_dictionaries_serve_as_domains(tmp_path: Path) -> None:
    domains = pa.array(["web", "law"]).dictionary_encode()
    path = table(tmp_path / "t.parquet", text=["a", "b"], domain=domains)
    assert [d.domain for d in read(path)] == ["web", "law"]


def test_parquet_without_the_text_column_lists_what_there_is(tmp_path: Path) -> None:
    path = table(tmp_path / "t.parquet", body=["a"], id=[1])
    assert complaint(path) == (
        f"{path}: no column 'text'; there is: body, id; name the text column with `text_field`"
    )
    assert texts(path, text_field="body", domain="web") == ["a"]


def test_parquet_nulls_and_other_types_are_bad_records(tmp_path: Path) -> None:
    path = table(tmp_path / "n.parquet", text=["a", None])
    assert "row 1: text is not a string (got null)" in complaint(path, domain="web")
    path = table(tmp_path / "b.parquet", text=[b"a"])
    assert "row 0: text is not a string (got bytes)" in complaint(path, domain="web")


def test_parquet_text_that_is_not_utf8_spoils_its_row_only(tmp_path: Path) -> None:
    column = pa.array([b"a", b"\xff", b"c"]).view(pa.string())
    path = table(tmp_path / "t.parquet", text=column)
    assert texts(path, domain="web", on_error="skip") == ["a", "c"]
    assert "row 1: not valid UTF-8 (byte 0xff at byte 0 of a value)" in complaint(
        path, domain="web"
    )


def test_a_parquet_file_is_read_in_batches(tmp_path: Path) -> None:
    path = table(tmp_path / "t.parquet", text=[f"text {i}" for i in range(1000)])
    before = pa.total_allocated_bytes()
    documents = iter(open_corpus(CorpusSpec(path=str(path), domain="web")))
    assert next(documents).text == "text 0"
    assert pa.total_allocated_bytes() - before < 1_000_000
    assert sum(1 for _ in documents) == 999
