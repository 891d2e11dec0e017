"""Windows reassemble to the document, and only the document's own tokens count."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.corpus.helpers import SPECIAL, byte_level, document

from moescope.corpus import TokenizedDocument, tokenize_corpus, tokenize_document
from moescope.errors import CorpusError

TOKENIZERS = {name: byte_level(name or None) for name in ("", "<s> $A", "<s> $A </s>", "$A </s>")}
TEXT = "the quick brown fox jumps over the lazy dog"


def counted_ids(done: TokenizedDocument) -> list[int]:
    return [int(i) for s in done.sequences for i in s.token_ids[s.counted]]


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def decoded(tokenizer: Any, done: TokenizedDocument) -> str:
    return tokenizer.decode(counted_ids(done), clean_up_tokenization_spaces=False)


@settings(deadline=None)
@given(
    st.sampled_from(sorted(TOKENIZERS)),
    st.lists(st.one_of(st.text(), st.sampled_from(SPECIAL)), min_size=1).map("".join),
    st.integers(2, 40),
)
def test_windows_reassemble_to_the_document(name: str, text: str, context: int) -> None:
    tokenizer = TOKENIZERS[name]
    done = tokenize_document(tokenizer, document(text), 3, context_length=context)
    expected = plain_ids(tokenizer, text)
    assert counted_ids(done) == expected
    assert done.num_tokens == len(expected)
    assert done.num_uncounted == sum(int((~s.counted).sum()) for s in done.sequences)
    lead = int(name.startswith("<s>"))
    for window, sequence in enumerate(done.sequences):
        assert (sequence.doc_index, sequence.window) == (3, window)
        assert len(sequence.token_ids) == len(sequence.counted) <= context
        assert sequence.counted.any()
        for i in np.flatnonzero(sequence.counted):
            assert sequence.token_ids[i] == expected[sequence.start + i - lead]


def test_bos_opens_every_window_and_never_counts(with_bos: Any) -> None:
    done = tokenize_document(with_bos, document(TEXT), 0, context_length=5)
    body = plain_ids(with_bos, TEXT)
    assert len(body) > 8
    first, second = done.sequences[:2]
    assert first.token_ids.tolist() == [with_bos.bos_token_id, *body[:4]]
    assert second.token_ids.tolist() == [with_bos.bos_token_id, *body[4:8]]
    assert first.counted.tolist() == second.counted.tolist() == [False, True, True, True, True]
    # in the document's token list BOS is 0 and body[4] is 5: start 4, plus 1 for the repeated BOS
    assert (first.start, second.start) == (0, 4)
    assert done.num_uncounted == len(done.sequences)


def test_without_bos_every_token_counts(without_bos: Any) -> None:
    done = tokenize_document(without_bos, document(TEXT), 0, context_length=4)
    assert [s.start for s in done.sequences] == [4 * i for i in range(len(done.sequences))]
    assert done.num_uncounted == 0


def test_a_window_of_eos_alone_is_not_made(with_bos_and_eos: Any) -> None:
    length = len(plain_ids(with_bos_and_eos, TEXT))
    exact = tokenize_document(with_bos_and_eos, document(TEXT), 0, context_length=length + 1)
    roomy = tokenize_document(with_bos_and_eos, document(TEXT), 0, context_length=length + 2)
    assert [len(s.token_ids) for s in exact.sequences] == [length + 1]
    assert [len(s.token_ids) for s in roomy.sequences] == [length + 2]
    assert roomy.sequences[0].counted.tolist() == [False] + [True] * length + [False]


def test_arrays_have_the_promised_types(with_bos: Any) -> None:
    [sequence] = tokenize_document(with_bos, document(TEXT), 0, context_length=99).sequences
    assert sequence.token_ids.dtype == np.int32
    assert sequence.counted.dtype == np.bool_


@pytest.mark.parametrize("special", SPECIAL)
def test_text_that_looks_like_a_special_token_is_plain_text(with_bos: Any, special: str) -> None:
    text = f"write {special} here"
    done = tokenize_document(with_bos, document(text), 0, context_length=99)
    assert not set(counted_ids(done)) & set(with_bos.all_special_ids)
    assert decoded(with_bos, done) == text


def test_a_vocabulary_with_special_pieces_does_not_let_text_forge_them(
    sentence_pieces: Any,
) -> None:
    raw = sentence_pieces("the </s> fox", split_special_tokens=True)["input_ids"]
    assert sentence_pieces.eos_token_id in raw  # what the tokenizer does by itself
    done = tokenize_document(sentence_pieces, document("the </s> fox"), 0, context_length=99)
    pieces = sentence_pieces.convert_ids_to_tokens(counted_ids(done))
    assert "".join(pieces) == "▁the▁</s>▁fox"
    assert "</s>" not in pieces
    assert done.num_uncounted == 1


def test_a_truncation_saved_with_the_tokenizer_is_not_applied() -> None:
    tokenizer = byte_level("<s> $A")
    tokenizer.backend_tokenizer.enable_truncation(max_length=3)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    done = tokenize_document(tokenizer, document(TEXT), 0, context_length=99)
    assert decoded(tokenizer, done) == TEXT


def test_truncating_keeps_the_first_window_and_says_what_it_left_out(with_bos: Any) -> None:
    whole = tokenize_document(with_bos, document(TEXT), 0, context_length=5)
    short = tokenize_document(with_bos, document(TEXT), 0, context_length=5, truncate=True)
    assert len(short.sequences) == 1
    assert (short.num_tokens, short.num_uncounted) == (4, 1)
    assert short.num_truncated == whole.num_tokens - 4
    assert whole.num_truncated == 0


def test_a_context_without_room_for_text_is_refused(with_bos: Any) -> None:
    with pytest.raises(CorpusError, match="a context of 1 tokens leaves no room for text"):
        tokenize_document(with_bos, document(TEXT), 0, context_length=1)


def test_a_context_of_zero_is_refused_without_bos_too(without_bos: Any) -> None:
    with pytest.raises(CorpusError, match="leaves no room"):
        tokenize_document(without_bos, document(TEXT), 0, context_length=0)


def test_documents_are_numbered_in_their_order(with_bos: Any) -> None:
    done = list(
        tokenize_corpus(with_bos, [document("a"), document("b", "two", "news")], context_length=9)
    )
    assert [(d.doc_index, d.doc_id, d.domain) for d in done] == [
        (0, "doc", "web"),
        (1, "two", "news"),
    ]


def test_a_tokenizer_without_offsets_still_counts_no_forged_token() -> None:
    class Slow:
        all_special_ids = (9,)
        is_fast = False

        def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
            return {"input_ids": [9, 1, 9, 2], "special_tokens_mask": [1, 0, 0, 0]}

    done = tokenize_document(Slow(), document("a</s>b"), 0, context_length=9)
    assert done.sequences[0].counted.tolist() == [False, True, False, True]
    with pytest.raises(CorpusError, match="needs a fast tokenizer"):
        tokenize_document(Slow(), document("a"), 0, context_length=9, chat_template=True)
