"""A recipe from its YAML file: overrides, paths, and every refusal as one line."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from moescope.corpus import CorpusSpec
from moescope.corpus.spec import named
from moescope.errors import BadInputError
from moescope.given import parse_yaml, problem_words, read_text
from moescope.training.recipe import DataRecipe, Recipe, TokenizerRecipe
from moescope.words import brief, near_names

_MOST_BYTES = 1 << 17
_EXAMPLES = Path(__file__).parent / "examples"
_BASE = "base.yaml"
_PATHS = ("data.train", "data.heldout", "data.train.path", "data.heldout.path", "tokenizer.path")


def load_recipe(path: str | os.PathLike[str], overrides: tuple[str, ...] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        path: a YAML file.
        overrides: ``section.key=value`` texts that win over the file; values are YAML, and paths
            among them are relative to the working directory.

    Returns:
        The recipe, paths resolved against its own folder.

    Raises:
        BadInputError: unreadable file, unknown key, missing or impossible value.
    """
    return _made(Path(path), _read(Path(path)), overrides)


def example_names() -> list[str]:
    """The names of the recipes that are shipped."""
    return sorted(path.stem for path in _EXAMPLES.glob("*.yaml") if path.name != _BASE)


def load_example(name: str, overrides: tuple[str, ...] = ()) -> Recipe:
    """A shipped recipe, which trains on the shipped text in a minute or two on two cores.

    Args:
        name: one of `example_names`.
        overrides: as of `load_recipe`.

    Raises:
        BadInputError: another name, or an override that does not fit.
    """
    if name not in example_names():
        raise BadInputError(
            f"no example is called {brief(name)}; {near_names(name, example_names())}"
        )
    path = _EXAMPLES / f"{name}.yaml"
    return _made(path, _over(_read(_EXAMPLES / _BASE), {"name": name} | _read(path)), overrides)


def _over(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Settings with others over them, section by section."""
    sections = {
        name: _over(base[name], value)
        for name, value in changes.items()
        if isinstance(value, dict) and isinstance(base.get(name), dict)
    }
    return {**base, **changes, **sections}


def _made(path: Path, data: dict[str, Any], overrides: tuple[str, ...]) -> Recipe:
    for text in overrides:
        _override(data, text)
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        raise BadInputError(f"{path}: {_explain(error)}") from error
    return recipe.model_copy(
        update={"data": _absolute(recipe.data, path.parent), "tokenizer": _tokenizer(recipe, path)}
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        text = read_text(path, _MOST_BYTES)
    except BadInputError as error:
        raise BadInputError(f"recipe: {error}") from error
    data = _yaml(text, f"recipe {path}")
    if not isinstance(data, dict):
        raise BadInputError(f"recipe {path}: expected sections such as model: and data:")
    return data


def _yaml(text: str, label: str) -> Any:
    try:
        return parse_yaml(text)
    except BadInputError as error:
        raise BadInputError(f"{label}: {error}") from error


def _override(data: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise BadInputError(f"`set` {brief(text)} is not of the form section.key=value")
    *parents, last = key.split(".")
    for name in parents:
        nested = data.get(name)
        if isinstance(nested, str) and name in ("train", "heldout"):
            nested = {"path": nested}
        data[name] = nested = {} if nested is None else nested
        if not isinstance(nested, dict):
            raise BadInputError(
                f"`set` {brief(text)}: {brief(name)} is {brief(nested)}, not a section"
            )
        data = nested
    data[last] = _yaml(value, f"`set` {brief(text)}")
    if key in _PATHS and isinstance(data[last], str):
        data[last] = _resolved(data[last], Path.cwd())


def _resolved(path: str, folder: Path) -> str:
    """An absolute path; the name of a corpus stays as it is."""
    try:
        return path if named(path) else str((folder / path).resolve())
    except (OSError, ValueError, RuntimeError) as error:  # a NUL, a circle of links
        raise BadInputError(f"{brief(path)} is not a path ({error})") from error


def _absolute(data: DataRecipe, folder: Path) -> DataRecipe:
    def resolved(spec: CorpusSpec | None) -> CorpusSpec | None:
        return spec and spec.model_copy(update={"path": _resolved(spec.path, folder)})

    return data.model_copy(
        update={"train": resolved(data.train), "heldout": resolved(data.heldout)}
    )


def _tokenizer(recipe: Recipe, path: Path) -> TokenizerRecipe:
    given = recipe.tokenizer.path
    if given is None:
        return recipe.tokenizer
    return recipe.tokenizer.model_copy(update={"path": _resolved(given, path.parent)})


_TAGS = ("Ramp", "float", "constrained-float")
"""How pydantic names the members of a union in the place of an error."""


def _explain(error: ValidationError) -> str:
    problems = error.errors()
    ramps = [p for p in problems if "Ramp" in p["loc"]]
    given_as_ramp = ramps and not ramps[0]["type"].startswith("model")
    problem = ramps[0] if given_as_ramp else problems[0]
    place = [str(p) for p in problem["loc"] if p not in _TAGS]
    name = ".".join(place)[:200] or "recipe"
    if problem["type"] == "extra_forbidden":
        known = _fields(place[:-1])
        close = difflib.get_close_matches(place[-1], known, n=1)
        hint = f"did you mean {close[0]}? Keys" if close else "keys"
        section = ".".join(place[:-1]) or "a recipe"
        return f"unknown key {name!r}; {hint} of {section}: {', '.join(known)}"
    if problem["type"] == "missing":
        return f"{name} is missing"
    message = problem_words(problem)
    if problem["type"] == "value_error":
        return f"{name + ': ' if place else ''}{message}"
    return f"{name}: {message}, got {brief(problem['input'])}"


def _fields(place: list[str]) -> list[str]:
    model: Any = Recipe
    for name in place:
        kinds = [model.model_fields[name].annotation] if name in model.model_fields else []
        kinds += [a for kind in kinds for a in get_args(kind)]
        models = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
        if not models:
            return []
        model = models[0]
    return list(model.model_fields)
