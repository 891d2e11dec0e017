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
from moescope.metrics.intervals import MIN_CLUSTERS
from moescope.profiles.facts import Absent, Part
from moescope.words import counted

MIN_ASSIGNMENTS = 100
"""With fewer assignments nothing but the load is said."""

HIGH_ASSIGNMENTS, HIGH_DOCUMENTS = 1000, 30
"""From here on the summary is called sure: high."""

MODERATE_ASSIGNMENTS, MODERATE_DOCUMENTS = 300, 10
"""From here on: moderate; below: low."""

DEAD_EXPECTED = 10
"""An expert is called dead or cold only if an expert at the threshold would have been chosen so
often."""

Q_LEVEL = 0.05
"""False discovery rate at which a domain may be claimed."""

STANDOUT_LIFT = 1.5
"""A domain stands out at this lift over the other domains; below its inverse it is avoided."""

TOKEN_EXPERT_SHARE = 0.5
"""A token expert gives so much of its assignments to one token id."""

TYPICAL_LIFT = 1.5
"""A token is typical of an expert at this lift over the expert's overall rate."""

MOSTLY_SHARE = 0.5
"""The typical tokens of an expert are what it mostly serves from this share of its assignments."""

REPEATED_OVERLAP = 0.5
"""A list of tokens is not claimed where two halves of the documents share less of it. Tokens in
that could not be compared are named with that said; pushes are not named then."""

SUPER_RATIO = 10.0
"""A super expert's largest output component is so many times the median expert's, besides the
published rule."""

THRESHOLDS = {
    "lift": STANDOUT_LIFT, "typical": TYPICAL_LIFT, "dead": DEAD_SHARE, "cold": COLD_SHARE,
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
    """``level`` (high, moderate, low, none) by rule from assignments and documents."""

    level: str
    assignments: int
    documents: int


def describe(p: Part) -> dict[str, Any]:
    """What the rules say of a profile: the columns ``summary``, ``flags``, role and sureness."""
    flags = flags_of(p)
    role, sure = role_of(p, flags), sureness(p.load)
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


def sureness(load: Part) -> Sureness:
    """How much text stands behind the profile."""
    count, documents = load.count, load.documents
    if count < MIN_ASSIGNMENTS or documents < MIN_CLUSTERS:
        level = "none"
    elif count >= HIGH_ASSIGNMENTS and documents >= HIGH_DOCUMENTS:
        level = "high"
    elif count >= MODERATE_ASSIGNMENTS and documents >= MODERATE_DOCUMENTS:
        level = "moderate"
    else:
        level = "low"
    return Sureness(level, count, documents)


def role_of(p: Part, flags: Sequence[str]) -> Role:
    """What the expert is, the first rule that applies.

    Kinds: ``never chosen``, ``dead``, ``too few tokens``, ``token expert``, ``domain``,
    ``avoids``, ``none`` (no domain stands out), ``untested``.
    """
    for kind in ("never chosen", "dead"):
        if kind in flags:
            return Role(kind, kind)
    if sureness(p.load).level == "none":
        return Role("too few tokens", "too few tokens")
    if "token expert" in flags:
        token, share = p.vocabulary.top_token, p.vocabulary.top_share
        return Role("token expert", f"token expert: {quote(token)} {_percent(share)}", token)
    domains = p.domains
    if isinstance(domains, Absent) or not any(math.isfinite(d.q) for d in domains):
        return Role("untested", "domains were not compared")
    for kind, verb, found in (
        ("domain", "serves", _standing_out(domains)),
        ("avoids", "avoids", _avoided(domains)),
    ):
        if found:
            first = found[0]
            return Role(kind, f"{verb} {first.domain}, {_times(first.lift)}", first.domain)
    return Role("none", "no domain stands out")


def _standing_out(domains: list[Part]) -> list[Part]:
    """Domains with q < 0.05 and lift ≥ 1.5, by the low end of the lift."""
    found = [d for d in domains if d.q < Q_LEVEL and d.lift >= STANDOUT_LIFT]
    return sorted(found, key=lambda d: -_or(d.lift_low, d.lift))


def _avoided(domains: list[Part]) -> list[Part]:
    found = [d for d in domains if d.q < Q_LEVEL and d.lift <= 1 / STANDOUT_LIFT]
    return sorted(found, key=lambda d: _or(d.lift_high, d.lift))


def _or(value: float, otherwise: float) -> float:
    return value if math.isfinite(value) else otherwise


def _summary(p: Part, role: Role, sure: Sureness, flags: Sequence[str]) -> str:
    """The summary: role, tokens, pushes, flags, and how sure it is."""
    name, load = str(p.expert), p.load
    if role.kind in ("never chosen", "dead"):
        return _unused(name, role, load)
    if role.kind == "too few tokens":
        return (
            f"{name} served too few tokens to say more: {load.count:,} assignments in "
            f"{counted(load.documents, 'document')}, of {load.tokens:,} tokens."
        )
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
    sentence = (
        f"Sure: {sure.level} ({sure.assignments:,} assignments, "
        f"{counted(sure.documents, 'document')})."
    )
    return " ".join([text, *extra, sentence])


def _unused(name: str, role: Role, load: Part) -> str:
    if role.kind == "never chosen":
        return (
            f"{name} was never chosen on {load.tokens:,} tokens; an even share would be "
            f"{_percent(load.rate_chance)} of them."
        )
    return (
        f"{name} is dead on {load.tokens:,} tokens: chosen {load.count:,} times, "
        f"{_percent(load.load)} of the layer's assignments, where an even share is "
        f"{_percent(load.even)}."
    )


def _role_clause(role: Role, p: Part) -> str:
    domains = p.domains
    if role.kind == "token expert":
        return (
            f" is a token expert: {_percent(p.vocabulary.top_share)} of its assignments are "
            f"{quote(p.vocabulary.top_token)}"
        )
    if isinstance(domains, Absent):
        return f": {domains.absent}"
    if role.kind == "domain":
        first, *more = _standing_out(domains)
        also = [f"{d.domain} ({_times(d.lift)})" for d in more[:2]]
        return (
            f" serves {first.domain}: {_percent(first.of_expert)} of its assignments are "
            f"{first.domain} ({_percent(first.of_text)} of the text), {_lift_words(first)}"
            + (f"; also {' and '.join(also)}" if also else "")
        )
    if role.kind == "avoids":
        first = _avoided(domains)[0]
        return f" avoids {first.domain}: {_lift_words(first)}"
    if role.kind == "untested":
        return ": domains were not compared (one domain, or too few documents)"
    tested = [d for d in domains if math.isfinite(d.lift)]
    most = max(tested, key=lambda d: d.lift, default=None)
    if most is None:
        return ": no domain stands out"
    q = "q < 0.05" if most.q < Q_LEVEL else f"q = {most.q:.2f}"
    return f": no domain stands out (most: {most.domain}, {_times(most.lift)}, {q})"


def _lift_words(d: Part) -> str:
    q = "q < 0.001" if d.q < 0.001 else f"q = {d.q:.3f}"
    if not math.isfinite(d.lift):
        return f"served nowhere else, {q}"
    known = math.isfinite(d.lift_low)
    interval = f" [{d.lift_low:.1f}, {_end(d.lift_high)}]" if known else ""
    return f"{_times(d.lift)} the other domains' rate{interval}, {q}"


def _end(value: float) -> str:
    return f"{value:.1f}" if math.isfinite(value) else "∞"


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
    named = ", ".join(quote(t.token) for t in typical[:_NAMED_TOKENS])
    if role.kind == "token expert":
        return f"then {named}"
    alone = "" if math.isfinite(tokens.overlap) else ", not compared between halves"
    if sum(t.share for t in typical) >= MOSTLY_SHARE:
        return f"its tokens are mostly {named}{alone}"
    share = sum(t.share for t in typical[:_NAMED_TOKENS])
    return f"most typical tokens {named} ({_percent(share)} of its assignments{alone})"


def _push_clause(pushes: Part | Absent) -> str:
    if isinstance(pushes, Absent):
        return ""
    if not pushes.promoted_overlap >= REPEATED_OVERLAP:
        return (
            "what it pushes towards does not repeat between halves of the documents "
            f"(overlap {pushes.promoted_overlap:.2f})"
        )
    named = ", ".join(quote(t.token) for t in pushes.promoted[:_NAMED_TOKENS])
    return f"it pushes towards {named}"


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
