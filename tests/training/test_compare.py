"""Training runs side by side: what differs, how they ended, and what one seed cannot tell."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from tests.report.test_browser import BROWSER, dom, root
from tests.training.conftest import RecipeWriter

from moescope.errors import BadInputError, RunError
from moescope.report.trainings_page import trainings_page, write_trainings_page
from moescope.training.compare import Comparison, compare_trainings
from moescope.training.knobs import difference, differing
from moescope.training.recipe_file import load_recipe
from moescope.training.trainer import train

RUNS = {"plain-3": {}, "plain-4": {"seed": 4}, "hard-3": {"balance": {"load_balancing": 1.0}}}


@pytest.fixture(scope="module")
def folders(write_recipe: RecipeWriter, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    here = tmp_path_factory.mktemp("runs")
    for name, changes in RUNS.items():
        told = {**changes, "name": name.partition("-")[0]}
        train(load_recipe(write_recipe(**told), ("train.steps=4",)), here / name)
    return [here / name for name in RUNS]


@pytest.fixture(scope="module")
def made(folders: list[Path]) -> Comparison:
    return compare_trainings(folders)


def test_runs_that_differ_in_the_seed_alone_are_one_group(made: Comparison) -> None:
    assert made.groups == ((0, 1), (2,))
    assert made.knobs == {"balance.load_balancing": [0.01, 0.01, 1.0]}
    assert [made.name(g) for g in range(2)] == ["plain", "hard"]


def test_a_table_has_a_row_for_each_run_with_its_last_evaluation(
    made: Comparison, folders: list[Path]
) -> None:
    rows = made.table().to_pylist()
    assert [row["run"] for row in rows] == [str(folder) for folder in folders]
    assert [row["seed"] for row in rows] == [3, 4, 3]
    assert [row["balance.load_balancing"] for row in rows] == ["0.01", "0.01", "1.0"]
    for row, run in zip(rows, made.runs, strict=True):
        assert row["heldout_loss"] == run.curves["heldout_loss"][1][-1]
        assert row["step"] == 4
    assert "noise_scale" not in rows[0]  # nobody has noise


def test_the_end_is_the_mean_of_the_last_tenth_and_absent_where_unknown(made: Comparison) -> None:
    run = made.runs[0]
    run = type(run)(run.folder, run.recipe, None, {"cv": ([10, 90, 95, 100], [9.0, 5.0, 2.0, 4.0])})
    assert run.end("cv") == 3.0  # of steps 95 and 100: those after 90
    assert math.isnan(run.end("noise_scale"))
    assert run.step == 100


def test_one_seed_each_is_said_and_several_give_a_spread(
    made: Comparison, folders: list[Path]
) -> None:
    ends = [run.end("heldout_loss") for run in made.runs[:2]]
    said = " ".join(made.remarks())
    assert f"differs by up to {abs(ends[0] - ends[1]):.3f} nats" in said
    assert "without a spread of their own: hard" in said
    alone = compare_trainings([folders[0], folders[2]]).remarks()
    assert alone[0].startswith("Each setting has one run.")


def test_the_page_shows_settings_ends_and_remarks_without_scripts(made: Comparison) -> None:
    text = trainings_page(made)
    assert "balance.load_balancing" in text
    assert "3 training runs compared" in text
    assert all(remark.split(";")[0].split("'")[0] in text for remark in made.remarks())
    assert text == trainings_page(made)


@pytest.mark.skipif(BROWSER is None, reason="no chromium here")
def test_the_page_is_drawn_with_a_line_for_every_run(made: Comparison, tmp_path: Path) -> None:
    text = dom(write_trainings_page(made, tmp_path / "page.html"), tmp_path)
    assert 'data-ready="yes"' in root(text)
    assert "data-errors" not in root(text)
    plot = text[text.index('id="plot-curves"') : text.index('id="table-curves"')]
    panels = len(made.measures)
    assert plot.count('class="panel"') == panels
    assert len(re.findall(r'(?s)<g aria-label="line"[^>]*>.*?<path', plot)) == 3 * panels


def test_what_cannot_be_compared_is_refused(folders: list[Path], tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="nothing to be compared with"):
        compare_trainings([folders[0], folders[0]])
    with pytest.raises(RunError, match=r"holds no log/steps\.parquet"):
        compare_trainings([folders[0], tmp_path])


def test_differences_are_told_in_words_and_not_where_text_lies(write_recipe: RecipeWriter) -> None:
    one = load_recipe(write_recipe())
    other = load_recipe(write_recipe(), ("train.steps=7", "name=other", "data.train=elsewhere"))
    assert differing([one, other]) == {"train.steps": [6, 7]}
    assert difference(one, other) == "train.steps is 6 there and 7 here"
    ramp = load_recipe(write_recipe(), ("balance.load_balancing={start: 1, end: 0, over: 0.5}",))
    assert "balance.load_balancing is 0.01 there and not set here" in difference(one, ramp)
