"""The page of the recipe: every key of a training run, and the columns of its log."""

from __future__ import annotations

import inspect
import json
import types
import typing
from pathlib import Path
from typing import Any, Literal

from tools.reference.markdown import bar, docstring, page, table

_WORDS = {str: "text", int: "integer", float: "number", bool: "`true` \\| `false`"}
_MANY = {float: "numbers"}
_COUNTS = {2: "two"}
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def recipe_page() -> str:
    """Every key of a recipe with type, default and bounds; every table of a training log."""
    from moescope.training import recipe as module
    from moescope.training.part import Ramp
    from moescope.training.recipe import Recipe

    sections = {name: _section(field.annotation) for name, field in Recipe.model_fields.items()}
    single = {name: Recipe.model_fields[name] for name, kind in sections.items() if kind is None}
    sections = {name: kind for name, kind in sections.items() if kind is not None}
    out = [
        "# Recipe",
        "",
        *docstring(module.__doc__),
        "",
        "How to write one and train: [train a router](../how-to/train-a-router.md). What the rules",
        "do: [routers](../concepts/routers.md). `--set SECTION.KEY=VALUE` of",
        "[`moescope train`](cli.md#train) wins over the file; values are YAML.",
        "",
        *_rows(single),
        "",
        *[f"- [`{name}`](#{name}): {_summary(kind)}" for name, kind in sections.items()],
        "- [ramp](#ramp): " + _summary(Ramp),
        "- [`log/*.parquet`](#log): what training writes down",
    ]
    for name, kind in sections.items():
        out += ["", f"## {name}", "", *docstring(kind.__doc__)]
        if Recipe.model_fields[name].default is None:
            out += ["", "Nothing of this applies unless the section is there; `{}` takes defaults."]
        out += ["", *_rows(kind.model_fields)]
    out += ["", "## ramp", "", *docstring(Ramp.__doc__), ""]
    out += ["Where the type says ramp: `{start: 0.1, end: 0.01, over: 0.5}`.", ""]
    return page([*out, *_rows(Ramp.model_fields), "", *_log()])


def _section(annotation: Any) -> Any:
    """The settings class behind a section, or None for a key of the file itself."""
    for kind in (annotation, *typing.get_args(annotation)):
        if isinstance(kind, type) and hasattr(kind, "model_fields"):
            return kind
    return None


def _summary(kind: Any) -> str:
    return inspect.cleandoc(kind.__doc__).partition("\n")[0].rstrip(".")


def _bounds(metadata: Any) -> str:
    return ", ".join(
        f"{sign} {getattr(part, key):g}"
        for part in metadata
        for key, sign in _BOUNDS.items()
        if hasattr(part, key)
    )


def _rows(fields: Any) -> list[str]:
    rows = []
    for name, field in fields.items():
        bounds = _bounds(field.metadata)
        meaning = " ".join((field.description or "").replace("``", "`").split())
        rows.append([f"`{name}`", _value(field.annotation), _default(field), bounds, bar(meaning)])
    return table(["key", "value", "default", "bounds", "meaning"], rows)


def _default(field: Any) -> str:
    """As it would be written in YAML."""
    return "required" if field.is_required() else f"`{_yaml(field.default)}`"


def _yaml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _value(annotation: Any) -> str:
    """What a person may write for a value of this type."""
    from moescope.corpus import CorpusSpec
    from moescope.training.part import Ramp

    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return f"{_value(inner[0])} {_bounds(inner[1].metadata)}"
    if annotation is Ramp:
        return "[ramp](#ramp)"
    if annotation is CorpusSpec:
        return "path or [corpus](run-format.md#corpus)"
    if annotation is type(None):
        return "`null`"
    if origin is Literal:
        return " \\| ".join(f"`{v}`" for v in inner)
    if origin in (typing.Union, types.UnionType):
        return ", or ".join(_value(part) for part in inner)
    if origin is tuple:
        first = inner[0]
        many = _MANY[typing.get_args(first)[0] if typing.get_origin(first) else first]
        return f"list of {many}" if inner[-1] is ... else f"{_COUNTS[len(inner)]} {many}"
    return _WORDS[annotation]


def _log() -> list[str]:
    from moescope.training.log import TrainingLog

    log = TrainingLog(Path("log"))
    out = ["## log", "", *docstring(TrainingLog.__doc__), ""]
    out += ["Each is `RUN/log/NAME.parquet`. A cell that does not apply is null."]
    for name in log.rows:
        columns = [[f"`{f.name}`", str(f.type)] for f in log.table(name).schema]
        out += ["", f"### {name}", "", *table(["column", "type"], columns)]
    return out
