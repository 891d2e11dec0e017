"""Which versions of transformers are tested is said in one place, and the same everywhere."""

import re
import sys
import tomllib
from pathlib import Path

import pytest

from moescope.cli import main
from moescope.versions import NEWEST, OLDEST, untested

ROOT = Path(__file__).resolve().parent.parent


def pinned(name: str) -> tuple[int, ...]:
    found = re.search(r"^transformers==(\d+)\.(\d+)\.", (ROOT / name).read_text("utf-8"), re.M)
    assert found is not None
    return tuple(map(int, found.groups()))


def test_the_range_is_what_the_two_environments_install() -> None:
    assert pinned("constraints.txt") == OLDEST
    assert pinned("constraints-newest.txt") == NEWEST
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    assert "transformers>={}.{},<{}".format(*OLDEST, NEWEST[0] + 1) in wanted


def test_both_environments_run_in_ci() -> None:
    steps = (ROOT / ".ci" / "run").read_text("utf-8").splitlines()
    assert {"make test", "make test-newest"} <= set(steps)


FIRST, LAST = "{}.{}".format(*OLDEST), "{}.{}".format(*NEWEST)


@pytest.mark.parametrize("version", [f"{FIRST}.0", f"{FIRST}.4", f"{LAST}.0", f"{LAST}.1.dev0"])
def test_a_version_within_is_not_mentioned(version: str) -> None:
    assert untested(version) is None


@pytest.mark.parametrize(
    ("version", "side", "nearest"),
    [(f"{OLDEST[0]}.{OLDEST[1] - 1}.9", "older", FIRST), ("4.57.1", "older", FIRST),
     (f"{NEWEST[0]}.{NEWEST[1] + 1}.0", "newer", LAST), (f"{NEWEST[0]}.100.0", "newer", LAST),
     (f"{NEWEST[0] + 1}.0.0rc1", "newer", LAST)],
)  # fmt: skip
def test_a_version_outside_is_named_with_what_to_do(version: str, side: str, nearest: str) -> None:
    line = untested(version) or ""
    assert line.startswith(f"transformers {version} is {side} than what moescope is tested with")
    assert line.endswith(f'pip install "transformers=={nearest}.*"')
    assert "\n" not in line


def said(words: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr(main, "untested", lambda: "that version")
    monkeypatch.setattr(sys, "argv", ["moescope", *words.split()])
    with pytest.raises(SystemExit):
        main.run()
    return capfd.readouterr().err


def test_every_verb_that_asks_a_model_says_it() -> None:
    verbs = {command.name for command in main.app.registered_commands}
    assert {
        "ablate", "analyze", "contrast", "demo", "inspect", "paths", "profile", "similarity",
        "steer", "trace", "train",
    } <= verbs - set(main._FILES_ONLY)  # fmt: skip


@pytest.mark.parametrize("words", ["trace no-such texts/ -o run", "similarity no-such"])
def test_it_is_the_first_line_of_whatever_asks_a_model(
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = said(words, monkeypatch, capfd).splitlines()
    assert first == "note: that version"
    assert second.startswith("error: ")


@pytest.mark.parametrize("words", ["table no-such", "report no-such", "trace --help"])
def test_what_asks_no_model_does_not_say_it(
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "that version" not in said(words, monkeypatch, capfd)
