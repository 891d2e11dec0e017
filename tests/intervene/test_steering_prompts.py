"""Prompts as numbered tokens, words as their first token, and what cannot be used."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.saved import save_tiny
from tests.support.steered import PROMPT, ids_of, next_logits, quick

from moescope.errors import BadInputError, ModelError
from moescope.intervene import (
    bias,
    steer,
)
from moescope.intervene.steering.distributions import (
    log_probs,
)
from moescope.intervene.steering.prompts import pieces_of, read_prompt, word_tokens
from moescope.models import LoadedModel, ModelSpec, load_model

# -- words and prompts


def test_a_word_is_followed_by_its_first_token_in_both_forms(tiny_loaded: LoadedModel) -> None:
    prompt = read_prompt(tiny_loaded, PROMPT)
    tokenizer = tiny_loaded.tokenizer
    words = word_tokens(tokenizer, ["the", " the ", "starlight"], prompt)
    assert {w.word for w in words} == {"the", "starlight"}
    (main,) = (w for w in words if w.word == "the" and w.main)
    assert main.spaced
    assert tokenizer.convert_ids_to_tokens([main.token_id]) == ["▁the"]
    assert main.num_tokens == 1
    assert all(w.num_tokens > 1 for w in words if w.word == "starlight")


def test_a_word_that_the_tokenizer_cannot_spell_is_refused(tiny_loaded: LoadedModel) -> None:
    with pytest.raises(BadInputError, match="no token for 'zoo'"):  # no z in its vocabulary
        word_tokens(tiny_loaded.tokenizer, ["zoo"], read_prompt(tiny_loaded, PROMPT))


def test_word_shifts_are_those_of_their_token(tiny_loaded: LoadedModel) -> None:
    edits = [bias("L1E2", 3.0)]
    found = quick(tiny_loaded, edits, words=["plan", "tea"])
    before, after = next_logits(tiny_loaded, []), next_logits(tiny_loaded, edits)
    assert {w.word.word for w in found.words} == {"plan", "tea"}
    for word, shift in found.words:
        i = word.token_id
        assert shift.logit_change == pytest.approx(after[i] - before[i], abs=1e-5)
        change = log_probs(after)[i] - log_probs(before)[i]
        assert shift.log_prob_change == pytest.approx(change, abs=1e-5)


def test_pieces_add_up_to_the_text(tiny_loaded: LoadedModel) -> None:
    prompt = read_prompt(tiny_loaded, PROMPT)
    assert len(prompt) == len(ids_of(tiny_loaded)[0])
    assert prompt.pieces[0] == "<s>"  # what the model reads first is number 0
    assert "".join(prompt.pieces[1:]).strip() == PROMPT
    assert any(p.startswith(" ") for p in prompt.pieces[2:])


def test_a_chat_template_is_part_of_the_numbered_prompt(tiny_loaded: LoadedModel) -> None:
    tokenizer = copy.deepcopy(tiny_loaded.tokenizer)
    tokenizer.chat_template = (
        "{{ bos_token }}the court {{ messages[0]['content'] }}"
        "{% if add_generation_prompt %} may review{% endif %}"
    )
    loaded = replace(tiny_loaded, tokenizer=tokenizer)
    prompt = read_prompt(loaded, "old stars", chat=True)
    assert prompt.pieces[0] == "<s>"
    assert "".join(prompt.pieces[1:]).split() == ["the", "court", "old", "stars", "may", "review"]
    found = steer(loaded, "old stars", bias("L1E2", 6.0), targets=[-1], chat=True, generate=2)
    assert found.prompt == prompt
    assert found.targets == (len(prompt) - 1,)


class ByteTokenizer:
    """Every token one byte, as byte-level tokenizers have it."""

    def decode(self, ids: list[int], **_: object) -> str:
        return bytes(ids).decode("utf-8", "replace")


def test_pieces_of_a_character_in_several_tokens_lose_nothing() -> None:
    ids = list("aé b".encode())
    assert pieces_of(ByteTokenizer(), ids) == ["a", "�", "é", " ", "b"]


def test_a_target_past_the_prompt_shows_the_tokens(tiny_loaded: LoadedModel) -> None:
    size = len(ids_of(tiny_loaded)[0])
    for target in (size, -size - 1):
        with pytest.raises(BadInputError, match=f"tokens are 0 to {size - 1}") as caught:
            quick(tiny_loaded, bias("L1E2", 1.0), targets=[target])
        assert "0 <s>" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_prompts_that_cannot_be_used_are_refused(tiny_loaded: LoadedModel) -> None:
    with pytest.raises(BadInputError, match="empty"):
        steer(tiny_loaded, "  ", bias("L1E2", 1.0))
    with pytest.raises(BadInputError, match="no chat template"):
        steer(tiny_loaded, PROMPT, bias("L1E2", 1.0), chat=True)
    with pytest.raises(BadInputError, match="context of 256"):
        steer(tiny_loaded, PROMPT, bias("L1E2", 1.0), generate=250)
    with pytest.raises(BadInputError, match="nothing to do"):
        steer(tiny_loaded, PROMPT, [])
    with pytest.raises(BadInputError, match="experts E0 to E7"):
        steer(tiny_loaded, PROMPT, bias("L1E8", 1.0))


def test_an_architecture_that_cannot_take_an_edit_says_why(tmp_path: Path) -> None:
    loaded = load_model(ModelSpec(str(save_tiny("jetmoe", tmp_path / "jet"))))
    layer = loaded.anatomy.layer_numbers[0]
    with pytest.raises(ModelError, match="sorted by expert"):
        quick(loaded, bias(f"L{layer}E1", 1.0))
