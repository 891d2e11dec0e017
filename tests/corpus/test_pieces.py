"""A very long text is tokenized in pieces, and its tokens are those of the text as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.corpus.helpers import SPECIAL, byte_level, document, sentence_piece_bpe, unigram
from transformers import AutoTokenizer

from moescope.corpus import TokenizedDocument, tokenize_document
from moescope.corpus import encode as encode_module
from moescope.corpus import pieces as pieces_module
from moescope.corpus.pieces import pieces

TOKENIZERS = {
    "bytes": byte_level(None),
    "bytes with BOS and EOS": byte_level("<s> $A </s>"),
    "sentence pieces": unigram("<s> $A"),
    "BPE of sentence pieces": sentence_piece_bpe("<s> $A", None),
}
DEMO = Path(pieces_module.__file__).parents[1] / "demo" / "moe-10m"
WORDS = st.sampled_from(["the", " quick", "brown.", "\n\n", "  ", "\t", "é", "漢字", "9", *SPECIAL])


@pytest.fixture
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of 40 characters with margins of 30, from 60 characters on."""
    for name, value in {"WHOLE": 60, "PIECE": 40, "MARGIN": 30, "_SEARCHED": 20}.items():
        monkeypatch.setattr(pieces_module, name, value)
    monkeypatch.setattr(encode_module, "WHOLE", 60)


def same(one: TokenizedDocument, other: TokenizedDocument) -> None:
    assert one[:5] == other[:5]
    assert len(one.sequences) == len(other.sequences)
    for a, b in zip(one.sequences, other.sequences, strict=True):
        assert a[:3] == b[:3]
        np.testing.assert_array_equal(a.token_ids, b.token_ids)
        np.testing.assert_array_equal(a.counted, b.counted)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(sorted(TOKENIZERS)), st.lists(WORDS, max_size=120), st.integers(4, 50))
def test_the_tokens_are_those_of_the_whole_text(name: str, words: list[str], context: int) -> None:
    tokenizer, text = TOKENIZERS[name], "".join(words)
    whole = tokenize_document(tokenizer, document(text), 3, context_length=context)
    with pytest.MonkeyPatch.context() as patch:
        for limit, value in {"WHOLE": 60, "PIECE": 40, "MARGIN": 30, "_SEARCHED": 20}.items():
            patch.setattr(pieces_module, limit, value)
        patch.setattr(encode_module, "WHOLE", 60)
        same(tokenize_document(tokenizer, document(text), 3, context_length=context), whole)


@pytest.mark.parametrize("count_template", [False, True])
def test_a_long_message_in_a_chat_template_too(
    count_template: bool, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    tokenizer, text = byte_level(None), "the quick brown fox jumps over the lazy dog. " * 12
    options = {"context_length": 16, "chat_template": True, "count_template": count_template}
    whole = tokenize_document(tokenizer, document(text), 0, **options)
    request.getfixturevalue("short_pieces")
    same(tokenize_document(tokenizer, document(text), 0, **options), whole)


@pytest.mark.usefixtures("short_pieces")
@given(st.text(max_size=400))
def test_pieces_make_the_text_and_margins_are_of_it(text: str) -> None:
    assert "".join(pieces(text)) == text


RUNS = st.sampled_from(["x", "\n", " ", "9", "漢", "ab", "the", "!", "a b"])


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(sorted(TOKENIZERS)), st.lists(st.tuples(RUNS, st.integers(1, 90))))
def test_every_character_belongs_to_the_tokens_of_one_piece(
    name: str, runs: list[tuple[str, int]]
) -> None:
    backend, text = TOKENIZERS[name].backend_tokenizer, "".join(part * n for part, n in runs)

    def encode(part: str) -> tuple[Any, np.ndarray]:
        made = backend.encode(part, add_special_tokens=False)
        return made, np.asarray(made.offsets, np.int64).reshape(-1, 2)

    whole = [list(range(*span)) for span in encode(text)[1]]
    with pytest.MonkeyPatch.context() as patch:
        for limit, value in {"WHOLE": 60, "PIECE": 41, "MARGIN": 7, "_SEARCHED": 20}.items():
            patch.setattr(pieces_module, limit, value)
        made = list(pieces_module.encoded_pieces(text, encode)) if text else []
    found = [{c + p.offset for a, b in p.spans[p.kept] for c in range(a, b)} for p in made]
    assert sum(len(some) for some in found) == len(set().union(*found))  # none in two
    assert set().union(*found) == {c for some in whole for c in some}
    if made:
        assert [n for n, p in enumerate(made) if p.first] == [0]
        assert [n for n, p in enumerate(made) if p.last] == [len(made) - 1]


@pytest.mark.parametrize("text", ["x", "\n", " ", "漢", "9", "ab", "漢字"])
def test_a_run_without_white_space_keeps_its_tokens(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    whole = tokenize_document(tokenizer, document(text * 9000), 0, context_length=64)
    for name, value in {"WHOLE": 5000, "PIECE": 3001, "_SEARCHED": 2000}.items():
        monkeypatch.setattr(pieces_module, name, value)
    monkeypatch.setattr(encode_module, "WHOLE", 5000)
    same(tokenize_document(tokenizer, document(text * 9000), 0, context_length=64), whole)


def test_with_a_limit_the_rest_of_a_long_text_is_not_encoded(without_bos: Any) -> None:
    text = "the quick brown fox " * 300_000  # 6 million characters: 23 pieces
    given: list[int] = []
    stock = type(without_bos).__call__

    class Counting(type(without_bos)):  # type: ignore[misc]
        def __call__(self, text: str, **options: Any) -> Any:
            given.append(len(text))
            return stock(self, text, **options)

    tokenizer = Counting(tokenizer_object=without_bos.backend_tokenizer)
    made = tokenize_document(tokenizer, document(text), 0, context_length=64, limit=1000)
    assert 1000 <= made.num_tokens < 1064
    assert made.num_tokens == sum(int(s.counted.sum()) for s in made.sequences)
    assert len(given) == 1
    assert given[0] <= pieces_module.PIECE + pieces_module.MARGIN


def test_a_limit_keeps_whole_windows(with_bos: Any) -> None:
    text = document("the quick brown fox jumps over the lazy dog")
    whole = tokenize_document(with_bos, text, 0, context_length=5)
    some = tokenize_document(with_bos, text, 0, context_length=5, limit=5)
    assert [s.start for s in some.sequences] == [s.start for s in whole.sequences[:2]]
    assert (some.num_tokens, some.num_uncounted) == (8, 2)
