"""A command of moescope in this process, in the folder that a module calls its place."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from moescope.cli import main


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


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
