"""The page of Python: every public name with its signature and docstring."""

from __future__ import annotations

import inspect
import re
from functools import cached_property
from typing import Any

from tools.reference.markdown import docstring, fields, first_line, page


def python_page() -> str:
    """Every public name with its signature and docstring."""
    import moescope

    names = [n for n in moescope.__all__ if not n.startswith("__")]
    out = [
        "# Python",
        "",
        "What `import moescope` offers; names are resolved when they are first used.",
        "",
        *[f"- [`{n}`](#{n.lower()}): {first_line(getattr(moescope, n).__doc__)}" for n in names],
    ]
    for name in names:
        thing = getattr(moescope, name)
        out += ["", f"## {name}", "", f"`from moescope import {name}`", ""]
        if hasattr(thing, "model_fields"):
            out += [*docstring(thing.__doc__), "", *fields(thing)]
            continue
        out += ["```python", _signature(name, thing), "```", "", *docstring(thing.__doc__)]
        if inspect.isclass(thing) and not issubclass(thing, Exception):
            out += _members(thing)
    return page(out)


def _members(thing: type) -> list[str]:
    out: list[str] = []
    for owner in thing.__mro__:
        if not owner.__module__.startswith("moescope"):
            continue
        for name, member in vars(owner).items():
            if name.startswith("_"):
                continue
            if isinstance(member, classmethod | staticmethod):
                member = member.__func__
            if inspect.isfunction(member):
                head = f"`.{name}{_bare_signature(member)}`"
            elif isinstance(member, property | cached_property):
                head = f"`.{name}`"
            else:
                continue
            line = f"- {head}: {first_line(member.__doc__)}"
            if not any(o.startswith(f"- `.{name}") for o in out):
                out.append(line)
    return ["", *out] if out else []


def _signature(name: str, thing: Any) -> str:
    try:
        text = f"{name}{_bare_signature(thing)}"
    except (TypeError, ValueError):
        return name
    if len(text) <= 100:
        return text
    head, _, rest = text.partition("(")
    inside, _, tail = rest.rpartition(")")
    parts = re.split(r", (?=[*\w]+(?::|,|$))", inside)
    return head + "(\n" + "".join(f"    {p},\n" for p in parts) + ")" + tail


class _Raw(str):
    """An annotation that is shown as it is written."""

    def __repr__(self) -> str:
        return str(self)


def _bare_signature(thing: Any) -> str:
    def plain(annotation: Any) -> Any:
        annotation = getattr(annotation, "__forward_arg__", annotation)
        return _Raw(annotation) if isinstance(annotation, str) else annotation

    def named(default: Any) -> Any:
        return _Raw(default.__name__) if inspect.isfunction(default) else default

    made = inspect.signature(thing)
    kept = [
        p.replace(annotation=plain(p.annotation), default=named(p.default))
        for p in made.parameters.values()
        if p.name not in ("self", "cls")
    ]
    return str(made.replace(parameters=kept, return_annotation=plain(made.return_annotation)))
