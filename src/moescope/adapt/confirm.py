"""The experts of a plan on other documents: are they used more in the domain there too?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from moescope.adapt.evidence import Evidence, Mask, read_evidence, require_domains
from moescope.adapt.selection import Selection, about_run, confirmed_on, coverage, used_more
from moescope.axes import require_experts
from moescope.errors import BadInputError, MoescopeError
from moescope.given import require_seed
from moescope.metrics.runs import AnalyzedRun, AnyRun, open_run
from moescope.plan import Plan
from moescope.words import counted


def confirm_experts(
    run: AnyRun,
    plan: Plan,
    domains: str | Sequence[str] = (),
    *,
    against: str | Sequence[str] = (),
    seed: int = 0,
) -> Selection:
    """Do the experts of a plan serve the domain in another run too, on other documents?

    Documents of the run that chose them are left out, where that run is still at hand.

    Args:
        run: a finished run of the plan's model, or its folder.
        plan: of `select_experts`, or any other.
        domains: to test; by default those that the plan was made for.
        against: domains to compare with; by default those of the plan that the run has, or all.
        seed: of the permutations.

    Returns:
        A `Selection` with the same plan; nothing is chosen. An expert that the plan suppresses
        (``-2.0``) is expected to be used less.

    Raises:
        BadInputError: a plan of another model, or of the documents of this run; else as
            `select_experts`.
    """
    require_seed(seed)
    opened, by = open_run(run), plan.found_by
    plan.require_model(dict(opened.manifest.model))
    compared = against or [d for d in _names(by, "against") if d in opened.domains]
    target, others = require_domains(opened, domains or _names(by, "domains"), compared)
    shape = opened.shape
    require_experts(
        plan.experts, dict(zip(shape.layers, shape.num_experts, strict=True)), str(opened.path)
    )
    evidence = read_evidence(opened)
    fresh, unknown = _other_documents(opened, evidence, by)
    evidence.require_documents(target, others, [fresh])
    places = {ref: row for row, ref in enumerate(evidence.experts)}
    rows = np.asarray([places[ref] for ref in plan.experts])
    signs = np.asarray([-1 if (e.setting or "").startswith("-") else 1 for e in plan.entries])
    inside, outside = (evidence.of(names) & fresh for names in (target, others))
    tested = confirmed_on(evidence, rows, inside, outside, signs, seed=seed)
    scores = [np.nan if e.score is None else e.score for e in plan.entries]
    columns = {**evidence.names(rows), "score": scores, **tested.columns()}
    chosen = np.isin(np.arange(len(places)), rows)
    sums = evidence.sums(inside), evidence.sums(outside)
    about = {
        **about_run(opened, target, others, seed),
        "documents": {"confirmed": int((inside | outside).sum()), "left_out": int((~fresh).sum())},
        "unknown": unknown,
        "used_more": used_more(evidence, inside, outside),
        "covers": coverage(opened, evidence, chosen, sums),
    }
    tables = {"experts": pa.table({name: pa.array(values) for name, values in columns.items()})}
    return Selection(plan, tables, about, None)


def _names(found_by: dict[str, Any], what: str) -> list[str]:
    """Domains that a plan names; it may have been edited by hand."""
    given = found_by.get(what, [])
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        raise BadInputError(f"the plan's found_by.{what}: expected a list of names, got {given!r}")
    return given


def _other_documents(
    run: AnalyzedRun, evidence: Evidence, found_by: dict[str, Any]
) -> tuple[Mask, str]:
    """Documents that the run which chose does not have, (N,), and why that is not known.

    A document is known by its counts, as the same tokens of the same model choose the same experts;
    or, where rounding in another batch moved one, by its id, domain and number of tokens.
    """
    fresh = np.ones(evidence.tokens.size, np.bool_)
    fingerprint, where = found_by.get("fingerprint"), found_by.get("run")
    if not isinstance(fingerprint, str) or not isinstance(where, str):
        return fresh, "the plan does not say on which documents it was chosen"
    if fingerprint == run.manifest.progress["fingerprint"]:
        raise BadInputError(
            f"the plan was chosen on the documents of {run.path} itself, whose other half "
            "confirmed it already; give a run of other documents, such as one traced with "
            "`split=test`"
        )
    try:
        source = open_run(where)
        if source.manifest.progress["fingerprint"] != fingerprint:
            return fresh, f"{where} is no longer the run that chose the plan"
        seen = {mark for marks in read_evidence(source).marks() for mark in marks}
    except MoescopeError as error:
        return fresh, f"the run that chose the plan cannot be read: {error}"
    fresh = np.asarray([seen.isdisjoint(marks) for marks in evidence.marks()], np.bool_)
    if not fresh.any():
        raise BadInputError(
            f"all {counted(fresh.size, 'document')} of {run.path} are among those that the plan "
            "was chosen on; give a run of other documents, such as one traced with `split=test`"
        )
    return fresh, ""
