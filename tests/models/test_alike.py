"""The groups of architectures that the fast tests take one of: each member has the same code."""

from functools import cache

import pytest
from tests.support.alike import ALIKE, TWINS, code_of, one_of_each
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

FIRST_CODE = cache(code_of)


@pytest.mark.parametrize("model_type", sorted(TWINS.keys() & CONFIG_MAPPING_NAMES.keys()))
def test_an_architecture_routes_and_computes_experts_as_the_one_that_stands_for_it(
    model_type: str,
) -> None:
    """If not, transformers changed one of them: take it out of ALIKE."""
    assert code_of(model_type) == FIRST_CODE(TWINS[model_type])


def test_others_are_told_apart() -> None:
    assert FIRST_CODE("deepseek_v3") != FIRST_CODE("olmoe")
    assert FIRST_CODE("olmoe") != FIRST_CODE("qwen3_moe")  # one divides by the sum, in its setting


def test_nobody_stands_for_another_and_is_stood_for() -> None:
    assert not TWINS.keys() & ALIKE.keys()
    assert sum(map(len, ALIKE.values())) == len(TWINS)


def test_all_types_are_kept_and_only_twins_of_one_that_is_there_are_slow() -> None:
    made = one_of_each(["olmoe", "flex_olmo", "minimax"])
    assert made[0] == "olmoe"
    assert made[2] == "minimax"  # mixtral is not among them
    assert made[1].values == ("flex_olmo",)
    assert [mark.name for mark in made[1].marks] == ["slow"]
