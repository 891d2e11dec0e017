"""`moescope profile`: prints, writes, and refuses in one line."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.support.saved import save_tiny, write_corpus

from moescope.cli import main
from moescope.corpus import CorpusSpec
from moescope.models import ModelSpec, load_model
from moescope.run.options import TraceOptions
from moescope.trace import trace


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a corpus and a run, all named as they lie beside each other."""
    folder = tmp_path_factory.mktemp("cli")
    loaded = load_model(ModelSpec(str(save_tiny("olmoe", folder / "moe"))))
    corpus = write_corpus(folder / "texts.jsonl", documents_per_domain=12, words=40)
    trace(loaded, CorpusSpec(path=str(corpus)), folder / "run", TraceOptions(context=64))
    return folder


@pytest.fixture
def moescope(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    def call(*words: object) -> Done:
        monkeypatch.chdir(place)
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr(sys, "argv", ["moescope", "profile", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main.run()
        out, err = capsys.readouterr()
        return Done(int(stopped.value.code or 0), out, err)

    return call


Call = Callable[..., Done]


def test_one_expert_is_printed_and_written(place: Path, moescope: Call) -> None:
    done = moescope("run", "L1E5")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("L1E5")
    for words in ("contribution ‖w·E(x)‖", "tokens in", "pushes towards", "partners beside"):
        assert words in done.stdout
    assert "run/profiles/L1E5.html" in done.stdout
    kept = json.loads((place / "run" / "profiles" / "L1E5.json").read_text(encoding="utf-8"))
    assert " ".join(kept["summary"].split()) in " ".join(done.stdout.split())
    assert (place / "run" / "profiles" / "L1E5.html").is_file()


def test_json_is_one_line_for_each(moescope: Call) -> None:
    done = moescope("run", "L1E5", "l0e2", "--format", "json", "--pipeline", "none")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["expert"] for line in lines] == ["L1E5", "L0E2"]
    assert "not asked for" in lines[0]["parts_of_speech"]["absent"]


def test_all_makes_an_index_to_browse(place: Path, moescope: Call) -> None:
    done = moescope("run", "--all")
    assert done.returncode == 0, done.stderr
    assert "32 experts" in done.stdout
    assert "run/profiles/index.html" in done.stdout
    folder = place / "run" / "profiles"
    assert len(list(folder.glob("L*E*.json"))) == 32
    assert len(json.loads((folder / "index.json").read_text(encoding="utf-8"))) == 32
    assert "measured" not in done.stdout


def test_a_model_that_is_gone_can_be_named_or_done_without(place: Path, moescope: Call) -> None:
    shutil.rmtree(place / "run" / "profiles", ignore_errors=True)
    (place / "moe").rename(place / "gone")
    try:
        lost = moescope("run", "L1E5")
        assert lost.returncode == 2
        assert "--model" in lost.stderr
        assert "--no-model" in lost.stderr
        without = moescope("run", "L1E5", "--no-model")
        assert without.returncode == 0
        assert "pushes: absent, made without the model" in without.stdout
    finally:
        (place / "gone").rename(place / "moe")
    found = moescope("run", "L1E5", "--model", place / "moe", "--tokens", 400)
    assert found.returncode == 0, found.stderr
    assert "made without the model" not in found.stdout


BAD = {
    "nothing named": (("run",), "name experts such as L5E9, or give --all"),
    "both": (("run", "L1E0", "--all"), "one of the two"),
    "no such expert": (("run", "L1E99"), "has experts E0 to E7"),
    "no such layer": (("run", "L7E0"), "its MoE layers are 0-3"),
    "no expert's name": (("run", "5.9"), "names no expert: expected L5E9"),
    "no run": (("nothing", "--all"), "is not a run"),
    "model and none": (("run", "--all", "--model", "moe", "--no-model"), "exclude each other"),
    "no tokens": (("run", "--all", "--tokens", "0"), "must be 1 or more, got 0"),
    "tokens without a model": (("run", "--all", "--no-model", "--tokens", "9"), "has none"),
    "another model": (("run", "L1E0", "--model", "other", "--tokens", "77"), "another model"),
    "no such precision": (("run", "L1E0", "--dtype", "int3"), "--dtype"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case: str, place: Path, moescope: Call) -> None:
    if case == "another model" and not (place / "other").is_dir():
        save_tiny("olmoe", place / "other", seed=3)
    words, says = BAD[case]
    done = moescope(*words)
    assert done.returncode == 2
    assert done.stdout == ""
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
