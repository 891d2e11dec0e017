"""The experiments: recipes are valid, intervals are exact, pages say what the figures say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.saved import tiny_tokenizer, write_corpus
from tests.training.conftest import BASE, merged
from tools import experiment_runs as runs
from tools import experiment_words as said_by
from tools import experiments
from tools.experiment_plan import Experiment, Job, jobs_of, load_experiments
from tools.experiment_results import aggregate, t_interval

from moescope.errors import BadInputError, TrainingError

pytest.importorskip("matplotlib")

DOCS = experiments.EXPERIMENTS.parent
ALL = load_experiments(experiments.EXPERIMENTS)

MICRO: dict[str, Any] = {
    "title": "Micro",
    "recipe": "micro.yaml",
    "question": "Is it done?",
    "reference": "none",
    "conditions": [
        {"name": "none", "label": "no limit"},
        {
            "name": "limited",
            "label": "factor 0.5 | balanced",
            "set": [
                "balance.load_balancing=0.1",
                "capacity.train=0.5",
                "capacity.evaluate=0.5",
                "capacity.minimum=1",
            ],
        },
    ],
    "metrics": ["heldout_loss", "heldout_loss_limited", "cv", "dropped_share", "info_domain_bits"],
    "headline": ["heldout_loss", "cv"],
    "trace": {"limit": 200, "sample_tokens": 100, "information": True},
    "tables": ["dropped_by_position", "info_domain_by_layer"],
    "figure": {
        "panels": "profiles",
        "profiles": ["info_domain_by_layer", "info_token_by_layer"],
        "x": "layer",
        "y": "bits",
        "caption": "Bits.",
    },
    "not_shown": ["Anything about large models."],
}


@pytest.fixture
def micro(tmp_path: Path) -> list[str]:
    """A corpus, two conditions and a recipe of four steps; the words of the command line."""
    for side, seed in (("train", 0), ("heldout", 1)):
        (tmp_path / "data" / side).mkdir(parents=True)
        write_corpus(tmp_path / "data" / side / "texts.jsonl", 10, domains=2, seed=seed)
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    recipe = merged(
        BASE,
        {
            "tokenizer": {"path": "tokenizer"},
            "data": {"train": "data/train", "heldout": "data/heldout"},
            "balance": {"load_balancing": 0.0},
            "train": {"steps": 4},
            "run": {"evaluate_every": 100},
        },
    )
    (tmp_path / "micro.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    settings = tmp_path / "experiments.yaml"
    settings.write_text(yaml.safe_dump({"experiments": {"micro": MICRO}}), encoding="utf-8")
    words = f"--data {tmp_path}/data --out {tmp_path}/runs --experiments {settings} --seeds 2"
    return words.split()


# --- the experiments in docs


@pytest.mark.parametrize("name", ALL)
def test_every_recipe_of_the_experiments_is_valid(name: str, tmp_path: Path) -> None:
    jobs = [*jobs_of(name, ALL[name], DOCS, tmp_path, tmp_path / "runs", seeds=3)]
    assert len(jobs) == 3 * len(ALL[name].conditions)
    assert len({job.folder for job in jobs}) == len(jobs)
    recipes = [job.recipe() for job in jobs]
    assert len({recipe.identity() for recipe in recipes}) == len(jobs), "two conditions are one"
    for recipe in recipes:
        assert recipe.data.train.path == str(tmp_path / "train")
        assert recipe.run.log_every <= runs.TAIL * recipe.num_steps
        assert recipe.train.sequences * recipe.train.micro_batches == 16  # one of each domain


@pytest.mark.parametrize("name", ALL)
def test_every_experiment_measures_what_a_page_can_show(name: str) -> None:
    assert set(ALL[name].metrics) <= set(said_by.MEASURES)
    assert {*ALL[name].tables, *ALL[name].figure.profiles} <= set(said_by.PROFILES)


def test_the_scopes_are_compared_on_micro_batches_of_one_domain() -> None:
    recipes = [*jobs_of("scope", ALL["scope"], DOCS, DOCS, DOCS, seeds=1)]
    assert {job.recipe().train.sequences for job in recipes} == {1}


def test_the_pages_are_those_of_the_results(tmp_path: Path) -> None:
    if not (DOCS / "results.json").is_file():
        pytest.skip("not run yet")
    (tmp_path / "results.json").write_bytes((DOCS / "results.json").read_bytes())
    assert experiments.main(["--pages", "--docs", str(tmp_path)]) == 0
    for page in tmp_path.glob("*.md"):
        assert page.read_text("utf-8") == (DOCS / page.name).read_text("utf-8"), page.name


# --- from runs to a page


def test_a_micro_experiment_from_the_command_to_the_page(
    micro: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert experiments.main(micro) == 0
    results = (tmp_path / "results.json").read_bytes()
    made = json.loads(results)["experiments"]["micro"]
    none, limited = made["conditions"]["none"], made["conditions"]["limited"]
    one, two = (run["metrics"]["heldout_loss"] for run in limited["runs"])
    # n = 2: s = |a − b|/√2, half = t(0.975, 1)·s/√2 = 12.7062·|a − b|/2
    half = 12.7062047 * abs(one - two) / 2
    found = limited["summary"]["heldout_loss"]
    assert found["n"] == 2
    assert found["mean"] == pytest.approx((one + two) / 2, rel=1e-5)
    assert found["low"] == pytest.approx((one + two) / 2 - half, rel=1e-4)
    assert found["high"] == pytest.approx((one + two) / 2 + half, rel=1e-4)
    gaps = [
        a["metrics"]["heldout_loss"] - b["metrics"]["heldout_loss"]
        for a, b in zip(limited["runs"], none["runs"], strict=True)
    ]
    apart = limited["difference"]["heldout_loss"]
    assert apart["mean"] == pytest.approx(sum(gaps) / 2, abs=1e-5)
    assert apart["high"] - apart["mean"] == pytest.approx(
        12.7062047 * abs(gaps[0] - gaps[1]) / 2, abs=1e-4
    )
    assert limited["summary"]["dropped_share"]["mean"] > 0
    assert "dropped_share" not in none["summary"]

    page, figure = (tmp_path / f"micro{suffix}" for suffix in (".md", ".svg"))
    text, drawn = page.read_text(encoding="utf-8"), figure.read_bytes()
    for mark in ("{{", "{%", "{#", "None", "nan", "Undefined", str(tmp_path)):
        assert mark not in text, mark
    for heading in ("Question", "Command", "Conditions", "What it shows", "What it does not show"):
        assert f"\n## {heading}\n" in text
    assert f"{found['mean']:.3f} [" in text
    assert "--only micro --seeds 2" in text

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing is left to train")

    monkeypatch.setattr(runs, "train", refuse)
    monkeypatch.setattr(runs, "trace", refuse)
    assert experiments.main(micro) == 0
    assert (tmp_path / "results.json").read_bytes() == results
    assert page.read_text(encoding="utf-8") == text
    assert figure.read_bytes() == drawn


def micro_job(folder: Path, *extra: str) -> Job:
    made = jobs_of(
        "micro", Experiment(**MICRO), folder, folder / "data", folder / "runs", 1, extra
    )  # fmt: skip
    return next(iter(made))


@pytest.mark.usefixtures("micro")
def test_a_run_that_was_stopped_goes_on_and_one_of_other_settings_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = micro_job(tmp_path)
    runs.link_text(job)
    with monkeypatch.context() as patch:
        patch.setattr(runs, "trace", stop)
        with pytest.raises(KeyboardInterrupt):
            runs.carry_out(job, lambda _: None)
    assert runs.read_measured(job) is None
    runs.carry_out(job, lambda _: None)
    measured = runs.read_measured(job)
    assert measured is not None
    assert measured["metrics"]["heldout_loss"] > 0
    assert runs.read_measured(micro_job(tmp_path, "train.steps=5")) is None


@pytest.mark.usefixtures("micro")
def test_a_training_that_breaks_down_is_an_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(*_: Any, **__: Any) -> None:
        raise TrainingError("the loss is nan at step 3; the last good checkpoint is elsewhere")

    job = micro_job(tmp_path)
    runs.link_text(job)
    monkeypatch.setattr(runs, "train", diverge)
    runs.carry_out(job, lambda _: None)
    measured = runs.read_measured(job)
    assert measured is not None
    assert measured["failed"] == "the loss is nan at step 3"
    made = aggregate(Experiment(**MICRO), [job], [measured], "command")
    none = made["conditions"]["none"]
    assert none["seeds"] == []
    assert none["failed"] == [{"seed": 0, "why": "the loss is nan at step 3"}]


@pytest.mark.usefixtures("micro")
def test_a_run_on_other_text_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    job = micro_job(tmp_path)
    runs.link_text(job)
    before = {p: p.read_bytes() for p in (job.folder / "tokens").iterdir()}
    runs._corpora.cache_clear()
    write_corpus(tmp_path / "data" / "train" / "texts.jsonl", 10, domains=2, seed=5)
    with pytest.raises(BadInputError, match="was begun on other text"):
        runs.link_text(job)
    assert {p: p.read_bytes() for p in (job.folder / "tokens").iterdir()} == before


def stop(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


# --- figures and the sentences made of them


def test_an_interval_by_hand() -> None:
    # 1, 2, 6: mean 3; s² = (4 + 1 + 9)/2 = 7; half = 4.302653·√(7/3) = 6.572416
    found = t_interval([1.0, 2.0, 6.0])
    assert found["mean"] == 3.0
    assert found["low"] == pytest.approx(3 - 6.572416, abs=1e-5)
    assert found["high"] == pytest.approx(3 + 6.572416, abs=1e-5)
    assert t_interval([2.0]) == {"mean": 2.0, "low": None, "high": None, "n": 1}
    assert t_interval([])["mean"] is None


def of(*values: float) -> dict[str, Any]:
    signs = {"lower": sum(v < 0 for v in values), "higher": sum(v > 0 for v in values)}
    return t_interval(values) | signs


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((-0.11, -0.12, -0.13), "CV: lower in all 3 seeds, difference −0.120 [−0.145, −0.095]"),
        ((0.11, 0.12, 0.13), "CV: higher in all 3 seeds, difference +0.120 [+0.095, +0.145]"),
        ((-0.1, 0.1, 0.3), "CV: not told apart, difference +0.100 [−0.397, +0.597]"),
        ((1.0,) * 19 + (-0.1,), "CV: higher in 19 of 20 seeds, difference +0.945 [+0.830, +1.060]"),
        ((0.0, 0.0, 0.0), "CV: the same in all 3 seeds"),
        ((0.25,), "CV: difference +0.250, from one seed, so without an interval"),
        ((), "CV: not measured in both"),
        # an interval that leaves out 0 never reads as if it touched it
        ((3e-4, 5e-4), "CV: not told apart, difference 0.000 [−0.001, +0.002]"),
        ((4e-4, 5e-4, 6e-4), "CV: higher in all 3 seeds, difference +0.0005 [+0.0003, +0.0007]"),
    ],
)  # fmt: skip
def test_a_sentence_follows_from_the_interval(values: tuple[float, ...], said: str) -> None:
    assert said_by.verdict(of(*values), said_by.MEASURES["cv"]) == said


def test_shares_are_written_in_percent_and_differences_in_points() -> None:
    dead = said_by.MEASURES["dead_share"]
    assert said_by.estimate(t_interval([0.25, 0.25]), dead) == "25.0 [25.0, 25.0]"
    assert said_by.estimate(None, dead) == "–"
    assert said_by.verdict(of(-0.25, -0.25), dead) == (
        "dead: lower in all 2 seeds, difference −25.0 [−25.0, −25.0] points"
    )


# --- what is refused


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--only", "balance"], "--only balance: no such experiment; balancing, noise"),
        ([], "give --data DIR and --out RUNS"),
        (["--data", "nowhere", "--out", "runs"], "no folder train there"),
        (["--data", "d", "--out", "r", "--set", "train.steps=1"], "give --docs"),
    ],
)
def test_a_wrong_command_is_refused_in_one_line(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert experiments.main(words) == 2
    said = capsys.readouterr().err
    assert line in said
    assert said.count("\n") == 1


def test_a_reference_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "experiments.yaml"
    path.write_text(yaml.safe_dump({"experiments": {"micro": {**MICRO, "reference": "gone"}}}))
    with pytest.raises(BadInputError, match="no condition 'gone'; there are none, limited"):
        load_experiments(path)
