"""Text that a chat template wrote: noticed where it is spelt out, read as such when asked to."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from tests.corpus.helpers import CHAT, byte_level, document, sentence_piece_bpe

from moescope.corpus import MarksWarning, notes_on_marks, tokenize_document, warn_of_marks
from moescope.corpus.control import find_marks
from moescope.corpus.pieces import WHOLE
from moescope.errors import CorpusError

TEXT = "<|im_start|>user\nthe fox<|im_end|>\n<|im_start|>assistant\nthe dog<|im_end|>\n"


def done(tokenizer: Any, text: str, **options: Any) -> Any:
    return tokenize_document(
        tokenizer, document(text), 0, context_length=options.pop("context", 9_999_999), **options
    )


def words(tokenizer: Any, text: str, **options: Any) -> str:
    made = done(tokenizer, text, **options)
    ids = [int(i) for s in made.sequences for i in s.token_ids[s.counted]]
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


@pytest.mark.parametrize("make", [byte_level, sentence_piece_bpe])
def test_control_tokens_are_read_and_do_not_count(make: Any) -> None:
    tokenizer = make("<s> $A", CHAT)
    [sequence] = done(tokenizer, TEXT, chat_text=True).sequences
    expected = tokenizer(TEXT)["input_ids"]  # as the tokenizer reads it by itself
    assert sequence.token_ids.tolist() == expected
    control = [tokenizer.convert_tokens_to_ids(t) for t in ("<s>", "<|im_start|>", "<|im_end|>")]
    assert sequence.counted.tolist() == [i not in control for i in expected]


def test_an_opening_bos_that_the_template_wrote_is_not_added_again() -> None:
    tokenizer = byte_level("<s> $A", CHAT)
    plain, opened = (done(tokenizer, t, chat_text=True).sequences[0] for t in (TEXT, "<s>" + TEXT))
    assert plain.token_ids.tolist() == opened.token_ids.tolist()
    assert plain.counted.tolist() == opened.counted.tolist()


def test_later_windows_open_with_the_bos_that_the_template_wrote() -> None:
    tokenizer = byte_level(None, CHAT)
    made = done(tokenizer, "<s>" + TEXT * 3, chat_text=True, context=12)
    assert len(made.sequences) > 2
    assert all(s.token_ids[0] == tokenizer.bos_token_id for s in made.sequences)
    assert not any(s.counted[0] for s in made.sequences)
    assert words(tokenizer, "<s>" + TEXT * 3, chat_text=True, context=12) == words(
        tokenizer, TEXT * 3, chat_text=True
    )


def test_counting_the_template_counts_its_control_tokens() -> None:
    tokenizer = byte_level("<s> $A", CHAT)
    assert words(tokenizer, TEXT, chat_text=True, count_template=True) == TEXT


def test_a_very_long_chat_is_read_in_pieces_alike() -> None:
    tokenizer = byte_level("<s> $A", CHAT)
    text = TEXT * (WHOLE // len(TEXT) + 1)
    made = done(tokenizer, text, chat_text=True)
    short = done(tokenizer, TEXT, chat_text=True).sequences[0].token_ids.tolist()
    times = WHOLE // len(TEXT) + 1
    assert made.sequences[0].token_ids.tolist() == short[:1] + short[1:] * times


def test_marks_are_noticed_where_they_are_spelt_out() -> None:
    tokenizer = byte_level("<s> $A", CHAT)
    text = TEXT + "[INST] <start_of_turn> <|eot_id|>"
    made = done(tokenizer, text)
    assert made.marks.spelt_out == ("<|im_start|>", "<|im_end|>")
    assert made.marks.unknown == ("[INST]", "<start_of_turn>", "<|eot_id|>")
    read = done(tokenizer, text, chat_text=True).marks
    assert read.spelt_out == ()
    assert read.unknown == made.marks.unknown


@pytest.mark.parametrize(
    "text", ["a <s> b </s>", "x <| y |> z", "[1] [INS]", "a <b> | c", "f(x) |> g", "<|>", "<||>"]
)
def test_what_is_no_mark_is_not_noticed(text: str) -> None:
    assert find_marks(byte_level("<s> $A", CHAT), text) == ((), ())


def test_the_notes_name_marks_counts_and_the_flag() -> None:
    [known, other] = notes_on_marks({"<|im_end|>": 1, "<|im_start|>": 1_200}, {"[INST]": 3})
    assert "<|im_start|> in 1,200 documents, <|im_end|> in 1 document" in known
    assert "`chat_text`" in known
    assert "not control tokens of this tokenizer" in other
    assert "[INST] in 3 documents" in other
    assert notes_on_marks({}, {}) == []


def test_verbs_without_a_run_warn() -> None:
    tokenizer = byte_level("<s> $A", CHAT)
    with pytest.warns(MarksWarning, match="<|im_start|> in 2 documents"):
        warn_of_marks([done(tokenizer, TEXT).marks] * 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_marks([done(tokenizer, "the fox").marks])


def test_a_chat_is_read_in_one_way_only() -> None:
    tokenizer = byte_level("<s> $A", CHAT)
    with pytest.raises(CorpusError, match="chat_text reads what a template wrote"):
        done(tokenizer, TEXT, chat_text=True, chat_template=True)
