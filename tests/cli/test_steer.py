"""`moescope steer` and `moescope contrast` as commands: what they print, write and refuse."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.support.saved import WORDS, save_tiny

from moescope.cli import main

PROMPT = "the plan covers support for daily living"


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("steer")
    save_tiny("olmoe", folder / "moe")
    save_tiny("olmoe", folder / "other", seed=1)
    save_tiny("jetmoe", folder / "jet")
    for name, words in (("a", WORDS[:16]), ("b", WORDS[28:])):
        lines = [" ".join(words[i % len(words) :] + words[: i % len(words)]) for i in range(24)]
        lines = [f"{line} {words[i % 5]}" for i, line in enumerate(lines)]
        (folder / f"{name}.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture
def moescope(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    def call(*words: object) -> Done:
        monkeypatch.chdir(place)
        monkeypatch.setenv("COLUMNS", "160")
        monkeypatch.setattr(sys, "argv", ["moescope", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main.run()
        out, err = capsys.readouterr()
        return Done(int(stopped.value.code or 0), out, err)

    return call


def test_the_comparison_is_printed_and_written(moescope: Callable[..., Done], place: Path) -> None:
    done = moescope(
        "steer", "moe", "--prompt", PROMPT, "--set", "L1E2=+6", "--target", "-1", "--words",
        "tea, river", "--generate", 4, "--controls", 3, "--sweep", "-4:4:4", "-o", "out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for said in ("L1E2 +6 logits", "0 <s>", "Next token", "tea", "KL(before‖after)", "Sweep"):
        assert said in done.stdout
    assert "of the prompt only" in done.stdout
    stored = json.loads((place / "out" / "steering.json").read_text(encoding="utf-8"))
    assert [p["strength"] for p in stored["sweep"]["points"]] == [-4.0, 0.0, 4.0]
    assert stored["targets"] == [len(stored["prompt"]["ids"]) - 1]
    assert (place / "out" / "steering.html").is_file()


def test_json_holds_everything_on_one_line(moescope: Callable[..., Done]) -> None:
    done = moescope(
        "steer", "moe", "--prompt", PROMPT, "--set", "L1E2=xs", "--sweep", "0:2:1", "--generate",
        2, "--format", "json",
    )  # fmt: skip
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    assert found["edits"] == ["L1E2 × 2"]  # what changes most is shown in full
    assert found["sweep"]["kind"] == "scale"
    assert found["sweep"]["points"][1]["kl"] == 0.0


def test_a_contrast_becomes_a_plan_that_steer_takes(
    moescope: Callable[..., Done], place: Path
) -> None:
    texts = ("--with", "a.txt", "--without", "b.txt", "--text-unit", "line")
    done = moescope("contrast", "moe", *texts, "-o", "plan.json")
    assert done.returncode == 0, done.stderr
    assert "moescope steer moe --prompt" in done.stdout
    plan = json.loads((place / "plan.json").read_text(encoding="utf-8"))
    assert plan["settings"]
    steered = moescope("steer", "moe", "--prompt", PROMPT, "--plan", "plan.json", "--generate", 2)
    assert steered.returncode == 0, steered.stderr
    assert plan["experts"][0]["expert"] in steered.stdout
    other = moescope("steer", "other", "--prompt", PROMPT, "--plan", "plan.json")
    assert other.returncode == 2
    assert "made on another model" in other.stderr
    rows = moescope("contrast", "moe", *texts, "--format", "csv").stdout.splitlines()
    assert rows[0].startswith("layer,expert,name,rate_with")
    assert len(rows) == 1 + 8 * 4
    found = json.loads(moescope("contrast", "moe", *texts, "--format", "json").stdout)
    assert found["settings"] == plan["settings"]


BAD = {
    "no such expert": (("--set", "L1E9=+2"), "layer 1 has experts E0 to E7"),
    "no such layer": (("--set", "L9E1=+2"), "its MoE layers are 0-3"),
    "no sign": (("--set", "L1E2=2"), "the sign must be there"),
    "no setting": ((), "give --set"),
    "target past the prompt": (("--set", "L1E2=+2", "--target", "99"), "past the prompt"),
    "no such plan": (("--plan", "none.json"), "cannot be read"),
    "no such chat": (("--set", "L1E2=+2", "--chat-template"), "no chat template"),
    "strengths": (("--set", "L1E2=+2", "--sweep", "4:-4:1"), "FROM:TO:STEP"),
    "sweep of a word": (("--set", "L1E2=mask", "--sweep", "0:1:1"), "gives 0"),
    "s without a sweep": (("--set", "L1E2=+s"), "add --sweep"),
    "as without a plan": (("--set", "L1E2=+2", "--as", "mask"), "--plan"),
    "unknown word": (("--set", "L1E2=+2", "--words", "漢"), "no token for"),
    "too many masked": (("--set", "L1E0-6=mask"), "at most 5 can be masked"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_exit_2(name: str, moescope: Callable[..., Done]) -> None:
    words, said = BAD[name]
    done = moescope("steer", "moe", "--prompt", PROMPT, *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""


def test_an_architecture_that_takes_no_edit_says_why(moescope: Callable[..., Done]) -> None:
    done = moescope("steer", "jet", "--prompt", PROMPT, "--set", "L0E1=+2")
    assert done.returncode == 2
    assert "sorted by expert" in done.stderr


def test_pairs_of_unequal_number_are_refused(moescope: Callable[..., Done], place: Path) -> None:
    (place / "short.txt").write_text("one line\ntwo lines")
    done = moescope("contrast", "moe", "--with", "a.txt", "--without", "short.txt", "--paired",
                    "--text-unit", "line")  # fmt: skip
    assert done.returncode == 2
    assert "--with has 24, --without 2" in done.stderr
    done = moescope("contrast", "moe", "--with", "a.txt", "--without", "b.txt", "--paired")
    assert done.returncode == 0  # a paragraph a side: one pair, and nothing that could be tested
    assert "Fewer than 5 pairs" in done.stdout
    assert "nothing to steer by" in done.stdout
