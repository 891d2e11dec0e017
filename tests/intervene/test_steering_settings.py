"""The words of --set, strengths, distributions by hand, and plans as files."""

import math

import numpy as np
import pytest

from moescope.errors import BadInputError
from moescope.intervene.steering.distributions import (
    entropy,
    kl_divergence,
    shift_of,
    top_union,
)
from moescope.intervene.steering.settings import edits_at, parse_setting, parse_strengths, swept
from moescope.models import LoadedModel

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
    values = [getattr(e, "value", None) for e in edits_at(settings, tiny_loaded.anatomy, 1.5)]
    assert values[:2] == [1.5, -1.5]
    with pytest.raises(BadInputError, match="add `sweep`"):
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
    with pytest.raises(BadInputError, match="`sweep`"):
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
