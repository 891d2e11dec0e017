"""`moescope train` and `moescope capacity` as a user types them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.training.conftest import RecipeWriter
from tests.training.test_examples import small

from moescope.cli import main
from moescope.training.log import TrainingLog
from moescope.training.recipe_file import example_names


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def write_recipe(tmp_path_factory: pytest.TempPathFactory) -> RecipeWriter:
    return RecipeWriter(tmp_path_factory.mktemp("lab"))


@pytest.fixture
def moescope(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    def call(*words: object) -> Done:
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr(sys, "argv", ["moescope", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main.run()
        out, err = capsys.readouterr()
        code: Any = stopped.value.code
        return Done(code or 0, out, err)

    return call


def test_training_ends_with_the_model_the_losses_and_a_page(
    moescope: Callable[..., Done], write_recipe: RecipeWriter, tmp_path: Path
) -> None:
    recipe = write_recipe(capacity={"train": 1.0, "minimum": 1})
    done = moescope("train", recipe, "-o", tmp_path / "run", "--set", "train.steps=4")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "run" / "model")
    assert "note: capacity factor 1 applies in training" in done.stderr
    assert "held-out loss, nats per token" in done.stderr
    page = (tmp_path / "run" / "training.html").read_text(encoding="utf-8")
    assert "capacity factor 1 applies in training" in page
    assert 'http-equiv="refresh"' not in page  # finished: it stands still
    again = moescope("train", recipe, "-o", tmp_path / "run", "--set", "train.steps=4")
    assert again.returncode == 2
    assert "resume it, or give another folder" in again.stderr
    assert moescope("inspect", tmp_path / "run" / "model").returncode == 0


def test_an_example_is_trained_by_its_name_and_all_are_listed_without_one(
    moescope: Callable[..., Done],
    write_recipe: RecipeWriter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    listed = moescope("train", "--example")
    assert listed.returncode == 0
    assert [line.partition(":")[0] for line in listed.stdout.splitlines()] == example_names()
    assert not list(tmp_path.iterdir())
    settings = [word for text in small(write_recipe, 9) for word in ("--set", text)]
    done = moescope("train", "--example", "noisy-topk", "--steps", 3, *settings)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(Path("noisy-topk") / "model")  # --steps wins over --set
    assert TrainingLog.read(tmp_path / "noisy-topk", "steps").num_rows == 3
    page = (tmp_path / "noisy-topk" / "training.html").read_text(encoding="utf-8")
    assert "noisy_topk with noise" in page
    assert "Look for the scale of the noise" in page


def test_training_runs_are_compared_on_a_page(
    moescope: Callable[..., Done], write_recipe: RecipeWriter, tmp_path: Path
) -> None:
    for seed in (1, 2):
        out = tmp_path / f"seed-{seed}"
        assert moescope("train", write_recipe(seed=seed), "--steps", 2, "-o", out).returncode == 0
    runs = (tmp_path / "seed-1", tmp_path / "seed-2")
    page = tmp_path / "compared.html"
    done = moescope("compare", *runs, "-o", page, "--format", "json")
    assert done.returncode == 0, done.stderr
    assert [json.loads(row)["seed"] for row in done.stdout.splitlines()] == [1, 2]
    assert str(page) in done.stderr
    assert "Between seeds of one setting held-out loss differs by up to" in done.stderr
    assert "2 training runs compared" in page.read_text(encoding="utf-8")
    page.write_text("mine", encoding="utf-8")
    assert moescope("compare", *runs, "-o", page).returncode == 2
    assert page.read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"model": {"top_k": 99}}, "top_k 99 is more than num_experts 8"),
        ({"data": {"train": "nowhere.jsonl"}}, "nowhere.jsonl"),
        ({"trian": {}}, "unknown key 'trian'; did you mean train?"),
        ({"tokenizer": {"path": "nowhere"}}, "no tokenizer.json there"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_wrong_recipe_ends_in_one_line_and_leaves_no_folder(
    changes: dict[str, Any],
    line: str,
    moescope: Callable[..., Done],
    write_recipe: RecipeWriter,
    tmp_path: Path,
) -> None:
    done = moescope("train", write_recipe(**changes), "-o", tmp_path / "run")
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert line in last
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "model").exists()


def test_capacity_shows_who_overflows_and_where_they_go(
    moescope: Callable[..., Done], tiny_folder: Path
) -> None:
    text = "the plan covers support for daily living and the court may review"
    done = moescope(
        "capacity", tiny_folder, text, "--capacity", 1, "--top-k", 1, "--format", "json"
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    taken = [row["got"][0] for row in rows if row["got"][0] is not None]
    assert len(taken) == len(set(taken))  # nobody takes more than one
    full = [row for row in rows if row["got"] == [None]]
    assert full
    assert all("full (1 of 1), dropped: passes on" in row["note"] for row in full)
    moved = moescope("capacity", tiny_folder, text, "--capacity", 1, "--overflow", "reroute")
    assert "→" in moved.stdout
    assert moescope("capacity", tiny_folder, text, "--capacity", 0).returncode == 2
    assert moescope("capacity", tiny_folder, text, "--layer", 77).returncode == 2
    assert moescope("capacity", tiny_folder, text, "--top-k", 99).returncode == 2
