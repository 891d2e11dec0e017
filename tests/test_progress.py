"""How far work is, told in one way; and messages of the library that name no flag."""

import ast
import io
import math
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import moescope
from moescope.cli import terminal
from moescope.cli.settings import RunArgs
from moescope.cli.terminal import CleanConsole
from moescope.cli.verb import flagged, resolve
from moescope.progress import Progress, Reckoning

SOURCE = Path(moescope.__file__).parent
LIBRARY = [p for p in SOURCE.rglob("*.py") if "cli" not in p.relative_to(SOURCE).parts]

STORED = ("documents past --limit", "shorter than --match-length")
"""Counters that lie in runs of earlier versions under these names."""


def test_a_share_is_known_only_where_the_total_is() -> None:
    assert Progress("tracing", 5, 20, "tokens").share == 0.25
    assert Progress("tracing", 30, 20, "tokens").share == 1.0
    assert Progress("tracing", 5, None, "tokens").share == 0.0
    assert Progress("loading").share == 0.0


def told(*at: tuple[float, Progress]) -> Reckoning:
    made = Reckoning()
    for now, progress in at:
        made.tell(progress, now)
    return made


def test_of_one_stage_the_share_is_what_is_done_and_the_pace_goes_on() -> None:
    made = told((0, Progress("a", 0, 20, "tokens")), (10, Progress("a", 5, 20, "tokens")))
    assert (made.share, made.left, made.rate) == (0.25, 30, 0.5)  # 15 left at 0.5/s


def test_nothing_is_said_of_what_has_no_end() -> None:
    for at in (Progress("a"), Progress("a", 5, None, "tokens")):
        made = told((0, at), (10, at._replace(done=at.done + 5)))
        assert made.share == 0.0
        assert math.isnan(made.left)


def test_a_stage_that_comes_later_is_part_of_the_work() -> None:
    """20 s of tracing, 60 s guessed for tables; then the tables take 20 s."""
    trace = [(0, Progress("t", 0, 20, "tokens", later=60)),
             (10, Progress("t", 10, 20, "tokens", later=60))]  # fmt: skip
    assert told(*trace).share == 10 / 80
    assert told(*trace).left == 70
    trace.append((20, Progress("t", 20, 20, "tokens", later=60)))
    assert told(*trace).share == 20 / 80  # not all, while tables are made
    tables = [*trace, (20, Progress("u", 0, 4)), (25, Progress("u", 1, 4))]
    assert told(*tables).share == 25 / 40
    assert told(*tables).left == 15


def test_the_share_never_falls_and_is_never_all() -> None:
    made = Reckoning()
    shares = []
    for stage in range(3):
        for done in range(11):
            made.tell(Progress("a", done, 10, f"unit {stage}"), 100 * stage + done**2)
            shares.append(made.share)
    assert shares == sorted(shares)
    assert max(shares) < 1


def test_what_was_done_before_a_resume_is_no_pace() -> None:
    made = told((0, Progress("a", 80, 100, "t")), (10, Progress("a", 90, 100, "t")))
    assert (made.rate, made.left, made.share) == (1.0, 10.0, 0.9)


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What is seen, of a clock that goes 10 seconds at each look."""
    made, clock = io.StringIO(), iter(range(100, 10**6, 10))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(terminal, "errors", CleanConsole(file=made, width=100))
    return made


def test_the_bar_shows_stage_share_rate_and_time_left_and_notes_stay(
    screen: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = CleanConsole(file=screen, force_terminal=True, width=120)
    monkeypatch.setattr(terminal, "errors", console)
    with terminal.progress("loading it") as show:
        show(Progress("tracing", 0, 4000, "tokens"))
        show(Progress("tracing, layer 2/6", 1000, 4000, "tokens", note="shard 1/2 is done"))
    text = screen.getvalue()
    for shown in ("tracing, layer 2/6", "25%", "1,000 tokens", "/s", "left", "shard 1/2 is done"):
        assert shown in text


def test_what_takes_long_is_said_once_and_a_log_gets_few_lines(screen: io.StringIO) -> None:
    with terminal.progress("loading it") as show:
        for done in range(1001):
            show(Progress("measuring", done, 1000, "tokens", work="64 experts"))
    first, *lines = screen.getvalue().splitlines()
    assert first == "64 experts: about 2.8 h to go"  # 10 s for each of 999
    assert 10 < len(lines) < 30
    assert all("left" in line for line in lines)


def test_what_is_quick_says_nothing(screen: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100, 10**6))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock) / 100)
    with terminal.progress("loading it") as show:
        for done in range(1001):
            show(Progress("measuring", done, 1000, "tokens"))
    assert screen.getvalue() == ""


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text(encoding="utf-8")))


def test_everything_that_takes_long_tells_it_in_the_same_way() -> None:
    odd = []
    for path in LIBRARY:
        for node in nodes(path):
            if not isinstance(node, ast.FunctionDef):
                continue
            for one in (*node.args.args, *node.args.kwonlyargs):
                kind = "" if one.annotation is None else ast.unparse(one.annotation)
                other = one.arg == "on_progress" and kind != "OnProgress"
                if other or one.arg in ("on_stage", "on_part", "on_point"):
                    odd.append(f"{path.name} {node.name}: {one.arg} {kind}")
    assert odd == []


def test_the_library_names_no_flag() -> None:
    named = []
    for path in LIBRARY:
        if path.name == "commands.py":  # makes those that pages show
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        words = {
            id(n.value) for n in ast.walk(tree)
            if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)
        }  # fmt: skip
        for made in ast.walk(tree):  # of a page that shows commands to copy
            if isinstance(made, ast.FunctionDef) and made.name == "_commands":
                words |= {id(n) for n in ast.walk(made)}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
                continue
            text = node.value
            if id(node) in words or any(known in text for known in STORED):
                continue
            if any(word.startswith("--") and word[2:3].isalpha() for word in text.split()):
                named.append(f"{path.relative_to(SOURCE)}: {text[:60]}")
    assert named == []


def test_a_setting_in_a_message_is_spelt_as_the_verb_spells_it() -> None:
    resolve(RunArgs, {"model": "m", "corpus": "c", "out": "o"}, None)
    assert flagged("mend it, or use `on_error=skip`") == "mend it, or use --on-error skip"
    assert flagged("the `corpus` of `model`") == "the CORPUS of MODEL"
    assert flagged("leave out `predictions=False`") == "leave out --no-predictions"
    assert flagged("add `trust_remote_code`") == "add --trust-remote-code"
    assert flagged("what `nobody` knows stays") == "what `nobody` knows stays"
