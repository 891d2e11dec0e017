"""The page of measured damage: a plan beside its controls, or every expert of some layers.

Made of a `Result` that was just found or read from its folder; see `moescope.report.page`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from moescope.report.about import label, model_facts
from moescope.report.frames import layer_rows, settings, tidy
from moescope.report.page import fill_page
from moescope.result import Result
from moescope.words import counted, listing

_SCRIPTS = ("ablation_core.js", "ablation_plan.js", "ablation_each.js", "ablation_scores.js")
_MEASURES = ("ce_change", "kl", "flips")
_ENDS = ("", "_low", "_high")


def ablation_page(result: Result) -> str:
    """The page that shows a measurement; the same result gives the same bytes."""
    about = result.about
    plan = about["trials"] == "plan"
    figures = _plan_figures(result) if plan else _each_figures(result)
    return fill_page(
        "ablation.html.j2",
        _SCRIPTS,
        tidy({"phases": ["text"], "kind": about["trials"], "edit": about["edit_words"], **figures}),
        plan=plan,
        name=label(about["model"]["name"]),
        title=_title(about),
        subtitle=_subtitle(about),
        answers=result.answers,
        alerts=[note._asdict() for note in result.notes],
        cost=about["cost"],
        facts=_facts(about),
        targets=about["targets"],
        controls=len(about["controls"]["plans"]) if plan else 0,
        scores=[(about["score_names"][n], what) for n, what in about.get("scores", {}).items()],
        domains=len(about["text"]["domains"]),
    )


def _title(data: Mapping[str, Any]) -> str:
    if data["trials"] == "each":
        layers = ", ".join(map(str, data["layers"]))
        return f"Every expert of layer{'s' if len(data['layers']) > 1 else ''} {layers}"
    names = [e["expert"] for e in data["experts"]]
    return f"Without {listing(names, 4)}"


def _subtitle(data: Mapping[str, Any]) -> str:
    text, source = data["text"], data["source"]
    where = label(source.get("corpus") or source.get("run"))
    return (
        f"{label(data['model']['name'])} · edit: {data['edit']} · {text['tokens']:,} predicted "
        f"tokens of {counted(text['documents'], 'document')}, "
        f"{counted(len(text['domains']), 'domain')}" + (f", from {where}" if where else "")
    )


def _layers(data: Mapping[str, Any], numbers: list[int]) -> list[dict[str, int]]:
    rows = layer_rows(*(data["model"][name] for name in ("layers", "num_experts", "top_k")))
    return [row for row in rows if row["layer"] in numbers]


def _by_group(table: pa.Table) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The rows of each group of documents."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        groups.setdefault((row["scope"], row["domain"]), []).append(row)
    return groups


def _plan_figures(result: Result) -> dict[str, Any]:
    data = result.about
    groups = [
        {
            **own,
            "controls": {m: [r[m] for r in others] for m in _MEASURES},
            "control_loads": [r["load"] for r in others],
        }
        for own, *others in _by_group(result.tables["damage"]).values()
    ]
    experts = [{**e, "layer": int(e["expert"][1:].split("E")[0])} for e in data["experts"]]
    return {
        "layers": _layers(data, [int(n) for n in data["layer_loads"]]),
        "groups": groups,
        "experts": experts,
        "layer_loads": data["layer_loads"],
        "controls": data["controls"],
        "targets": data["targets"],
    }


def _each_figures(result: Result) -> dict[str, Any]:
    """Rows over all text whole; of each other group only the figures, expert by expert."""
    data = result.about
    groups = _by_group(result.tables["each"])
    everywhere = groups[("all", "all")]
    figures = [
        {
            "scope": scope,
            "domain": domain,
            "tokens": rows[0]["tokens"],
            "documents": rows[0]["documents"],
            "values": {m + e: [r[m + e] for r in rows] for m in _MEASURES for e in _ENDS},
        }
        for (scope, domain), rows in groups.items()
    ]
    names = ("name", "layer", "expert", "rank", "chosen", *data["scores"])
    return {
        "layers": _layers(data, list(data["layers"])),
        "experts": [{n: row[n] for n in names} for row in everywhere],
        "groups": figures,
        "scores": data["scores"],
        "score_names": data["score_names"],
        "correlations": result.tables["correlations"].to_pylist(),
        "repeatability": data["repeatability"],
    }


def _facts(data: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """What is needed to measure again, as sections of name and value."""
    source = data["source"]
    text = {**source, "corpus": label(source.get("corpus")), "run": label(source.get("run"))}
    chosen = {
        "edit": data["edit"],
        "targets": ", ".join(data["targets"]),
        "seed": data["seed"],
        "measured": data["created"],
    }
    return settings({
        "Model": model_facts(data["model"]),
        "Text": text,
        "Settings": chosen,
        "Versions": data["versions"],
    })  # fmt: skip
