"""The page of the command line: every verb with its help, arguments and flags."""

from __future__ import annotations

import inspect
import types
import typing
from pathlib import Path
from typing import Any, Literal

from tools.reference.markdown import bar, first_line, page, prose, table

_WORDS = {str: "text", int: "integer", float: "number", Path: "path"}


def cli_page() -> str:
    """Every verb with its help, arguments and flags."""
    import typer

    from moescope.cli.main import app

    group = typer.main.get_command(app)
    out = ["# Command line", "", prose(_app_help(app)), ""]
    out += [
        "Data goes to stdout, progress and warnings to stderr. Exit code 0: done; 1: failed; "
        "2: bad input; 130: interrupted.",
        "",
        "`moescope --version` prints the version, `moescope VERB --help` this text.",
        "",
    ]
    out += [f"- [`{name}`](#{name}): {first_line(c.help)}" for name, c in commands(group).items()]
    for name, command in commands(group).items():
        out += ["", f"## {name}", "", *_help_lines(command.help), ""]
        out += [_usage(name, command), "", *_parameters(app, name, command)]
    return page(out)


def commands(group: Any) -> dict[str, Any]:
    """The verbs of the command line, in the order of its help."""
    return dict(group.commands)


def _app_help(app: Any) -> str:
    return str(app.info.help)


def _help_lines(text: str) -> list[str]:
    """Paragraphs as they are; the example as a code block."""
    lines = []
    for line in inspect.cleandoc(text).splitlines():
        if line.startswith("Example: "):
            lines += ["```console", f"$ {line.removeprefix('Example: ')}", "```"]
        else:
            lines.append(line)
    return lines


def _usage(name: str, command: Any) -> str:
    words = [p.metavar for p in command.params if p.param_type_name == "argument"]
    return f"Usage: `moescope {' '.join([name, *words])} [OPTIONS]`"


def _parameters(app: Any, name: str, command: Any) -> list[str]:
    from typer.utils import get_params_from_function

    body = next(c.callback for c in app.registered_commands if c.name == name)
    kinds = {n: p.annotation for n, p in get_params_from_function(body).items()}
    rows = []
    for p in command.params:
        if p.name == "help":
            continue
        spelt = [p.metavar or p.name] if p.param_type_name == "argument" else p.opts
        spelt = [*spelt, *p.secondary_opts]
        what = p.help or ""
        shown = ", ".join(f"`{bar(s.strip('[]'))}`" for s in spelt)
        rows.append([shown, bar(_kind(kinds[p.name])), bar(_with_default(what, p.default))])
    return table(["argument or flag", "value", "meaning"], rows)


def _with_default(what: str, default: Any) -> str:
    if default is None or isinstance(default, bool) or callable(default) or "[" in what:
        return what
    return f"{what} [{default}]"


def _kind(annotation: Any) -> str:
    """What a person may write for a value of this type."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is bool:
        return "–"
    if origin is Literal:
        return " | ".join(f"`{v}`" for v in inner)
    if origin is list:
        return f"{_kind(inner[0])}, repeatable"
    if origin in (typing.Union, types.UnionType):
        return _kind(next(t for t in inner if t is not type(None)))
    return _WORDS.get(annotation, str(annotation))
