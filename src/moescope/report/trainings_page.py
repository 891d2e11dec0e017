"""The page of several training runs: curves over each other, settings that differ, how they ended.

See `moescope.report.page`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from moescope.report.frames import plain, tidy
from moescope.report.page import fill_page, write_page
from moescope.report.training_data import block_means
from moescope.training.compare import Comparison
from moescope.words import counted, percent

_POINTS = 300
"""Most points of a line; longer ones are drawn as means over equally many logged steps."""

_SCRIPTS = ("training_live.js", "training_chart.js", "trainings.js")

_WORDS = {
    "loss": "training loss",
    "heldout_loss": "held-out loss",
    "cv": "CV of the load",
    "load_entropy": "load entropy",
    "router_entropy": "router entropy",
    "dead_share": "dead experts",
    "max_violation": "MaxVio",
    "dropped_share": "dropped",
    "noise_scale": "scale of the noise",
}
_SHARES = ("dead_share", "dropped_share")


def write_trainings_page(made: Comparison, path: str | Path) -> Path:
    """Write the page that compares training runs.

    Returns:
        The path. The same runs give the same bytes.

    Raises:
        BadInputError: a file is there that is not a page of moescope's.
        WriteError: disk full or no permission.
    """
    return write_page(path, trainings_page(made))


def trainings_page(made: Comparison) -> str:
    """The page that compares training runs, as HTML."""
    names = [made.name(group) for group in range(len(made.groups))]
    last = max(run.step for run in made.runs)
    data: dict[str, Any] = {
        "phases": ["training"],  # what the scripts of a report ask for
        "views": {"training": {"domains": []}},
        "layers": [],
        "steps": {"each": 1, "step": [0, max(1, last)]},
        "refresh": None,
        "groups": names,
        "measures": [
            {"key": m, "label": _WORDS[m], "runs": _lines(made, m)} for m in made.measures
        ],
    }
    return fill_page(
        "trainings.html.j2",
        _SCRIPTS,
        tidy(data, 5),
        title=f"{counted(len(made.runs), 'training run')} compared",
        subtitle=", ".join(names),
        alerts=[{"level": "warn", "text": remark} for remark in made.remarks()],
        style="training.css",
        names=names,
        about=_about(made),
        knobs=_knobs(made),
        ends=_ends(made),
    )


def _lines(made: Comparison, measure: str) -> list[dict[str, Any]]:
    """The curve of every run that knows a measure."""
    lines = []
    for group, places in enumerate(made.groups):
        for place in places:
            run = made.runs[place]
            steps, values = (np.array(c, np.float64) for c in run.curves.get(measure, ([], [])))
            if not len(steps):
                continue
            each = math.ceil(len(steps) / _POINTS)
            lines.append({
                "group": group,
                "seed": run.recipe.seed,
                "step": block_means(steps, each),
                "value": block_means(values, each),
            })  # fmt: skip
    return lines


def _about(made: Comparison) -> list[tuple[str, str]]:
    """What each group is to show, where its recipe says so."""
    recipes = [made.runs[places[0]].recipe for places in made.groups]
    return [(made.name(g), r.about) for g, r in enumerate(recipes) if r.about]


def _knobs(made: Comparison) -> list[tuple[str, list[str]]]:
    """Rows of settings that differ, a cell for each group."""
    rows = [
        (knob, [plain(values[places[0]]) for places in made.groups])
        for knob, values in made.knobs.items()
    ]
    seeds = [", ".join(str(made.runs[i].recipe.seed) for i in places) for places in made.groups]
    return [*rows, ("seed", seeds)]


def _ends(made: Comparison) -> list[tuple[str, list[str]]]:
    """Rows of measures, a cell for each group: the mean, and the range over seeds."""
    return [
        (_WORDS[m], [_range(m, [made.runs[i].end(m) for i in places]) for places in made.groups])
        for m in made.measures
    ]


def _range(measure: str, ends: list[float]) -> str:
    known = [value for value in ends if math.isfinite(value)]
    if not known:
        return "–"
    show = percent if measure in _SHARES else "{:.3f}".format
    mean = show(math.fsum(known) / len(known))
    return f"{mean} ({show(min(known))} to {show(max(known))})" if len(known) > 1 else mean
