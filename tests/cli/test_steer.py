"""`moescope steer` and `moescope contrast` as commands: what they print, write and refuse."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.support.saved import WORDS, save_tiny

from moescope.cli import main
from moescope.plan import Plan
from moescope.report.contrast_page import contrast_page
from moescope.result import read_result

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
    controls = done.stdout.partition("The same edit on")[2].splitlines()[3:7]
    assert sum(row.startswith("L1E2 (the edit)") for row in controls) == 1
    kl = [float(row.removeprefix("L1E2 (the edit)").split()[-4]) for row in controls]
    assert kl == sorted(kl, reverse=True)
    stored = read_result(place / "out", "steering").about
    assert [p["strength"] for p in stored["sweep"]["points"]] == [-4.0, 0.0, 4.0]
    assert stored["targets"] == [len(stored["prompt"]["ids"]) - 1]
    assert (place / "out" / "steering.html").is_file()
    assert not (place / "out" / "measured.jsonl").exists()


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
    done = moescope("contrast", "moe", *texts, "-o", "told")
    assert done.returncode == 0, done.stderr
    assert "moescope steer moe --prompt" in done.stdout
    result = read_result(place / "told", "contrast")
    assert contrast_page(result) == (place / "told" / "contrast.html").read_text()
    assert result.tables["differences"].num_rows == 8 * 4
    kept, plan = place / "told" / "plan.json", Plan.read(place / "told" / "plan.json")
    steered = moescope("steer", "moe", "--prompt", PROMPT, "--plan", kept, "--generate", 2)
    assert steered.returncode == 0, steered.stderr
    assert str(plan.experts[0]) in steered.stdout
    other = moescope("steer", "other", "--prompt", PROMPT, "--plan", kept)
    assert other.returncode == 2
    assert "the plan was made for moe" in other.stderr
    rows = moescope("contrast", "moe", *texts, "--format", "csv").stdout.splitlines()
    assert rows[0].startswith("layer,expert,name,rate_with")
    assert len(rows) == 1 + 8 * 4
    found = json.loads(moescope("contrast", "moe", *texts, "--format", "json").stdout)
    assert found["settings"] == plan.settings() == result.about["settings"]


def test_experts_of_a_contrast_can_be_taken_away(
    moescope: Callable[..., Done], place: Path
) -> None:
    texts = ("--with", "a.txt", "--without", "b.txt", "--text-unit", "line")
    assert moescope("contrast", "moe", *texts, "-o", "to-ablate").returncode == 0
    done = moescope(
        "ablate", "moe", "--plan", "to-ablate/plan.json", "--corpus", "a.txt", "--controls", 0,
        "-o", "removed",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    experts = read_result(place / "removed", "ablation").about["experts"]
    assert {e["expert"] for e in experts} == set(
        map(str, Plan.read(place / "to-ablate" / "plan.json").experts)
    )
    assert all("active with the property" in e["reason"] for e in experts)


def test_without_a_confirmed_expert_there_is_a_result_and_no_plan(
    moescope: Callable[..., Done], place: Path
) -> None:
    texts = ("--with", "a.txt", "--without", "b.txt")
    done = moescope("contrast", "moe", *texts, "-o", "three")  # a paragraph a side
    assert done.returncode == 0, done.stderr
    assert "no plan was written" in done.stderr
    assert "nothing to steer by" in read_result(place / "three", "contrast").answers[0]
    assert not (place / "three" / "plan.json").exists()


def test_a_finished_result_is_replaced_only_by_itself(
    moescope: Callable[..., Done], place: Path
) -> None:
    command = ("contrast", "moe", "--with", "a.txt", "--without", "b.txt", "--text-unit", "line")
    assert moescope(*command, "-o", "kept").returncode == 0
    before = (place / "kept" / "result.json").read_bytes()
    again = moescope(*command, "-o", "kept")
    assert (again.returncode, "already holds a result" in again.stderr) == (2, True)
    other = moescope(*command, "--candidates", "3", "-o", "kept", "--resume")
    assert other.returncode == 2
    assert "cannot resume" in other.stderr
    assert "candidates was 10, now 3" in other.stderr
    assert (place / "kept" / "result.json").read_bytes() == before
    assert moescope(*command, "-o", "kept", "--resume").returncode == 0
    steered = ("steer", "moe", "--prompt", "the plan", "--set", "L1E2=+2", "-o", "steered")
    assert moescope(*steered).returncode == 0
    assert "already holds a result" in moescope(*steered).stderr


BAD = {
    "no such expert": (("--set", "L1E9=+2"), "has experts E0 to E7"),
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
