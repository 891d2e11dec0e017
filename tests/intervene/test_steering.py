"""Steering: figures are those of plain passes, text holds the edit, and silence is said."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.support.saved import save_tiny
from tests.support.steered import chosen, ids_of, next_logits, quick

from moescope.errors import BadInputError
from moescope.intervene import (
    bias,
    edited,
    force,
    mask,
    scale,
    top_k,
    zero,
)
from moescope.models import LoadedModel, ModelSpec, load_model

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
    assert "`target=" in found.effect.notes[0]
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
