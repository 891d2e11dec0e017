"""Bad input to any verb: one line on stderr, exit code 2, soon, and nothing written or removed."""

import importlib
import os
import pkgutil
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import typer
from tests.cli import bad
from tests.cli.bad import outputs
from tests.cli.bad.place import filled, make_place

from moescope.cli import main

SECONDS = 20
"""After so long a case is stopped; what runs away would take the machine with it."""

CPU_SECONDS = 2.0
"""Of one case, beyond imports. Most take some hundredths, the longest half a second to one."""

MORE_MEMORY = 3 << 30
"""Bytes that a case may ask for beyond what the process has."""


def _cases() -> dict[str, bad.Case]:
    found: dict[str, bad.Case] = {}
    for module in pkgutil.iter_modules(bad.__path__):
        made = importlib.import_module(f"tests.cli.bad.{module.name}")
        for one in getattr(made, "CASES", ()):
            name = f"{one.verb}: {one.name}"
            again = sum(key.startswith(name) for key in found)
            found[f"{name} ({again + 1})" if again else name] = one
    return found


CASES = _cases()

COMMAND = typer.main.get_command(main.app)
"""Built once: the command builds it from the functions each time it starts."""


class RanAway(BaseException):
    """The case took too long; no handler of errors may catch it."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("place"))


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_line_and_changes_nothing(
    name: str,
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    one = CASES[name]
    one.prepare(tmp_path)
    before = _everything(place), _everything(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(main, "app", COMMAND)
    monkeypatch.setattr(sys, "argv", ["moescope", *(filled(w, place) for w in one.words)])
    with _bounded(), pytest.raises(SystemExit) as stopped:
        main.run()
    out, err = capfd.readouterr()
    lines = err.splitlines()
    assert stopped.value.code == one.code, err
    assert len(lines) == 1, err
    assert lines[0].startswith("error: "), err
    assert len(lines[0]) < 2000, "it echoes what was given"
    assert "Traceback" not in err
    assert "a fault in moescope" not in err
    for fragment in one.says:
        assert fragment in lines[0]
    assert out == ""
    assert (_everything(place), _everything(tmp_path)) == before


def test_every_verb_has_cases() -> None:
    verbs = {command.name: 0 for command in main.app.registered_commands}
    counted = verbs | Counter(one.verb for one in CASES.values())
    assert {verb: n for verb, n in counted.items() if verb in verbs and n < 3} == {}


def test_every_verb_that_writes_meets_a_planted_folder() -> None:
    tried = {words.split()[0] for words in (*outputs.FOLDERS, *outputs.FIGURES, *outputs.FILES)}
    writing = {
        name
        for name, command in COMMAND.commands.items()  # type: ignore[attr-defined]
        if {"-o", "--out", "--figures"} & {flag for p in command.params for flag in p.opts}
    }
    assert writing - {"compare"} <= tried  # it takes finished trainings: tests/cli/test_train.py


@contextmanager
def _bounded() -> Iterator[None]:
    """Stop what runs away, in time or in memory."""

    def stop(*_: object) -> None:
        raise RanAway

    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    handler = signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_AS, (used + MORE_MEMORY, limits[1]))
    signal.alarm(SECONDS)
    began = time.process_time()
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.signal(signal.SIGALRM, handler)
    assert time.process_time() - began < CPU_SECONDS


def _everything(folder: Path) -> dict[str, tuple[int, ...] | str]:
    """Every path below a folder with what changes when it is written to, or where it points."""
    found: dict[str, tuple[int, ...] | str] = {}
    waiting = [os.fsdecode(folder)]
    while waiting:
        for entry in os.scandir(waiting.pop()):
            seen = entry.stat(follow_symlinks=False)
            if entry.is_symlink():
                found[entry.path] = str(Path(entry.path).readlink())
            elif entry.is_dir():
                found[entry.path] = "folder"
                waiting.append(entry.path)
            else:
                found[entry.path] = (seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)
    return found
