"""Which experiments there are: experiments.yaml, read and checked before anything is trained.

An experiment is a base recipe, conditions (settings in the form of ``--set``) and what its page
says and shows. A run is one condition with one seed. It knows nothing of training or results.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from moescope.errors import BadInputError
from moescope.training.recipe import Recipe
from moescope.training.recipe_file import load_recipe

__all__ = ["Condition", "Experiment", "Job", "TraceSettings", "jobs_of", "load_experiments"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TraceSettings(_Part):
    """How the held-out text is traced through a trained model."""

    limit: int = Field(4096, ge=1)
    """Tokens of each domain."""
    sample_tokens: int = Field(2048, ge=1)
    """Tokens of each domain behind the information table."""
    information: bool = False
    """Measure domain specialization too."""


class Figure(_Part):
    """The one figure of a page: a panel for each condition, or one for each profile."""

    panels: Literal["conditions", "profiles"]
    profiles: tuple[str, ...] = Field(min_length=1)
    x: str
    y: str
    caption: str


class Condition(_Part):
    """Settings that win over the base recipe, and what their outcome is compared with."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    label: str
    set: tuple[str, ...] = ()
    against: str | None = None


class Experiment(_Part):
    """One question, its conditions, and what the page about it holds."""

    title: str
    recipe: str
    question: str
    reference: str
    conditions: tuple[Condition, ...] = Field(min_length=2)
    metrics: tuple[str, ...] = Field(min_length=1)
    headline: tuple[str, ...] = Field(min_length=1)
    trace: TraceSettings = TraceSettings()
    tables: tuple[str, ...] = ()
    figure: Figure
    not_shown: tuple[str, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        names = [condition.name for condition in self.conditions]
        if len(set(names)) != len(names):
            raise ValueError("two conditions have the same name")
        for name in {self.reference, *(c.against for c in self.conditions if c.against)}:
            if name not in names:
                raise ValueError(f"no condition {name!r}; there are {', '.join(names)}")
        if unknown := set(self.headline) - set(self.metrics):
            raise ValueError(f"headline names {', '.join(sorted(unknown))}, not among metrics")
        return self

    def against(self, condition: Condition) -> str | None:
        """The condition that this one is compared with; None for a reference."""
        if "against" in condition.model_fields_set:
            return condition.against
        return None if condition.name == self.reference else self.reference


@dataclass(frozen=True)
class Job:
    """One run: a condition with a seed.

    Attributes:
        experiment, condition, seed: which.
        recipe_path: the base recipe. overrides: everything that wins over it.
        folder: of the run. text: tokenizer and tokens that runs share.
        trace: how the trained model is traced.
    """

    experiment: str
    condition: str
    seed: int
    recipe_path: Path
    overrides: tuple[str, ...]
    folder: Path
    text: Path
    trace: TraceSettings

    @property
    def label(self) -> str:
        """What it is called in progress lines."""
        return f"{self.experiment}/{self.condition} seed {self.seed}"

    def recipe(self) -> Recipe:
        """The recipe, settings applied and checked."""
        return load_recipe(self.recipe_path, self.overrides)


def load_experiments(path: Path) -> dict[str, Experiment]:
    """Read experiments.yaml.

    Raises:
        BadInputError: unreadable, unknown keys, or names that do not exist.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        return {name: Experiment(**given) for name, given in data["experiments"].items()}
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise BadInputError(f"{path}: {place}: {problem['msg']}") from error
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise BadInputError(f"{path}: {' '.join(str(error).split())}") from error


def data_settings(data: Path) -> tuple[str, ...]:
    """Settings that point a recipe at the corpora that tools/build_corpora.py wrote."""
    return tuple(f"data.{side}={json.dumps(str(data / side))}" for side in ("train", "heldout"))


def jobs_of(
    name: str,
    experiment: Experiment,
    recipes: Path,
    data: Path,
    out: Path,
    seeds: int,
    extra: tuple[str, ...] = (),
) -> Iterator[Job]:
    """All runs of an experiment, one seed after the other, every condition of it.

    Args:
        name: of the experiment.
        experiment: from `load_experiments`.
        recipes: folder of the base recipes.
        data: holds ``train`` and ``heldout``.
        out: folder of all runs.
        seeds: 0 … seeds − 1.
        extra: settings for every run, after those of the condition.
    """
    for seed in range(seeds):
        for condition in experiment.conditions:
            overrides = (*data_settings(data), *condition.set, *extra, f"seed={seed}")
            yield Job(
                experiment=name,
                condition=condition.name,
                seed=seed,
                recipe_path=recipes / experiment.recipe,
                overrides=overrides,
                folder=out / name / condition.name / f"seed-{seed}",
                text=out / "text",
                trace=experiment.trace,
            )
