"""What a selection of experts gives: a plan, tables, and sentences that follow by rule."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moescope.adapt.evidence import Evidence, Mask
from moescope.adapt.importance import Foretold
from moescope.adapt.scores import Floats, Sums
from moescope.intervene.contrast.statistics import RateDifferences, compare_rates, smallest_p
from moescope.metrics.rates import difference_interval, rate_interval
from moescope.metrics.runs import AnalyzedRun
from moescope.metrics.statistics import benjamini_hochberg
from moescope.plan import Plan
from moescope.result import Note, Tabular, plain
from moescope.words import counted, listing, percent, ranges

LEVEL = 0.05
"""A chosen expert with a smaller q is confirmed."""


class Tested(NamedTuple):
    """Of each chosen expert, on documents that did not choose: ``rates`` with interval and p.

    ``q``: Benjamini–Hochberg over the chosen. ``confirmed``: q < 0.05, and the whole interval of
    the difference has the sign that is expected.
    """

    rates: RateDifferences
    q: Floats
    confirmed: NDArray[np.bool_]

    def columns(self) -> dict[str, Any]:
        """As columns of a table."""
        r = self.rates
        return {
            "rate": r.rate_with, "rate_elsewhere": r.rate_without, "delta": r.delta,
            "delta_low": r.low, "delta_high": r.high, "p": r.p, "q": self.q,
            "confirmed": self.confirmed,
        }  # fmt: skip


def confirmed_on(
    evidence: Evidence,
    rows: NDArray[np.int64],
    inside: Mask,
    outside: Mask,
    signs: NDArray[np.int64] | int = 1,
    *,
    seed: int,
) -> Tested:
    """Test on some documents whether these experts are used more inside than outside.

    Labels are permuted over documents. ``signs``: −1 for an expert that is to be used less.
    """
    one, other = (evidence.documents(mask, rows) for mask in (inside, outside))
    # experts of different layers lend each other nothing
    made = compare_rates(one, other, paired=False, seed=seed, families=[1] * rows.size)
    q = benjamini_hochberg(made.p)
    nearest = np.where(np.asarray(signs) > 0, made.low, -made.high)
    return Tested(made, q, (q < LEVEL) & (nearest > 0))


def used_more(evidence: Evidence, inside: Mask, outside: Mask) -> float:
    """The share of all experts whose rate is higher inside, by its 95 % interval over documents."""
    every, ends, rates = np.arange(len(evidence.experts)), [], []
    for mask in (inside, outside):
        side = evidence.documents(mask, every)
        rates.append(side.counts.sum(0) / side.tokens.sum())
        ends.append(rate_interval(side.counts, side.tokens, evidence.sizes))
    found = difference_interval(rates[0], ends[0], rates[1], ends[1])
    return float((found.low > 0).mean())


def about_run(run: AnalyzedRun, target: list[str], others: list[str], seed: int) -> dict[str, Any]:
    """Which run, by its folder and by its text, and which domains of it."""
    return {
        "run": str(run.path),
        "fingerprint": run.manifest.progress["fingerprint"],
        "domains": target,
        "against": others,
        "seed": seed,
    }


def coverage(
    run: AnalyzedRun, evidence: Evidence, chosen: NDArray[np.bool_], sides: tuple[Sums, Sums]
) -> dict[str, Any]:
    """What a choice holds: experts, parameters, and assignments of the target and of other text.

    ``by_chance``: assignments that as many random experts of each layer take on average.
    ``parameters`` is None where the run does not say how large an expert is.
    """
    model = run.manifest.model
    idle = sum(e - k for e, k in zip(model["num_experts"], model["top_k"], strict=True))
    size, rest = divmod(model["total_params"] - model["active_params"], max(idle, 1))
    known = model["layers"] == model["moe_layers"] and size and not rest
    cuts = np.cumsum(evidence.sizes)[:-1]
    taken = [part.mean() for part in np.split(chosen, cuts)]
    choices = [layer.top_k for layer in evidence.layers]
    target, other = (float(s.counts[chosen].sum() / s.counts.sum()) for s in sides)
    number = int(chosen.sum())
    return {
        "experts": number,
        "of": int(chosen.size),
        "parameters": number * size if known else None,
        "of_parameters": model["total_params"],
        "target": target,
        "elsewhere": other,
        "by_chance": float(np.average(taken, weights=choices)),
    }


@dataclass(frozen=True)
class Selection(Tabular):
    """Experts that were chosen, or tested, for a domain.

    Attributes:
        plan: the experts.
        tables: ``experts``: one row for each, the largest share first; ``domains``: what the plan
            covers of every domain, and who would be chosen for it alone (not of a plan that was
            tested on another run).
        about: how it was done, and what the plan covers; JSON values.
        foretold: what a sweep of every expert that lies in the run says of the choice; None where
            there is none.
    """

    plan: Plan
    tables: Mapping[str, pa.Table]
    about: Mapping[str, Any]
    foretold: Foretold | None

    def __repr__(self) -> str:
        confirmed, number = self.confirmed, len(self.plan.experts)
        return f"<Selection of {counted(number, 'expert')}, {confirmed} confirmed>"

    @property
    def confirmed(self) -> int:
        """Experts whose difference is confirmed on documents that did not choose."""
        return sum(self.tables["experts"]["confirmed"].to_pylist())

    @property
    def answers(self) -> list[str]:
        """The findings as sentences; the first is the verdict."""
        return [
            *_verdict(self),
            *_importance(self.foretold),
            _covers(self),
            *_whose(self),
            *_stability(self),
        ]

    @property
    def notes(self) -> list[Note]:
        """What limits them."""
        return [Note("warn", text) for text in _limits(self)]

    def to_arrow(self) -> pa.Table:
        """One row for each expert."""
        return self.tables["experts"]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        found: dict[str, Any] = plain(
            {
                "answers": self.answers,
                "notes": self.notes,
                **self.about,
                "measured": self.foretold,
                **{name: table.to_pylist() for name, table in self.tables.items()},
            }
        )
        return found


def _verdict(made: Selection) -> Iterator[str]:
    number, confirmed = len(made.plan.experts), made.confirmed
    where, which = listing(made.about["domains"]), "chosen expert"
    on = "on documents that had no part in the choice"
    if "chose" not in made.about["documents"]:
        which, on = "expert of the plan", f"on the documents of {made.about['run']}"
        if made.about.get("unknown"):
            on += ", some of which may have chosen them"
    less = any((e.setting or "").startswith("-") for e in made.plan.entries)
    used = f"used more{' (or less, as planned)' * less} in {where} than in {_rest(made)}, {on}"
    if number == 1:
        text = f"The {which} is {'' if confirmed else 'not shown to be '}{used}"
    else:
        many = which.replace("expert", "experts")
        who = {0: f"None of the {number}", number: f"All {number}"}
        text = f"{who.get(confirmed, f'{confirmed} of the {number}')} {many} "
        text += f"{'are' if confirmed > 1 else 'is'} {'' if confirmed else 'shown to be '}{used}"
    text += f" (of all experts {percent(made.about['used_more'])} are, by their intervals)"
    yield f"{text}; {_worth(made.foretold)}."


def _rest(made: Selection) -> str:
    """What the domains were compared with: one or two by their names."""
    against = made.about["against"]
    return listing(against) if len(against) <= 2 else "the other text"


def _worth(found: Foretold | None) -> str:
    if found is None or not found.chosen:
        return "whether the model needs them more than others was not measured"
    where = f"in {_layers(found)}, where it was measured, "
    if found.p_random < LEVEL:
        return f"{where}the model needs them more than as many random experts"
    return f"{where}it is not shown that the model needs them more than as many random experts"


def _layers(found: Foretold) -> str:
    return f"layer{'s' if len(found.layers) > 1 else ''} {ranges(found.layers)}"


def _importance(found: Foretold | None) -> Iterator[str]:
    if found is None:
        return
    if math.isfinite(found.rho):
        if found.p < LEVEL and found.low > 0:
            says = "the score tells which experts matter"
        elif found.p < LEVEL and found.high < 0:
            says = "experts with a high score matter less there"
        else:
            says = "the score does not tell which experts matter"
        rho = f"ρ = {found.rho:.2f} [{found.low:.2f}, {found.high:.2f}]".replace("-", "−")
        yield (
            f"Over the {found.experts} experts of {_layers(found)}, {says} when one is taken away "
            f"({rho} with the change of cross-entropy on {found.text}, p = {found.p:.2g})."
        )
    if found.chosen:
        one, other = (f"{v:+.4f}".replace("-", "−") for v in (found.chosen_mean, found.random_mean))
        yield (
            f"Taking away one of the {found.chosen} that were chosen there changes cross-entropy "
            f"by {one} nats per token on average, one of as many random experts by {other} (p = "
            f"{found.p_random:.2g})."
        )


def _covers(made: Selection) -> str:
    c, where = made.about["covers"], listing(made.about["domains"])
    text = f"The plan is {c['experts']} of {c['of']} experts ({percent(c['experts'] / c['of'])})"
    if c["parameters"]:
        share = percent(c["parameters"] / c["of_parameters"])
        text += f", {c['parameters']:,} of {c['of_parameters']:,} parameters ({share})"
    return (
        f"{text}. They take {percent(c['target'])} of the assignments of {where} and "
        f"{percent(c['elsewhere'])} of those of {_rest(made)}; as many random experts of the same "
        f"layers would take {percent(c['by_chance'])}."
    )


def _stability(made: Selection) -> Iterator[str]:
    table = made.tables["experts"]
    if "chosen_again" not in table.column_names:
        return
    again = np.asarray(table["chosen_again"], np.float64)
    if np.isnan(again).any():
        return
    number, chance = len(again), made.about["covers"]["experts"] / made.about["covers"]["of"]
    other = sum(table["chosen_by_other_half"].to_pylist())
    yield (
        f"If the documents that chose are resampled, {percent(float(again.mean()))} of the plan is "
        f"chosen again on average; the other half of the documents would choose {other} of the "
        f"{number} (a random choice {chance * number:.1f})."
    )
    rows = [r for r in made.tables["domains"].to_pylist() if r["role"] != "target" and r["shared"]]
    if rows:
        most = max(rows, key=lambda r: r["shared"])
        yield (
            f"By the same rule {most['shared']} of the {number} would also be chosen for "
            f"{most['domain']} (by chance {most['shared_by_chance']:.1f}); no other domain shares "
            "more."
        )


def _whose(made: Selection) -> Iterator[str]:
    """What the choice is not: of the domains' own, or comparable with so much text."""
    against, rows = made.about["against"], made.tables.get("domains")
    if rows is not None:
        table = rows.to_pylist()
        own = max((r["covered"] for r in table if r["role"] == "target"), default=0.0)
        more = [r for r in table if r["role"] != "target" and r["covered"] >= own]
        if more:
            named = listing(f"{r['domain']} ({percent(r['covered'])})" for r in more)
            yield (
                f"These experts are not of {listing(made.about['domains'])} alone: as large a "
                f"share of the assignments ({percent(own)}) or a larger one is theirs in {named}."
            )
    if not made.confirmed and len(against) > 1:
        yield (
            f"The domain was compared with {counted(len(against), 'domain')} together. Where some "
            f"of them are like it, no expert differs; `against` names those to compare with."
        )


def _limits(made: Selection) -> Iterator[str]:
    documents = made.about["documents"]
    if made.about.get("unknown"):
        yield (
            "It is not known whether documents took part in the choice already: "
            f"{made.about['unknown']}."
        )
    if documents.get("left_out"):
        yield f"{counted(documents['left_out'], 'document')} took part in the choice: left out."
    rows = made.tables.get("domains")
    if rows is None:
        return
    sizes = {r["role"]: 0 for r in rows.to_pylist()}
    for r in rows.to_pylist():
        sizes[r["role"]] += r["documents"] // 2
    number = len(made.plan.experts)
    least = smallest_p(sizes["target"], sizes.get("compared with", 0), False, number)
    if least > LEVEL / number:
        yield (
            f"So few documents give p = {least:.2g} at best, and one of {number} experts by itself "
            f"needs {LEVEL / number:.2g}: only several together can be confirmed; give more text."
        )
    if made.about["score"] in ("token", "gate"):
        yield (
            f"{made.about['score']} ranks by use alone: experts that are busy everywhere come "
            "first. Delta says which are used more here than elsewhere."
        )
