"""Steering: settings are read, edits act where they should, and every figure is what it says."""

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.support.saved import save_tiny

from moescope.axes import ExpertPlan, ExpertRef, PlanEntry
from moescope.errors import BadInputError, ModelError, RunError
from moescope.intervene import (
    SteeringResult,
    bias,
    edited,
    force,
    mask,
    scale,
    steer,
    sweep,
    top_k,
    zero,
)
from moescope.intervene.steering.controls import stand
from moescope.intervene.steering.distributions import (
    entropy,
    kl_divergence,
    log_probs,
    shift_of,
    top_union,
)
from moescope.intervene.steering.plan import (
    SteeringPlan,
    read_plan,
    require_model_of_plan,
    write_plan,
)
from moescope.intervene.steering.prompts import pieces_of, read_prompt, word_tokens
from moescope.intervene.steering.settings import edits_at, parse_setting, parse_strengths, swept
from moescope.models import LoadedModel, ModelSpec, load_model
from moescope.models.capture import RoutingCapture
from moescope.models.edits import Edit

PROMPT = "the plan covers support for daily living and the court may review"


def ids_of(loaded: LoadedModel) -> torch.Tensor:
    return torch.tensor([loaded.tokenizer(PROMPT)["input_ids"]])


def next_logits(loaded: LoadedModel, edits: list[Edit]) -> np.ndarray:
    """The last row of a plain forward pass, by another way than the code under test."""
    with torch.inference_mode(), edited(loaded, edits):
        logits = loaded.model(ids_of(loaded)).logits
    return logits[0, -1].double().numpy()


def chosen(loaded: LoadedModel, layer: int) -> np.ndarray:
    """Experts of each prompt token in one layer, (T, K)."""
    sites = [m.site for m in loaded.anatomy.layers if m.layer_idx == layer]
    with torch.inference_mode(), RoutingCapture(loaded.model, sites) as capture:
        loaded.model(ids_of(loaded))
        return capture.take()[layer].topk_ids.numpy()


def quick(loaded: LoadedModel, edits: Edit | list[Edit], **options: object) -> SteeringResult:
    chosen_options = {"generate": 0, "controls": 0, **options}
    return steer(loaded, PROMPT, edits, **chosen_options)  # type: ignore[arg-type]


# -- settings


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("L1E2=+2.0", "bias", 2.0),
        ("L1E2=-1.5", "bias", -1.5),
        ("L1E2=−1.5", "bias", -1.5),
        ("L1E2=+.5", "bias", 0.5),
        ("l1e2=+1e1", "bias", 10.0),
        ("L1E2=x0.5", "scale", 0.5),
        ("L1E2=×3", "scale", 3.0),
        ("L1E2=x-1", "scale", -1.0),
        ("L1E2=mask", "mask", None),
        ("L1E2=zero", "zero", None),
        ("L1E2=force", "force", None),
    ],
)
def test_a_setting_says_what_is_done(text: str, kind: str, value: float | None) -> None:
    setting = parse_setting(text)
    assert (setting.kind, setting.value, setting.selectors) == (kind, value, (text[:4],))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("L1E2=2.0", "the sign must be there"),
        ("L1E2", "EXPERTS=VALUE"),
        ("=+2", "EXPERTS=VALUE"),
        ("L1E2=+-2", "none of"),
        ("L1E2=+nan", "none of"),
        ("L1E2=+inf", "none of"),
        ("L1E2=+1e999", "too large"),
        ("L1E2=remove", "none of"),
        ("L1E2=+1,L1E3=-1", "once for each value"),
    ],
)
def test_another_form_is_refused_with_the_forms_that_there_are(text: str, said: str) -> None:
    with pytest.raises(BadInputError, match=said):
        parse_setting(text)


def test_a_setting_names_several_experts_by_commas_ranges_and_stars(
    tiny_loaded: LoadedModel,
) -> None:
    layers = tiny_loaded.anatomy.layer_numbers
    first, last = layers[0], layers[-1]
    (edit,) = edits_at([parse_setting(f"L{first}E1,L{last}E2-4=+1")], tiny_loaded.anatomy)
    assert [str(e) for e in edit.experts] == [
        f"L{first}E1", f"L{last}E2", f"L{last}E3", f"L{last}E4",
    ]  # fmt: skip
    (edit,) = edits_at([parse_setting("L*E3=mask")], tiny_loaded.anatomy)
    assert [e.layer_idx for e in edit.experts] == list(layers)


def test_the_letter_s_takes_the_strength_and_its_sign(tiny_loaded: LoadedModel) -> None:
    settings = [parse_setting("L1E2=+s"), parse_setting("L1E3=-s"), parse_setting("L2E0=mask")]
    values = [e.value for e in edits_at(settings, tiny_loaded.anatomy, 1.5)]
    assert values[:2] == [1.5, -1.5]
    with pytest.raises(BadInputError, match="add --sweep"):
        edits_at(settings, tiny_loaded.anatomy)


def test_a_sweep_takes_the_only_number_or_those_that_say_s() -> None:
    (only, word) = swept([parse_setting("L1E2=+2"), parse_setting("L1E3=mask")])
    assert only.open
    assert not word.open
    two = [parse_setting("L1E2=+2"), parse_setting("L1E3=x2")]
    with pytest.raises(BadInputError, match="write s"):
        swept(two)
    one = swept([parse_setting("L1E2=+2"), parse_setting("L1E3=+s")])
    assert [s.open for s in one] == [False, True]
    with pytest.raises(BadInputError, match="summand in one"):
        swept([parse_setting("L1E2=+s"), parse_setting("L1E3=xs")])
    with pytest.raises(BadInputError, match="gives 0"):
        swept([parse_setting("L1E3=mask")])


def test_strengths_hold_both_ends() -> None:
    assert parse_strengths("-4:4:2") == (-4.0, -2.0, 0.0, 2.0, 4.0)
    assert parse_strengths("0:3:0.5") == (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
    assert parse_strengths("0:1:0.4") == (0.0, 0.4, 0.8)  # 1.2 is past the end
    assert parse_strengths("4,-1,0") == (-1.0, 0.0, 4.0)
    assert parse_strengths("2:2:1") == (2.0,)


@pytest.mark.parametrize("text", ["", "a:b:c", "1:2", "4:-4:1", "0:1:0", "0:1:-1", "0:1:0.001"])
def test_strengths_of_another_form_are_refused(text: str) -> None:
    with pytest.raises(BadInputError, match="--sweep"):
        parse_strengths(text)


def test_settings_that_undo_each_other_are_refused(tiny_loaded: LoadedModel) -> None:
    anatomy = tiny_loaded.anatomy
    for pair in (("mask", "+2"), ("mask", "force"), ("zero", "x2")):
        settings = [parse_setting(f"L1E2={value}") for value in pair]
        with pytest.raises(BadInputError, match="L1E2"):
            edits_at(settings, anatomy)
    # an expert that is chosen and gives nothing crowds another out: that is an intervention
    assert len(edits_at([parse_setting("L1E2=zero"), parse_setting("L1E2=+9")], anatomy)) == 2


# -- distributions


def test_divergence_entropy_and_shifts_by_hand() -> None:
    before, after = np.log([0.5, 0.25, 0.25]), np.log([0.25, 0.25, 0.5])
    # ½·log 2 + ¼·log 1 + ¼·log ½ = ¼·log 2
    assert kl_divergence(before, after) == pytest.approx(0.25 * math.log(2))
    assert entropy(before) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(4))
    moved = shift_of(2, before, after + 3.0)  # 3 added to every logit changes no probability
    assert moved.prob_before == pytest.approx(0.25)
    assert moved.prob_after == pytest.approx(0.5)
    assert moved.log_prob_change == pytest.approx(math.log(2))
    assert moved.logit_change == pytest.approx(math.log(2) + 3.0)
    assert (moved.rank_before, moved.rank_after) == (2, 1)
    assert kl_divergence(before, before + 7.0) == pytest.approx(0.0, abs=1e-12)


def test_tokens_that_cannot_come_do_not_spoil_the_figures() -> None:
    before = np.array([0.0, 0.0, -np.inf])
    after = np.array([0.0, 1.0, -np.inf])
    assert math.isfinite(kl_divergence(before, after))
    assert entropy(before) == pytest.approx(math.log(2))
    assert shift_of(2, before, after).log_prob_change == 0.0
    assert kl_divergence(np.zeros(3), before) == math.inf


def test_the_union_of_the_first_tokens_is_ordered_by_the_higher_side() -> None:
    before, after = np.log([0.6, 0.3, 0.1]), np.log([0.05, 0.15, 0.8])
    assert top_union(before, after, 1) == [2, 0]
    assert top_union(before, after, 3) == [2, 0, 1]


# -- what an edit does


def test_the_figures_are_those_of_plain_forward_passes(tiny_loaded: LoadedModel) -> None:
    edits = [bias("L1E2", 2.0)]
    found = quick(tiny_loaded, edits, top=5)
    before, after = next_logits(tiny_loaded, []), next_logits(tiny_loaded, edits)
    p, q = (np.exp(v) / np.exp(v).sum() for v in (before, after))
    assert found.kl == pytest.approx(float((p * np.log(p / q)).sum()), rel=1e-4)
    assert found.kl > 1e-6
    assert found.entropy_before == pytest.approx(float(-(p * np.log(p)).sum()), rel=1e-5)
    assert found.entropy_after == pytest.approx(float(-(q * np.log(q)).sum()), rel=1e-5)
    first = {*np.argsort(-p)[:5].tolist(), *np.argsort(-q)[:5].tolist()}
    assert {t.token_id for t in found.tokens} == first
    for token in found.tokens:
        i = token.token_id
        assert token.shift.prob_before == pytest.approx(p[i], rel=1e-4)
        assert token.shift.prob_after == pytest.approx(q[i], rel=1e-4)
        assert token.shift.logit_change == pytest.approx(after[i] - before[i], abs=1e-5)
        assert token.shift.rank_after == 1 + int((q > q[i]).sum())


def test_an_edit_at_a_target_leaves_earlier_tokens_and_other_layers_alone(
    tiny_loaded: LoadedModel,
) -> None:
    last = len(ids_of(tiny_loaded)[0]) - 1
    at_last = quick(tiny_loaded, force("L2E5"), targets=[-1])
    assert at_last.targets == (last,)
    assert [c.position for c in at_last.choices] == [last]
    expected = next_logits(tiny_loaded, [force("L2E5").at([last])])
    everywhere = next_logits(tiny_loaded, [force("L2E5")])
    assert not np.array_equal(expected, everywhere)
    got = {t.token_id: t.shift.logit_after for t in at_last.tokens}
    assert all(v == pytest.approx(expected[i], abs=1e-5) for i, v in got.items())


def test_choices_show_the_experts_and_weights_that_were_used(tiny_loaded: LoadedModel) -> None:
    ids = chosen(tiny_loaded, 1)
    outside = next(e for e in range(8) if e not in ids[3])
    found = quick(tiny_loaded, force(f"L1E{outside}"), targets=[3])
    (choice,) = found.choices
    assert {e for e, _ in choice.before} == set(ids[3].tolist())
    assert outside in {e for e, _ in choice.after}
    assert len(choice.after) == ids.shape[1]
    weights = [w for _, w in choice.before]
    assert weights == sorted(weights, reverse=True)
    (use,) = found.uses
    assert (use.positions, use.chosen_before, use.chosen_after) == (1, 0, 1)


def test_use_is_counted_over_the_prompt_where_the_edit_holds_everywhere(
    tiny_loaded: LoadedModel,
) -> None:
    ids = chosen(tiny_loaded, 1)
    busiest = int(np.bincount(ids.reshape(-1)).argmax())
    found = quick(tiny_loaded, mask(f"L1E{busiest}"))
    (use,) = found.uses
    assert use.positions == len(ids)
    assert use.chosen_before == int((ids == busiest).any(-1).sum()) > 0
    assert use.chosen_after == 0


def test_text_holds_the_edit_and_a_target_ends_with_the_prompt(tiny_loaded: LoadedModel) -> None:
    ids = ids_of(tiny_loaded)
    edit = bias("L1E2", 6.0)
    found = quick(tiny_loaded, edit, generate=6)
    assert found.before is not None
    assert found.after is not None
    for text, edits in ((found.before, []), (found.after, [edit])):
        line = ids
        for token in text.token_ids:  # greedy, one plain pass a token, no cache
            with torch.inference_mode(), edited(tiny_loaded, edits):
                logits = tiny_loaded.model(line).logits[0, -1]
            assert int(logits.argmax()) == token
            line = torch.cat([line, torch.tensor([[token]])], dim=1)
    (use,) = found.uses
    assert use.written_after is not None
    assert use.written_after[1] == len(found.after.token_ids) - 1
    at_target = quick(tiny_loaded, edit, generate=6, targets=[2])
    assert at_target.uses[0].written_after is None


def test_the_first_difference_is_where_the_tokens_part(tiny_loaded: LoadedModel) -> None:
    found = [quick(tiny_loaded, bias(f"L1E{e}", 8.0), generate=8) for e in range(4)]
    parted = [f for f in found if f.first_difference is not None]
    assert parted, "some strong edit should change the text"
    for f in parted:
        at = f.first_difference
        assert f.before is not None
        assert f.after is not None
        assert at is not None
        assert f.before.token_ids[:at] == f.after.token_ids[:at]
        assert f.before.token_ids[at : at + 1] != f.after.token_ids[at : at + 1]


def test_drawn_text_is_the_same_from_the_same_seed_and_leaves_the_generator_alone(
    tiny_loaded: LoadedModel,
) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    found = quick(tiny_loaded, scale("L1E2", 1.0), generate=10, temperature=1.5, seed=3)
    assert torch.equal(torch.rand(1), expected)
    assert found.first_difference is None
    others = quick(tiny_loaded, scale("L1E2", 1.0), generate=10, temperature=1.5, seed=4)
    assert found.before is not None
    assert others.before is not None
    assert found.before.token_ids != others.before.token_ids


# -- silence is said


def unchosen(loaded: LoadedModel, layer: int) -> int:
    """An expert that no prompt token chose, or else the first tokens' own gap."""
    ids = chosen(loaded, layer)
    return next(e for e in range(8) if e not in ids[3])


def test_an_expert_that_was_not_chosen_cannot_be_scaled_and_the_result_says_so(
    tiny_loaded: LoadedModel,
) -> None:
    for edit in (
        scale(f"L1E{unchosen(tiny_loaded, 1)}", 3.0),
        zero(f"L1E{unchosen(tiny_loaded, 1)}"),
    ):
        found = quick(tiny_loaded, edit, targets=[3])
        assert found.effect.kind == "none"
        assert found.kl == 0.0
        assert "exactly as before" in found.effect.notes[0]
        assert "cannot be multiplied" in found.effect.notes[1]
        assert "bit for bit" in found.summary()[0]


def test_no_edit_at_all_is_named(tiny_loaded: LoadedModel) -> None:
    assert "adding 0" in quick(tiny_loaded, bias("L1E2", 0.0)).effect.notes[1]
    assert "multiplying by 1" in quick(tiny_loaded, scale("L1E2", 1.0)).effect.notes[1]


def test_an_expert_that_is_chosen_anyway_need_not_be_forced(tiny_loaded: LoadedModel) -> None:
    expert = int(chosen(tiny_loaded, 1)[3, 0])
    found = quick(tiny_loaded, force(f"L1E{expert}"), targets=[3])
    assert found.effect.kind == "none"
    assert "anyway" in found.effect.notes[1]


def test_the_last_layer_at_an_earlier_token_cannot_reach_the_next_token(
    tiny_loaded: LoadedModel,
) -> None:
    end = tiny_loaded.anatomy.num_decoder_layers - 1
    assert end in tiny_loaded.anatomy.layer_numbers
    found = quick(tiny_loaded, force(f"L{end}E{unchosen(tiny_loaded, end)}"), targets=[3])
    assert found.effect.kind == "none"
    assert f"layer {end} is the last one" in found.effect.notes[0]
    assert "--target" in found.effect.notes[0]
    assert found.choices[0].before != found.choices[0].after


def test_an_edit_that_does_something_carries_no_warning(tiny_loaded: LoadedModel) -> None:
    found = quick(tiny_loaded, bias("L1E2", 9.0))
    assert found.effect.kind == "some"
    assert found.effect.notes == ()


def test_a_normalised_router_that_ignores_the_edit_differs_by_rounding_at_most(
    tmp_path: Path,
) -> None:
    loaded = load_model(ModelSpec(str(save_tiny("mixtral", tmp_path / "m"))))
    ids = chosen(loaded, 1)
    away = next(e for e in range(8) if e not in ids[3])
    found = quick(loaded, bias(f"L1E{away}", -3.0), targets=[3])
    assert found.effect.kind in ("none", "rounding")
    assert "neither before nor after" in " ".join(found.effect.notes)


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


@pytest.mark.parametrize("model_type", ["mixtral", "deepseek_v3", "gpt_oss", "qwen3_next"])
def test_other_families_are_steered_too(model_type: str, tmp_path: Path) -> None:
    loaded = load_model(ModelSpec(str(save_tiny(model_type, tmp_path / model_type))))
    layer = loaded.anatomy.layer_numbers[0]
    found = quick(loaded, bias(f"L{layer}E1", 12.0), generate=4)
    assert found.effect.kind == "some"
    (use,) = found.uses
    assert use.chosen_after > use.chosen_before
    assert found.after is not None
    assert 1 <= len(found.after.token_ids) <= 4


def test_another_number_of_experts_is_an_edit_too(tiny_loaded: LoadedModel) -> None:
    found = quick(tiny_loaded, top_k(1, layers=[1]), generate=2, controls=3)
    assert found.effect.kind == "some"
    assert found.uses == ()
    assert [(len(c.before), len(c.after)) for c in found.choices] == [(3, 1)]
    assert found.controls is not None
    assert found.controls.draws == ()


def test_edits_may_bring_their_own_positions(tiny_loaded: LoadedModel) -> None:
    edits = [bias("L1E2", 6.0).at([3]), force("L2E5").at([5])]
    found = quick(tiny_loaded, edits)
    assert found.targets == (3, 5)
    assert found.edits == ("L1E2 +6 logits at 3", "force L2E5 at 5")
    one = quick(tiny_loaded, edits[:1])
    assert one.edits == ("L1E2 +6 logits",)
    assert one.where().startswith("at token 3 ")
    with pytest.raises(BadInputError, match="past the prompt"):
        quick(tiny_loaded, bias("L1E2", 6.0).at([500]))


# -- controls


def test_rank_and_p_by_hand() -> None:
    assert stand(3.0, [1.0, 2.0, 3.0, 4.0]) == (2, 0.6)  # one above; (1 + 2)/(1 + 4)
    assert stand(9.0, [1.0] * 9) == (1, 0.1)
    assert stand(0.0, [0.0, 0.0]) == (1, 1.0)


def test_controls_are_other_experts_of_the_same_layer_and_are_what_they_say(
    tiny_loaded: LoadedModel,
) -> None:
    found = quick(tiny_loaded, bias("L1E2", 3.0), controls=5, words=["plan"])
    assert found.controls is not None
    draws = found.controls.draws
    names = [d.experts for d in draws]
    assert len(set(names)) == 5
    assert all(len(n) == 1 and n[0].startswith("L1E") and n != ("L1E2",) for n in names)
    plain = next_logits(tiny_loaded, [])
    for draw in draws:
        other = next_logits(tiny_loaded, [bias(draw.experts[0], 3.0)])
        assert draw.kl == pytest.approx(kl_divergence(plain, other), rel=1e-4)
        i = found.words[0].word.token_id
        assert draw.word_changes[0] == pytest.approx(other[i] - plain[i], abs=1e-5)
    at_least = sum(d.kl >= found.kl for d in draws)
    assert found.controls.kl == (1 + sum(d.kl > found.kl for d in draws), (1 + at_least) / 6)
    moved = abs(found.words[0].shift.logit_change)
    larger = sum(abs(d.word_changes[0]) >= moved for d in draws)
    assert found.controls.words[0].p == (1 + larger) / 6


def test_more_controls_than_experts_are_said_to_be_fewer(tiny_loaded: LoadedModel) -> None:
    found = quick(tiny_loaded, bias("L1E2", 3.0), controls=50)
    assert found.controls is not None
    assert len(found.controls.draws) == 7  # eight experts, one of them edited
    assert found.controls.note.startswith("7 of 50 controls")


def test_an_edit_that_takes_away_is_compared_with_experts_that_were_there(
    tiny_loaded: LoadedModel,
) -> None:
    ids = chosen(tiny_loaded, 1)
    expert = int(ids[3, 0])
    for edit in (zero(f"L1E{expert}"), mask(f"L1E{expert}"), bias(f"L1E{expert}", -3.0)):
        found = quick(tiny_loaded, edit, targets=[3], controls=10)
        assert found.controls is not None
        assert found.controls.chosen_only
        others = {f"L1E{e}" for e in ids[3] if e != expert}
        assert {d.experts[0] for d in found.controls.draws} == others
        assert all(d.positions == 1 for d in found.controls.draws)
    up = quick(tiny_loaded, bias(f"L1E{expert}", 3.0), targets=[3], controls=10)
    assert up.controls is not None
    assert not up.controls.chosen_only
    assert len(up.controls.draws) == 7


def test_several_experts_are_replaced_layer_by_layer_without_repetition(
    tiny_loaded: LoadedModel,
) -> None:
    edits = [bias(["L1E2", "L1E3"], 2.0), mask("L2E4")]
    found = quick(tiny_loaded, edits, controls=4)
    assert found.controls is not None
    assert found.controls.draws
    for draw in found.controls.draws:
        assert len(set(draw.experts)) == 3
        assert [e[:2] for e in draw.experts] == ["L1", "L1", "L2"]
        assert not {"L1E2", "L1E3", "L2E4"} & set(draw.experts)


def test_a_whole_layer_has_no_control(tiny_loaded: LoadedModel) -> None:
    experts = [f"L1E{e}" for e in range(8)]
    found = quick(tiny_loaded, scale(experts, 0.5), controls=3)
    assert found.controls is not None
    assert found.controls.kl is None
    assert "every expert of layer 1" in found.controls.note


def test_controls_repeat_with_the_seed(tiny_loaded: LoadedModel) -> None:
    first, again, other = (
        quick(tiny_loaded, bias("L1E2", 3.0), controls=3, seed=seed).controls for seed in (1, 1, 2)
    )
    assert first == again
    assert first is not None
    assert other is not None
    assert [d.experts for d in first.draws] != [d.experts for d in other.draws]


# -- sweeps


def test_every_strength_is_what_steering_at_it_gives(tiny_loaded: LoadedModel) -> None:
    strengths = (-2.0, 0.0, 3.0)
    found = sweep(
        tiny_loaded, PROMPT, lambda s: bias("L1E2", s), strengths, words=["plan"], generate=4
    )
    assert [p.strength for p in found.points] == list(strengths)
    for point in found.points:
        alone = quick(tiny_loaded, bias("L1E2", point.strength), words=["plan"], generate=4)
        assert point.kl == alone.kl
        assert point.entropy == alone.entropy_after
        assert point.words == tuple(w.shift for w in alone.words)
        assert point.text == alone.after
        assert point.first_difference == alone.first_difference
        assert (point.chosen, point.places) == (
            alone.uses[0].chosen_after, alone.uses[0].positions,
        )  # fmt: skip
        best = min(alone.tokens, key=lambda t: t.shift.rank_after)
        assert (point.token_id, point.prob) == (best.token_id, best.shift.prob_after)
    assert found.points[1].kl == 0.0
    assert found.points[1].first_difference is None


def test_an_expert_is_chosen_more_often_the_more_is_added(tiny_loaded: LoadedModel) -> None:
    found = sweep(tiny_loaded, PROMPT, lambda s: bias("L1E2", s), [-20, -1, 0, 1, 20], generate=0)
    counts = [p.chosen for p in found.points]
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert counts[-1] == found.points[-1].places > 0
    assert all(p.text is None for p in found.points)


def test_a_sweep_needs_a_strength(tiny_loaded: LoadedModel) -> None:
    with pytest.raises(BadInputError, match="at least one"):
        sweep(tiny_loaded, PROMPT, lambda s: bias("L1E2", s), [])


def test_results_become_tables_and_json(tiny_loaded: LoadedModel) -> None:
    found = quick(tiny_loaded, bias("L1E2", 3.0), words=["plan"], generate=3, controls=2)
    table = found.to_arrow()
    assert table.num_rows == len(found.tokens)
    assert table["prob_after"].to_pylist() == [t.shift.prob_after for t in found.tokens]
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["kl"] == found.kl
    assert plain["tokens"][0]["shift"]["rank_before"] == found.tokens[0].shift.rank_before
    swept_over = sweep(
        tiny_loaded, PROMPT, lambda s: bias("L1E2", s), [0, 1], words=["plan"], generate=0
    )
    assert swept_over.to_arrow()["strength"].to_pylist() == [0.0, 1.0]
    assert any(c.startswith("logit_change") for c in swept_over.to_arrow().column_names)
    json.dumps(swept_over.to_dict(), allow_nan=False)


# -- plans


def plan_of(loaded: LoadedModel, **changes: object) -> SteeringPlan:
    fields = {
        "model": "tiny", "config_sha256": loaded.config_hash,
        "weights_sha256": loaded.weights_hash, "settings": ["L1E2=+2", "L1E3=mask"],
    }  # fmt: skip
    return SteeringPlan(**{**fields, **changes})  # type: ignore[arg-type]


def test_a_plan_is_read_as_it_was_written(tiny_loaded: LoadedModel, tmp_path: Path) -> None:
    plan = plan_of(tiny_loaded)
    path = write_plan(plan, tmp_path / "plan.json")
    assert read_plan(path) == plan
    require_model_of_plan(tiny_loaded, plan, path)


def test_the_plan_of_another_model_is_refused(tiny_loaded: LoadedModel) -> None:
    for change in ({"config_sha256": "0" * 64}, {"weights_sha256": "0" * 64}):
        with pytest.raises(RunError, match="made on another model"):
            require_model_of_plan(tiny_loaded, plan_of(tiny_loaded, **change), "plan.json")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{broken", "no JSON"),
        ("[]", "no steering plan"),
        ('{"kind": "other"}', "no steering plan"),
        ('{"kind": "steering plan", "settings": []}', "model"),
        (
            '{"kind": "steering plan", "model": "m", "config_sha256": "c", "settings": ["L1E2=2"]}',
            "sign must be there",
        ),
        (
            '{"kind": "steering plan", "model": "m", "config_sha256": "c", "settings": []}',
            "nothing",
        ),
    ],
)
def test_a_file_that_is_no_plan_is_refused(content: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(content)
    with pytest.raises(RunError, match=said):
        read_plan(path)
    with pytest.raises(RunError, match="cannot be read"):
        read_plan(tmp_path / "none.json")


def test_a_plan_of_experts_takes_one_value_for_all(
    tiny_loaded: LoadedModel, tmp_path: Path
) -> None:
    layers = tiny_loaded.anatomy.layers
    plan = ExpertPlan(
        "tiny", tiny_loaded.config_hash, tiny_loaded.anatomy.layer_numbers,
        tuple(m.num_experts for m in layers),
        (PlanEntry(ExpertRef(1, 2), "why"), PlanEntry(ExpertRef(2, 4), "why")), "test",
    )  # fmt: skip
    path = plan.write(tmp_path / "experts.json")
    assert read_plan(path, "mask").settings == ["L1E2,L2E4=mask"]
    require_model_of_plan(tiny_loaded, read_plan(path, "+2"), path)
    with pytest.raises(RunError, match="add --as"):
        read_plan(path)
    with pytest.raises(BadInputError, match="sign must be there"):
        read_plan(path, "2")
    own = write_plan(plan_of(tiny_loaded), tmp_path / "own.json")
    with pytest.raises(RunError, match="leave it out"):
        read_plan(own, "mask")
