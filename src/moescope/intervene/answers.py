"""What a measurement says, in sentences that follow from its numbers by rule, and its limits.

A finding is called one only where its interval or its p allows it. It knows results, no model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from moescope.intervene.damage.measure import Damage, Match
from moescope.intervene.expert_sweep.scores import ROUTING_SCORES, SCORE_NAMES
from moescope.intervene.expert_sweep.sweep import ExpertSweep
from moescope.measure.controls import CALIPER, Controls, lowest_p
from moescope.measure.saving import Saving
from moescope.metrics.intervals import MIN_CLUSTERS
from moescope.result import Note
from moescope.words import counted, listing

_LEVEL = 0.05


def damage_answers(damage: Damage) -> list[str]:
    """The findings of `measure_damage`, the main one first."""
    rows = {r["scope"]: r for r in damage.plan_rows() if r["scope"] != "domain"}
    experts, row = len(damage.experts), rows["all"]
    what = f"{experts} experts" if experts > 1 else str(damage.experts[0])
    layers = "layer" if len(damage.prepared.layer_loads) == 1 else "layers"
    out = [
        f"With {what} ({100 * row['load']:.1f} % of the choices in the {layers} concerned) "
        f"{damage.edit.words}, cross-entropy changes by {_ci(row)} nats per token over "
        f"{row['tokens']:,} tokens of {counted(row['documents'], 'document')}, and "
        f"{100 * row['flips']:.1f} % of the tokens get another first guess."
    ]
    if damage.num_controls:
        out.append(_against_controls(damage, row, "On all text"))
    if damage.selectivity is not None:
        out += _on_target(damage, rows)
    elif damage.num_controls:
        out += _domains(damage)
    if math.isfinite(row["detectable"] or math.nan):
        found = (r["detectable"] for r in damage.plan_rows() if r["scope"] == "domain")
        domains = [value for value in found if math.isfinite(value)]
        more = f", by domain {_n(min(domains))} to {_n(max(domains))}" if domains else ""
        out.append(
            f"A change of {_n(row['detectable'])} nats per token would have shown with 80 % power "
            f"on all text{more}; less than that may be there unseen."
        )
    return out


def _against_controls(damage: Damage, row: dict[str, Any], where: str) -> str:
    count, span = damage.num_controls, f"{_s(row['ce_change_controls_min'])} to "
    span += f"{_s(row['ce_change_controls_max'])} (smallest to largest)"
    matched = damage.prepared.controls is not None and damage.prepared.controls.matched
    kind = "the same size" + (" and similar load" if matched else "")
    beyond = round(row["ce_change_p"] * (count + 1)) - 1
    p = f"p = {row['ce_change_p_overlap']:.3f}"
    start = f"{where}, {counted(count, 'random plan')} of {kind} change it by {span}"
    if beyond == 0:
        return (
            f"{start}: the plan does more harm than every one of them ({p}; a plan of no interest "
            f"would in {100 * damage.chance[0]:.1f} % of cases)."
        )
    return f"{start}: {beyond} of them do as much harm as the plan or more ({p})."


def _on_target(damage: Damage, rows: dict[str, dict[str, Any]]) -> list[str]:
    made = damage.selectivity
    assert made is not None
    on, off, names = rows["on-target"], rows["off-target"], " + ".join(damage.scopes.targets)
    first = f"On target ({names}) the change is {_ci(on)}, off target {_ci(off)}"
    difference = _span(made.difference, made.difference_low, made.difference_high)
    if math.isfinite(made.ratio):
        ratio = f"{made.ratio:.1f} times as much [{made.ratio_low:.1f}, {made.ratio_high:.1f}]"
        out = [f"{first}: {ratio}, a difference of {difference}."]
    else:
        out = [
            f"{first}. Off target the change is not clearly above 0, so their ratio would say "
            f"nothing; the difference is {difference}."
        ]
    if damage.num_controls:
        beyond = made.p_overlap <= max(_LEVEL, damage.chance[0])
        verdict = "larger than with every control" if beyond else "within what the controls show"
        out += [
            _against_controls(damage, on, "On target"),
            f"The difference between on and off target is {verdict} (p = {made.p_overlap:.3f}).",
        ]
    return out


def _domains(damage: Damage) -> list[str]:
    rows = [r for r in damage.plan_rows() if r["scope"] == "domain"]
    count = damage.num_controls
    above = [r for r in rows if round(r["ce_change_p"] * (count + 1)) == 1]
    if not rows:
        return []
    if not above:
        return ["In no domain does the plan do more harm than every control."]
    chance, best = damage.chance[0], min(r["ce_change_q"] for r in above)
    listed = ", ".join(f"{r['domain']} ({_ci(r)})" for r in above)
    verdict = f"after correction for {counted(len(rows), 'domain')} q = {best:.3f} at best" + (
        "" if best <= _LEVEL else ", so none of them is a finding by itself"
    )
    return [
        f"In {len(above)} of {counted(len(rows), 'domain')} the plan does more harm than every "
        f"control: {listed}. By chance that would be {chance * len(rows):.1f} domains; {verdict}."
    ]


def damage_notes(damage: Damage) -> list[Note]:
    """What limits the figures of `measure_damage`."""
    counts = zip(damage.experts, damage.prepared.plan_counts.tolist(), strict=True)
    silent = [str(expert) for expert, n in counts if n == 0]
    return [
        *map(_warn, damage.measured.notes),
        *([_warn(f"Never chosen on this text: {', '.join(silent)}.")] if silent else []),
        *_on_controls(damage),
        *_few_documents(damage.plan_rows()),
    ]


def _on_controls(damage: Damage) -> Iterator[Note]:
    controls, count = damage.prepared.controls, damage.num_controls
    if controls is None:
        yield _warn("No controls: nothing says whether other experts would do less harm.")
        return
    if not count:
        yield _warn(
            f"Of {counted(controls.possible, 'possible control')} none has a load within a factor "
            f"of {CALIPER} of the plan's in every layer: its experts have no like partners, so "
            "nothing says whether others of their load would do less harm. `match=size` "
            "compares with others whatever their load."
        )
        return
    yield _matching(damage.match, controls)
    least = lowest_p(damage.chance)
    if count < damage.requested:
        like = "" if damage.match == "size" else " of like load"
        yield _warn(
            f"Only {counted(count, 'different control')}{like} could be found, {damage.requested} "
            f"were asked for; the smallest p that they can give is {least:.3f}."
        )
    elif least > _LEVEL:
        yield Note("note", f"{counted(count, 'control')} cannot give a p below {least:.3f}.")
    if damage.chance[0] > 1.2 / (count + 1):
        yield _warn(
            f"The controls share experts with each other but none with the plan, so a plan of "
            f"no interest would do more harm than all of them in {100 * damage.chance[0]:.1f} "
            f"% of cases, not in {100 / (count + 1):.1f} %; the p given allow for it."
        )


def _warn(text: str) -> Note:
    return Note("warn", text)


def _matching(match: Match, controls: Controls) -> Note:
    ratios = controls.ratios
    span = f"{ratios.min():.2f} to {ratios.max():.2f} times theirs (mean {ratios.mean():.2f})"
    if match == "size":
        text = f"The controls were matched in size only; the plan's load on all text is {span}."
        return Note("note" if controls.matched else "warn", text)
    on = "on the target domains" if match == "target-load" else "on all text"
    return Note("note", f"Load of the plan {on}: {span}.")


def _few_documents(rows: Sequence[dict[str, Any]]) -> list[Note]:
    few = [f"{r['domain']} ({r['documents']})" for r in rows if r["documents"] < MIN_CLUSTERS]
    text = (
        f"Fewer than {MIN_CLUSTERS} documents: {listing(few, 8)}. The document is the unit of "
        "every interval, so these have none; give more text with `tokens` or a shorter `window`."
    )
    return [_warn(text)] if few else []


def sweep_answers(sweep: ExpertSweep) -> list[str]:
    """The findings of `sweep_experts`: what foretells importance, and which experts matter."""
    out = []
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
            f"In layer {layer} {top['name']} matters most: {_ci(top)} nats per token when it is "
            f"{sweep.edit.words}{seen}."
        )
    return out


def _foretold(sweep: ExpertSweep, layer: int) -> str:
    basis = {"basis": "layer", "layer": layer, "importance": "ce_change"}
    rows = [r for r in sweep.correlations.to_pylist() if basis.items() <= r.items()]
    known = sorted((r for r in rows if math.isfinite(r["rho"])), key=lambda r: -r["rho"])
    if not known:
        return f"In layer {layer} too few experts were chosen to correlate scores with importance."
    best = known[0]
    routing = next((r for r in known if r["score"] in ROUTING_SCORES), None)
    clear = best["low"] > 0 and best["q"] <= _LEVEL
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
    notes = [*map(_warn, sweep.measured.notes), *(Note("note", n) for n in sweep.score_notes)]
    rows = sweep.ranking()
    silent = [r["name"] for r in rows if r["chosen"] == 0]
    if silent:
        left_out = "Never chosen on this text, so left out of every correlation"
        notes.append(_warn(f"{left_out}: {listing(silent)}."))
    low = [f"layer {n}: {r:.2f}" for n, r in sweep.repeatability.items() if r < 0.5]
    if low:
        notes.append(
            _warn(
                f"The ranking by importance hardly repeats between halves of the documents "
                f"({', '.join(low)}): on other text of this kind other experts may come first. "
                "Measure on more text (`tokens`)."
            )
        )
    first = [r for r in sweep.table.to_pylist() if r["name"] == rows[0]["name"]]
    return notes + _few_documents(first)


def saving_sentence(saving: Saving) -> str:
    """What the measurement cost beside full passes."""
    share = 100 * saving.layer_share
    head = 100 * saving.head_tokens / max(1, saving.head_tokens_naive)
    text = (
        f"{counted(saving.trials, 'edit')}: {share:.0f} % of the layers × tokens and {head:.0f} % "
        f"of the head's tokens that full passes would compute, in {saving.seconds:,.0f} s after "
        f"{saving.plain_seconds:,.0f} s for the plain pass"
    )
    if saving.naive_seconds is None or saving.times_faster is None:
        return text + "."
    return (
        f"{text}; full passes would take {saving.naive_seconds:,.0f} s by the median of "
        f"{saving.naive_samples} that were timed in between, {saving.times_faster:.1f} times as "
        f"long. {_agreement(saving)}"
    )


def _agreement(saving: Saving) -> str:
    if not saving.max_difference:
        return "The two ways agree to the last digit."
    return (
        f"The two ways differ by {saving.mean_difference:.1e} nats for a token on average, "
        f"{saving.max_difference:.1e} at most."
    )


def _rho(row: dict[str, Any]) -> str:
    return _minus(f"ρ = {row['rho']:.2f} [{row['low']:.2f}, {row['high']:.2f}]")


def _ci(row: dict[str, Any]) -> str:
    return _span(row["ce_change"], row["ce_change_low"], row["ce_change_high"])


def _span(value: float, low: float, high: float) -> str:
    if not math.isfinite(low):
        return f"{_s(value)} [no interval]"
    return f"{_s(value)} [{_s(low)}, {_s(high)}]"


def _s(value: float) -> str:
    """With its sign and as many decimals as tell something."""
    return _minus(f"{value:+.{_decimals(value)}f}")


def _n(value: float) -> str:
    return f"{value:.{_decimals(value)}f}"


def _minus(text: str) -> str:
    return text.replace("-", "−")


def _decimals(value: float) -> int:
    return 3 if abs(value) >= 0.0995 or value == 0 else 4
