"""Chats as lists of messages: all is read, only the turns that are asked for count."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.corpus.helpers import CHAT, byte_level

from moescope.corpus import CorpusSpec, Document, Fingerprint, open_corpus, tokenize_document
from moescope.errors import CorpusError

CHATS = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "the fox?"},
    {"role": "assistant", "content": "the dog and the fox"},
    {"role": "user", "content": "assistant"},
    {"role": "assistant", "content": "the dog <|im_end|> jumps"},
]
RENDERED = (
    "<s><|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nthe fox?<|im_end|>\n"
    "<|im_start|>assistant\nthe dog and the fox<|im_end|>\n<|im_start|>user\nassistant<|im_end|>\n"
    "<|im_start|>assistant\nthe dog <|im_end|> jumps<|im_end|>\n"
)


def corpus(folder: Path, value: Any, **options: Any) -> list[Document]:
    record = {"id": "a", "domain": "d", "messages": value}
    (folder / "c.jsonl").write_text(json.dumps(record) + "\n", encoding="utf-8")
    spec = CorpusSpec(path=str(folder / "c.jsonl"), text_field="messages", **options)
    return list(open_corpus(spec))


def read(document: Document, tokenizer: Any = None, **options: Any) -> tuple[str, str]:
    """What the model reads, and what of it counts."""
    tokenizer = tokenizer or byte_level(None, CHAT)
    done = tokenize_document(
        tokenizer, document, 0, context_length=options.pop("context", 999), **options
    )
    ids = [int(i) for s in done.sequences for i in s.token_ids]
    counted = [int(i) for s in done.sequences for i in s.token_ids[s.counted]]
    whole, mine = (tokenizer.decode(i, clean_up_tokenization_spaces=False) for i in (ids, counted))
    return str(whole), str(mine)


def test_only_the_assistant_counts_and_all_is_read(tmp_path: Path) -> None:
    [document] = corpus(tmp_path, CHATS, turns="assistant")
    assert read(document) == (RENDERED, "the dog and the foxthe dog <|im_end|> jumps")


def test_all_turns_count_and_the_template_does_not(tmp_path: Path) -> None:
    [document] = corpus(tmp_path, CHATS, turns="all")
    whole, counted = read(document)
    assert whole == RENDERED
    assert counted == "".join(str(m["content"]) for m in CHATS)


def test_the_template_counts_where_it_is_asked_for_but_not_the_users(tmp_path: Path) -> None:
    [document] = corpus(tmp_path, CHATS[1:3], turns="assistant")
    counted = read(document, count_template=True)[1]
    assert counted == (
        "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\nthe dog and the fox<|im_end|>\n"
    )


def test_a_control_token_in_a_message_does_not_end_its_turn(tmp_path: Path) -> None:
    [document] = corpus(tmp_path, CHATS, turns="all")
    tokenizer = byte_level(None, CHAT)
    done = tokenize_document(tokenizer, document, 0, context_length=999)
    ids = done.sequences[0].token_ids.tolist()
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == len(CHATS)
    assert done.marks.spelt_out == ("<|im_end|>",)


def test_conversations_with_from_and_value(tmp_path: Path) -> None:
    value = [{"from": "human", "value": "the fox?"}, {"from": "gpt", "value": "the dog"}]
    [document] = corpus(tmp_path, value, turns="assistant")
    assert [m.role for m in document.messages] == ["user", "assistant"]
    assert read(document)[1] == "the dog"


def test_a_template_that_strips_is_followed(tmp_path: Path) -> None:
    value = [{"role": "user", "content": " the fox? "}, {"role": "assistant", "content": "dog \n"}]
    [document] = corpus(tmp_path, value, turns="all")
    stripping = byte_level(None, CHAT.replace("m['content']", "m['content'] | trim"))
    assert read(document, stripping)[1] == "the fox?dog"


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        (CHAT.replace("m['content']", "m['content'] | upper"), "changes message 0 .user."),
        ("{{ raise_exception('no system here') }}", "refuses these messages .no system here"),
        (None, "has no chat template"),
    ],
)
def test_a_template_that_hides_the_text_is_refused(
    template: str | None, complaint: str, tmp_path: Path
) -> None:
    [document] = corpus(tmp_path, CHATS[1:3], turns="all")
    with pytest.raises(CorpusError, match=complaint):
        read(document, byte_level(None, template))


def test_later_windows_keep_only_what_counts(tmp_path: Path) -> None:
    value = [{"role": "user", "content": "the fox " * 30}, {"role": "assistant", "content": "dog"}]
    [document] = corpus(tmp_path, value, turns="assistant")
    tokenizer = byte_level(None, CHAT)
    done = tokenize_document(tokenizer, document, 0, context_length=16)
    assert len(done.sequences) < 3  # windows of the user's words alone are not run
    assert read(document, context=16)[1] == "dog"


def test_roles_enter_the_fingerprint(tmp_path: Path) -> None:
    prints = []
    for role in ("user", "system"):
        [document] = corpus(tmp_path, [{"role": role, "content": "fox"}], turns="all")
        made = Fingerprint()
        made.update(document)
        prints.append(made.hexdigest())
    assert prints[0] != prints[1]


def test_messages_in_parquet(tmp_path: Path) -> None:
    table = pa.table({"id": ["a"], "domain": ["d"], "messages": [CHATS[1:3]]})
    pq.write_table(table, tmp_path / "c.parquet")
    spec = CorpusSpec(path=str(tmp_path / "c.parquet"), text_field="messages", turns="assistant")
    [document] = open_corpus(spec)
    assert read(document)[1] == "the dog and the fox"


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("the fox", "no chat .*expected a list of messages, got str"),
        ([], "an empty list"),
        ([7], "message 0: expected an object with role and content"),
        ([{"role": "user"}], "message 0: expected a text in 'content', got null"),
        ([{"role": 1, "content": "fox"}], "message 0: expected a text in 'role', got int"),
        ([{"role": "user", "content": ["fox"]}], "expected a text in 'content', got list"),
        ([{"role": "user", "content": "fox"}], "of its 1 message none counts"),
        ([{"role": "assistant", "content": " "}], "of its 1 message none counts"),
    ],
)
def test_what_is_no_chat_is_one_line_or_skipped(value: Any, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=complaint) as caught:
        corpus(tmp_path, value, turns="assistant")
    assert "c.jsonl:1" in str(caught.value)
    with pytest.raises(CorpusError, match="skipped: 1 × no chat"):
        corpus(tmp_path, value, turns="assistant", on_error="skip")


def test_a_list_without_turns_names_the_choice(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="`turns=all` or `turns=assistant`"):
        corpus(tmp_path, CHATS)
