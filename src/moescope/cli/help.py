"""What ``--help`` prints: verbs by task, flags by what they are about, nothing cut at any width.

The layout is that of click, whose lists wrap words and never names. The group of a flag is that of
the mixin that declares it (`Settings.group`).
"""

from __future__ import annotations

import re
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

MAX_WIDTH = 100
"""Longer lines are hard to read, however wide the terminal is."""

ORDER = ("Options", "Text", "Model", "Output", "Resources", "Advanced")
"""Of the groups; the verb's own flags come first."""

SECTIONS = {
    "Look at which experts serve which text": (
        "demo", "analyze", "table", "report", "compare", "paths", "inspect",
    ),
    "Explain what experts do": ("profile", "similarity"),
    "Choose experts and intervene on them": ("select", "contrast", "steer", "ablate"),
    "Train small ones": ("train", "capacity"),
    "Run at scale": ("trace", "merge", "import"),
}  # fmt: skip
"""Verbs by task; each has a module ``moescope.cli.NAME_cmd``."""


class Verbs(TyperGroup):
    """The command itself: its verbs in sections."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Each verb with the first sentence of its help."""
        for title, names in SECTIONS.items():
            known = [(n, self.get_command(ctx, n)) for n in names]
            rows = [(n, _sentence(c.help or "")) for n, c in known if c is not None]
            with formatter.section(typer.style(title, bold=True)):
                formatter.write_dl(rows)


class VerbHelp(TyperCommand):
    """A verb: arguments, then flags in groups, then examples that can be copied."""

    def format_help_text(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 -- as click calls it
        """The help without its examples."""
        text, _ = _examples(self.help or "")
        formatter.write_paragraph()
        formatter.write_text(text)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments, groups of flags, examples."""
        groups: dict[str, list[tuple[str, str]]] = {name: [] for name in ("Arguments", *ORDER)}
        params: list[Any] = self.get_params(ctx)
        for param in params:
            if param.param_type_name == "argument":
                groups["Arguments"].append((param.metavar.strip("[]"), param.help or ""))
            else:
                group = getattr(param, "rich_help_panel", None) or "Advanced"
                groups[group].append((_spelt(param), param.help or ""))
        for name, rows in groups.items():
            if rows:
                with formatter.section(typer.style(name, bold=True)):
                    formatter.write_dl(rows, col_max=26)
        examples = _examples(self.help or "")[1]
        if examples:
            with formatter.section(typer.style("Examples", bold=True)):
                for line in examples:
                    _write_command(formatter, line)


def _sentence(text: str) -> str:
    return text.partition("\n\n")[0].removesuffix(".")


def _examples(text: str) -> tuple[str, list[str]]:
    """Help without its lines ``Example: …``, and what they show."""
    parts = text.split("\n\n")
    shown = [" ".join(p.split()).removeprefix("Example: ") for p in parts if p.startswith("Ex")]
    return "\n\n".join(p for p in parts if not p.startswith("Example: ")), shown


def _spelt(param: Any) -> str:
    """``-o, --out TEXT``; of a switch ``--each``, or ``--[no-]each`` where it is on by default."""
    names = sorted(param.opts, key=len)
    if not param.is_flag:
        return f"{', '.join(names)} {param.metavar}"
    both = bool(param.secondary_opts) and "(default on)" in (param.help or "")
    return ", ".join(n.replace("--", "--[no-]", 1) if both else n for n in names)


def _write_command(formatter: Any, line: str) -> None:
    """A command on as many lines as it takes, each but the last ending in a backslash."""
    room, lines = formatter.width - formatter.current_indent - 4, [""]
    for part in re.split(r' (?=--?[a-z]|")', line):
        if lines[-1] and len(lines[-1]) + 1 + len(part) > room:
            lines.append(part)
        else:
            lines[-1] = f"{lines[-1]} {part}".strip()
    indent = " " * formatter.current_indent
    formatter.write(f" \\\n{indent}    ".join([indent + lines[0], *lines[1:]]) + "\n")
