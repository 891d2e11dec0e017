"""A verb: a settings model, a body, and one function that makes a command of them.

The fields of the model are the arguments and flags, the keys of a ``--config`` file, and the copy
that is kept beside the output. A field that a class of the library has too is described there and
only there; `of` takes its default, words and bounds. A field ``with_`` is ``--with`` and ``with``.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar

import typer
import yaml
from annotated_types import Ge
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from moescope.cli.resume import naming_settings, resumable
from moescope.cli.terminal import errors
from moescope.errors import BadInputError
from moescope.given import parse_yaml, problem_words, read_text
from moescope.words import brief

_MOST_BYTES = 1 << 17


class Argument(NamedTuple):
    """Marks a field that is given by its place. ``kind``: what is typed, if not what is kept."""

    metavar: str
    kind: Any = None


class Flag(NamedTuple):
    """Marks a field whose flag has a short form, or is typed in another form than it is kept."""

    short: str | None = None
    kind: Any = None


class Settings(BaseModel):
    """What a verb can be told. Unknown keys are refused.

    ``group``: under which the help lists what a mixin declares, in every verb that has it.
    """

    group: ClassVar[str | None] = None

    model_config = ConfigDict(
        extra="forbid",
        protected_namespaces=(),
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        alias_generator=lambda name: name.rstrip("_"),
        validate_by_name=True,
    )

    def folder(self) -> Path | None:
        """Where the verb writes; None for nowhere."""
        out = getattr(self, "out", None)
        return None if out is None else Path(out)

    def given(self, kind: type[BaseModel], **more: Any) -> Any:
        """The part that another settings model has too, as that model."""
        shared = kind.model_fields.keys() & type(self).model_fields.keys() - more.keys()
        return kind(**{name: getattr(self, name) for name in shared}, **more)

    def check(self) -> None:
        """Refuse what can be seen before anything heavy is imported, and not by a single field."""

    def begin(self, folder: Path | None) -> None:
        """Write down the settings of what is about to begin; it keeps those of its start."""
        if folder is not None and not self.is_begun(folder):
            self.write_to(folder)

    def is_begun(self, folder: Path) -> bool:
        """Is there a measurement, finished or not?"""
        from moescope.measure.journal import is_begun

        return is_begun(folder)

    def write_to(self, folder: Path) -> None:
        """Write ``config.yaml``, which ``--config`` reads, to a folder that is held."""
        from moescope.files import write_bytes

        made = self.model_dump(mode="json", by_alias=True)
        text = yaml.safe_dump(made, sort_keys=False, allow_unicode=True)
        write_bytes(folder / "config.yaml", text.encode())


_Settings = TypeVar("_Settings", bound=Settings)


def of(source: type, name: str) -> Any:
    """A field with the default, the words and the bounds that a class of the library gives it."""
    bounds: list[Any] = []
    if issubclass(source, BaseModel):
        info = source.model_fields[name]
        default, words, bounds = info.default, str(info.description), info.metadata
    else:
        known = {f.name: f.default for f in dataclasses.fields(source)}  # type: ignore[arg-type]
        default, words = known[name], _attributes(source)[name]
        default = PydanticUndefined if default is dataclasses.MISSING else default
    words = " ".join(words.replace("``", "").split()).removesuffix(".")
    if not words[1:2].isupper():
        words = words[:1].lower() + words[1:]
    return Field(default, description=words, json_schema_extra={"setting": name}, **_limits(bounds))


def _limits(bounds: list[Any]) -> dict[str, Any]:
    """Limits such as ``Ge(ge=1)`` as `Field` takes them."""
    names = ("ge", "gt", "le", "lt", "min_length")
    return {n: getattr(b, n) for b in bounds for n in names if hasattr(b, n)}


def _attributes(source: type) -> dict[str, str]:
    """Name → words, from the section ``Attributes:`` of a docstring."""
    section = inspect.cleandoc(source.__doc__ or "").partition("Attributes:\n")[2]
    found = re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", section, re.MULTILINE)
    return dict(found)


class Verb(NamedTuple):
    """A command as typer takes it, and what its help says."""

    command: Callable[..., None]
    help: str


VERBS: dict[str, Verb] = {}
"""Every verb whose module was imported, by name."""


def verb(
    *, marks: tuple[str, ...] = (), advice: str | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a verb of a function of ``settings``, a `Settings`; its docstring is the help.

    One that takes ``resume`` too has ``--resume``.

    Args:
        marks: names of which one lies in the verb's folder as soon as something is kept there.
        advice: how to go on from there, if not with ``--resume``.
    """

    def make(body: Callable[..., None]) -> Callable[..., None]:
        taken = inspect.signature(body, eval_str=True).parameters
        kind, resumes = taken["settings"].annotation, "resume" in taken

        def command(config: Path | None, resume: bool = False, **given: Any) -> None:
            settings = resolve(
                kind, {k: v for k, v in given.items() if v not in (None, [])}, config
            )
            with resumable(settings.folder(), *marks, advice=advice):
                settings.check()
                with naming_settings(settings):
                    body(settings, **({"resume": resume} if resumes else {}))

        parameters = [*_parameters(kind)]
        if resumes:
            what = _option("Output", bool, "--resume", help="go on with an interrupted run")
            parameters.append(_parameter("resume", Annotated[bool, what], False))
        words = "YAML file with any of these settings; flags win"
        file = _option("Advanced", Path, "--config", help=words)
        parameters.append(_parameter("config", Annotated[Path | None, file]))
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        VERBS[body.__name__.rstrip("_")] = Verb(command, inspect.cleandoc(body.__doc__ or ""))
        return body

    return make


def _parameter(name: str, annotation: Any, default: Any = None) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=annotation)


def _ordered(kind: type[Settings]) -> Iterator[tuple[str, FieldInfo]]:
    """Arguments from the general to the special, then flags from the special to the general."""
    fields = kind.model_fields
    yield from ((n, f) for n, f in fields.items() if _mark(f, Argument))
    for cls in kind.__mro__:
        for name in _declared(cls):
            if name in fields and not _mark(fields[name], Argument) and _owner(kind, name) is cls:
                yield name, fields[name]


def _owner(kind: type[Settings], name: str) -> type:
    return next(c for c in kind.__mro__ if name in _declared(c))


def _mark(field: FieldInfo, kind: Any) -> Any:
    return next((m for m in field.metadata if isinstance(m, kind)), None)


def _parameters(kind: type[Settings]) -> Iterator[inspect.Parameter]:
    """What typer needs to know of each field. All may be left out: a file may give them."""
    for name, field in _ordered(kind):
        place, flag = _mark(field, Argument), _mark(field, Flag)
        typed = (place or flag or Flag()).kind or _typed(field.annotation)
        words = _words(field)
        if place:
            shown = place.metavar if field.is_required() else f"[{place.metavar}]"
            what: Any = typer.Argument(help=words, metavar=shown, show_default=False)
        else:
            spelt = [_flag(name, typed), *([flag.short] if flag and flag.short else [])]
            what = _option(_group(name), typed, *spelt, help=words, min=_least(field))
        yield _parameter(name, Annotated[typed | None, what])


def _option(group: str, typed: Any, *spelt: str, **more: Any) -> Any:
    """A flag, with the short name of its type."""
    shown = {int: "N", float: "X", Path: "FILE", bool: None}.get(typed, "TEXT")
    if typing.get_origin(typed) is Literal:
        shown = "|".join(map(str, typing.get_args(typed)))
    elif typing.get_origin(typed) is list:
        shown = {int: "N"}.get(typing.get_args(typed)[0], "TEXT")
    return typer.Option(*spelt, metavar=shown, rich_help_panel=group, **more)


def _group(name: str) -> str:
    """Of a setting: that of the mixin that declares it, whatever verb has it."""
    import moescope.cli.settings  # noqa: F401 -- a verb may have none of its mixins

    mixins = _mixins(Settings)
    return next((m.group for m in mixins if m.group and name in _declared(m)), "Options")


def _mixins(above: type[Settings]) -> Iterator[type[Settings]]:
    for cls in above.__subclasses__():
        if "group" in vars(cls):
            yield cls
        yield from _mixins(cls)


def _declared(cls: type) -> Iterable[str]:
    declared: dict[str, Any] = vars(cls).get("__annotations__", {})
    return declared


def _least(field: FieldInfo) -> Any:
    """The smallest number that is taken; typer shows it, and refuses less."""
    least = next((m.ge for m in field.metadata if isinstance(m, Ge)), None)
    return least if isinstance(least, int | float) else None


def _typed(annotation: Any) -> Any:
    """The type that typer reads: without None, and a tuple as a flag that may be repeated."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _typed(inner[0])
    if origin in (typing.Union, types.UnionType):
        return _typed(next(t for t in inner if t is not type(None)))
    if origin is tuple:
        one = _typed(inner[0])
        return list[str] if typing.get_origin(one) is Literal else list[one]  # type: ignore[valid-type]
    return annotation


def _flag(name: str, typed: Any) -> str:
    plain = name.rstrip("_").replace("_", "-")
    return f"--{plain}/--no-{plain}" if typed is bool and plain[:3] != "no-" else f"--{plain}"


def _words(field: FieldInfo) -> str:
    """The description, and the default where the words do not say it."""
    words, default = str(field.description), field.default
    if default is False or default in (None, "", ()) or field.is_required():
        return words
    shown = ", ".join(map(str, default)) if isinstance(default, tuple) else str(default)
    return f"{words} (default {'on' if default is True else shown})"


def resolve(kind: type[_Settings], given: dict[str, Any], file: Path | None) -> _Settings:
    """Flags over file over defaults, validated.

    Raises:
        BadInputError: an unreadable file, an unknown key, a missing or impossible value, or
            settings that contradict each other.
    """
    _Named.kind = kind
    stored = _read(file, kind) if file else {}
    flags = {name.rstrip("_"): value for name, value in given.items()}
    try:
        return kind.model_validate({**stored, **flags})
    except ValidationError as error:
        raise BadInputError(_first_problem(error, kind, flags, file)) from error


def _read(path: Path, kind: type[Settings]) -> dict[str, Any]:
    try:
        data = parse_yaml(read_text(path, _MOST_BYTES))
    except BadInputError as error:
        where = "" if str(path) in str(error) else f" {path}"
        raise BadInputError(f"--config{where}: {error}") from error
    if not isinstance(data, dict):
        key = next(reversed(kind.model_fields))
        raise BadInputError(
            f"--config {path}: expected settings such as '{key}: VALUE', got {data!r}"
        )
    return {str(key): value for key, value in data.items()}


def _first_problem(
    error: ValidationError, kind: type[Settings], flags: dict[str, Any], file: Path | None
) -> str:
    # a slip in a name explains why another is missing
    order = {"extra_forbidden": 0, "missing": 2}
    problem = min(error.errors(), key=lambda one: order.get(one["type"], 1))
    name = str(problem["loc"][0]) if problem["loc"] else ""
    where = f"{file}: " if file and name not in flags else ""
    if problem["type"] == "extra_forbidden":
        names = [n.rstrip("_") for n in kind.model_fields]
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {close[0]}?" if close else "."
        return f"{where}unknown setting {name!r}{hint} Settings: {', '.join(names)}"
    if problem["type"] == "missing":
        return f"{where}{name} is missing; give {_spelt(kind, name)} or set it in --config"
    shown = name if where else _spelt(kind, name)
    return f"{where}{shown}: {problem_words(problem)}, got {brief(problem['input'])}"


def note(line: str, style: str = "yellow") -> None:
    """Say on stderr what a reader of the output should know."""
    errors.print(f"note: {typed(line)}", style=style, soft_wrap=True)


def typed(line: str) -> str:
    """A message as its reader would type: flags, and paths from the folder that they are in."""
    spelt, here = flagged(line), f"{os.path.realpath('.')}{os.sep}"
    given = any(here in word for word in sys.argv)
    return spelt if given or here == os.sep else spelt.replace(here, "")


class _Named:
    """The settings of the verb that runs, by which messages are spelt."""

    kind: type[Settings] | None = None


def flagged(line: str) -> str:
    """A message of the library, whose settings stand in backticks, as the verb spells them.

    ```limit``` becomes ``--limit``, ```engine=resident``` becomes ``--engine resident``. What the
    verb has no flag for may be one of those that make a run; else it stays.
    """
    from moescope.cli.settings import RunArgs

    def spell(found: re.Match[str]) -> str:
        name, value = found[1], found[2]
        spelt = (_spelt(kind, name) for kind in (_Named.kind or RunArgs, RunArgs))
        shown = next((s for s in spelt if s), "--resume" if name == "resume" else None)
        if shown is None:
            return found[0]
        if value == "False":
            return shown.replace("--", "--no-", 1)
        return shown if value in (None, "True") else f"{shown} {value}"

    return re.sub(r"`([a-z]\w*)(?:=([^`]+))?`", spell, line)


def _spelt(kind: type[Settings], name: str) -> str | None:
    """How a setting is given on the command line, by its own name or by that of the library."""
    for own, field in kind.model_fields.items():
        extra = field.json_schema_extra
        if name in (own.rstrip("_"), extra.get("setting") if isinstance(extra, dict) else None):
            place = _mark(field, Argument)
            return place.metavar if place else "--" + own.rstrip("_").replace("_", "-")
    return None
