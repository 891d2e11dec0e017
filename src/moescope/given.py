"""What a person gives, read with care: numbers, seeds, and small files of settings.

Numbers are bounded before they are used, and a file is looked at before it is opened, so that a
slip of the finger neither fills the memory nor waits for a pipe. It knows nothing of models.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError

from moescope.errors import BadInputError
from moescope.words import brief, said_by

MAX_SEED = 2**63 - 1
"""The largest that every generator takes, and that every file keeps as it is."""

Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
"""Type of a seed in settings."""

MOST_TOKENS = 10**15
"""More than any corpus has, and small enough for sums of 64 bits."""

MOST_EXPERTS = 1 << 12
"""Of a layer; the token-id tables of a run pack an expert into 12 bits."""

MOST_SHARDS = 100_000
"""Parts that a launch cuts a corpus into."""

MOST_WORKERS = 1024
"""Workers of a launch at a time."""

WHOLE = r"[0-9]{1,9}"
"""A whole number in a regular expression; ``\\d`` would take the digits of every script."""

_MOST_BYTES = 64 << 20


def require_seed(seed: int) -> None:
    """Refuse a seed that some generator would not take.

    Raises:
        BadInputError: below 0, or of more than 63 bits.
    """
    if not 0 <= seed <= MAX_SEED:
        raise BadInputError(f"the seed is {seed}; expected 0 to {MAX_SEED}")


def whole_number(text: str) -> int | None:
    """The number that at most nine ASCII digits write; None for anything else.

    Example:
        >>> whole_number("12"), whole_number("²"), whole_number("9999999999")
        (12, None, None)
    """
    plain = text.strip()
    return int(plain) if re.fullmatch(WHOLE, plain) else None


_EXPECTED = {
    "bool": "true or false",
    "dict": "names with values",
    "dataclass": "names with values",
    "finite_number": "a finite number",
    "float": "a number",
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "int": "a whole number",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "list": "a list",
    "literal_error": "{expected}",
    "mapping": "names with values",
    "model": "names with values",
    "string": "a text",
    "string_too_short": "a text of at least {min_length} characters",
    "too_long": "at most {max_length} values",
    "too_short": "at least {min_length} values",
    "tuple": "a list",
}
"""What was expected, by the kind of a problem as pydantic names it, or by its first word."""


def problem_words(problem: Mapping[str, Any]) -> str:
    """A problem that pydantic found, in our words.

    Args:
        problem: one of ``ValidationError.errors()``.

    Returns:
        Such as ``expected 1 or more``; of an error that was raised in a validator its own words.
    """
    kind, said = str(problem["type"]), str(problem["msg"])
    if kind in ("value_error", "assertion_error"):
        return said.partition(", ")[2]
    if kind in ("extra_forbidden", "missing"):
        return "missing" if kind == "missing" else "there is no such name"
    expected = _EXPECTED.get(kind) or _EXPECTED.get(kind.partition("_")[0])
    if expected is None:
        return re.sub("^Input should (be )?", "expected ", said)
    limits = {k: int(v) if v == v // 1 else v for k, v in _numbers(problem)}
    return f"expected {expected.format_map({**problem.get('ctx', {}), **limits})}"


def _numbers(problem: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The bounds of a problem."""
    found = problem.get("ctx", {}).items()
    yield from ((k, v) for k, v in found if isinstance(v, int | float))


def first_problem(error: ValidationError) -> str:
    """Where the first problem of settings or of a stored file lies, and what it is: one line."""
    problem = error.errors()[0]
    where = ".".join(map(str, problem["loc"]))
    return " ".join(f"{where}: {problem_words(problem)}".removeprefix(": ").split())[:200]


def read_text(path: str | Path, most: int = _MOST_BYTES, label: str | None = None) -> str:
    """The text of a small file.

    Args:
        path: of the file.
        most: bytes that are read; more is refused.
        label: how messages call it; its path by default.

    Raises:
        BadInputError: no such file, a folder, a device or pipe, too large, or no UTF-8.
    """
    file, label = Path(path), label or str(path)
    try:
        found = file.stat()
        if stat.S_ISDIR(found.st_mode):
            raise BadInputError(f"{label} is a folder; expected a file")
        if not stat.S_ISREG(found.st_mode):
            raise BadInputError(f"{label} is a device or a pipe; expected a file")
        if found.st_size > most:
            raise BadInputError(
                f"{label} has {found.st_size:,} bytes; such a file has at most {most:,}"
            )
        return file.read_bytes().decode("utf-8")
    except OSError as error:
        raise BadInputError(f"{label} cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise BadInputError(f"{label} is not UTF-8 text (byte {error.start})") from error
    except ValueError as error:  # a name with a null character
        raise BadInputError(f"{label!r} is not a name of a file ({error})") from error


def refuse_odd_text(value: Any) -> None:
    """Refuse words that no file could hold: null characters and halves of a surrogate pair.

    Raises:
        BadInputError: shows the first such word.
    """
    if isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):
        raise BadInputError(f"{value!a} holds a character that no text can have")
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list):
        for one in value:
            refuse_odd_text(one)


def parse_json(text: str, odd_text: bool = False) -> Any:
    """What a JSON text holds.

    Args:
        text: the JSON.
        odd_text: let through what `refuse_odd_text` refuses; a vocabulary may hold it.

    Raises:
        BadInputError: no JSON, nested too deeply, or with a number that has thousands of digits.
    """
    try:
        value = json.loads(text)
        if not odd_text:
            refuse_odd_text(value)
        return value
    except RecursionError as error:
        raise BadInputError("the JSON is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise BadInputError(f"no JSON: {error}") from error
    except ValueError as error:  # Python reads no number of more than 4,300 digits
        raise BadInputError("the JSON holds a number of thousands of digits") from error


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases: nine lines of them can stand for gigabytes."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: dict[Any, int] = {}
        for key, _ in node.value:
            name, line = self.construct_object(key, deep=True), key.start_mark.line + 1
            if isinstance(name, Hashable) and seen.setdefault(name, line) != line:
                raise BadInputError(
                    f"line {line}: {brief(name)} is given twice, first in line {seen[name]}"
                )
        return super().construct_mapping(node, deep)

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise BadInputError("YAML aliases (*name) are not read; write the value out")
        return super().compose_node(parent, index)


def _yaml_problem(error: yaml.YAMLError) -> str:
    """Where a text is no YAML, and why, without a picture of the place."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return f"no YAML: {said_by(error, 200)}"
    why = " ".join(str(getattr(error, "problem", "")).split())[:200]
    return f"no YAML in line {mark.line + 1}, column {mark.column + 1}: {why}"


def parse_yaml(text: str) -> Any:
    """What a YAML text holds.

    Raises:
        BadInputError: no YAML, aliases, nested too deeply, a number or date that is none.
    """
    try:
        value = yaml.load(text, _PlainLoader)
        refuse_odd_text(value)
        return value
    except RecursionError as error:
        raise BadInputError("nested too deeply") from error
    except yaml.YAMLError as error:
        raise BadInputError(_yaml_problem(error)) from error
    except ValueError as error:
        raise BadInputError(f"a number or a date in it cannot be read ({error})") from error
