"""Docstrings, settings and tables as Markdown: what every page of the reference is made of."""

from __future__ import annotations

import inspect
import re
import types
import typing
from typing import Any, Literal

_HEAD = "<!-- Written by tools/build_reference.py; change the code, then run: make docs -->\n"
_SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises", "Example", "Reference")


def docstring(text: str | None) -> list[str]:
    """A Google-style docstring as Markdown."""
    out: list[str] = []
    section = ""
    for line in inspect.cleandoc(text or "").replace("``", "`").splitlines():
        word = line.rstrip(":")
        if line.endswith(":") and word in _SECTIONS:
            out += [*_close(section), "", f"**{word}**", ""]
            section = word
            out += ["```python"] if section == "Example" else []
        elif section and line and not line.startswith(" "):
            out += [*_close(section), line]
            section = ""
        elif section in ("Args", "Attributes", "Raises") and line.startswith("    "):
            out.append(_item(line[4:]))
        elif section:
            out.append(line.removeprefix("    "))
        else:
            out.append(line if line.startswith("    ") else re.sub(r"::$", ":", line))
    return _tidy(out + _close(section))


def _item(line: str) -> str:
    name, colon, rest = line.partition(":")
    if line.startswith(" ") or not colon or not re.fullmatch(r"\w+", name):
        return f"  {line.strip()}"
    return f"- `{name}`:{rest}"


def _close(section: str) -> list[str]:
    return ["```", ""] if section == "Example" else []


def _tidy(lines: list[str]) -> list[str]:
    """No blank line before a closing fence, never two in a row, none at the ends."""
    out: list[str] = []
    for line in lines:
        if line == "```":
            while out and not out[-1].strip():
                out.pop()
        if line.strip() or (out and out[-1].strip() and out[-1] != "```python"):
            out.append(line.rstrip())
    while out and not out[-1].strip():
        out.pop()
    return out


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    ruler = ["---"] * len(head)
    return [f"| {' | '.join(cells)} |" for cells in (head, ruler, *rows)]


def bar(text: str) -> str:
    return text.replace("|", "\\|")


def first_line(text: str | None) -> str:
    return inspect.cleandoc(text or "").partition("\n")[0].replace("``", "`")


def prose(text: str) -> str:
    return " ".join(text.split())


def page(lines: list[str]) -> str:
    return _HEAD + "\n" + "\n".join(lines).rstrip() + "\n"


def fields(model: Any) -> list[str]:
    rows = []
    for name, field in model.model_fields.items():
        default = "required" if field.is_required() else f"`{_default(field)}`"
        meaning = " ".join((field.description or "").replace("``", "`").split())
        rows.append([f"`{name}`", f"`{bar(spelt(field.annotation))}`", default, bar(meaning)])
    head = ["field", "type", "default", "meaning"]
    if not any(row[3] for row in rows):
        return table(head[:3], [row[:3] for row in rows])
    return table(head, rows)


def _default(field: Any) -> str:
    return repr(field.default_factory() if field.default_factory else field.default)


def spelt(annotation: Any) -> str:
    """A type as it is written in the code, the same under every version of Python."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return spelt(inner[0])
    if origin in (typing.Union, types.UnionType):
        return " | ".join(spelt(part) for part in inner)
    if origin is Literal:
        return f"Literal[{', '.join(map(repr, inner))}]"
    if inner:
        return f"{origin.__name__}[{', '.join(spelt(part) for part in inner)}]"
    if annotation in (type(None), ...):
        return "None" if annotation is type(None) else "..."
    return str(getattr(annotation, "__name__", annotation))
