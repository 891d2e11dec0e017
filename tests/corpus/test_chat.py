"""Inside a chat, the document's text counts and the template's does not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.corpus.helpers import CHAT, SPECIAL, byte_level, document, sentence_piece_bpe

from moescope.corpus import tokenize_document
from moescope.corpus.chat import render_chat
from moescope.errors import CorpusError

TOKENIZER = byte_level("<s> $A")
STRIPPING = byte_level(None, CHAT.replace("m['content']", "m['content'] | trim"))


def counted_text(tokenizer: Any, text: str, **options: Any) -> str:
    done = tokenize_document(
        tokenizer, document(text), 0, context_length=options.pop("context_length", 9999),
        chat_template=True, **options,
    )  # fmt: skip
    ids = [int(i) for s in done.sequences for i in s.token_ids[s.counted]]
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def test_only_the_text_counts() -> None:
    text = "the fox and the dog"
    done = tokenize_document(TOKENIZER, document(text), 0, context_length=999, chat_template=True)
    [sequence] = done.sequences
    assert counted_text(TOKENIZER, text) == text
    assert TOKENIZER.decode(sequence.token_ids, clean_up_tokenization_spaces=False) == (
        "<s><|im_start|>user\nthe fox and the dog<|im_end|>\n<|im_start|>assistant\n"
    )
    assert done.num_tokens + done.num_uncounted == len(sequence.token_ids)


def test_bos_is_written_once() -> None:
    done = tokenize_document(TOKENIZER, document("fox"), 0, context_length=99, chat_template=True)
    ids = done.sequences[0].token_ids.tolist()
    assert ids.count(TOKENIZER.bos_token_id) == 1
    assert ids[0] == TOKENIZER.bos_token_id


@pytest.mark.parametrize("word", ["user", "assistant", "\nuser\n", "im_start", "a"])
def test_words_of_the_template_inside_the_text_are_the_texts(word: str) -> None:
    assert counted_text(TOKENIZER, f"x {word} x") == f"x {word} x"
    assert counted_text(TOKENIZER, word).strip() == word.strip()


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(st.text(st.characters(codec="utf-8")), st.sampled_from(SPECIAL)), min_size=1
    ).map("".join),
    st.integers(4, 60),
)
def test_a_text_between_two_letters_comes_back_exactly(middle: str, context: int) -> None:
    text = f"a{middle}b"
    assert counted_text(TOKENIZER, text, context_length=context) == text
    assert counted_text(STRIPPING, text, context_length=context) == text


def test_a_template_that_strips_the_text_is_followed() -> None:
    rendered, begin, end = render_chat(STRIPPING, document("  the fox \n"))
    assert rendered[begin:end] == "the fox"
    assert counted_text(STRIPPING, "  the fox \n") == "the fox"


def test_a_control_token_in_the_text_does_not_end_the_turn() -> None:
    done = tokenize_document(
        TOKENIZER, document("end <|im_end|> now"), 0, context_length=99, chat_template=True
    )
    ids = done.sequences[0].token_ids.tolist()
    assert ids.count(TOKENIZER.convert_tokens_to_ids("<|im_end|>")) == 1


def test_counting_the_template_counts_all_but_the_opening_bos() -> None:
    done = tokenize_document(
        TOKENIZER, document("fox"), 0, context_length=99, chat_template=True, count_template=True
    )
    assert done.num_uncounted == 1
    assert not done.sequences[0].counted[0]


def test_later_windows_of_a_chat_open_with_bos_only() -> None:
    done = tokenize_document(
        TOKENIZER, document("fox " * 30), 0, context_length=12, chat_template=True
    )
    assert len(done.sequences) > 2
    assert all(s.token_ids[0] == TOKENIZER.bos_token_id for s in done.sequences)
    assert all(s.counted[1:].all() for s in done.sequences[1:-1])


def test_a_tokenizer_without_a_template_is_refused() -> None:
    with pytest.raises(CorpusError, match="has no chat template"):
        counted_text(byte_level(None, None), "fox")


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("{{ messages[0]['content'] | upper }}", "changes the text or repeats it"),
        ("{{ messages[0]['content'] * 2 }}", "changes the text or repeats it"),
        ("{{ raise_exception('system\nfirst') }}", r"refuses a single user message \(system first"),
    ],
)
def test_a_template_that_hides_the_text_is_refused(template: str, complaint: str) -> None:
    with pytest.raises(CorpusError, match=complaint) as caught:
        counted_text(byte_level(None, template), "a fox")
    assert "\n" not in str(caught.value)


def test_a_template_that_looks_at_the_text_is_followed_where_the_text_is_unique() -> None:
    template = "{% if 'fox' in messages[0]['content'] %}animal:{% endif %}" + CHAT
    assert counted_text(byte_level(None, template), "a fox") == "a fox"


@pytest.mark.parametrize("special", SPECIAL)
def test_a_sentence_piece_tokenizer_spells_control_tokens_without_a_blank(special: str) -> None:
    tokenizer = sentence_piece_bpe("<s> $A", CHAT)
    done = tokenize_document(
        tokenizer, document(f"the{special}fox"), 0, context_length=99, chat_template=True
    )
    [sequence] = done.sequences
    pieces = tokenizer.convert_ids_to_tokens(sequence.token_ids[sequence.counted].tolist())
    assert "".join(pieces).lstrip("▁").replace("▁fox", "fox") == f"the{special}fox"
    assert special not in pieces
