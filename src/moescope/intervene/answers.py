"""What an ablation says, in sentences that follow from its numbers by rule, and its limits.

A finding is called one only where its interval or its p allows it. It knows results, no model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from moescope.intervene.damage.measure import Damage, Match
from moescope.measure.controls import CALIPER, Controls, lowest_p
from moescope.measure.saving import Saving
from moescope.metrics.intervals import MIN_CLUSTERS
from moescope.result import Note
from moescope.words import counted, listing

LEVEL = 0.05
"""What is called shown has a p or q of at most this."""


def damage_answers(damage: Damage) -> list[str]:
    """The findings of `measure_damage`: whether these experts matter first, then by how much."""
    rows = {r["scope"]: r for r in damage.plan_rows() if r["scope"] != "domain"}
    row = rows["all"]
    layers = "layer" if len(damage.prepared.layer_loads) == 1 else "layers"
    out = [
        _verdict(damage, rows.get("on-target", row)),
        f"Over {row['tokens']:,} tokens of {counted(row['documents'], 'document')} the change is "
        f"{with_interval(row)} nats per token, and {100 * row['flips']:.1f} % of the tokens get "
        f"another first guess; {100 * row['load']:.1f} % of the choices in the {layers} concerned "
        "fall on the plan.",
    ]
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


def _verdict(damage: Damage, row: dict[str, Any]) -> str:
    """Do these experts matter more than others like them? In words, then with the figures."""
    several = len(damage.experts) > 1
    who = f"these {len(damage.experts)} experts" if several else str(damage.experts[0])
    on = f" on {' + '.join(damage.scopes.targets)}" if row["scope"] == "on-target" else ""
    change = (
        f"with {'them' if several else 'it'} {damage.edit.words}, cross-entropy{on} changes by "
        f"{with_interval(row)} nats per token"
    )
    matter = "matter" if several else "matters"
    if not damage.num_controls:
        why = "no others have a like load" if damage.requested else "there are no controls"
        return f"Nothing says whether {who} {matter} more than other experts, for {why}: {change}."
    finding = _finding(damage, row, who, matter)
    return f"{finding[0].upper()}{finding[1:]}{on}: {change}; {_against_controls(damage, row)}."


def _finding(damage: Damage, row: dict[str, Any], who: str, matter: str) -> str:
    """What may be said beside the controls; ``matter`` agrees with ``who``."""
    size = damage.match == "size"
    like = f"random ones {'whatever their load' if size else 'of like load'}"
    if 2 * _beyond(damage, row) >= damage.num_controls:
        return f"{who} {matter} no more than {like}"
    if lowest_p(damage.chance) > LEVEL:
        few = counted(damage.num_controls, "random plan")
        return f"{few} cannot show whether {who} {matter} more than {like}"
    not_shown = f"{who} {'is' if matter.endswith('s') else 'are'} not shown to matter"
    if row["ce_change_p_overlap"] > LEVEL:
        return f"{not_shown} more than {like}"
    return f"{who} {matter} more than {like}" if row["ce_change_low"] > 0 else not_shown


def _beyond(damage: Damage, row: dict[str, Any]) -> int:
    """Controls that do as much harm or more."""
    plain: float = row["ce_change_p"]
    return round(plain * (damage.num_controls + 1)) - 1


def _against_controls(damage: Damage, row: dict[str, Any]) -> str:
    count, beyond = damage.num_controls, _beyond(damage, row)
    span = f"{_s(row['ce_change_controls_min'])} to {_s(row['ce_change_controls_max'])}"
    plans = counted(count, "random plan")
    many = f"{beyond} of {plans} {'does' if beyond == 1 else 'do'}"
    per_load = _beyond_per_load(damage, row["ce_change_p_overlap"])
    also = f", {per_load} per load" if per_load > beyond else ""
    p = f"p_overlap = {row['ce_change_p_overlap']:.3f}"
    return f"{many if beyond else f'none of {plans} does'} as much harm or more{also} ({span}; {p})"


def _beyond_per_load(damage: Damage, p_overlap: float) -> int:
    """The number of controls that p_overlap was made from: the larger of as they are, and per load.

    See `moescope.intervene.damage.table.beyond`.
    """
    count = damage.num_controls
    careful = (max((1 + k) / (count + 1), damage.chance[k]) for k in range(count + 1))
    return sum(p < p_overlap - 1e-9 for p in careful)


def _on_target(damage: Damage, rows: dict[str, dict[str, Any]]) -> list[str]:
    made = damage.selectivity
    assert made is not None
    on, off, names = rows["on-target"], rows["off-target"], " + ".join(damage.scopes.targets)
    first = (
        f"On target ({names}) the change is {with_interval(on)}, off target {with_interval(off)}"
    )
    difference = _span(made.difference, made.difference_low, made.difference_high)
    if math.isfinite(made.ratio):
        ratio = f"{made.ratio:.1f} times as much [{made.ratio_low:.1f}, {made.ratio_high:.1f}]"
        out = [f"{first}: {ratio}, a difference of {difference}."]
    else:
        known = math.isfinite(on["ce_change_low"]) and math.isfinite(off["ce_change_low"])
        why = "Off target the change is not clearly above 0" if known else "An interval is missing"
        out = [f"{first}. {why}, so their ratio would say nothing; the difference is {difference}."]
    if damage.num_controls:
        shown = "" if made.p_overlap <= LEVEL else "not "
        out += [
            f"The difference between on and off target is {shown}shown to be larger than with "
            f"random plans (p_overlap = {made.p_overlap:.3f}).",
            f"On all text {_against_controls(damage, rows['all'])}.",
        ]
    return out


def _domains(damage: Damage) -> list[str]:
    rows = [r for r in damage.plan_rows() if r["scope"] == "domain"]
    if not rows:
        return []
    shown = [r for r in rows if r["ce_change_q"] <= LEVEL and r["ce_change_low"] > 0]
    rule = f"(q ≤ {LEVEL}, interval above 0)"
    if shown:
        listed = ", ".join(f"{r['domain']} {with_interval(r)}" for r in shown)
        of = f"In {len(shown)} of {counted(len(rows), 'domain')}"
        return [f"{of} the harm is shown to be more than that of random plans {rule}: {listed}."]
    least = lowest_p(damage.chance)
    alone = (
        f"; a single one of {len(rows)} could not pass, its q would be {least * len(rows):.2g} at "
        "best: name it beforehand with `target`, or take more `controls`"
        if least <= LEVEL < least * len(rows)
        else ""
    )
    return [f"In no domain is the harm shown to be more than that of random plans {rule}{alone}."]


def damage_notes(damage: Damage) -> list[Note]:
    """What limits the figures of `measure_damage`."""
    counts = zip(damage.experts, damage.prepared.plan_counts.tolist(), strict=True)
    silent = [str(expert) for expert, n in counts if n == 0]
    return [
        *map(warn, damage.measured.notes),
        *([warn(f"Never chosen on this text: {', '.join(silent)}.")] if silent else []),
        *_on_controls(damage),
        *few_documents(damage.plan_rows()),
    ]


def _on_controls(damage: Damage) -> Iterator[Note]:
    controls, count = damage.prepared.controls, damage.num_controls
    if controls is None:
        yield warn("No controls: nothing says whether other experts would do less harm.")
        return
    if not count:
        yield warn(
            f"None of the {counted(controls.possible, 'possible control')} has a load within a "
            f"factor of {CALIPER} of the plan's in every layer: its experts have no like partners, "
            "so nothing says whether others of their load would do less harm. `match=size` "
            "compares with others whatever their load."
        )
        return
    yield _matching(damage.match, controls)
    least = lowest_p(damage.chance)
    few = counted(count, "control")
    if count < damage.requested:
        like = "" if damage.match == "size" else " of like load"
        few = (
            f"Only {counted(count, 'different control')}{like} could be found, "
            f"{damage.requested} were asked for"
        )
    if least > LEVEL:
        yield warn(
            f"{few}: p_overlap cannot fall below {least:.3f}, so no harm of the plan would be "
            f"shown to be more than theirs. What may help: {_help(damage, controls)}."
        )
    elif count < damage.requested:
        yield Note("note", f"{few}; p_overlap can fall to {least:.3f}.")
    if damage.chance[0] > 1.2 / (count + 1):
        yield warn(
            f"The controls share experts with each other but none with the plan, so a plan of "
            f"no interest would do more harm than all of them in {100 * damage.chance[0]:.1f} "
            f"% of cases, not in {100 / (count + 1):.1f} %; p_overlap allows for it."
        )


def _help(damage: Damage, controls: Controls) -> str:
    """What makes a smaller p possible."""
    ways = []
    if damage.num_controls == damage.requested < controls.possible:
        ways.append("more controls (`controls`)")
    elif damage.match != "size":
        ways.append("`match=size`, for others whatever their load")
    if len(damage.experts) == 1:
        ways.append("a plan of several experts, which has more partners")
    return f"{', '.join(ways)}; `each` ranks every expert of a layer by its harm"


def warn(text: str) -> Note:
    """A note that keeps a reader from being misled."""
    return Note("warn", text)


def _matching(match: Match, controls: Controls) -> Note:
    ratios = controls.ratios
    plans = "Each random plan takes as many experts of each layer as this one, none of them its own"
    span = f"{ratios.min():.2f} to {ratios.max():.2f} times theirs (mean {ratios.mean():.2f})"
    careful = "p_overlap allows for experts that they share and for unequal loads"
    if match == "size":
        text = f"{plans}, whatever their load; the plan's load on all text is {span}. {careful}."
        return Note("note" if controls.matched else "warn", text)
    on = "on the target domains" if match == "target-load" else "on all text"
    return Note("note", f"{plans}, of like load {on}: the plan's is {span}. {careful}.")


def few_documents(rows: Sequence[dict[str, Any]]) -> list[Note]:
    """Groups of documents without an interval."""
    known = (f"{r['domain']} ({r['documents']})" for r in rows if r["documents"] < MIN_CLUSTERS)
    few = list(dict.fromkeys(known))  # a target stands there as a domain too
    text = (
        f"Fewer than {MIN_CLUSTERS} documents: {listing(few, 8)}. The document is the unit of "
        "every interval, so these have none; give more text with `tokens` or a shorter `window`."
    )
    return [warn(text)] if few else []


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


def with_interval(row: dict[str, Any]) -> str:
    """A change of cross-entropy and its interval."""
    return _span(row["ce_change"], row["ce_change_low"], row["ce_change_high"])


def _span(value: float, low: float, high: float) -> str:
    if not math.isfinite(low):
        return f"{_s(value)} [no interval]"
    return f"{_s(value)} [{_s(low)}, {_s(high)}]"


def _s(value: float) -> str:
    """With its sign and as many decimals as tell something."""
    return minus(f"{value:+.{_decimals(value)}f}")


def _n(value: float) -> str:
    return f"{value:.{_decimals(value)}f}"


def minus(text: str) -> str:
    """Numbers with the sign that is set as wide as a plus."""
    return text.replace("-", "−")


def _decimals(value: float) -> int:
    return 3 if abs(value) >= 0.0995 or value == 0 else 4
