"""The shipped recipes: each is a valid one, trains, and changes little beside the others."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.training.conftest import RecipeWriter

from moescope.errors import BadInputError
from moescope.training.knobs import differing
from moescope.training.recipe_file import example_names, load_example
from moescope.training.trainer import train

NAMES = example_names()


def small(writer: RecipeWriter, steps: int) -> tuple[str, ...]:
    """The same rules on tiny text."""
    return (
        f"data.train={writer.text}", f"tokenizer.path={writer.folder / 'tokenizer'}",
        "data.context=16", "data.heldout_share=0.3", "data.heldout_tokens=64", "run.log_every=1",
        f"train.steps={steps}",
    )  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_every_example_trains(name: str, write_recipe: RecipeWriter, tmp_path: Path) -> None:
    done = train(load_example(name, small(write_recipe, 3)), tmp_path / "run")
    rows = done.state.log.rows["layers"]
    assert len(rows) == 3 * len(done.state.layer_numbers)
    assert all(sum(row["load"]) == pytest.approx(1) for row in rows)
    noisy = name == "noisy-topk"
    assert all((row["noise_scale"] is not None) == noisy for row in rows)


def test_the_noise_starts_at_softplus_of_zero(write_recipe: RecipeWriter, tmp_path: Path) -> None:
    done = train(load_example("noisy-topk", small(write_recipe, 1)), tmp_path / "run")
    first = done.state.log.rows["layers"][0]
    assert first["noise_scale"] == pytest.approx(0.6931 + 0.01, abs=1e-3)  # ln 2


@pytest.mark.parametrize("name", NAMES)
def test_an_example_says_what_to_look_for_and_reads_the_shipped_text(name: str) -> None:
    recipe = load_example(name)
    assert recipe.name == name
    assert "Look for" in str(recipe.about)
    assert len(list(Path(recipe.data.train.path).glob("*.jsonl"))) == 13


def test_examples_differ_in_what_they_show_only() -> None:
    sections = {n.partition(".")[0] for n in differing([load_example(name) for name in NAMES])}
    assert sections <= {"model", "router", "balance", "capacity"}
    assert list(differing([load_example("no-balancing"), load_example("load-balancing")])) == [
        "balance.load_balancing"
    ]


def test_an_unknown_example_lists_those_that_there_are() -> None:
    with pytest.raises(BadInputError, match="'nothing'; there is: capacity, expert-choice"):
        load_example("nothing")
    with pytest.raises(BadInputError, match="did you mean noisy-topk"):
        load_example("noisy")


@pytest.mark.slow
def test_without_balancing_the_load_collapses_and_with_the_loss_it_does_not(
    tmp_path: Path,
) -> None:
    """What the two recipes promise, on the shipped text."""
    cv, dead = {}, {}
    for name in ("no-balancing", "load-balancing"):
        done = train(load_example(name, ("train.steps=100",)), tmp_path / name)
        late = [row for row in done.state.log.rows["layers"] if row["step"] > 50]
        cv[name] = sum(row["cv"] for row in late) / len(late)
        dead[name] = sum(row["dead_share"] for row in late) / len(late)
    assert cv["no-balancing"] > 1.0 > cv["load-balancing"]
    assert dead["no-balancing"] > 0.1 > dead["load-balancing"]
