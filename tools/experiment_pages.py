"""A Markdown page and a figure for each experiment, from results.json and experiments.yaml.

No number is typed here: every figure comes out of the results, and every sentence whose truth
depends on a figure is made by rule from an interval. The same results give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from tools.experiment_figures import write_figure
from tools.experiment_plan import Experiment

from moescope.errors import BadInputError
from moescope.trace.store import write_bytes

__all__ = ["MEASURES", "PROFILES", "Measure", "difference", "estimate", "verdict", "write_page"]

_TEMPLATE = Path(__file__).with_name("experiment_page.md.j2")
_MINUS = "−"

Estimate = Mapping[str, Any]


@dataclass(frozen=True)
class Measure:
    """How a figure is called and written.

    Attributes:
        label: in tables and sentences. digits: after the point. percent: a share, times 100.
        about: what it is, for the list above the table.
    """

    label: str
    about: str
    digits: int = 3
    percent: bool = False


MEASURES = {
    "heldout_loss": Measure(
        "held-out loss",
        "nats per token, mean of the domains, routed as the saved model routes: without noise and "
        "without a capacity limit",
    ),
    "heldout_loss_limited": Measure(
        "held-out loss, limited", "the same with the capacity factor of the training"
    ),
    "cv": Measure("CV", "standard deviation over mean of the experts' load in a batch"),
    "max_violation": Measure("MaxVio", "load of the busiest expert over the mean, less 1"),
    "load_entropy": Measure("load entropy", "H(load) / log E, 1 when even"),
    "router_entropy": Measure("router entropy", "H(router's distribution) / log E"),
    "dead_share": Measure("dead", "share of experts that no token of a batch chose", 1, True),
    "dead_share_worst": Measure("dead, worst layer", "the same in the worst layer", 1, True),
    "dropped_share": Measure("dropped", "share of assignments that no expert computed", 2, True),
    "rerouted_share": Measure("rerouted", "share that another expert computed", 2, True),
    "model_cv": Measure("saved model: CV", "CV of the saved model on held-out text"),
    "model_max_violation": Measure("saved model: MaxVio", "MaxVio of the same"),
    "model_load_entropy": Measure("saved model: load entropy", "load entropy of the same"),
    "model_dead_share": Measure(
        "saved model: dead", "share of experts with less than 0.1 % of its assignments", 1, True
    ),
    "model_dead_share_worst": Measure(
        "saved model: dead, worst layer", "the same in the worst layer", 1, True
    ),
    "info_domain_bits": Measure(
        "I(E;D), bits", "what the expert says about the domain, less its shuffled null", 4
    ),
    "info_domain_given_token_bits": Measure(
        "I(E;D|X), bits", "the same once the token id is known", 4
    ),
    "info_token_bits": Measure("I(E;X), bits", "what the expert says about the token id", 4),
    "largest_lift": Measure(
        "largest lift",
        "each expert's largest finite lift over the domains, mean of the experts; 1 without "
        "specialization, more by sampling noise alone",
        2,
    ),
    "specialized_cells": Measure(
        "cells q < 0.05",
        "share of layer × expert × domain cells whose rate differs from the other domains",
        1,
        True,
    ),
}

PROFILES = {
    "cv_by_step": Measure("CV by step", "CV of the load"),
    "dropped_by_position": Measure(
        "Dropped share by the first position of a bin, last step, %", "", 1, True
    ),
    "info_domain_by_layer": Measure("I(E;D) by layer, bits", "", 4),
    "info_domain_given_token_by_layer": Measure("I(E;D|X) by layer, bits", "", 4),
    "info_token_by_layer": Measure("I(E;X) by layer, bits", "", 4),
}


def write_page(name: str, experiment: Experiment, result: Mapping[str, Any], folder: Path) -> Path:
    """Write NAME.md and NAME.svg.

    Args:
        name: of the experiment.
        experiment: its words.
        result: its part of results.json.
        folder: where to.

    Raises:
        BadInputError: results of other conditions than the experiment has, or an unknown measure.
        MissingExtraError: matplotlib is not installed.
    """
    expected = [condition.name for condition in experiment.conditions]
    if list(result["conditions"]) != expected:
        raise BadInputError(
            f"results.json has the conditions {', '.join(result['conditions'])} of {name}, but "
            f"experiments.yaml has {', '.join(expected)}; run: python tools/experiments.py"
        )
    for known, used in (
        (MEASURES, experiment.metrics),
        (PROFILES, (*experiment.tables, *experiment.figure.profiles)),
    ):
        if unknown := [n for n in used if n not in known]:
            raise BadInputError(f"{name}: no measure {unknown[0]!r}; there are {', '.join(known)}")
    titles = {profile: PROFILES[profile].label for profile in experiment.figure.profiles}
    percent = any(PROFILES[p].percent for p in experiment.figure.profiles)
    write_figure(experiment.figure, result["conditions"], titles, percent, folder / f"{name}.svg")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    path = folder / f"{name}.md"
    write_bytes(path, template.render(_words(name, experiment, result)).encode())
    return path


def _words(name: str, experiment: Experiment, result: Mapping[str, Any]) -> dict[str, Any]:
    conditions, setup = result["conditions"], result["setup"]
    metrics = [m for m in experiment.metrics if any(m in c["summary"] for c in conditions.values())]
    return {
        "title": experiment.title,
        "question": experiment.question.strip(),
        "command": result["command"],
        "recipe": experiment.recipe,
        "setup": _setup(result),
        "conditions": [
            {
                "label": c["label"],
                "set": ", ".join(f"`{s}`" for s in c["set"]) or "none",
                "against": conditions[c["against"]]["label"] if c["against"] else "–",
            }
            for c in conditions.values()
        ],
        "seeds": _seeds(conditions),
        "failures": _failures(conditions),
        "measures": _measures(metrics, setup),
        "summary": _summary_table(conditions, metrics),
        "tables": [_profile_table(conditions, p) for p in experiment.tables],
        "figure": {
            "file": f"{name}.svg",
            "alt": ", ".join(PROFILES[p].label for p in experiment.figure.profiles)
            + " for each condition",
            "caption": experiment.figure.caption.strip(),
        },
        "differences": _difference_table(conditions, metrics),
        "shows": [*_shows(experiment, result)],
        "not_shown": [
            *(line.strip() for line in experiment.not_shown),
            "Intervals are over seeds (first weights, order of the text, noise). Other text, sizes "
            "or machines are not in them.",
            _many(conditions, metrics),
        ],
    }


def number(value: float, measure: Measure, digits: int | None = None, *, sign: bool = False) -> str:
    """A figure as it is written: percent without the sign, a true minus."""
    scaled = value * 100 if measure.percent else value
    text = f"{scaled:{'+' if sign else ''}.{measure.digits if digits is None else digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", _MINUS)


def estimate(found: Estimate | None, measure: Measure) -> str:
    """``mean [low, high]``; a dash where nothing was measured."""
    if not found or found["mean"] is None:
        return "–"
    mean = number(found["mean"], measure)
    if found["low"] is None:
        return mean
    return f"{mean} [{number(found['low'], measure)}, {number(found['high'], measure)}]"


def difference(found: Estimate, measure: Measure) -> str:
    """The same with signs, and digits enough to see on which side of 0 an interval lies."""
    if found["low"] is None:
        return number(found["mean"], measure, sign=True)
    digits = measure.digits
    ends = (found["low"], found["high"])
    scale = 100 if measure.percent else 1
    while any(end and round(end * scale, digits) == 0 for end in ends) and _apart(found):
        digits += 1
    mean, low, high = (number(v, measure, digits, sign=True) for v in (found["mean"], *ends))
    return f"{mean} [{low}, {high}]"


def _apart(found: Estimate) -> bool:
    """Whether the interval leaves out 0."""
    return found["low"] is not None and (found["low"] > 0 or found["high"] < 0)


def verdict(found: Estimate | None, measure: Measure) -> str:
    """What a paired difference says, by rule from its interval."""
    if not found or found["mean"] is None:
        return f"{measure.label}: not measured in both"
    size = f"difference {difference(found, measure)}{' points' if measure.percent else ''}"
    n = found["n"]
    if found["low"] is None:
        return f"{measure.label}: {size}, from one seed, so without an interval"
    if found["lower"] == found["higher"] == 0:
        return f"{measure.label}: the same in all {n} seeds"
    if not _apart(found):
        return f"{measure.label}: not told apart, {size}"
    side = "lower" if found["mean"] < 0 else "higher"
    count = "all" if found[side] == n else f"{found[side]} of"
    return f"{measure.label}: {side} in {count} {n} seeds, {size}"


def _setup(result: Mapping[str, Any]) -> str:
    setup, conditions = result["setup"], result["conditions"].values()
    sizes = sorted({c["parameters"] for c in conditions if c["parameters"]})
    seconds = sorted(run["seconds"] for c in conditions for run in c["runs"])
    parameters = " or ".join(f"{size:,}" for size in sizes) or "unknown"
    vocabulary = f", a vocabulary of {setup['vocab_size']:,}" if setup["vocab_size"] else ""
    lines = [
        f"{setup['layers']} layers, {setup['num_experts']} experts, top-{setup['top_k']}, hidden "
        f"size {setup['hidden_size']}, expert size {setup['intermediate_size']}{vocabulary}: "
        f"{parameters} parameters.",
        f"{setup['steps']:,} steps of {setup['step_tokens']:,} tokens, {setup['tokens']:,} in all: "
        f"{setup['micro_batches']} micro-batches of {setup['sequences']} sequences of "
        f"{setup['context']} tokens. Peak learning rate {setup['learning_rate']:g}.",
    ]
    if seconds:
        machine = result["machine"]
        lines.append(
            f"Training took {seconds[0]:.0f} to {seconds[-1]:.0f} s a run ({machine['cores']} "
            f"cores, {machine['jobs']} runs at a time, torch {machine['torch']})."
        )
    return "\n".join(lines)


def _seeds(conditions: Mapping[str, Any]) -> str:
    counts = sorted({len(c["seeds"]) for c in conditions.values()})
    if len(counts) == 1:
        return f" n = {counts[0]} seeds for every condition."
    return " n by condition: " + ", ".join(
        f"{c['label']} {len(c['seeds'])}" for c in conditions.values()
    ) + "."  # fmt: skip


def _failures(conditions: Mapping[str, Any]) -> list[str]:
    return [
        f"{c['label']}, seed {f['seed']}: broke down and is left out ({f['why']})."
        for c in conditions.values()
        for f in c["failed"]
    ]


def _measures(metrics: Sequence[str], setup: Mapping[str, Any]) -> str:
    lines = [f"- **{MEASURES[m].label}**: {MEASURES[m].about}." for m in metrics]
    if "cv" in metrics:
        lines.append(
            f"- Batches are those logged in the last {100 * setup['tail']:g} % of the steps, with "
            f"{setup['step_tokens']:,} tokens each; figures of layers are means of the layers. "
            f"Chance gives a CV of {setup['cv_chance']:.3f}; the most is {setup['cv_most']:.2f}, "
            f"and {setup['max_violation_most']:g} for MaxVio."
        )
    lines.append(
        f"- Held-out loss reads {setup['heldout_tokens']:,} tokens of each domain at most, the "
        f"trace of the saved model {setup['traced_tokens']:,}."
    )
    return "\n".join(lines)


def _head(measure: Measure) -> str:
    return measure.label.replace("|", "\\|") + (", %" if measure.percent else "")


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    cells = [list(head)]
    lines = ["| " + " | ".join(cells[0]) + " |", "| --- |" + " ---: |" * (len(cells[0]) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _summary_table(conditions: Mapping[str, Any], metrics: Sequence[str]) -> str:
    return _table(
        ["condition", *(_head(MEASURES[m]) for m in metrics)],
        (
            [c["label"], *(estimate(c["summary"].get(m), MEASURES[m]) for m in metrics)]
            for c in conditions.values()
        ),
    )


def _difference_table(conditions: Mapping[str, Any], metrics: Sequence[str]) -> str:
    rows = []
    for c in conditions.values():
        if not c["against"]:
            continue
        cells = [
            difference(found, MEASURES[m]) if found and found["mean"] is not None else "–"
            for m in metrics
            for found in [c["difference"].get(m)]
        ]
        rows.append([f"{c['label']} − {conditions[c['against']]['label']}", *cells])
    return _table(["condition", *(_head(MEASURES[m]) for m in metrics)], rows)


def _profile_table(conditions: Mapping[str, Any], name: str) -> dict[str, str]:
    measure = PROFILES[name]
    having = [c for c in conditions.values() if name in c["profiles"]]
    rows = []
    for c in having:
        p = c["profiles"][name]
        points = zip(p["mean"], p["low"], p["high"], strict=True)
        cells = [estimate({"mean": m, "low": lo, "high": hi}, measure) for m, lo, hi in points]
        rows.append([c["label"], *cells])
    head = ["condition", *(str(x) for x in (having[0]["profiles"][name]["x"] if having else []))]
    return {"title": f"{measure.label.replace('|', chr(92) + '|')}:", "body": _table(head, rows)}


def _shows(experiment: Experiment, result: Mapping[str, Any]) -> Iterable[str]:
    """A line for each condition: references as they are, the others against theirs."""
    conditions = result["conditions"]
    for c in conditions.values():
        label = f"**{c['label']}**"
        if not c["against"]:
            found = [
                f"{MEASURES[m].label} {estimate(c['summary'].get(m), MEASURES[m])}"
                + (" %" if MEASURES[m].percent else "")
                for m in experiment.headline
            ]
            yield f"{label} (reference): {', '.join(found)}."
            continue
        said = [verdict(c["difference"].get(m), MEASURES[m]) for m in experiment.headline]
        yield f"{label} against {conditions[c['against']]['label']}: {'; '.join(said)}."


def _many(conditions: Mapping[str, Any], metrics: Sequence[str]) -> str:
    """How many differences there are, and how many would seem apart by chance."""
    found = [
        c["difference"][m] for c in conditions.values() for m in metrics if m in c["difference"]
    ]
    tested = [f for f in found if f["low"] is not None and (f["lower"] or f["higher"])]
    apart = sum(_apart(f) for f in tested)
    if not tested:
        return "With one seed there are no intervals, so nothing is told apart."
    return (
        f"{len(tested)} differences with an interval each, not corrected for their number: "
        f"{apart} leave out 0, about {0.05 * len(tested):.1f} would by chance if nothing "
        "differed. Few seeds make wide intervals: not told apart is not the same."
    )
