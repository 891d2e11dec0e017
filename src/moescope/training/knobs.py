"""The settings of recipes one by one, ``section.key``: laid flat, and where recipes differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moescope.training.recipe import NO_NUMBERS, Recipe
from moescope.words import brief

_LEFT_OUT = (*NO_NUMBERS, "data.train.path", "data.heldout.path", "tokenizer.path")
_MOST_NAMED = 4


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings by their path, such as ``train.steps``."""
    if not isinstance(value, dict):
        return {prefix: value}
    rows: dict[str, Any] = {}
    for key, inner in value.items():
        rows |= flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return rows


def differing(recipes: Sequence[Recipe]) -> dict[str, list[Any]]:
    """The settings that decide numbers and are not the same in all recipes.

    Returns:
        By setting, its value in every recipe; None where a recipe has no such setting.
    """
    rows = [flat(recipe.model_dump(mode="json")) for recipe in recipes]
    names = [n for n in dict.fromkeys(n for row in rows for n in row) if not _is_left_out(n)]
    values = {name: [row.get(name) for row in rows] for name in names}
    return {name: each for name, each in values.items() if any(v != each[0] for v in each)}


def _is_left_out(name: str) -> bool:
    return name in _LEFT_OUT or name.partition(".")[0] in NO_NUMBERS


def difference(there: Recipe, here: Recipe) -> str:
    """Where two recipes differ, in words: ``train.steps is 600 there and 500 here``."""
    said = [
        f"{name} is {_shown(old)} there and {_shown(new)} here"
        for name, (old, new) in differing([there, here]).items()
    ]
    more = len(said) - _MOST_NAMED
    return ", ".join(said[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _shown(value: Any) -> str:
    return "not set" if value is None else brief(value)
