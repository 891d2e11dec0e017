"""The help can be read at any width: names are whole, paragraphs flow, flags stand in groups."""

import itertools
import shlex
import sys

import pytest
import typer

from moescope.cli import main
from moescope.cli.help import MAX_WIDTH, ORDER, SECTIONS

APP = typer.main.get_command(main.app)
COMMANDS = APP.commands  # type: ignore[attr-defined]


def shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str, width: int
) -> str:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys, "argv", ["moescope", *words])
    monkeypatch.setattr(main, "app", APP)
    with pytest.raises(SystemExit) as stopped:
        main.run()
    out, err = capsys.readouterr()
    assert (stopped.value.code, err) == (0, "")
    return str(out)


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("verb", COMMANDS)
def test_no_name_is_cut_and_no_line_too_long(
    verb: str, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shown(monkeypatch, capsys, verb, "--help", width=width)
    lines = out.splitlines()
    for param in COMMANDS[verb].params:
        if param.param_type_name == "option":
            plain = out.replace("[no-]", "")
            assert all(any(f"{name}{end}" in plain for end in " \n,") for name in param.opts)
    names = {word for line in lines if line.startswith("  -") for word in line.split()[:2]}
    longest = max(len(f"  {name}") for name in names)
    assert max(map(len, lines)) <= max(min(width, MAX_WIDTH), longest + 4)
    assert len(lines) < 200
    assert "…" not in out.replace('"…"', "")


def test_paragraphs_flow_whatever_the_breaks_in_the_source(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = shown(monkeypatch, capsys, "ablate", "--help", width=80).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("Say which"))
    paragraph = lines[start : lines.index("", start)]
    for line, after in itertools.pairwise(paragraph):
        assert len(line) + 1 + len(after.split()[0]) > 78  # the next word did not fit


def test_flags_stand_in_the_groups_of_their_mixins(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shown(monkeypatch, capsys, "ablate", "--help", width=80)
    places = [out.index(f"\n{name}:\n") for name in ORDER]
    assert places == sorted(places)
    group = {name: out[start:] for name, start in zip(ORDER, places, strict=True)}
    group = {n: text[: text.index("\n\n")] for n, text in group.items()}
    for name, flag in (
        ("Options", "--experts"), ("Options", "--layers"), ("Text", "--split"),
        ("Model", "--trust-remote-code"), ("Output", "--out"), ("Output", "--resume"),
        ("Resources", "--batch-tokens"), ("Advanced", "--text-field"),
    ):  # fmt: skip
        assert flag in group[name]


def test_a_switch_is_one_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shown(monkeypatch, capsys, "trace", "--help", width=80)
    assert "  --[no-]predictions " in out  # on by default
    assert "  --chat-template " in out
    assert "--no-chat-template" not in out


def test_an_example_can_be_copied(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shown(monkeypatch, capsys, "steer", "--help", width=60)
    example = out[out.index("moescope steer MODEL") :]
    words = shlex.split(example.replace("\\\n", " "))
    assert words[:5] == ["moescope", "steer", "MODEL", "--prompt", "My good Lord, what say you? I"]


def test_verbs_are_listed_by_task_and_each_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = [name for names in SECTIONS.values() for name in names]
    assert sorted(listed) == sorted(COMMANDS)
    out = shown(monkeypatch, capsys, "--help", width=80)
    assert [out.index(f"\n{title}:\n") for title in SECTIONS] == sorted(
        out.index(f"\n{title}:\n") for title in SECTIONS
    )
    assert shown(monkeypatch, capsys, width=80) == out  # without a word: the same, and no error
