"""Nothing in a model, a text or a run that others made can steer the reader's terminal."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from rich.text import Text
from tests.support.saved import save_tiny, tiny_tokenizer
from tests.support.tiny import VOCAB_SIZE

from moescope.cli import main, terminal
from moescope.cli.terminal import CleanConsole, bounded, clean
from moescope.corpus import CorpusSpec
from moescope.metrics.runs import open_run, table_names
from moescope.models import ModelSpec, load_model
from moescope.progress import Progress
from moescope.run.options import TraceOptions
from moescope.trace import trace

TITLE, RED, OVERPRINT, TURNED = "\x1b]0;owned\x07", "\x9b31mred", "one\rtwo", "\u202etxt\u2066"
HARMFUL = (TITLE, RED, OVERPRINT, TURNED, "\x1b[2Jgone")
NAME = "d" + "".join(HARMFUL) + "[bold]x[/red]"


class Terminal(io.TextIOWrapper):
    """A stream that says it is a terminal, and keeps what it was sent."""

    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__(io.BytesIO(), encoding=encoding, newline="", write_through=True)

    def isatty(self) -> bool:
        return True

    def text(self) -> str:
        return self.buffer.getvalue().decode(self.encoding)  # type: ignore[attr-defined]


class Place(NamedTuple):
    model: Path
    corpus: Path
    run: Path
    other: Path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A model, a corpus and two runs with such text wherever a name or a token can stand."""
    folder = tmp_path_factory.mktemp("harmful")
    model = save_tiny("olmoe", folder / f"m{TITLE}[bold]", vocab_size=VOCAB_SIZE + len(HARMFUL))
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(list(HARMFUL))
    tokenizer.save_pretrained(model)
    loaded = load_model(ModelSpec(str(model)))
    runs = []
    for name in ("one", "two"):
        rows = [
            {"id": f"{name}{n}{NAME}", "domain": NAME if n % 2 else "plain",
             "text": "the plan covers " * (3 + n % 4) + " ".join(HARMFUL) + " the court may"}
            for n in range(12)
        ]  # fmt: skip
        corpus = folder / f"{name}.jsonl"
        corpus.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        runs.append(trace(loaded, CorpusSpec(path=str(corpus)), folder / name, TraceOptions()))
    return Place(model, folder / "one.jsonl", *runs)


Call = Callable[..., tuple[str, str]]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Call:
    """What a terminal would be sent on stdout and stderr."""

    def call(*words: object, code: int = 0, encoding: str = "utf-8") -> tuple[str, str]:
        out, err = Terminal(encoding), Terminal(encoding)
        monkeypatch.setenv("COLUMNS", "300")
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr(sys, "argv", ["moescope", *map(str, words)])
        to = (contextlib.redirect_stdout(out), contextlib.redirect_stderr(err))
        with to[0], to[1], pytest.raises(SystemExit) as stopped:
            main.run()
        assert stopped.value.code == code, err.text()
        return out.text(), err.text()

    return call


def assert_harmless(*texts: str) -> None:
    for text in texts:
        assert not [h for h in HARMFUL if h in text]
        own = re.sub(r"\r?\x1b\[[0-9;?]*[A-Za-z]|\r", "", text)  # colours, and bars drawn again
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", own)


VERBS = {
    "tables": ("table", "RUN"),
    "report": ("report", "RUN"),
    "profile": ("profile", "RUN", "L0E1", "L1E2"),
    "profile as json": ("profile", "RUN", "L0E1", "--format", "json"),
    "all profiles": ("profile", "RUN", "--all", "--no-model"),
    "merge": ("merge", "RUN", "OTHER", "-o", "OUT"),
    "compare": ("compare", "RUN", "RUN"),
    "similarity": ("similarity", "RUN", "-o", "OUT", "--layers", "0", "--total-tokens", "100"),
    "ablate": ("ablate", "--run", "RUN", "--experts", "L0E1", "-o", "OUT", "--controls", "1"),
    "trace": ("trace", "MODEL", "CORPUS", "-o", "OUT"),
    "analyze": ("analyze", "MODEL", "CORPUS", "-o", "OUT"),
    "inspect": ("inspect", "MODEL"),
    "paths": ("paths", "MODEL", f"the plan {NAME}", f"the {NAME} plan"),
    "capacity": ("capacity", "MODEL", f"the plan {NAME}"),
    "capacity as json": ("capacity", "MODEL", f"the plan {NAME}", "--format", "json"),
    "steer": ("steer", "MODEL", "--prompt", f"the {NAME}", "--set", "L1E3=+9", "--words", RED),
    "steer as json": (
        "steer", "MODEL", "--prompt", f"the {NAME}", "--set", "L1E3=mask", "--format", "json",
    ),
    "contrast": ("contrast", "MODEL", "--with", "CORPUS", "--without", "CORPUS"),
}  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_sends_what_a_terminal_would_obey(
    verb: str, place: Place, seen: Call, tmp_path: Path
) -> None:
    stand_for = {"RUN": place.run, "OTHER": place.other, "MODEL": place.model,
                 "CORPUS": place.corpus, "OUT": tmp_path / "out"}  # fmt: skip
    assert_harmless(*seen(*(stand_for.get(word, word) for word in VERBS[verb])))


@pytest.mark.parametrize("form", ["table", "csv", "json"])
def test_no_table_does(form: str, place: Place, seen: Call) -> None:
    for name in table_names():
        assert_harmless(*seen("table", place.run, name, "--format", form))


def test_no_error_does(place: Place, seen: Call) -> None:
    for words in (
        ("table", place.run, NAME), ("table", place.run, "load", "--domain", NAME + "x"),
        ("trace", NAME, place.corpus, "-o", "out"), ("inspect", place.model / NAME),
    ):  # fmt: skip
        _, err = seen(*words, code=2)
        assert_harmless(err)
        assert err.splitlines()[-1].startswith("error: ")


def test_what_was_there_can_be_seen(place: Place, seen: Call) -> None:
    """Markup is text, and a control character is shown as its escape."""
    out, _ = seen("table", place.run, "domain_loss", "--wide")
    assert r"\x1b]0;owned" in out
    assert r"\u202etxt" in out
    assert "[bold]x[/red]" in out


def test_a_file_or_another_program_gets_the_data_as_they_are(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["moescope", "table", str(place.run), "domain_loss", "--format", "csv"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit):
        main.run()
    out = capsys.readouterr().out
    harmful = next(name for name in open_run(place.run).domains if name != "plain")
    assert TITLE in harmful
    assert harmful in out


def test_colours_survive_and_layout_too() -> None:
    screen = Terminal()
    console = CleanConsole(file=screen, force_terminal=True, color_system="standard", width=40)
    console.print(Text(f"a{TITLE}b", style="bold red"))
    assert screen.text() == "\x1b[1;31ma\\x1b]0;ownedb\x1b[0m\n"  # Rich itself drops the bell


@pytest.mark.parametrize("words", [("table", "RUN", "domain_loss"), ("profile", "RUN", "L0E1")])
def test_a_terminal_without_unicode_is_written_to_as_well_as_it_can(
    words: tuple[str, ...], place: Place, seen: Call
) -> None:
    for encoding in ("ascii", "latin-1"):
        out, _ = seen(*(str(place.run) if w == "RUN" else w for w in words), encoding=encoding)
        assert "plain" in out


def test_in_a_process_whose_streams_are_no_utf_8(place: Place) -> None:
    """A scheduler's log, a cron mail, ``LANG=C``: odd characters are escaped, nothing fails."""
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    commands = (
        ({"PYTHONIOENCODING": "ascii"}, "table", place.run, "domain_loss"),
        (plain, "profile", place.run, "L0E1"),
        (plain, "steer", "--help"),
        ({"PYTHONIOENCODING": "latin-1"}, "inspect", place.model),
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "moescope", *map(str, words)], env={**os.environ, **settings},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for settings, *words in commands
    ]  # fmt: skip
    for process in started:
        out, err = process.communicate(timeout=300)
        assert (process.returncode, b"Traceback" in err) == (0, False), err
        assert out.isascii() or process is started[-1]


def test_a_stream_that_is_closed_is_written_to_in_vain(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["moescope", "table", str(place.run), "domain_loss"])
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with pytest.raises(SystemExit) as stopped:
        main.run()
    assert stopped.value.code == 0


def test_every_control_character_is_made_visible() -> None:
    codes = [*range(32), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
    for code in [*codes, 0xD800, 0xDFFF]:
        kept = chr(code) in "\n\t"
        assert (clean(chr(code)) == chr(code)) == kept
        assert clean(chr(code)).isprintable() or kept
    assert clean("naïve → 日本 🎉") == "naïve → 日本 🎉"


def test_an_error_quotes_little_of_what_was_given() -> None:
    assert bounded("x" * 200) == "x" * 200
    assert len(bounded(f"error: {'x' * 10**6} is no model; see --help")) < 300
    assert bounded(f"error: {'x' * 10**6} is no model; see --help").endswith("see --help")
    assert len(bounded("lol " * 10**6)) <= 2000


def test_a_bar_reads_no_markup_in_what_it_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    console = CleanConsole(file=screen, force_terminal=True, width=100)
    monkeypatch.setattr(terminal, "errors", console)
    with terminal.progress(f"[/red]merging {TITLE}") as show:
        show(Progress(f"[/red]loading [bold]{RED}", 1, 2, f"[/x]{RED}", note=f"[/x]{TITLE}"))
    assert "[/red]loading [bold]" in screen.text()
    assert_harmless(screen.text())
