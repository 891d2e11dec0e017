"""Several training runs side by side: which settings differ, and how each run ended.

It reads recipes and logs; no model, no torch. Runs that share all settings but the seed are one
group: their spread is what a difference between groups must beat.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from moescope.errors import BadInputError
from moescope.training.knobs import differing
from moescope.training.log import TrainingLog
from moescope.training.recipe import Recipe
from moescope.training.recipe_file import load_recipe
from moescope.words import listing

LATE = 0.1
"""Routing at the end is the mean over the logged steps of this last share of them."""

ROUTING = (
    "cv", "load_entropy", "router_entropy", "dead_share", "max_violation", "dropped_share",
    "noise_scale",
)  # fmt: skip
"""Columns of ``layers`` that are compared, as means of the layers."""

Curve = tuple[list[int], list[float]]
"""Steps, and a value at each."""


@dataclass(frozen=True)
class TrainingRun:
    """What a folder of ``moescope train`` holds of its training.

    Attributes:
        folder: of the run. recipe: what was trained. text: fingerprint of text and tokenizer.
        curves: by measure: ``loss``, ``heldout_loss`` (mean of the domains by tokens, routed as
            the saved model), and those of `ROUTING`; what was never logged is not there.
    """

    folder: Path
    recipe: Recipe
    text: str | None
    curves: dict[str, Curve]

    @property
    def step(self) -> int:
        """The last step that is in the log."""
        return max((steps[-1] for steps, _ in self.curves.values()), default=0)

    def end(self, measure: str) -> float:
        """A measure at the end: the last evaluation, or the mean of the last logged steps."""
        steps, values = self.curves.get(measure, ([], []))
        if measure == "heldout_loss":
            return values[-1] if values else math.nan
        late = [v for s, v in zip(steps, values, strict=True) if s > (1 - LATE) * steps[-1]]
        return math.fsum(late) / len(late) if late else math.nan


@dataclass(frozen=True)
class Comparison:
    """Runs, the settings in which they differ, and which of them share all but the seed.

    Attributes:
        runs: in the order given. knobs: by setting, its value in every run; without the seed.
        groups: places of the runs that share all settings but the seed, in order.
    """

    runs: tuple[TrainingRun, ...]
    knobs: dict[str, list[Any]]
    groups: tuple[tuple[int, ...], ...]

    @property
    def measures(self) -> list[str]:
        """What at least one run knows."""
        known = {name for run in self.runs for name in run.curves}
        return [name for name in ("loss", "heldout_loss", *ROUTING) if name in known]

    def name(self, group: int) -> str:
        """What a group is called: its recipe's name, or its folder where names are shared."""
        names = [self.runs[places[0]].recipe.name for places in self.groups]
        if names.count(names[group]) == 1:
            return names[group]
        return self.runs[self.groups[group][0]].folder.resolve().name

    def table(self) -> pa.Table:
        """One row a run: how it ended, its seed, and the settings that differ."""
        columns: dict[str, list[Any]] = {"run": [str(run.folder) for run in self.runs]}
        for knob, values in self.knobs.items():
            columns[knob] = [None if v is None else str(v) for v in values]
        for measure in ("heldout_loss", *ROUTING):
            if measure in self.measures:
                columns[measure] = [_known(run.end(measure)) for run in self.runs]
        columns["seed"] = [run.recipe.seed for run in self.runs]
        columns["step"] = [run.step for run in self.runs]
        return pa.table(columns)

    def remarks(self) -> list[str]:
        """What must be known before two rows are compared."""
        return [*_seeds(self), *_unlike(self)]


def is_training(folder: str | Path) -> bool:
    """Does a folder hold the log of a training?"""
    return os.path.isfile(os.path.join(folder, "log", "steps.parquet"))  # noqa: PTH113, PTH118 -- any text


def open_training(folder: str | Path) -> TrainingRun:
    """Recipe and log of a training run, finished or not.

    Raises:
        BadInputError: the recipe cannot be read.
        RunError: no log, or one that was altered.
    """
    place = Path(folder)
    tables = {name: TrainingLog.read(place, name) for name in ("steps", "layers", "domains")}
    recipe = load_recipe(place / "recipe.yaml")
    curves = {"loss": _curve(tables["steps"], "loss"), "heldout_loss": _heldout(tables["domains"])}
    curves |= {name: _curve(tables["layers"], name) for name in ROUTING}
    known = {name: curve for name, curve in curves.items() if curve[0]}
    return TrainingRun(place, recipe, _fingerprint(place), known)


def compare_trainings(folders: Sequence[str | Path]) -> Comparison:
    """Training runs side by side.

    Args:
        folders: of ``moescope train``, at least two.

    Raises:
        BadInputError: fewer than two, or a recipe that cannot be read.
        RunError: a folder without the log of a training.
    """
    if len({Path(folder).resolve() for folder in folders}) < 2:
        raise BadInputError("one training run has nothing to be compared with; give two or more")
    runs = tuple(open_training(folder) for folder in folders)
    knobs = differing([run.recipe for run in runs])
    knobs.pop("seed", None)
    groups: dict[str, list[int]] = {}
    for place, run in enumerate(runs):
        groups.setdefault(run.recipe.model_copy(update={"seed": 0}).identity(), []).append(place)
    return Comparison(runs, knobs, tuple(map(tuple, groups.values())))


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _curve(table: pa.Table, name: str) -> Curve:
    """The mean of a column at every step that knows it."""
    if name not in table.column_names:  # a log of before
        return [], []
    means = table.filter(pc.is_valid(table[name])).group_by("step").aggregate([(name, "mean")])
    rows = sorted(zip(means["step"].to_pylist(), means[f"{name}_mean"].to_pylist(), strict=True))
    return [s for s, _ in rows], [v for _, v in rows]


def _heldout(table: pa.Table) -> Curve:
    """Held-out loss of the domains by tokens, as the saved model routes."""
    routing = "stock" if "stock" in table["routing"].to_pylist() else "recipe"
    sums: dict[int, tuple[float, int]] = {}
    for row in table.to_pylist():
        if row["routing"] == routing:
            loss, tokens = sums.get(row["step"], (0.0, 0))
            sums[row["step"]] = (loss + row["loss"] * row["tokens"], tokens + row["tokens"])
    return sorted(sums), [sums[s][0] / sums[s][1] for s in sorted(sums)]


def _fingerprint(folder: Path) -> str | None:
    try:
        text = (folder / "tokens" / "index.json").read_text(encoding="utf-8")
        return str(json.loads(text)["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _seeds(made: Comparison) -> list[str]:
    """How far a difference between settings can be told from one between seeds."""
    repeated = [places for places in made.groups if len(places) > 1]
    if not repeated:
        return [
            "Each setting has one run. How far two seeds of one setting differ is not known here, "
            "so any difference may be the seed's: train each again with another seed, and compare "
            "all of them."
        ]
    spread = max(
        max(ends) - min(ends)
        for places in repeated
        if (ends := [made.runs[i].end("heldout_loss") for i in places])
    )
    said = [
        f"Between seeds of one setting held-out loss differs by up to {spread:.3f} nats per "
        "token; a difference between settings that is no larger may be the seed's."
    ]
    if single := [made.name(g) for g, places in enumerate(made.groups) if len(places) == 1]:
        said.append(f"One run only, so without a spread of their own: {listing(single)}.")
    if any(run.recipe.data.heldout is None for run in made.runs):
        said.append(
            "Without a held-out corpus the seed also decides which documents are held out, so the "
            "spread over seeds holds that too."
        )
    return said


def _unlike(made: Comparison) -> list[str]:
    """Runs that ended at other steps, or read other text."""
    said = []
    if len({run.step for run in made.runs}) > 1:
        short = [f"{run.folder} at {run.step:,}" for run in made.runs]
        said.append(f"The runs end at different steps: {listing(short)}.")
    texts: dict[int, set[str]] = {}
    for run in made.runs:
        texts.setdefault(run.recipe.seed, set()).add(run.text or "")
    if any(len(found) > 1 for found in texts.values()):
        said.append(
            "Not all runs read the same text with the same tokenizer, so their losses are of "
            "different tokens."
        )
    return said
