"""Records become documents: ids, domains, empty text, what is skipped, and the fingerprint."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.corpus.helpers import read, texts

from moescope.corpus import CorpusSpec, Document, Fingerprint, Skipped, Whole, open_corpus
from moescope.errors import BadInputError, CorpusError

Write = Callable[..., Path]
GOOD = {"id": "a", "domain": "web", "text": "one"}


def complaint(path: Path | str, **options: object) -> str:
    with pytest.raises(CorpusError) as caught:
        read(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_record_keeps_its_id_domain_and_text(jsonl: Write) -> None:
    path = jsonl([GOOD])
    assert read(path) == [Document("a", "web", "one", f"{path}:1")]


def test_without_an_id_file_and_line_name_the_document(jsonl: Write) -> None:
    path = jsonl(
        [{"domain": "web", "text": "one"}, "", {"domain": "web", "text": "two", "id": None}]
    )
    assert [d.doc_id for d in read(path)] == ["web.jsonl:1", "web.jsonl:3"]


def test_numbers_serve_as_ids_and_domains(jsonl: Write) -> None:
    [document] = read(jsonl([{"id": 7, "domain": 3, "text": "one"}]))
    assert (document.doc_id, document.domain) == ("7", "3")


def test_other_field_names_can_be_given(jsonl: Write) -> None:
    path = jsonl([{"k": "x", "topic": "law", "body": "one"}])
    [document] = read(path, text_field="body", domain_field="topic", id_field="k")
    assert document[:3] == ("x", "law", "one")


def test_the_given_domain_serves_records_without_one(jsonl: Write) -> None:
    path = jsonl([{"text": "one"}, {"text": "two", "domain": "news"}, {"text": "3", "domain": " "}])
    assert [d.domain for d in read(path, domain="web")] == ["web", "news", "web"]


def test_a_domain_is_one_line(jsonl: Write) -> None:
    assert read(jsonl([{**GOOD, "domain": " law \n school "}]))[0].domain == "law school"


def test_a_single_file_of_records_without_domain_says_how_to_name_one(jsonl: Write) -> None:
    path = jsonl([{"text": "one", "topic": "law"}])
    assert complaint(path) == (
        f"{path}:1: no domain in field 'domain' (its fields: text, topic); use `domain=LABEL` to "
        "give all records one, or `domain_field=NAME` to say which field holds it"
    )


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"txet": "one"}, "no field 'text' (did you mean txet?); name it with `text_field`"),
        ({"text": 5}, "text is not a string (got int)"),
        ({"text": None}, "text is not a string (got null)"),
        ({"text": " \n"}, "empty text (field 'text')"),
        ({"text": "x", "domain": ["a"]}, "domain is not a string (got list)"),
        ({"text": "x", "domain": True}, "domain is not a string (got bool)"),
        ({"text": "x", "id": {"a": 1}}, "id is not a string (got dict)"),
        ('{"text": "x\\ud800"}', "not valid Unicode (text: lone surrogate '\\ud800' at char"),
        ('{"text": "x", "id": "\\udfff"}', "not valid Unicode (id: lone surrogate"),
        ("{broken", "not valid JSON (Expecting property name"),
        ("[1]", "not an object (got a list)"),
        ("3", "not an object (got a number)"),
        (b'{"text": "\xff"}', "not valid UTF-8 (byte 0xff at byte 54 of the file)"),
        ("[" * 100_000, "not valid JSON (nested too deeply)"),
        ('{"text": ' + "9" * 5000 + "}", "not valid JSON (Exceeds the limit"),
    ],
)
def test_a_bad_record_stops_the_reading_or_is_counted(
    jsonl: Write, record: object, expected: str
) -> None:
    good = {"id": "a", "domain": "web", "text": "one"}
    path = jsonl([good, record, {"text": "last"}])
    assert complaint(path, domain="web").startswith(f"{path}:2: {expected}")
    corpus = open_corpus(CorpusSpec(path=str(path), domain="web", on_error="skip"))
    assert [d.text for d in corpus] == ["one", "last"]
    [skipped] = corpus.skipped
    assert expected.startswith(skipped.reason)
    assert (skipped.count, skipped.sources) == (1, (f"{path}:2",))


def test_skipped_records_are_counted_by_reason_and_the_first_are_named(jsonl: Write) -> None:
    path = jsonl([GOOD, *[{"text": ""}] * 7, "nonsense"])
    corpus = open_corpus(CorpusSpec(path=str(path), domain="web", on_error="skip"))
    assert corpus.skipped == []
    for _ in range(2):  # a second reading counts anew
        assert len(list(corpus)) == 1
        assert corpus.skipped == [
            Skipped("empty text", 7, tuple(f"{path}:{i}" for i in range(2, 7))),
            Skipped("not valid JSON", 1, (f"{path}:9",)),
        ]


def test_a_repeated_id_names_both_places(jsonl: Write) -> None:
    path = jsonl([GOOD, {**GOOD, "id": "b"}, {**GOOD, "text": "other"}])
    assert complaint(path).startswith(f"{path}:3: duplicate id ('a', first at {path}:1); make ids")
    assert texts(path, on_error="skip") == ["one", "one"]


def test_the_name_of_the_total_is_no_domain(jsonl: Write) -> None:
    expected = "the domain 'all' is reserved"
    path = jsonl([{**GOOD, "domain": "all"}])
    assert expected in complaint(path)
    assert expected in complaint(path, on_error="skip")
    assert expected in complaint(path, domain="all")


def test_a_corpus_without_a_usable_record_says_what_was_skipped(jsonl: Write) -> None:
    path = jsonl([{"text": ""}] * 3)
    assert complaint(path, domain="web", on_error="skip") == (
        f"{path}: no document with text in it (skipped: 3 × empty text, first at {path}:1); "
        "check the text field ('text')"
    )
    assert "empty file (no text in it)" in complaint(jsonl([]))


def test_the_two_halves_of_a_split_make_the_whole(jsonl: Write) -> None:
    path = jsonl([{"id": str(i), "domain": "web", "text": f"t{i}"} for i in range(50)])
    train, test = texts(path, split="train"), texts(path, split="test")
    assert sorted(train + test) == sorted(texts(path))
    assert train
    assert test


def test_a_split_without_documents_is_an_error(jsonl: Write) -> None:
    path = jsonl([{"id": "doc-1", "domain": "web", "text": "x"}])
    assert "none of its 1 document falls into the split 'test'" in complaint(path, split="test")


def test_unknown_options_and_impossible_shares_are_refused() -> None:
    with pytest.raises(ValidationError, match="txt_field"):
        CorpusSpec(path="x", txt_field="text")  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="less than 1"):
        CorpusSpec(path="x", test_share=1.0)


def test_a_path_object_serves_as_path(jsonl: Write) -> None:
    assert CorpusSpec(path=Path("a") / "b").path == str(Path("a") / "b")  # type: ignore[arg-type]


def test_every_option_is_described() -> None:
    fields = CorpusSpec.model_fields
    assert [name for name, field in fields.items() if not field.description] == []


def test_the_fingerprint_is_that_of_the_documents_in_order(jsonl: Write) -> None:
    path = jsonl([GOOD, {**GOOD, "id": "b"}])
    corpus = open_corpus(CorpusSpec(path=str(path)))
    fingerprint = Fingerprint()
    for document in corpus:
        fingerprint.update(document)
    assert corpus.fingerprint() == fingerprint.hexdigest()
    assert open_corpus(CorpusSpec(path=str(path))).fingerprint() == fingerprint.hexdigest()
    turned = jsonl([{**GOOD, "id": "b"}, GOOD])
    assert open_corpus(CorpusSpec(path=str(turned))).fingerprint() != fingerprint.hexdigest()


def test_the_fingerprint_does_not_depend_on_where_the_corpus_lies(
    jsonl: Write, tmp_path: Path
) -> None:
    here = jsonl([{"text": "one", "domain": "web"}], "here/web.jsonl")
    there = jsonl([{"text": "one", "domain": "web"}], "there/web.jsonl")
    one, two = (open_corpus(CorpusSpec(path=str(p))).fingerprint() for p in (here, there))
    assert one == two


@given(st.lists(st.tuples(st.text(), st.text(), st.text()), min_size=1), st.data())
def test_the_fingerprint_differs_when_a_boundary_moves(
    rows: list[tuple[str, str, str]], data: st.DataObject
) -> None:
    flat = [value for row in rows for value in row]
    index = data.draw(st.integers(0, len(flat) - 2))
    moved = list(flat)
    joined = flat[index] + flat[index + 1]
    cut = data.draw(st.integers(0, len(joined)))
    moved[index : index + 2] = [joined[:cut], joined[cut:]]
    assert (_fingerprint(flat) == _fingerprint(moved)) == (flat == moved)


def _fingerprint(flat: list[str]) -> str:
    fingerprint = Fingerprint()
    for i in range(0, len(flat), 3):
        fingerprint.update(Document(flat[i], flat[i + 1], flat[i + 2], "x"))
    return fingerprint.hexdigest()


MANY = [{"id": f"d{i}", "domain": f"web{i % 3}", "text": f"text {i}"} for i in range(60)]


@pytest.mark.parametrize("total", [1, 2, 7])
def test_the_shards_of_a_corpus_hold_every_document_once(jsonl: Write, total: int) -> None:
    path = jsonl(MANY)
    parts = [read(path, shard=f"{n}/{total}") for n in range(1, total + 1)]
    whole = read(path)
    assert sorted(d for part in parts for d in part) == sorted(whole)
    assert all(part == [d for d in whole if d in part] for part in parts)  # the corpus's order
    assert min(map(len, parts)) > 0


def test_a_shard_does_not_depend_on_the_order_or_on_other_documents(jsonl: Write) -> None:
    ids = {d.doc_id for d in read(jsonl(MANY), shard="2/3")}
    turned = {d.doc_id for d in read(jsonl(MANY[::-1], "turned.jsonl"), shard="2/3")}
    fewer = {d.doc_id for d in read(jsonl(MANY[:30], "fewer.jsonl"), shard="2/3")}
    assert turned == ids
    assert fewer == {i for i in ids if int(i[1:]) < 30}


def test_every_shard_knows_of_what_text_it_is_a_part(jsonl: Write) -> None:
    path = jsonl(MANY)
    whole = open_corpus(CorpusSpec(path=str(path)))
    shards = [open_corpus(CorpusSpec(path=str(path), shard=f"{n}/3")) for n in (1, 2, 3)]
    own = [shard.fingerprint() for shard in shards]
    assert {shard.whole for shard in shards} == {Whole(60, whole.fingerprint())}
    assert len({*own, whole.fingerprint()}) == 4
    assert whole.whole is None


def test_a_shard_of_a_split_is_a_part_of_that_half(jsonl: Write) -> None:
    path = jsonl(MANY)
    test = read(path, split="test")
    parts = [read(path, split="test", shard=f"{n}/2") for n in (1, 2)]
    assert sorted(parts[0] + parts[1]) == sorted(test)
    half = open_corpus(CorpusSpec(path=str(path), split="test", shard="1/2"))
    assert len(list(half)) < len(test)
    assert half.whole is not None
    assert half.whole.documents == len(test)


def test_a_shard_may_be_empty_but_a_corpus_may_not(jsonl: Write, tmp_path: Path) -> None:
    path = jsonl([GOOD])
    sizes = [len(read(path, shard=f"{n}/4")) for n in (1, 2, 3, 4)]
    assert sorted(sizes) == [0, 0, 0, 1]
    (tmp_path / "blank.jsonl").write_text('{"id": "a", "domain": "web", "text": " "}\n')
    said = complaint(tmp_path / "blank.jsonl", shard="1/4", on_error="skip")
    assert "no document with text in it" in said


def test_records_that_are_skipped_are_counted_in_every_shard(jsonl: Write) -> None:
    path = jsonl([*MANY, {"id": "x", "domain": "web", "text": ""}])
    for n in (1, 2):
        corpus = open_corpus(CorpusSpec(path=str(path), on_error="skip", shard=f"{n}/2"))
        assert list(corpus)
        assert [(s.reason, s.count) for s in corpus.skipped] == [("empty text", 1)]


def test_a_shard_that_cannot_be_is_refused(jsonl: Write) -> None:
    with pytest.raises(BadInputError, match="is not i/n"):
        read(jsonl([GOOD]), shard="5/4")


@pytest.mark.parametrize("name", ["big.jsonl", "big.csv", "big.txt"])
def test_a_large_file_is_never_held_in_memory(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    text = "tokens and experts " * 640  # 12 kB
    with path.open("w") as stream:
        if name == "big.csv":
            stream.write("text,domain\n")
        for i in range(5000):
            record = {"text": f"{i} {text}", "domain": "web"}
            csv_or_text = f"{i} {text},web\n" if name == "big.csv" else f"{i} {text}\n\n"
            stream.write(json.dumps(record) + "\n" if name == "big.jsonl" else csv_or_text)
    assert path.stat().st_size > 60_000_000
    corpus = open_corpus(CorpusSpec(path=str(path)))
    tracemalloc.start()
    started = time.perf_counter()
    count = sum(1 for _ in corpus)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 5000
    assert peak < 8_000_000
    assert time.perf_counter() - started < 60
