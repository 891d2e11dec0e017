"""Bad input to any verb: one line on stderr, exit code 2, soon, and nothing written or removed."""

import hashlib
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
from tests.cli import bad
from tests.cli.bad.place import filled, make_place

from moescope.cli import main

SECONDS = 20
"""After so long a case is stopped; what runs away would take the machine with it."""

CPU_SECONDS = 4.0
"""Of one case. Most take some hundredths; the figure leaves room for a slow machine."""

MORE_MEMORY = 3 << 30
"""Bytes that a case may ask for beyond what the process has."""


def _cases() -> dict[str, bad.Case]:
    found: dict[str, bad.Case] = {}
    for module in pkgutil.iter_modules(bad.__path__):
        made = importlib.import_module(f"tests.cli.bad.{module.name}")
        for one in getattr(made, "CASES", ()):
            key = f"{one.verb}: {one.name}"
            assert key not in found, f"two cases are called {key!r}"
            found[key] = one
    return found


CASES = _cases()


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
    monkeypatch.setenv("COLUMNS", "200")
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


def _everything(folder: Path) -> dict[str, str]:
    """Every path below a folder with a hash of what is there."""
    found = {}
    for root, folders, files in os.walk(os.fsencode(folder)):
        for name in [*folders, *files]:
            path = os.path.join(root, name)  # noqa: PTH118  bytes: names may be no UTF-8
            found[os.fsdecode(path)] = _content(path)
    return found


def _content(path: bytes) -> str:
    if os.path.islink(path):  # noqa: PTH114
        return f"link to {os.fsdecode(os.readlink(path))}"  # noqa: PTH115
    if os.path.isfile(path):  # noqa: PTH113
        with open(path, "rb") as handle:  # noqa: PTH123
            return hashlib.sha256(handle.read()).hexdigest()
    return "folder" if os.path.isdir(path) else "special"  # noqa: PTH112
