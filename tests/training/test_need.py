"""What a training needs at the least, before anything is built."""

from typing import Any

import pytest
import torch
from tests.training.conftest import RecipeWriter

from moescope.errors import BadInputError
from moescope.training.need import require_memory, stock_parameters
from moescope.training.network import build_network
from moescope.training.recipe_file import load_recipe

SHAPES: dict[str, dict[str, Any]] = {
    "olmoe": {"model": {"num_hidden_layers": 3}},
    "untied": {"model": {"tie_word_embeddings": False}},
    "mixtral": {"model": {"architecture": "mixtral"}},
    "qwen2_moe": {"model": {"architecture": "qwen2_moe", "shared_expert_size": 24}},
    "deepseek_v3": {
        "model": {"architecture": "deepseek_v3", "shared_expert_size": 16, "num_hidden_layers": 4},
        "router": {"kind": "sigmoid_bias"},
    },
}


@pytest.mark.parametrize("name", SHAPES)
def test_parameters_are_those_of_the_model(name: str, write_recipe: RecipeWriter) -> None:
    recipe = load_recipe(write_recipe(**SHAPES[name]))
    model = build_network(recipe, 97, 0, torch.device("cpu")).model
    assert stock_parameters(recipe, 97) == sum(p.numel() for p in model.parameters())


def test_what_cannot_be_held_is_refused_with_what_it_takes(
    write_recipe: RecipeWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(write_recipe())
    cpu = torch.device("cpu")
    require_memory(recipe, 128, cpu)
    monkeypatch.setattr("moescope.training.need.free_memory", lambda _: 10_000)
    with pytest.raises(BadInputError, match=r"needs at least .* for 10,640 parameters .* are free"):
        require_memory(recipe, 128, cpu)
