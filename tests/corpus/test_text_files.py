"""Paragraphs, lines and files become documents; long ones are cut at the best place."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.corpus.helpers import read, texts

from moescope.corpus import CorpusSpec, open_corpus, text_files


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "MAX_PART", 10)
    monkeypatch.setattr(text_files, "_PIECE", 4)


def write(tmp_path: Path, content: str) -> Path:
    path = tmp_path / "novel.txt"
    path.write_bytes(content.encode())
    return path


def test_paragraphs_end_at_blank_lines(tmp_path: Path) -> None:
    path = write(tmp_path, "\n\n  one\ntwo\n \t \n\nthree")
    assert [(d.doc_id, d.text) for d in read(path)] == [
        ("novel.txt:3", "  one\ntwo"),
        ("novel.txt:7", "three"),
    ]


def test_lines_are_documents_when_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path, "one\n\ntwo\nthree")
    assert [(d.doc_id, d.text) for d in read(path, text_unit="line")] == [
        ("novel.txt:1", "one"),
        ("novel.txt:3", "two"),
        ("novel.txt:4", "three"),
    ]


def test_a_file_is_one_document_when_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path, "one\n\ntwo\n")
    assert [(d.doc_id, d.text) for d in read(path, text_unit="file")] == [
        ("novel.txt", "one\n\ntwo\n")
    ]


def test_a_long_file_is_cut_after_a_paragraph_else_a_line_else_a_character(
    tmp_path: Path, small_parts: None
) -> None:
    content = "abc\n\ndef\nghi\njklmnopqrstuvwxyz"
    documents = read(write(tmp_path, content), text_unit="file")
    assert [(d.doc_id, d.text) for d in documents] == [
        ("novel.txt#0", "abc\n\n"),
        ("novel.txt#1", "def\nghi\n"),
        ("novel.txt#2", "jklmnopqrs"),
        ("novel.txt#3", "tuvwxyz"),
    ]


def test_a_long_paragraph_is_cut_too(tmp_path: Path, small_parts: None) -> None:
    documents = read(write(tmp_path, "short\n\nlong paragraph\n\nend"))
    assert [(d.doc_id, d.text) for d in documents] == [
        ("novel.txt:1", "short"),
        ("novel.txt:3#0", "long parag"),
        ("novel.txt:3#1", "raph"),
        ("novel.txt:5", "end"),
    ]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1))
def test_parts_joined_are_the_file(tmp_path: Path, small_parts: None, content: str) -> None:
    path = write(tmp_path, "x" + content + "x")
    joined = "".join(texts(path, text_unit="file"))
    # parts of blanks only are no documents, so blanks may be lost where two parts meet
    whole = "x" + content.removeprefix("\ufeff") + "x"
    assert "".join(joined.split()) == "".join(whole.split())
    assert all(len(t) <= 10 for t in texts(path, text_unit="file"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(st.text("ab é\t", max_size=8)), ending=st.sampled_from(["\n", "\r\n"]))
def test_paragraphs_are_those_of_a_plain_reading(
    tmp_path: Path, lines: list[str], ending: str
) -> None:
    path = write(tmp_path, ending.join(["a", *lines]))
    expected: list[list[str]] = [[]]
    for line in ["a", *lines]:
        expected[-1].append(line) if line.strip() else expected.append([])
    assert texts(path) == ["\n".join(p) for p in expected if p]


def test_a_spoilt_paragraph_is_skipped_alone(tmp_path: Path) -> None:
    path = tmp_path / "novel.txt"
    path.write_bytes(b"one\n\ntw\xffo\nmore\n\nthree\n")
    corpus = open_corpus(CorpusSpec(path=str(path), on_error="skip"))
    assert [d.text for d in corpus] == ["one", "three"]
    assert [(s.reason, s.sources) for s in corpus.skipped] == [("not valid UTF-8", (f"{path}:3",))]


def test_a_character_across_two_pieces_is_read_whole(tmp_path: Path, small_parts: None) -> None:
    assert texts(write(tmp_path, "abcé😀é"), text_unit="file") == ["abcé😀é"]
