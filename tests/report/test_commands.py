"""The commands on a page do what they say."""

import shlex
from pathlib import Path

import pytest
from tests.support.saved import save_tiny, write_corpus
from tests.support.served import make_case, plain, write_lines

from moescope.cli.main import app
from moescope.metrics.runs import AnalyzedRun, open_run
from moescope.report.commands import EXPERT, command, expert_commands, reproduce
from moescope.trace.importers import import_traces


def typed(text: str) -> None:
    name, *words = shlex.split(text)
    assert name == "moescope"
    app(words, standalone_mode=False)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("my home")
    save_tiny("olmoe", folder / "tiny model")
    write_corpus(folder / "the text.jsonl", domains=2)
    return folder


@pytest.fixture(scope="module")
def run(home: Path) -> AnalyzedRun:
    given = "analyze 'tiny model' 'the text.jsonl' -o my-run --limit 150 --layers 1-3 --context 40"
    more = "--no-predictions --sample-tokens 60 --split train --test-share 0.1 --seed 3"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        typed(f"moescope {given} {more} --dtype bfloat16")
        return open_run(home / "my-run")


def test_a_run_is_made_again_by_its_command(
    run: AnalyzedRun, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = reproduce(run)
    assert "'tiny model' 'the text.jsonl' -o my-run" in text
    assert "checkpoint" not in text  # at its default
    monkeypatch.chdir(home)
    typed(text.replace("my-run", "again"))
    again = open_run(home / "again")
    for part in ("options", "corpus"):
        assert getattr(again.manifest, part) == getattr(run.manifest, part)
    assert again.manifest.model["dtype"] == run.manifest.model["dtype"] == "bfloat16"


def test_an_expert_is_removed_and_steered_by_the_commands(
    run: AnalyzedRun, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    made = {name: text.replace(EXPERT, "L1E3") for name, text in expert_commands(run).items()}
    typed(made["ablate"] + " --tokens 60 --controls 2")
    assert (home / "my-run" / "without-L1E3" / "result.json").is_file()
    typed(made["steer"].replace("…", "the plan") + " --generate 0 --controls 0")
    assert (home / "my-run" / "steered-L1E3" / "steering.html").is_file()


def test_an_import_is_made_again_by_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make_case("olmoe", tmp_path)
    lines = write_lines(tmp_path / "captured.jsonl", [plain(r) for r in case.requests])
    path = import_traces("vllm", [lines], tmp_path / "served", case.spec, ordered=True)
    monkeypatch.chdir(tmp_path)
    assert expert_commands(open_run(path)) == {}
    typed(reproduce(open_run(path)).replace("served", "again"))
    assert open_run(tmp_path / "again").manifest.source == open_run(path).manifest.source


def test_what_a_shell_would_read_is_quoted() -> None:
    text = command("ablate", run="a; rm b", target=["$HOME", "it's"])
    assert shlex.split(text) == [
        "moescope", "ablate", "--run", "a; rm b", "--target", "$HOME", "--target", "it's",
    ]  # fmt: skip
