"""What was measured on a run and lies in its folder: what its pages must not contradict.

Routing says which experts are used. Where someone took experts away and kept the result beside the
run, a page that leads with use has to say what that showed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from moescope.metrics.runs import AnalyzedRun
from moescope.result import results_in
from moescope.words import counted

_KIND = "ablation"

_SHOWN = 3
"""Measurements whose verdict opens a report; the page of contents has all."""


def measured_beside(run: AnalyzedRun) -> tuple[tuple[str, str], ...]:
    """The verdict of each ablation that lies in the run's folder and is of the same model.

    Args:
        run: a finished run.

    Returns:
        Name of the folder and the first sentence of its result, by name; nothing where the run
        does not know its model.
    """
    return _measured(run.path, run.manifest.model)


def measured_words(folder: Path, model: Mapping[str, Any]) -> Markup:
    """`measured_beside` of a run in a folder, each with a link to its page."""
    line = Markup('<p class="finding">Measured by taking experts away. {}{}</p>')
    link = Markup(' <a href="{}">{}</a>')
    found = _measured(folder, model)
    parts = []
    for name, sentence in found[:_SHOWN]:
        pages = sorted(path.name for path in (folder / name).glob("*.html"))[:1]
        more = [link.format(quote(f"{name}/{page}"), f"More: {name}") for page in pages]
        parts.append(line.format(sentence, Markup("").join(more)))
    if rest := len(found[_SHOWN:]):
        words = counted(rest, "more measurement")
        parts.append(
            line.format(f"{words} beside this run.", link.format("index.html", "Contents"))
        )
    return Markup("").join(parts)


def _measured(folder: Path, model: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    known = {n: model.get(n) for n in ("config_sha256", "weights_sha256") if model.get(n)}
    found = results_in(folder, **known) if known else {}
    return tuple(
        (name, head.answers[0])
        for name, head in found.items()
        if head.kind == _KIND and head.answers
    )
