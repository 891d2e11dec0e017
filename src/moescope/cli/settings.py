"""What verbs with a settings model share: flags from its fields, a YAML file, one-line errors."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import typer
from pydantic import BaseModel, ValidationError

from moescope.errors import BadInputError
from moescope.given import MAX_SEED, parse_yaml, read_text

__all__ = ["SEED", "finite", "optional", "parameter", "read_settings", "sign", "validated"]

_Settings = TypeVar("_Settings", bound=BaseModel)

SEED: dict[str, Any] = {"min": 0, "max": MAX_SEED}
"""The range of a flag for a seed."""

_MOST_BYTES = 1 << 17


def finite(value: float | None) -> float | None:
    """Callback of a flag for a number: refuse infinity and what is no number."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no finite number")
    return value


def read_settings(path: Path, example: str) -> dict[str, Any]:
    """The settings in a YAML file.

    Args:
        path: the file of ``--config``.
        example: a setting to show to who gave something else.

    Raises:
        BadInputError: it cannot be read, or holds something else.
    """
    try:
        text = read_text(path, _MOST_BYTES)
    except BadInputError as error:
        raise BadInputError(f"--config: {error}") from error
    try:
        data = parse_yaml(text)
    except BadInputError as error:
        raise BadInputError(f"--config {path}: {error}") from error
    if not isinstance(data, dict):
        raise BadInputError(f"--config {path}: expected settings such as {example!r}, got {data!r}")
    return {str(k): v for k, v in data.items()}


def validated(kind: type[_Settings], settings: dict[str, Any], file: Path | None) -> _Settings:
    """The settings as their model, or the first problem in one line.

    Raises:
        BadInputError: an unknown key, a missing or impossible value.
    """
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        raise BadInputError(_first_problem(error, kind, file)) from error


def _first_problem(error: ValidationError, kind: type[BaseModel], file: Path | None) -> str:
    problem = error.errors()[0]
    name = ".".join(str(p) for p in problem["loc"])
    where = f"{file}: " if file else ""
    if problem["type"] == "extra_forbidden":
        close = difflib.get_close_matches(name, kind.model_fields, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        return f"{where}unknown setting {name!r}{hint} Settings: {', '.join(kind.model_fields)}"
    if problem["type"] == "missing":
        flag = "-o FOLDER" if name == "out" else name.upper()
        return f"{where}{name} is missing; give {flag} or set it in --config"
    shown = name if file else "--" + name.replace("_", "-")
    return f"{where}{shown}: {problem['msg']}, got {problem['input']!r}"


def parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    """A keyword of a command."""
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=annotation)


def optional(annotation: Any) -> Any:
    """The type or None, so that a flag that was not given can be told."""
    return annotation if type(None) in getattr(annotation, "__args__", ()) else annotation | None


def sign(
    command: Callable[..., None], parameters: list[inspect.Parameter], body: Callable[..., None]
) -> Callable[..., None]:
    """Let a command have these parameters, with the name and the words of its body."""
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__doc__, command.__name__ = body.__doc__, body.__name__
    return command
