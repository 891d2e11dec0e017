"""How much harm it does to take some experts away, against taking away others like them.

A plan's experts are edited and the change of every token's prediction is measured; then the same is
done to random plans of the same size and about the same load. Figures are per token, their unit of
uncertainty is the document. `moescope.measure.trials` runs the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from moescope.axes import ExpertRef
from moescope.corpus import AnyText
from moescope.errors import BadInputError
from moescope.given import require_seed
from moescope.intervene.damage.choices import Prepared, prepare
from moescope.intervene.damage.edits import DamageEdit, damage_edit
from moescope.intervene.damage.scopes import Scopes
from moescope.intervene.damage.table import Selectivity, damage_table, selectivity
from moescope.measure.controls import (
    DEFAULT_CONTROLS,
    exceed_chance,
    lowest_p,
    require_room,
)
from moescope.measure.identity import describe_model, identity
from moescope.measure.journal import open_journal
from moescope.measure.saving import Saving
from moescope.measure.trials import Measured, Trial, TrialRunner, batch_budget
from moescope.measure.windows import TextWindow, as_windows
from moescope.models.accept import AnyModel, as_model
from moescope.models.edits import check_edits, select_experts
from moescope.models.loading import LoadedModel
from moescope.plan import Plan, PlanEntry
from moescope.progress import OnProgress, quiet
from moescope.result import Tabular
from moescope.run.reader import Run
from moescope.words import counted

ABLATION = "ablation"
"""The kind of result that a measurement is."""

Match = Literal["load", "target-load", "size"]

Experts = Plan | str | Sequence[str | ExpertRef]


@dataclass(frozen=True, kw_only=True)
class TrialsResult(Tabular):
    """What any measurement by trials holds.

    Attributes:
        edit: what was done to experts.
        table: one row for each trial and group of documents.
        scopes: documents, domains and targets.
        measured: sums by window, and what was computed.
        model: what was measured.
        identity: everything that decided the numbers.
        seed: of random numbers.
    """

    edit: DamageEdit
    table: pa.Table
    scopes: Scopes
    measured: Measured
    model: dict[str, Any]
    identity: dict[str, Any]
    seed: int

    @property
    def saving(self) -> Saving:
        """What was computed, beside what full passes would have."""
        return self.measured.saving

    def to_arrow(self) -> pa.Table:
        """One row for each trial and group of documents."""
        return self.table


@dataclass(frozen=True, kw_only=True)
class Damage(TrialsResult):
    """What `measure_damage` found; see `TrialsResult` too. Trials are the plan and each control.

    Attributes:
        entries: the experts, with the reasons of their plan.
        match: what the controls share with the plan besides its size.
        requested: controls asked for.
        prepared: controls, and how often the experts of each trial are chosen.
        chance: for k = 0, 1, … the chance that at most k controls are as harmful as a plan of no
            interest (see `moescope.measure.controls.exceed_chance`).
        selectivity: damage on target against off target; None without targets.
    """

    entries: tuple[PlanEntry, ...]
    match: Match
    requested: int
    prepared: Prepared
    chance: list[float]
    selectivity: Selectivity | None

    def __repr__(self) -> str:
        size, controls = len(self.entries), self.num_controls
        return f"<Damage of {size} experts ({self.edit.name}), {counted(controls, 'control')}>"

    @property
    def experts(self) -> tuple[ExpertRef, ...]:
        """The plan's experts."""
        return tuple(entry.expert for entry in self.entries)

    @property
    def num_controls(self) -> int:
        """Controls that were measured."""
        return 0 if self.prepared.controls is None else len(self.prepared.controls.plans)

    def plan_rows(self) -> list[dict[str, Any]]:
        """The rows of the plan itself, one for each group of documents."""
        return [row for row in self.table.to_pylist() if row["trial"] == "plan"]

    def about(self) -> dict[str, Any]:
        """What is known besides the table, as JSON takes it."""
        return {
            "trials": "plan",
            "experts": [{**e._asdict(), "expert": str(e.expert)} for e in self.entries],
            "layer_loads": self.prepared.layer_loads,
            "controls": self._describe_controls(),
            "selectivity": self.selectivity and self.selectivity._asdict(),
        }

    def _describe_controls(self) -> dict[str, Any]:
        controls = self.prepared.controls
        listed: list[dict[str, Any]] = []
        if controls is not None:
            plans = ([str(e) for e in plan] for plan in controls.plans)
            figures = zip(plans, controls.ratios.tolist(), controls.worst.tolist(), strict=True)
            names = ("experts", "load_ratio", "worst_layer")
            listed = [dict(zip(names, row, strict=True)) for row in figures]
        return {
            "match": self.match,
            "requested": self.requested,
            "possible": controls and controls.possible,
            "matched": controls and controls.matched,
            "chance_beyond_all": self.chance[0] if self.chance else None,
            "p_lowest": lowest_p(self.chance),
            "plans": listed,
        }


def measure_damage(
    model: AnyModel,
    texts: AnyText | Run | Sequence[TextWindow],
    experts: Experts,
    *,
    edit: str = "zero",
    targets: Sequence[str] = (),
    controls: int = DEFAULT_CONTROLS,
    match: Match = "load",
    seed: int = 0,
    batch_tokens: int | None = None,
    folder: Path | None = None,
    resume: bool = False,
    on_progress: OnProgress = quiet,
) -> Damage:
    """Measure what an edit of some experts does, by domain, beside random controls.

    Change of cross-entropy (nats per token), KL(plain‖edited) (nats per token, full vocabulary) and
    the share of tokens whose preferred next token changes, over the counted tokens that have a
    counted next token. Intervals: over documents, the same ones for the plain and the edited
    model. The chance level is that of the controls.

    Args:
        model: a hub id, a folder, a `ModelSpec`, or a `LoadedModel`.
        texts: a path, a `CorpusSpec`, a list of texts (see `moescope.corpus.as_text`), a run, or
            windows that were chosen already.
        experts: a plan, selectors such as ``"L5E9,L3E0-3"``, or experts.
        edit: ``zero``, ``zero-renormalize``, ``mask``, ``scale=0.5``; see `damage_edit`.
        targets: domains that the experts are supposed to serve.
        controls: random plans to measure beside it, fewer where there are not so many of like load;
            0 for none.
        match: what controls share with the plan besides the number of experts in each layer: the
            load on all text, the load on the target domains, or nothing.
        seed: of the controls.
        batch_tokens: tokens run at once, padding included; automatic by default.
        folder: where results are kept as they come; None keeps nothing.
        resume: go on with what the folder holds.
        on_progress: told after each trial of each batch.

    Returns:
        See `Damage`.

    Raises:
        BadInputError: experts that do not exist, a plan of another model, an unknown edit or
            target, or a plan that leaves too few experts for controls.
        ModelError: an edit that this architecture cannot take.
        RunError: the folder holds another measurement.
    """
    require_seed(seed)
    loaded = as_model(model)
    windows = as_windows(loaded, texts)
    plan, chosen = make_plan(loaded, experts), damage_edit(edit)
    check_edits(loaded.anatomy, [chosen.make(plan.experts)])
    if controls:
        require_room(plan.experts, {m.layer_idx: m.num_experts for m in loaded.anatomy.layers})
    scopes, batch = Scopes(windows, targets), batch_budget(loaded, batch_tokens)
    if match == "target-load" and not scopes.targets:
        raise BadInputError("`match=target-load` needs a target; name one with `target=DOMAIN`")
    on = scopes.windows_on_target() if match == "target-load" else np.ones(len(windows), np.bool_)
    settings = {
        "batch_tokens": batch,
        "kind": "plan", "experts": [str(r) for r in plan.experts], "edit": edit, "match": match,
        "controls": controls, "targets": scopes.targets, "seed": seed,
    }  # fmt: skip
    made_of = identity(loaded, windows, **settings)
    with open_journal(folder, ABLATION, made_of, resume=resume) as journal:
        prepared = prepare(
            loaded, windows, plan.experts, journal, controls=controls, by_load=match != "size",
            matched_on=on, seed=seed, batch_tokens=batch,
        )  # fmt: skip
        others = () if prepared.controls is None else prepared.controls.plans
        trials = [
            Trial("plan" if j == 0 else f"control-{j:02d}", (chosen.make(refs),))
            for j, refs in enumerate([plan.experts, *others])
        ]
        layers = loaded.anatomy.select(tuple(sorted({r.layer_idx for r in plan.experts})))
        measured = TrialRunner(
            loaded, windows, layers, batch_tokens=batch, journal=journal, on_progress=on_progress
        ).run(trials)
    chance = exceed_chance(plan.experts, others, seed) if others else []
    return Damage(
        entries=plan.entries,
        edit=chosen,
        match=match,
        requested=controls,
        prepared=prepared,
        chance=chance,
        table=damage_table(measured, prepared, scopes, chance),
        selectivity=selectivity(measured, prepared, scopes, chance),
        scopes=scopes,
        measured=measured,
        model=describe_model(loaded),
        identity=made_of,
        seed=seed,
    )


def make_plan(loaded: LoadedModel, experts: Experts, reason: str = "named by hand") -> Plan:
    """A plan for this model, from selectors, experts or a plan that is checked.

    Args:
        loaded: the model.
        experts: as in `measure_damage`.
        reason: of experts that come without one.

    Raises:
        BadInputError: experts that do not exist, or a plan of another model.
    """
    if isinstance(experts, Plan):
        experts.require_model(describe_model(loaded))
        return experts
    names = experts.split(",") if isinstance(experts, str) else [str(e) for e in experts]
    refs = select_experts(loaded.anatomy, names)
    entries = [PlanEntry(ref, reason) for ref in refs]
    return Plan.of(describe_model(loaded), entries, "moescope ablate")
