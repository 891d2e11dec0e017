"""One sentence or two about an expert, made from its numbers by rule. No language model.

Every threshold is a named constant here, and is listed in the concept page. What does not pass is
not claimed; where nothing stands out, that is what is said.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from moescope.metrics.balance import COLD_SHARE, DEAD_SHARE
from moescope.metrics.intervals import FEW_DOCUMENTS, MIN_CLUSTERS
from moescope.metrics.specialization import MUCH_LIFT, RULE, much
from moescope.profiles.facts import Absent, Part
from moescope.words import counted, listing

MIN_ASSIGNMENTS = 100
"""With fewer assignments nothing but the load is said."""

HIGH_ASSIGNMENTS, HIGH_DOCUMENTS = 1000, FEW_DOCUMENTS
"""From here on the summary is called sure: high."""

MODERATE_ASSIGNMENTS, MODERATE_DOCUMENTS = 300, 10
"""From here on: moderate; below: low."""

DEAD_EXPECTED = 10
"""An expert is called dead or cold only if an expert at the threshold would have been chosen so
often."""

TOKEN_EXPERT_SHARE = 0.5
"""A token expert gives so much of its assignments to one token id."""

TYPICAL_LIFT = 1.5
"""A token is typical of an expert at this lift over the expert's overall rate."""

REPEATED_OVERLAP = 0.5
"""A list of tokens is not claimed where two halves of the documents share less of it. Tokens in
that could not be compared are named with that said; pushes are not named then."""

SUPER_RATIO = 10.0
"""A super expert's largest output component is so many times the median expert's, besides the
published rule."""

THRESHOLDS = {
    "use": RULE, "lift": MUCH_LIFT, "typical": TYPICAL_LIFT, "dead": DEAD_SHARE, "cold": COLD_SHARE,
    "super": SUPER_RATIO, "few_assignments": MIN_ASSIGNMENTS, "few_documents": MIN_CLUSTERS,
    "moderate": (MODERATE_ASSIGNMENTS, MODERATE_DOCUMENTS),
    "high": (HIGH_ASSIGNMENTS, HIGH_DOCUMENTS),
}  # fmt: skip
"""Those that a page names and applies."""

_NAMED_TOKENS = 3


class Role(NamedTuple):
    """What the expert is, by rule: ``kind``, a few words, and the domain or token it is about."""

    kind: str
    words: str
    about: str | None = None


class Sureness(NamedTuple):
    """``level`` (high, moderate, low, none) by rule from assignments and documents.

    ``domain``: the one that the documents, and of a domain that is served the assignments, are of.
    ``even``: documents that would hold as much if all held alike, where that is below half.
    """

    level: str
    assignments: int
    documents: int
    domain: str | None = None
    even: int | None = None


def describe(p: Part) -> dict[str, Any]:
    """What the rules say of a profile: the columns ``summary``, ``flags``, role and sureness."""
    flags = flags_of(p)
    role = role_of(p, flags)
    sure = sureness(p, role)
    return {
        "summary": _summary(p, role, sure, flags),
        "flags": flags,
        **{f"role_{name}": value for name, value in role._asdict().items()},
        **{f"sure_{name}": value for name, value in sure._asdict().items()},
    }


def flags_of(p: Part) -> list[str]:
    """Flags that hold, each with enough text to tell."""
    load, assignments = p.load, p.load.tokens * p.load.top_k
    flags = []
    if load.count == 0:
        flags.append("never chosen")
    elif load.load < DEAD_SHARE and assignments * DEAD_SHARE >= DEAD_EXPECTED:
        flags.append("dead")
    elif load.load < COLD_SHARE and assignments * COLD_SHARE >= DEAD_EXPECTED:
        flags.append("cold")
    added, words = p.contribution, p.vocabulary
    if not isinstance(added, Absent) and added.super_rule and added.peak_ratio >= SUPER_RATIO:
        flags.append("super")
    enough = load.count >= MIN_ASSIGNMENTS
    if not isinstance(words, Absent) and enough and words.top_share >= TOKEN_EXPERT_SHARE:
        flags.append("token expert")
    return flags


def level_of(assignments: int, documents: int) -> str:
    """How sure a profile is that rests on so much text."""
    if assignments < MIN_ASSIGNMENTS or documents < MIN_CLUSTERS:
        return "none"
    if assignments >= HIGH_ASSIGNMENTS and documents >= HIGH_DOCUMENTS:
        return "high"
    enough = assignments >= MODERATE_ASSIGNMENTS and documents >= MODERATE_DOCUMENTS
    return "moderate" if enough else "low"


def sureness(p: Part, role: Role) -> Sureness:
    """How much text stands behind what is said first of an expert.

    Of a domain that it serves: its assignments there, and their documents, fewer where a few hold
    most (the test then errs more often). Of one that it is used less for: the domain's documents;
    where no domain stands out, those of the smallest that was compared, for a difference there
    would go unseen first.
    """
    count, documents, name, even = p.load.count, p.load.documents, None, None
    if role.kind in ("domain", "avoids", "none"):
        tested = [d for d in p.domains if math.isfinite(d.q) and role.about in (None, d.domain)]
        least = min(tested, key=lambda d: d.of_documents)
        name, documents = least.domain, min(documents, least.of_documents)
        if role.kind == "domain":
            count, documents = least.count, least.documents
            even = None if 2 * least.even_documents >= documents else round(least.even_documents)
    level = level_of(count, documents if even is None else even)
    if level == "none" and not _too_few(p.load):
        level = "low"
    return Sureness(level, count, documents, name, even)


def _too_few(load: Part) -> bool:
    return level_of(load.count, load.documents) == "none"


def role_of(p: Part, flags: Sequence[str]) -> Role:
    """What the expert is, the first rule that applies.

    Kinds: ``never chosen``, ``dead``, ``too few tokens``, ``token expert``, ``domain``,
    ``avoids``, ``none`` (no domain stands out), ``untested``.
    """
    for kind in ("never chosen", "dead"):
        if kind in flags:
            return Role(kind, kind)
    if _too_few(p.load):
        return Role("too few tokens", "too few tokens")
    if "token expert" in flags:
        token, share = p.vocabulary.top_token, p.vocabulary.top_share
        return Role("token expert", f"token expert: {quote(token)} {_percent(share)}", token)
    domains = p.domains
    if isinstance(domains, Absent) or not any(math.isfinite(d.q) for d in domains):
        return Role("untested", "domains were not compared")
    for kind, way, words in (("domain", "more", "serves"), ("avoids", "less", "used less for")):
        if found := _used(p, way):
            first = found[0]
            also = f" and {len(found) - 1} more" if len(found) > 1 else ""
            return Role(kind, f"{words} {first.domain}, {_times(first.lift)}{also}", first.domain)
    return Role("none", "no domain stands out")


def _used(p: Part, way: str) -> list[Part]:
    """Domains that the expert is used ``more`` or ``less`` for, by the careful end of the lift."""
    if isinstance(p.domains, Absent):
        return []
    found = [d for d in p.domains if d.used == way]
    if way == "more":
        return sorted(found, key=lambda d: -_or(d.lift_low, d.lift))
    return sorted(found, key=lambda d: _or(d.lift_high, d.lift))


def _or(value: float, otherwise: float) -> float:
    return value if math.isfinite(value) else otherwise


def _summary(p: Part, role: Role, sure: Sureness, flags: Sequence[str]) -> str:
    """The summary: role, tokens, pushes, flags, and how sure it is."""
    name, load = str(p.expert), p.load
    if role.kind in ("never chosen", "dead", "too few tokens"):
        return f"{name} {_unused(role, load)}{_uses_clause(p)}."
    parts = [_role_clause(role, p), _tokens_clause(p.tokens_in, role), _push_clause(p.pushes)]
    text = name + "; ".join(part for part in parts if part) + "."
    extra = []
    if "cold" in flags:
        extra.append(
            f"Cold: {_percent(load.load)} of the layer's assignments on {load.tokens:,} tokens, "
            f"where an even share is {_percent(load.even)}."
        )
    if "super" in flags:
        extra.append(
            f"Super expert: its largest output component is {p.contribution.peak_ratio:,.0f}× the "
            "median expert's."
        )
    return " ".join([text, *extra, f"Sure: {sure.level} ({_resting_on(sure, role)})."])


def _resting_on(sure: Sureness, role: Role) -> str:
    documents = counted(sure.documents, "document")
    if role.kind == "domain":
        heap = "" if sure.even is None else f", so unevenly as if in {sure.even:,}"
        return f"{sure.assignments:,} assignments in {documents} of {sure.domain}{heap}"
    if role.kind == "avoids":
        return f"{sure.assignments:,} assignments; {documents} of {sure.domain}"
    if role.kind == "none":
        return (
            f"{sure.assignments:,} assignments; {documents} of the smallest domain, {sure.domain}"
        )
    return f"{sure.assignments:,} assignments in {documents}"


def _unused(role: Role, load: Part) -> str:
    if role.kind == "never chosen":
        return (
            f"was never chosen on {load.tokens:,} tokens; an even share would be "
            f"{_percent(load.rate_chance)} of them"
        )
    if role.kind == "dead":
        return (
            f"is dead on {load.tokens:,} tokens: chosen {load.count:,} times, "
            f"{_percent(load.load)} of the layer's assignments, where an even share is "
            f"{_percent(load.even)}"
        )
    return (
        f"served too few tokens to say more: {load.count:,} assignments in "
        f"{counted(load.documents, 'document')}, of {load.tokens:,} tokens"
    )


def _role_clause(role: Role, p: Part) -> str:
    domains, count = p.domains, f"{p.load.count:,}"
    if role.kind == "token expert":
        return (
            f" is a token expert: {_percent(p.vocabulary.top_share)} of its assignments are "
            f"{quote(p.vocabulary.top_token)}{_uses_clause(p)}"
        )
    if isinstance(domains, Absent):
        return f": {domains.absent}"
    if role.kind == "domain":
        first = _used(p, "more")[0]
        return (
            f" serves {first.domain} {_far(first)}more: {_percent(first.of_expert)} of its {count} "
            f"assignments are {first.domain} ({_percent(first.of_text)} of the text), "
            f"{_lift_words(first)}{_uses_clause(p, first)}"
        )
    if role.kind == "avoids":
        first = _used(p, "less")[0]
        return (
            f" is used {_far(first)}less for {first.domain}: {_lift_words(first)}"
            f"{_uses_clause(p, first)}"
        )
    if role.kind == "untested":
        return ": domains were not compared (one domain, or too few documents)"
    tested = [d for d in domains if math.isfinite(d.lift) and math.isfinite(d.q)]
    most = max(tested, key=lambda d: d.lift, default=None)
    if most is None:
        return ": no domain stands out"
    return f": no domain stands out (most: {most.domain}, {_times(most.lift)}, {_q(most.q)})"


def _far(d: Part) -> str:
    return "much " if much(d.lift) else ""


def _uses_clause(p: Part, said: Part | None = None) -> str:
    """All domains that the expert serves, or is used less for, besides the one that was said."""
    parts = []
    also = "also " if said else ""
    for way, words in (("more", f"{also}serves"), ("less", f"is {also}used less for")):
        named = [f"{d.domain} ({_times(d.lift)})" for d in _used(p, way) if d is not said]
        if named:
            parts.append(f"; it {words} {listing(named)}")
    return "".join(parts)


def _lift_words(d: Part) -> str:
    if not math.isfinite(d.lift):
        return f"served nowhere else, {_q(d.q)}"
    known = math.isfinite(d.lift_low)
    interval = f" [{_end(d.lift_low)}, {_end(d.lift_high)}]" if known else ""
    return f"{_times(d.lift)} the other domains' rate{interval}, {_q(d.q)}"


def _q(q: float) -> str:
    if q < 0.001:
        return "q < 0.001"
    return f"q = {q:.3f}" if q < 0.1 else f"q = {q:.2f}"


def _end(value: float) -> str:
    if not math.isfinite(value):
        return "∞"
    if value >= 1e6:  # its digits mean nothing
        return "> 1,000,000"
    return f"{value:.1f}" if value >= 1.95 else f"{value:.2f}"


def _tokens_clause(tokens: Part | Absent, role: Role) -> str:
    if isinstance(tokens, Absent):
        return ""
    typical = [t for t in tokens.rows if t.lift >= TYPICAL_LIFT]
    if role.kind == "token expert":
        typical = [t for t in typical if t.token != role.about]
    if not typical:
        return "" if role.kind == "token expert" else "no token stands out"
    if math.isfinite(tokens.overlap) and tokens.overlap < REPEATED_OVERLAP:
        return (
            "its tokens do not repeat between halves of the documents "
            f"(overlap {tokens.overlap:.2f})"
        )
    shown = typical[:_NAMED_TOKENS]
    named = ", ".join(quote(t.token) for t in shown)
    share = _percent(sum(t.share for t in shown))
    text = _percent(sum(t.share / t.lift for t in shown))
    of = f"{share} of {tokens.assignments:,} assignments, {text} of the text"
    alone = "" if math.isfinite(tokens.overlap) else "; not compared between halves"
    begin = "then" if role.kind == "token expert" else "most typical tokens"
    return f"{begin} {named} ({of}{alone})"


def _push_clause(pushes: Part | Absent) -> str:
    if isinstance(pushes, Absent):
        return ""
    if not pushes.promoted_overlap >= REPEATED_OVERLAP:
        return (
            "what it pushes towards does not repeat between halves of the documents "
            f"(overlap {pushes.promoted_overlap:.2f})"
        )
    named = ", ".join(quote(t.token) for t in pushes.promoted[:_NAMED_TOKENS])
    return f"it pushes towards {named} ({pushes.tokens:,} assignments measured)"


def quote(token: str) -> str:
    """A token in quotes, its line ends and tabs made visible; blanks where nothing else is."""
    shown = token.replace("\n", "⏎").replace("\t", "⇥").replace("\r", "␍")
    if not token.strip():
        shown = re.sub("  +", lambda found: f"␣×{len(found[0])}", shown).replace(" ", "␣")
    return f"‘{shown}’"


def _percent(share: float) -> str:
    if 0 < share < 0.01:
        return f"{100 * share:.2g} %"
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.1f} %"


def _times(value: float) -> str:
    if not math.isfinite(value):
        return "nowhere else"
    return f"{value:.1f}×" if value >= 0.95 else f"{value:.2f}×"
