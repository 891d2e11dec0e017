"""Which experts serve a domain: chosen on one half of a run's documents, confirmed on the other.

No model is needed: the counts of a run are enough. `moescope.adapt.scores` has the scores and the
rules, `moescope.adapt.selection` what comes out, in sentences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moescope.adapt.evidence import Evidence, Mask, read_evidence, require_domains
from moescope.adapt.importance import Foretold, find_importance, foretell
from moescope.adapt.scores import SCORES, Floats, Rule, Sums, scored
from moescope.adapt.selection import Selection, Tested, about_run, confirmed_on, coverage, used_more
from moescope.errors import BadInputError
from moescope.given import require_seed
from moescope.metrics.runs import AnalyzedRun, AnyRun, open_run
from moescope.metrics.view import Layer
from moescope.plan import Plan, PlanEntry, PlanSplit
from moescope.words import listing, percent

RESAMPLES = 200
"""Resamples of the documents that choose."""

DEFAULT_SCORE = "risk-difference"

_RANDOM, _RESAMPLED, _FORETOLD = 11, 12, 13
"""Streams of random numbers."""


def select_experts(
    run: AnyRun,
    domains: str | Sequence[str],
    *,
    against: str | Sequence[str] = (),
    score: str = DEFAULT_SCORE,
    per_layer: int | None = None,
    top_p: float | None = None,
    budget: float | None = None,
    seed: int = 0,
) -> Selection:
    """Choose the experts that serve a domain, and say on other documents whether they do.

    The documents of every domain are halved. One half chooses: each expert gets a score, and its
    share of the layer's; the rule takes the largest. The other half tests whether the chosen are
    used more in the domain than in the other text.

    Args:
        run: a finished run, or its folder.
        domains: one or more that the experts are to serve; their text is taken together.
        against: domains to compare with; all others by default.
        score: one of `moescope.adapt.scores.SCORES`.
        per_layer: choose so many experts of each layer.
        top_p: choose the fewest of each layer that have so large a share of its score.
        budget: choose so large a share of all experts, such as 0.05.
        seed: of the halves, the resamples and ``random``.

    Returns:
        See `Selection`.

    Raises:
        BadInputError: an unknown domain or score, not one rule, a rule that chooses nothing, or too
            few documents.
        RunError: no finished run, or one that does not know what the score needs.

    Example::

        found = select_experts("my-run", "law", budget=0.05)
        print(found.answers[0])
        found.plan.write("plan.json")
    """
    require_seed(seed)
    opened, rule = open_run(run), Rule(per_layer, top_p, budget)
    rule.require(score, opened.shape.num_experts)
    target, others = require_domains(opened, domains, against)
    evidence, split = read_evidence(opened, gate=score == "gate"), PlanSplit(seed=seed)
    first = evidence.first_half(split)
    evidence.require_documents(target, others, [first, ~first])
    chooser = _Chooser(evidence, score, rule, seed, tuple(target), tuple(others))
    found = chooser.choose(*chooser.sides(first))
    if not found.chosen.any():
        raise BadInputError(
            f"no expert has a `score={score}` above 0 on {listing(target)}; give another score"
        )
    inside, outside = (evidence.of(names) & ~first for names in (target, others))
    tested = confirmed_on(evidence, found.rows, inside, outside, seed=seed)
    about = {
        "score": score,
        "formula": SCORES[score],
        "rule": {name: v for name, v in rule._asdict().items() if v is not None},
        **about_run(opened, target, others, seed),
        "documents": {"chose": evidence.number([*target, *others], first),
                      "confirmed": evidence.number([*target, *others], ~first)},
        "used_more": used_more(evidence, inside, outside),
        "covers": coverage(opened, evidence, found.chosen, chooser.sides(~first)),
    }  # fmt: skip
    tables = {
        "experts": _experts(chooser, found, tested, first),
        "domains": _overlap(chooser, found.chosen, first),
    }
    plan = Plan.of(
        opened.manifest.model, _entries(chooser, found, tested),
        f"moescope select {version('moescope')}", by_weights=True, split=split, found_by=about,
    )  # fmt: skip
    return Selection(plan, tables, about, _foretold(opened, chooser, found))


@dataclass(frozen=True)
class _Found:
    """Of all experts, (M,): score, share of the layer's, and who is chosen."""

    value: Floats
    share: Floats
    chosen: NDArray[np.bool_]

    @property
    def rows(self) -> NDArray[np.int64]:
        """The places of the chosen."""
        return np.flatnonzero(self.chosen)


@dataclass(frozen=True)
class _Chooser:
    """A score and a rule, on the counts of a run, for a target against other domains."""

    evidence: Evidence
    score: str
    rule: Rule
    seed: int
    target: tuple[str, ...]
    others: tuple[str, ...]

    def sides(self, weights: Floats | Mask) -> tuple[Sums, Sums]:
        """Sums over the documents of the target and of the others, (N,) or (B, N) weights."""
        here, there = (self.evidence.of(names) for names in (self.target, self.others))
        return self.evidence.sums(weights * here), self.evidence.sums(weights * there)

    def choose(self, inside: Sums, outside: Sums) -> _Found:
        """Score every expert and choose; (…, M)."""
        sizes, number = self.evidence.sizes, len(self.evidence.experts)
        noise = np.random.default_rng([self.seed, _RANDOM]).random(number)
        value, share = scored(self.score, inside, outside, sizes, noise)
        chosen = [self.rule.choose(row, sizes) for row in share.reshape(-1, number)]
        return _Found(value, share, np.stack(chosen).reshape(share.shape))


def _experts(chooser: _Chooser, found: _Found, tested: Tested, first: Mask) -> pa.Table:
    """One row for each chosen expert, the largest share first."""
    rows, held = found.rows, chooser.choose(*chooser.sides(~first))
    columns: dict[str, Any] = {
        **chooser.evidence.names(rows),
        "score": found.value[rows],
        "score_held_out": held.value[rows],
        "share": found.share[rows],
        **tested.columns(),
        "chosen_again": _chosen_again(chooser, first)[rows],
        "chosen_by_other_half": held.chosen[rows],
    }
    order = np.argsort(-found.share[rows], kind="stable")
    return pa.table({name: pa.array(np.asarray(v)[order]) for name, v in columns.items()})


def _chosen_again(chooser: _Chooser, first: Mask) -> Floats:
    """How often each expert is chosen when the documents that choose are resampled, (M,).

    NaN for a choice that does not depend on them.
    """
    if chooser.score == "random":
        return np.full(len(chooser.evidence.experts), np.nan)
    rng = np.random.default_rng([chooser.seed, _RESAMPLED])
    times = chooser.evidence.resamples(first, RESAMPLES, rng)
    again: Floats = chooser.choose(*chooser.sides(times)).chosen.mean(0)
    return again


def _entries(chooser: _Chooser, found: _Found, tested: Tested) -> list[PlanEntry]:
    name, where, out = chooser.score, listing(chooser.target), []
    for i, row in enumerate(found.rows):
        rates = f"{percent(tested.rates.rate_with[i])} of {where}"
        rates += f", {percent(tested.rates.rate_without[i])} of other text on held-out documents"
        why = f"chosen by {name}; {rates}: {'' if tested.confirmed[i] else 'not '}confirmed"
        expert = chooser.evidence.experts[row]
        out.append(PlanEntry(expert, why, float(found.value[row])))
    return out


def _foretold(run: AnalyzedRun, chooser: _Chooser, found: _Found) -> Foretold | None:
    importance = find_importance(run, chooser.target)
    if importance is None:
        return None
    rng = np.random.default_rng([chooser.seed, _FORETOLD])
    return foretell(importance, chooser.evidence.layers, found.value, found.chosen, rng)


def _overlap(chooser: _Chooser, chosen: NDArray[np.bool_], first: Mask) -> pa.Table:
    """For every domain: how much of it the plan covers, and who would be chosen for it alone."""
    evidence, rows = chooser.evidence, []
    here, there = chooser.sides(first)
    for name in evidence.domains:
        mask = evidence.of([name])
        if not (mask & first).any() or not (mask & ~first).any():
            continue
        own, held = evidence.sums(mask & first), evidence.sums(mask & ~first).counts
        role, rest = "left out", here.plus(there)
        if name in chooser.target:
            role, rest = "target", there
        elif name in chooser.others:
            role, rest = "compared with", rest.plus(own, -1)
        covered = float(held[chosen].sum() / held.sum())
        row = {"domain": name, "role": role, "documents": int(mask.sum()), "covered": covered}
        if chooser.score != "random":
            alone = chooser.choose(own, rest).chosen
            row |= {
                "chosen_alone": int(alone.sum()),
                "shared": int((alone & chosen).sum()),
                "shared_by_chance": _by_chance(evidence.layers, alone, chosen),
            }
        rows.append(row)
    return pa.Table.from_pylist(rows)


def _by_chance(layers: Sequence[Layer], a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Experts that two random choices with as many in each layer would share."""
    cuts = np.cumsum([layer.num_experts for layer in layers])[:-1]
    pairs = zip(np.split(a, cuts), np.split(b, cuts), strict=True)
    return float(sum(x.sum() * y.sum() / x.size for x, y in pairs))
