"""What taking away every expert of some layers says: which matter, and would routing have told?

Sentences that follow from the numbers by rule; see `moescope.intervene.answers`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from moescope.intervene.answers import LEVEL, few_documents, minus, warn, with_interval
from moescope.intervene.expert_sweep.scores import ROUTING_SCORES, SCORE_NAMES
from moescope.intervene.expert_sweep.sweep import ExpertSweep
from moescope.result import Note
from moescope.words import counted, listing, ranges


def sweep_answers(sweep: ExpertSweep) -> list[str]:
    """The findings of `sweep_experts`: does routing foretell importance; which experts matter."""
    out = [_routing_foretells(sweep)]
    ranking = sweep.ranking()
    for layer in sweep.layers:
        rows = [r for r in ranking if r["layer"] == layer]
        out.append(_foretold(sweep, layer))
        top, seen = rows[0], ""
        if math.isfinite(top["ce_change_low"]):
            unclear = sum(not r["ce_change_low"] > 0 for r in rows)
            seen = f"; for {unclear} of its {len(rows)} experts the interval reaches 0 or below, "
            seen += "so no harm is shown"
        out.append(
            f"In layer {layer} {top['name']} matters most: {with_interval(top)} nats per token "
            f"when it is {sweep.edit.words}{seen}."
        )
    return out


def _routing_foretells(sweep: ExpertSweep) -> str:
    """Does what routing shows tell which experts matter? Lift first: a report leads with it."""
    rows = [
        r
        for r in sweep.correlations.to_pylist()
        if r["importance"] == "ce_change" and r["score"] in ROUTING_SCORES
        if math.isfinite(r["rho"])
    ]
    several = len(sweep.layers) > 1
    main = {r["score"]: r for r in rows if r["basis"] == ("within layers" if several else "layer")}
    if not main:
        return "Too few experts were chosen to say whether routing foretells which of them matter."
    foretells = [r for r in main.values() if r["low"] > 0 and r["q"] <= LEVEL]
    where = f"layer{'s' if several else ''} {ranges(sweep.layers)}"
    out = []
    if lift := main.pop("lift", None):
        verb = "predicts" if lift in foretells else "does not predict"
        by_layer = [r for r in rows if r["basis"] == "layer" and r["score"] == "lift"]
        spread = f"{_extremes(by_layer)}; " if several else ""
        out.append(
            f"Lift {verb} which experts matter in {where}: "
            f"{_rho(lift)} ({spread}by chance within ±{_chance_rho(by_layer):.2f})"
        )
    others = sorted(main.values(), key=lambda r: -r["rho"])
    clear = [r for r in others if r in foretells]
    named = ", ".join(f"{SCORE_NAMES[r['score']]} {_rho(r)}" for r in clear or others)
    if clear:
        out.append(f"Of what routing shows, this does in {where}: {named}")
    elif others:
        out.append(f"{'Nor does any other' if out else 'No'} routing statistic in {where}: {named}")
    repeats = [f"{r:.2f} (layer {n})" for n, r in sweep.repeatability.items() if math.isfinite(r)]
    if repeats:
        halves = "between halves of the documents"
        out.append(f"Importance itself repeats {halves} at ρ = {listing(repeats, 4)}")
    return ". ".join(out) + "."


def _extremes(rows: Sequence[dict[str, Any]]) -> str:
    """The lowest and the highest ρ of single layers."""
    low, high = (pick(rows, key=lambda r: r["rho"]) for pick in (min, max))
    named = [minus(f"{r['rho']:.2f} in layer {r['layer']}") for r in (low, high)]
    return f"mean of {counted(len(rows), 'layer')}, from {named[0]} to {named[1]}"


def _chance_rho(by_layer: Sequence[dict[str, Any]]) -> float:
    """Where 95 % of ρ lie by chance: the mean over these layers, each of so many experts."""
    variances = [1 / (r["experts"] - 1) for r in by_layer]
    return 1.96 * math.sqrt(sum(variances)) / len(variances)


def _foretold(sweep: ExpertSweep, layer: int) -> str:
    basis = {"basis": "layer", "layer": layer, "importance": "ce_change"}
    rows = [r for r in sweep.correlations.to_pylist() if basis.items() <= r.items()]
    known = sorted((r for r in rows if math.isfinite(r["rho"])), key=lambda r: -r["rho"])
    if not known:
        return f"In layer {layer} too few experts were chosen to correlate scores with importance."
    best = known[0]
    routing = next((r for r in known if r["score"] in ROUTING_SCORES), None)
    clear = best["low"] > 0 and best["q"] <= LEVEL
    verb = "predicts measured importance best" if clear else "comes closest to measured importance"
    text = f"In layer {layer} {SCORE_NAMES[best['score']]} {verb}: {_rho(best)}"
    if routing is not None and routing is not best:
        text += f"; of what routing alone tells, {SCORE_NAMES[routing['score']]}: {_rho(routing)}"
    load = next((r for r in known if r["score"] == "load"), None)
    if load is not None and load not in (best, routing):
        text += f"; load: {_rho(load)}"
    text += f" ({best['experts']} experts, best of {len(known)} scores"
    text += "" if clear else f"; no link is shown, q = {best['q']:.2f}"
    repeat = sweep.repeatability[layer]
    if math.isfinite(repeat):
        text += f"; between halves of the documents importance repeats at ρ = {repeat:.2f}"
    return text + ")."


def sweep_notes(sweep: ExpertSweep) -> list[Note]:
    """What limits the figures of `sweep_experts`."""
    notes = [*map(warn, sweep.measured.notes), *(Note("note", n) for n in sweep.score_notes)]
    rows = sweep.ranking()
    silent = [r["name"] for r in rows if r["chosen"] == 0]
    if silent:
        left_out = "Never chosen on this text, so left out of every correlation"
        notes.append(warn(f"{left_out}: {listing(silent)}."))
    low = [f"layer {n}: {r:.2f}" for n, r in sweep.repeatability.items() if r < 0.5]
    if low:
        notes.append(
            warn(
                f"The ranking by importance hardly repeats between halves of the documents "
                f"({', '.join(low)}): on other text of this kind other experts may come first. "
                "Measure on more text (`tokens`)."
            )
        )
    first = [r for r in sweep.table.to_pylist() if r["name"] == rows[0]["name"]]
    return notes + few_documents(first)


def _rho(row: dict[str, Any]) -> str:
    return minus(f"ρ = {row['rho']:.2f} [{row['low']:.2f}, {row['high']:.2f}]")
