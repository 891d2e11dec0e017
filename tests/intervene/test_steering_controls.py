"""The same edit on other experts, and the same edit at several strengths."""

import json
from dataclasses import replace

import pytest
from tests.support.steered import PROMPT, chosen, next_logits, quick

from moescope.errors import BadInputError
from moescope.intervene import (
    bias,
    mask,
    scale,
    sweep,
    zero,
)
from moescope.intervene.steering.controls import stand
from moescope.intervene.steering.distributions import (
    kl_divergence,
)
from moescope.models import LoadedModel

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


@pytest.mark.parametrize(
    ("kls", "says"),
    [
        ([0.5] * 10 + [9.0] * 10, "The edit moves {} no more than the same edit on other experts"),
        ([0.5] * 18 + [9.0] * 2, "The edit is not shown to move {} more than the same edit on"),
        ([0.5] * 20, "The edit moves {} more than the same edit on other experts of the layer: "),
        ([0.5] * 10, "10 controls cannot show whether the edit moves {} more than the same edit"),
    ],
)
def test_steering_opens_with_what_other_experts_would_do(
    tiny_loaded: LoadedModel, kls: list[float], says: str
) -> None:
    found = quick(tiny_loaded, bias("L1E2", 3.0), controls=2)
    assert found.controls is not None
    draws = tuple(found.controls.draws[0]._replace(kl=kl) for kl in kls)
    known = replace(
        found.controls, draws=draws, kl=stand(1.0, kls), p_lowest=1 / (1 + len(kls)), asked=len(kls)
    )
    first = replace(found, kl=1.0, controls=known).summary()[0]
    assert first.startswith(says.format("this prompt's next token"))
    assert f"; p = {stand(1.0, kls).p:.2g})." in first
    assert ("`controls` asks for more" in first) == (len(kls) == 10)


def test_p_allows_for_experts_that_controls_share(tiny_loaded: LoadedModel) -> None:
    found = quick(tiny_loaded, bias(["L1E2", "L1E3", "L1E4"], 3.0), controls=15)
    assert found.controls is not None
    assert found.controls.p_lowest is not None
    plain = 1 / (1 + len(found.controls.draws))
    assert found.controls.p_lowest > 1.5 * plain  # of five others three are drawn each time
    assert found.controls.kl is not None
    assert found.controls.kl.p >= found.controls.p_lowest


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
