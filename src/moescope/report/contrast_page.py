"""The page of a contrast: which experts tell two sets of texts apart, and how to steer by them.

Made of a `Result` that was just found or read from its folder; see `moescope.report.page`.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from moescope.report.about import label, model_facts
from moescope.report.frames import number, settings, tidy
from moescope.report.page import fill_page
from moescope.result import Result
from moescope.words import counted

_SCRIPTS = ("ablation_core.js", "contrast.js")
_MOST = 2000
"""Experts that the page holds; the table beside it has all."""


def contrast_page(result: Result) -> str:
    """The page that shows a contrast; the same result gives the same bytes.

    Args:
        result: of `moescope.intervene.contrast.result.contrast_result`.
    """
    about, table = result.about, result.tables["differences"]
    shown = _largest(table)
    model = label(about["model"]["name"])
    return fill_page(
        "contrast.html.j2",
        _SCRIPTS,
        tidy({"phases": ["text"], "layers": [], "rows": shown.to_pylist()}),
        title="Experts that tell two sets of texts apart",
        name=model,
        subtitle=_subtitle(about, model),
        answers=result.answers,
        alerts=[note._asdict() for note in result.notes],
        shown=number(shown.num_rows),
        all=number(table.num_rows),
        candidates=[_words(row) for row in result.tables["candidates"].to_pylist()],
        holdout=about["holdout"],
        paired=about["paired"],
        shared=" and ".join(f"{100 * share:.0f} %" for share in about["shared_tokens"]),
        commands=_commands(about, shlex.quote(model)),
        facts=_facts(result),
    )


def _largest(table: pa.Table) -> pa.Table:
    """The rows of the largest differences, in their order."""
    size = np.nan_to_num(np.abs(table["delta"].to_numpy()))
    return table.take(np.argsort(-size, kind="stable")[:_MOST])


def _subtitle(about: Mapping[str, Any], model: str) -> str:
    sides = (
        f"{counted(documents, 'text')} ({number(tokens)} tokens)"
        for documents, tokens in zip(about["documents"], about["tokens"], strict=True)
    )
    pairs = f" · pairs, {_SPANS[about['span']]}" if about["paired"] else ""
    return f"{model} · with: {' · without: '.join(sides)}{pairs}"


_SPANS = {"all": "all tokens", "differing": "tokens that differ", "shared": "tokens of both"}


def _words(row: Mapping[str, Any]) -> dict[str, str]:
    """A candidate as the cells of its row."""
    todo = "boost" if row["delta_chosen_on"] > 0 else "suppress"
    low, high = _points(row["low"]), _points(row["high"])
    return {
        "expert": row["expert"],
        "chosen": _points(row["delta_chosen_on"]),
        "tested": _points(row["delta"]),
        "interval": "–" if low == "–" else f"{low} to {high}",
        "q": _q(row["q"]),
        "shared": _points(row["delta_shared"]),
        "by_token": _points(row["by_token"]),
        "todo": todo if row["confirmed"] else "–",
    }


def _points(share: float | None) -> str:
    known = share is not None and np.isfinite(share)
    return f"{100 * share:+.1f}".replace("-", "−") if known else "–"  # type: ignore[operator]


def _q(value: float | None) -> str:
    if value is None or not np.isfinite(value):
        return "–"
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1g}"


def _commands(about: Mapping[str, Any], model: str) -> list[str]:
    if not about["settings"]:
        return []
    sets = " ".join(f"--set {shlex.quote(s)}" for s in about["settings"])
    return [
        f'moescope steer {model} --prompt "…" --plan plan.json',
        f'moescope steer {model} --prompt "…" {sets}',
        f"moescope ablate {model} --plan plan.json --corpus TEXTS -o without-them",
    ]


def _facts(result: Result) -> list[tuple[str, list[tuple[str, str]]]]:
    """What is needed to do it again, as sections of name and value."""
    model = model_facts(result.about["model"])
    made = {k: v for k, v in result.identity.items() if k not in model}
    return settings({"Model": model, "Identity": made})
