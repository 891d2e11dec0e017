"""A recipe is checked before anything is read: one line says what is wrong and what would work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.training.conftest import RecipeWriter

from moescope.errors import BadInputError
from moescope.training.part import Ramp
from moescope.training.recipe import routing_notes
from moescope.training.recipe_file import load_recipe

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"routter": {}}, "unknown key 'routter'; did you mean router?"),
    ({"model": {"experts": 4}}, "unknown key 'model.experts'; did you mean num_experts?"),
    ({"model": {"top_k": 9}}, "top_k 9 is more than num_experts 8; choose top_k from 1 to 8"),
    ({"model": {"num_experts": 4097}}, "model.num_experts: expected at most"),
    ({"model": {"hidden_size": 17}}, "hidden_size 17 does not divide into 2 attention heads"),
    ({"model": {"hidden_size": 18}}, "a head of 9 is odd"),
    ({"model": {"shared_expert_size": 8}}, "olmoe has no shared expert"),
    ({"model": {"architecture": "qwen2_moe"}}, "qwen2_moe needs shared_expert_size"),
    ({"model": {"architecture": "gpt2"}}, "model.architecture: expected 'olmoe'"),
    ({"router": {"kind": "sigmoid_bias"}}, "does not map to the architecture olmoe"),
    ({"router": {"kind": "switch"}}, "set model.top_k to 1, got 2"),
    (
        {"router": {"kind": "topk", "normalize": False}, "model": {"architecture": "mixtral"}},
        "mixtral always normalizes",
    ),
    ({"router": {"normalize": True}, "model": {"top_k": 1}}, "the router gets no gradient"),
    ({"router": {"kind": "noisy_topk", "normalize": False}}, "always has normalize: true"),
    (
        {
            "router": {"kind": "sigmoid_bias", "normalize": True},
            "model": {"architecture": "deepseek_v3", "shared_expert_size": 8, "top_k": 1},
        },
        "router.kind sigmoid_bias with top_k 1 always has normalize: false",
    ),
    ({"balance": {"load": 0.1}}, "needs the noise of router.kind noisy_topk (got topk)"),
    ({"balance": {"bias_update": 0.1}}, "needs router.kind sigmoid_bias, got topk"),
    ({"router": {"kind": "expert_choice"}}, "expert_choice balances by itself"),
    (
        {"router": {"kind": "expert_choice"}, "balance": {"load_balancing": 0}, "capacity": {}},
        "expert_choice sets its own capacity",
    ),
    ({"capacity": {"train": 0.1}}, "less than one of 16 tokens; it must be at least 0.25"),
    ({"data": {"context": 2000}}, "longer than model.max_position_embeddings 1024"),
    ({"train": {"tokens": 5}}, "give exactly one of steps and tokens"),
    ({"run": {"keep": [10]}}, "run.keep.0: expected at most 1, got 10"),
    ({"balance": {"importance": -1}}, "balance.importance: expected 0 or more"),
    ({"balance": {"importance": {"start": 1, "end": 0}}}, "balance.importance.over is missing"),
    ({"model": {"zzzz": 4}}, "unknown key 'model.zzzz'; keys of model: architecture"),
    ({"train": {"learning_rate": -1}}, "train.learning_rate: expected more than 0"),
]


@pytest.mark.parametrize(("changes", "line"), WRONG, ids=lambda v: v if isinstance(v, str) else "")
def test_a_wrong_recipe_is_refused_in_one_line(
    changes: dict[str, Any], line: str, write_recipe: RecipeWriter
) -> None:
    path = write_recipe(**changes)
    with pytest.raises(BadInputError) as refused:
        load_recipe(path)
    assert line in str(refused.value)
    assert path.name in str(refused.value)
    assert "\n" not in str(refused.value)


def test_settings_given_beside_the_recipe_win(write_recipe: RecipeWriter) -> None:
    recipe = load_recipe(write_recipe(), ("train.steps=2", "data.train=elsewhere"))
    assert recipe.num_steps == 2
    assert recipe.data.train.path == str(Path.cwd() / "elsewhere")  # as typed, seen from here
    with pytest.raises(BadInputError, match=r"not of the form section\.key=value"):
        load_recipe(write_recipe(), ("steps",))


def test_paths_are_relative_to_the_recipe(write_recipe: RecipeWriter) -> None:
    recipe = load_recipe(write_recipe())
    assert recipe.data.train.path == str(write_recipe.folder / "texts.jsonl")


def test_tokens_become_steps(write_recipe: RecipeWriter) -> None:
    recipe = load_recipe(write_recipe(train={"steps": None, "tokens": 960}))
    assert recipe.step_tokens == 16 * 2 * 3
    assert recipe.num_steps == 10


def test_a_ramp_changes_linearly_and_then_stays() -> None:
    ramp = Ramp(start=1.0, end=0.0, over=0.5)
    assert [ramp.at(p) for p in (0.0, 0.25, 0.5, 1.0)] == [1.0, 0.5, 0.0, 0.0]


def test_where_the_saved_model_routes_otherwise_is_said_at_the_start(
    write_recipe: RecipeWriter,
) -> None:
    choice = {"router": {"kind": "expert_choice"}, "balance": {"load_balancing": 0}}
    assert "not causal" in routing_notes(load_recipe(write_recipe(**choice)))[0]
    noisy = {"router": {"kind": "noisy_topk"}}
    assert "training only" in routing_notes(load_recipe(write_recipe(**noisy)))[0]
    limited = {"capacity": {"train": 1.25, "minimum": 1}}
    assert "no capacity limit" in routing_notes(load_recipe(write_recipe(**limited)))[0]
    assert routing_notes(load_recipe(write_recipe())) == []
