"""Ctrl-C at any moment is one line; how to go on is said where it is possible, and only there."""

import errno
import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from tests.cli.bad.place import filled, make_place

from moescope.cli import main
from moescope.cli.resume import resumable
from moescope.errors import BadInputError, LaunchError, WriteError

WHEN_IMPORTED = """
import os, signal, sys
from moescope.cli import entry

module = sys.argv.pop(1)

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
entry.run()
"""

AT_THE_END = """
import atexit, os, signal, threading, time
from moescope.cli import entry

atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))
entry.run()
"""


def _process(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *words], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("module", ["moescope.cli.main", "pydantic"])
def test_while_the_command_is_loaded(module: str) -> None:
    done = _process(WHEN_IMPORTED, module, "--help")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: interrupted\n")


def test_while_a_verb_loads_the_large_libraries() -> None:
    done = _process(WHEN_IMPORTED, "torch", "inspect", "owner/nowhere")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: interrupted\n")


def test_when_all_is_done() -> None:
    done = _process(AT_THE_END, "--version")
    assert done.stdout.startswith("moescope ")
    assert done.stderr == ""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("place"))


VERBS = {
    "trace": ("trace MOE TEXTS -o r", "moescope.trace:trace"),
    "analyze": ("analyze MOE TEXTS -o r", "moescope.jobs:analyze"),
    "import": ("import vllm TEXTS -o r --model MOE", "moescope.trace.importers:import_traces"),
    "train": ("train RECIPE -o r", "moescope.jobs:train"),
    "ablate": ("ablate MOE --corpus TEXTS --experts L1E3 -o r",
               "moescope.intervene:measure_damage"),
    "merge": ("merge RUN OTHERRUN -o r", "moescope.run.merge:merge_runs"),
    "demo": ("demo -o r", "moescope.demo:run_demo"),
    "similarity": ("similarity MOE TEXTS -o r", "moescope.similarity.compare:compare_experts"),
    "table": ("table RUN", "moescope.metrics.runs:open_run"),
    "report": ("report RUN", "moescope.report.report_page:build_report"),
    "compare": ("compare RUN OTHERRUN", "moescope.metrics.runs:compare_runs"),
    "profile": ("profile RUN L0E1", "moescope.profiles.profile:profile_experts"),
    "steer": ("steer MOE --prompt plan --set L1E3=+2 -o r", "moescope.intervene:steer"),
    "contrast": ("contrast MOE --with TEXTS --without TEXTS -o r",
                 "moescope.intervene.contrast.compare:contrast"),
    "paths": ("paths MOE a b", "moescope.trace.routes:compare_routes"),
    "capacity": ("capacity MOE a", "moescope.training.overflow:explain_overflow"),
    "select": ("select RUN --domain domain0 --per-layer 1", "moescope.adapt:select_experts"),
    "inspect": ("inspect MOE", "moescope.models:load_meta"),
}  # fmt: skip
"""A command line of each verb, and the function below it that does the work."""

JOURNALS = ("ablate", "similarity", "steer", "contrast")
KEEPING = ("trace", "analyze", "import", "train", "demo", *JOURNALS)
MARKS = {"train": "checkpoint", **dict.fromkeys(JOURNALS, "measured.jsonl")}
"""What lies in the folder as soon as something was kept; a manifest, unless said here."""


@pytest.fixture
def broken(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., str]:  # fmt: skip
    """What a verb says when its work is broken off, after it has kept something or before."""

    def call(verb: str, error: BaseException, kept: bool) -> str:
        words, target = VERBS[verb]

        def work(*_: object, **__: object) -> None:
            if kept:
                (tmp_path / "r").mkdir(exist_ok=True)
                (tmp_path / "r" / MARKS.get(verb, "manifest.json")).touch()
            raise error

        monkeypatch.chdir(tmp_path)
        module, _, name = target.partition(":")
        monkeypatch.setattr(importlib.import_module(module), name, work)
        argv = ["moescope", *(filled(w, place) for w in words.split())]
        monkeypatch.setattr(sys, "argv", argv)
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main.run()
        assert stopped.value.code == (130 if isinstance(error, KeyboardInterrupt) else 1)
        err = capsys.readouterr().err
        assert len(err.splitlines()) == 1
        return err

    return call


def test_every_verb_is_tried() -> None:
    assert {command.name for command in main.app.registered_commands} == set(VERBS)


def _resumes(verb: str) -> bool:
    command = typer.main.get_command(main.app)
    return "resume" in {p.name for p in command.commands[verb].params}  # type: ignore[attr-defined]


@pytest.mark.parametrize("verb", VERBS)
def test_ctrl_c_names_the_flag_where_there_is_one(verb: str, broken: Callable[..., str]) -> None:
    nothing = " before anything was kept" if verb in KEEPING else ""
    assert broken(verb, KeyboardInterrupt(), kept=False) == f"error: interrupted{nothing}\n"
    line = broken(verb, KeyboardInterrupt(), kept=True)
    assert line.startswith("error: interrupted")
    assert ("go on with the same command and --resume" in line) == _resumes(verb)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("kind", [WriteError, LaunchError])
def test_an_error_that_leaves_something_does_too(
    verb: str, kind: type[Exception], broken: Callable[..., str]
) -> None:
    assert "--resume" not in broken(verb, kind("the disk is full: r/x"), kept=False)
    line = broken(verb, kind("the disk is full: r/x"), kept=True)
    assert line.startswith("error: the disk is full: r/x")
    assert ("; go on with the same command and --resume" in line) == _resumes(verb)


def test_the_flag_is_named_once_and_for_no_error_of_the_input(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").touch()
    for error in (WriteError("go on with --resume"), BadInputError("no")):
        with pytest.raises(type(error)) as raised, resumable(tmp_path, "manifest.json"):
            raise error
        assert str(raised.value) == str(error)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("alloc.cpp: DefaultCPUAllocator: can't allocate memory")]
)
def test_memory_that_is_not_there_is_no_fault(error: Exception, broken: Callable[..., str]) -> None:
    assert broken("steer", error, kept=False).startswith("error: there is not enough memory")


def test_what_the_system_says_of_a_path_is_no_fault(broken: Callable[..., str]) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "r/x")
    assert broken("paths", full, kept=False) == "error: r/x: No space left on device\n"
