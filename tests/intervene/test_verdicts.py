"""The first sentence of an ablation says whether the experts matter, and claims no more."""

import dataclasses
from typing import Any

import pyarrow as pa
import pytest
from tests.support.planted import exchangeable, planted

from moescope.axes import ExpertRef
from moescope.intervene import measure_damage
from moescope.intervene.answers import damage_answers, damage_notes
from moescope.intervene.damage.measure import Damage, Match
from moescope.intervene.expert_sweep.sweep import ExpertSweep, sweep_experts
from moescope.intervene.sweep_answers import sweep_answers


@pytest.fixture(scope="module")
def measured() -> Damage:
    """20 controls that share no expert with each other or the plan."""
    made = exchangeable(3)
    return measure_damage(made.loaded, made.windows, [ExpertRef(1, 3)], controls=20, match="size")


def altered(damage: Damage, scope: str = "all", match: Match = "load", **figures: Any) -> Damage:
    """The same with other figures in the plan's rows of a scope."""
    rows = damage.table.to_pylist()
    for row in rows:
        if row["trial"] == "plan" and row["scope"] == scope:
            row |= figures
    return dataclasses.replace(
        damage, table=pa.Table.from_pylist(rows, schema=damage.table.schema), match=match
    )


def with_beyond(damage: Damage, beyond: int, low: float, **more: Any) -> Damage:
    p = (1 + beyond) / 21
    return altered(damage, ce_change_p=p, ce_change_p_overlap=p, ce_change_low=low, **more)


@pytest.mark.parametrize(
    ("beyond", "low", "begins"),
    [
        (0, 0.01, "L1E3 matters more than random ones of like load: with it"),
        (0, -0.01, "L1E3 is not shown to matter: with it"),
        (1, 0.01, "L1E3 is not shown to matter more than random ones of like load: with it"),
        (10, 0.01, "L1E3 matters no more than random ones of like load: with it"),
        (18, -0.01, "L1E3 matters no more than random ones of like load: with it"),
    ],
)
def test_the_verdict_comes_first(measured: Damage, beyond: int, low: float, begins: str) -> None:
    first = damage_answers(with_beyond(measured, beyond, low))[0]
    assert first.startswith(begins)
    many = f"{beyond} of 20 random plans do" if beyond > 1 else None
    said = {0: "none of 20 random plans does", 1: "1 of 20 random plans does"}.get(beyond, many)
    assert f"{said} as much harm or more (" in first
    assert f"p_overlap = {(1 + beyond) / 21:.3f}" in first


def test_controls_that_cannot_show_it_are_not_taken_for_a_finding(measured: Damage) -> None:
    few = dataclasses.replace(with_beyond(measured, 0, 0.01), chance=[0.083] * 21)
    first = damage_answers(few)[0]
    assert first.startswith(
        "20 random plans cannot show whether L1E3 matters more than random ones"
    )
    notes = [n.text for n in damage_notes(few) if n.level == "warn"]
    assert any("p_overlap cannot fall below 0.083" in n and "What may help: " in n for n in notes)
    assert any("a plan of several experts" in n and "`each` ranks" in n for n in notes)


def test_harm_per_load_is_said_where_it_decides(measured: Damage) -> None:
    """No control does as much harm, but three would if they were as busy: p_overlap is theirs."""
    heavy = altered(measured, ce_change_p=1 / 21, ce_change_p_overlap=4 / 21, ce_change_low=0.01)
    first = damage_answers(heavy)[0]
    assert "is not shown to matter more than random ones of like load" in first
    assert "none of 20 random plans does as much harm or more, 3 per load (" in first


def test_a_plan_with_no_controls_says_nothing_of_others(measured: Damage) -> None:
    alone = dataclasses.replace(
        measured, prepared=measured.prepared._replace(controls=None), chance=[], requested=0
    )
    assert damage_answers(alone)[0].startswith(
        "Nothing says whether L1E3 matters more than other experts, for there are no controls"
    )


@pytest.mark.parametrize(
    ("q", "low", "counts"), [(0.04, 0.01, True), (0.06, 0.01, False), (0.04, -0.01, False)]
)
def test_only_domains_that_are_shown_are_counted(
    measured: Damage, q: float, low: float, counts: bool
) -> None:
    """More than every control is not enough, nor is an interval that reaches 0."""
    high: dict[str, Any] = {"ce_change": 9.0, "ce_change_p": 1 / 21, "ce_change_p_overlap": 1 / 21}
    found = altered(measured, "domain", ce_change_q=q, ce_change_low=low, **high)
    said = " ".join(damage_answers(found))
    assert ("In 4 of 4 domains the harm is shown to be more" in said) == counts
    assert ("In no domain is the harm shown to be more" in said) != counts
    assert "its q would be 0.19 at best: name it beforehand with `target`" in said or counts


def test_the_controls_are_named_before_their_load(measured: Damage) -> None:
    first = damage_notes(measured)[0].text
    assert first.startswith("Each random plan takes as many experts of each layer as this one")
    assert "p_overlap allows for experts that they share and for unequal loads" in first


@pytest.fixture(scope="module")
def swept() -> ExpertSweep:
    made = exchangeable(3)
    return sweep_experts(made.loaded, made.windows, [1])


def told(sweep: ExpertSweep, **rho: float) -> str:
    """The first answer where these scores have these ρ, and all others 0."""
    rows = sweep.correlations.to_pylist()
    for row in rows:
        at = rho.get(row["score"], 0.0)
        clear = abs(at) > 0.4
        row |= {"rho": at, "low": at - 0.3, "high": at + 0.3, "q": 0.001 if clear else 0.9}
    table = pa.Table.from_pylist(rows, schema=sweep.correlations.schema)
    return sweep_answers(dataclasses.replace(sweep, correlations=table))[0]


def test_a_sweep_opens_with_whether_lift_foretells_importance(swept: ExpertSweep) -> None:
    nothing = told(swept, lift=0.1)
    assert nothing.startswith(
        "Lift does not predict which experts matter in layer 1: ρ = 0.10 [−0.20, 0.40] (by chance "
        "within ±0."
    )
    assert "Nor does any other routing statistic in layer 1: load ρ = 0.00" in nothing
    against = told(swept, lift=-0.53, load=0.7)
    assert "matter in layer 1: ρ = −0.53" in against
    assert "Of what routing shows, this does in layer 1: load ρ = 0.70 [0.40, 1.00]" in against
    assert told(swept, lift=0.6).startswith("Lift predicts which experts matter in layer 1: ")
    assert "Importance itself repeats between halves of the documents at ρ = " in nothing


def test_of_several_layers_the_mean_and_the_extremes_are_told() -> None:
    made = exchangeable(3)
    both = sweep_experts(made.loaded, made.windows, [0, 1])
    rows = [r for r in both.correlations.to_pylist() if r["importance"] == "ce_change"]
    lift = {(r["basis"], r["layer"]): r["rho"] for r in rows if r["score"] == "lift"}
    mean, single = lift["within layers", None], [lift["layer", n] for n in (0, 1)]
    low, high = (single.index(pick(single)) for pick in (min, max))
    first = sweep_answers(both)[0].replace("−", "-")
    assert f"matter in layers 0-1: ρ = {mean:.2f} [" in first
    span = f"from {single[low]:.2f} in layer {low} to {single[high]:.2f} in layer {high}"
    assert f"(mean of 2 layers, {span}; by chance within ±" in first


def test_a_ratio_without_an_interval_blames_no_other_change() -> None:
    """Two documents of the target: what lacks is its interval, not the change off target."""
    made = planted(3, documents=2)
    found = measure_damage(
        made.loaded, made.windows, [made.carrier or ExpertRef(1, 0)], targets=["d0"], controls=4,
        match="size",
    )  # fmt: skip
    said = " ".join(damage_answers(found))
    assert "[no interval]" in said
    assert "An interval is missing, so their ratio would say nothing" in said
    assert "not clearly above 0" not in said
    [few] = [n.text for n in damage_notes(found) if n.text.startswith("Fewer than")]
    assert few.count("d0 (2)") == 1
