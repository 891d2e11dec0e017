"""How far work is, told in one way; and messages of the library that name no flag."""

import ast
import io
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import moescope
from moescope.cli import terminal
from moescope.cli.settings import RunArgs
from moescope.cli.terminal import CleanConsole
from moescope.cli.verb import flagged, resolve
from moescope.progress import Progress

SOURCE = Path(moescope.__file__).parent
LIBRARY = [p for p in SOURCE.rglob("*.py") if "cli" not in p.relative_to(SOURCE).parts]

STORED = ("documents past --limit", "shorter than --match-length")
"""Counters that lie in runs of earlier versions under these names."""


def test_a_share_is_known_only_where_the_total_is() -> None:
    assert Progress("tracing", 5, 20, "tokens").share == 0.25
    assert Progress("tracing", 30, 20, "tokens").share == 1.0
    assert Progress("tracing", 5, None, "tokens").share == 0.0
    assert Progress("loading").share == 0.0


def test_the_bar_shows_stage_share_rate_and_time_left_and_notes_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    screen = io.StringIO()
    console = CleanConsole(file=screen, force_terminal=True, width=120)
    monkeypatch.setattr(terminal, "errors", console)
    clock = iter(range(100, 200))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    with terminal.progress("loading it") as show:
        show(Progress("tracing", 0, 4000, "tokens"))
        show(Progress("tracing, layer 2/6", 1000, 4000, "tokens", note="shard 1/2 is done"))
    text = screen.getvalue()
    for shown in ("tracing, layer 2/6", "25%", "1,000 tokens", "/s", "shard 1/2 is done"):
        assert shown in text


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
