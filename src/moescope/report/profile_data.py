"""What the page of profiles shows, as one plain dict, within a budget of bytes.

A large model has thousands of experts: lists are then cut, all experts alike, and the page says
what was cut; the JSON of each expert keeps it all. Nothing here knows a model or computes a figure.
"""

from __future__ import annotations

import base64
import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from moescope.metrics.runs import AnalyzedRun
from moescope.metrics.view import ALL
from moescope.profiles.facts import Absent, DomainUse, PartnerList, Profile
from moescope.profiles.summary import Q_LEVEL
from moescope.report.about import FEW_DOCUMENTS, about
from moescope.report.frames import number, tidy

__all__ = ["PAGE_BYTES", "Caps", "pack", "profiles_data", "unpack"]

PAGE_BYTES = 4_000_000
"""Bytes of the packed profiles on the page; the libraries add half a million."""


_HALVES = re.compile("[\ud800-\udfff]")

_JUDGED = 128
"""Profiles by which the size of all is judged, before all are packed."""

_STRIDE = 7919
"""A prime, so that those come from all over the model."""


class Caps(NamedTuple):
    """How much of each expert is shown: entries of each list, and characters beside a token."""

    domains: int
    tokens: int
    contexts: int
    pushes: int
    partners: int
    speech: int
    around: int


LEVELS = (
    Caps(48, 16, 12, 20, 8, 12, 160),
    Caps(24, 12, 8, 12, 6, 8, 110),
    Caps(12, 10, 5, 10, 4, 6, 90),
    Caps(6, 8, 3, 6, 3, 4, 70),
    Caps(4, 5, 2, 4, 2, 3, 60),
    Caps(2, 3, 1, 3, 1, 0, 45),
    Caps(1, 3, 0, 2, 1, 0, 0),
)
"""From all that there is to the least; the first that fits is taken."""


def profiles_data(run: AnalyzedRun, profiles: Sequence[Profile]) -> dict[str, Any]:
    """What the page shows.

    Args:
        run: the run.
        profiles: of every expert, by layer and number, or of one.

    Returns:
        ``about``, ``alerts``, ``short`` (sentences), ``layers``, ``phases`` (for the page's own
        library), ``domains``, ``roles``, ``cut`` (what the budget left out, or None), and
        ``packed``: ``profiles`` and ``texts`` (token id → text), see `unpack`. Numbers have 3
        significant digits; what is not a number is None.
    """
    domains = [] if run.domains == [ALL] else list(run.domains)
    facts = about(run, domains)
    shape = run.shape
    numbers = zip(shape.layers, shape.num_experts, shape.top_k, strict=True)
    data: dict[str, Any] = {
        "about": facts,
        "alerts": _alerts(run, facts, profiles),
        "short": _short(facts, profiles) if len(profiles) > 1 else [],
        "layers": [{"layer": n, "experts": e, "top_k": k} for n, e, k in numbers],
        "phases": ["prefill"],
        "domains": domains,
        "roles": [kind for kind, _ in Counter(p.role.kind for p in profiles).most_common()],
        "measured": profiles[0].source["measured"] if profiles else None,
        "cut": None,
    }
    for caps in _likely(profiles, domains):
        data["cut"] = None if caps is LEVELS[0] else _cut(caps)
        data["packed"] = _pack_all(profiles, caps, domains)
        if len(data["packed"]["bytes"]) <= PAGE_BYTES:
            break
    return data


def _pack_all(profiles: Sequence[Profile], caps: Caps, domains: list[str]) -> dict[str, Any]:
    texts: dict[str, str] = {}
    rows = [_packed(p, caps, domains, texts) for p in profiles]
    return pack({"profiles": rows, "texts": texts})


def _likely(profiles: Sequence[Profile], domains: list[str]) -> tuple[Caps, ...]:
    """The levels from the first on that may fit, judged by some of the profiles."""
    if len(profiles) <= _JUDGED:
        return LEVELS
    some = [profiles[(i * _STRIDE) % len(profiles)] for i in range(_JUDGED)]
    for i, caps in enumerate(LEVELS):
        size = len(_pack_all(some, caps, domains)["bytes"])
        if size / len(some) * len(profiles) <= PAGE_BYTES * 1.05:
            return LEVELS[i:]
    return LEVELS[-1:]


def pack(data: Any) -> dict[str, Any]:
    """JSON as raw deflate in base64: ``size`` (bytes unpacked) and ``bytes``."""
    plain = json.dumps(data, ensure_ascii=False, allow_nan=False)
    if _HALVES.search(plain):  # half a character, which a browser cannot write out as text
        data = json.loads(_HALVES.sub("\ufffd", plain))
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    deflate = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    made = deflate.compress(text.encode("ascii")) + deflate.flush()
    return {"size": len(text), "bytes": base64.b64encode(made).decode("ascii")}


def unpack(packed: dict[str, Any]) -> Any:
    """What `pack` was given."""
    raw = zlib.decompress(base64.b64decode(packed["bytes"]), -zlib.MAX_WBITS)
    return json.loads(raw)


def _cut(caps: Caps) -> str:
    def most(count: int, one: str, many: str) -> str:
        return f"{count or 'no'} {one if count == 1 else many}"

    parts = [
        f"{most(caps.domains, 'domain', 'domains')} (what stands out most)",
        most(caps.tokens, "token", "tokens"),
        most(caps.contexts, "context", "contexts"),
        f"{most(caps.pushes, 'token', 'tokens')} on each side of its pushes",
        f"{most(caps.partners, 'partner', 'partners')} in each list",
        most(caps.speech, "part of speech", "parts of speech"),
    ]
    return (
        f"So many experts do not fit whole: each shows at most {', '.join(parts)}. The JSON of "
        "each expert beside this page has all."
    )


def _packed(
    profile: Profile, caps: Caps, domains: list[str], texts: dict[str, str]
) -> dict[str, Any]:
    """One expert: short keys, rows as lists in a fixed order (see ``profiles_data.js``)."""
    made: dict[str, Any] = {
        "x": str(profile.expert),
        "s": profile.summary,
        "r": [profile.role.kind, profile.role.words, profile.role.about],
        "u": [profile.sure.level, profile.sure.assignments, profile.sure.documents],
        "f": profile.flags,
        "l": _load(profile),
        "d": _or_reason(profile.domains, lambda d: _domains(d, caps, domains)),
        "t": _or_reason(profile.tokens_in, lambda t: _tokens(t, caps, texts)),
        "v": _or_reason(profile.vocabulary, _vocabulary),
        "c": _or_reason(profile.coactivated, lambda p: _partners(p, caps)),
        "p": _or_reason(profile.previous, lambda p: _partners(p, caps)),
        "n": _or_reason(profile.following, lambda p: _partners(p, caps)),
        "o": _or_reason(profile.parts_of_speech, lambda s: _speech(s, caps)),
        "a": _or_reason(profile.contribution, _contribution),
        "k": _or_reason(profile.contexts, lambda c: _contexts(c, caps, domains)),
        "g": _or_reason(profile.pushes, lambda g: _pushes(g, caps, texts)),
        "m": _or_reason(profile.similar, lambda m: _similar(m, caps)),
        "w": _or_reason(profile.weights, _weights),
    }
    packed: dict[str, Any] = tidy(made, 3)
    return packed


def _or_reason(part: Any, pack: Callable[[Any], Any]) -> Any:
    """A packed part, or the reason why it is absent as a text."""
    return part.absent if isinstance(part, Absent) else pack(part)


def _load(profile: Profile) -> list[Any]:
    d = profile.load
    return [
        d.count, d.tokens, d.documents, d.load, d.even, d.rate, d.rate_low, d.rate_high,
        d.rate_chance, d.gate_mass, d.gate_low, d.gate_high, d.first_share,
    ]  # fmt: skip


def _domains(used: list[DomainUse], caps: Caps, names: list[str]) -> dict[str, Any]:
    kept = used
    if len(used) > caps.domains:
        ranked = sorted(range(len(used)), key=lambda i: _standing(used[i]))[: caps.domains]
        kept = [used[i] for i in sorted(ranked)]
    rows = [
        [
            names.index(d.domain), d.rate, d.low, d.high, d.others, d.lift, d.lift_low,
            d.lift_high, d.q, d.of_expert, d.of_text, d.gate_mass, d.gate_low, d.gate_high,
            d.by_token, d.contribution, d.documents,
        ]
        for d in kept
    ]  # fmt: skip
    lifts = [d for d in used if math.isfinite(d.lift) and math.isfinite(d.q)]
    best = max(lifts, key=lambda d: d.lift, default=None)
    strongest = None if best is None else [names.index(best.domain), best.lift, best.q]
    return {"rows": rows, "all": len(used), "best": strongest}


def _standing(d: DomainUse) -> tuple[float, float]:
    q = d.q if math.isfinite(d.q) else 2.0
    lift = abs(math.log(d.lift)) if math.isfinite(d.lift) and d.lift > 0 else 0.0
    return (0.0 if q < Q_LEVEL else q, -lift)


def _tokens(part: Any, caps: Caps, texts: dict[str, str]) -> dict[str, Any]:
    rows = []
    for t in part.rows[: caps.tokens]:
        texts[str(t.token_id)] = t.token
        rows.append([t.token_id, t.count, t.share, t.of_token, t.lift, t.documents])
    return {"rows": rows, "of": part.assignments, "min": part.min_count, "overlap": part.overlap}


def _vocabulary(v: Any) -> list[Any]:
    return [
        v.value, v.null, v.excess, *v.excess_halves, v.top_share, v.half_types, v.text_half_types,
    ]  # fmt: skip


def _partners(part: PartnerList, caps: Caps) -> dict[str, Any]:
    rows = [[p.expert, p.count, p.given, p.lift, p.low, p.high] for p in part.rows[: caps.partners]]
    return {"rows": rows, "chance": part.chance, "min": part.min_count}


def _speech(part: Any, caps: Caps) -> dict[str, Any]:
    rows = [[s.tag, s.share, s.low, s.high, s.text_share] for s in part.rows[: caps.speech]]
    return {"rows": rows, "of": part.assignments, "by": part.pipeline}


def _contribution(a: Any) -> list[Any]:
    return [
        a.tokens, a.documents, a.mean, a.low, a.high, a.share, a.load_share, a.weight,
        a.activation, a.activation_share, a.peak, a.counted_peak, a.peak_ratio, a.super_rule,
    ]  # fmt: skip


def _contexts(part: Any, caps: Caps, names: list[str]) -> list[list[Any]]:
    rows = []
    for c in part.rows[: caps.contexts]:
        domain = names.index(c["domain"]) if c["domain"] in names else -1
        before, after = c["before"], c["after"]
        if len(before) > caps.around:
            before = "…" + before[-caps.around :]
        if len(after) > caps.around:
            after = after[: caps.around] + "…"
        rows.append([domain, c["doc"], c["pos"], c["contribution"], before, c["token"], after])
    return rows


def _pushes(part: Any, caps: Caps, texts: dict[str, str]) -> dict[str, Any]:
    def rows(listed: Any) -> list[list[Any]]:
        out = []
        for t in listed[: caps.pushes]:
            texts[str(t.token_id)] = t.token
            out.append([t.token_id, t.own, t.others, t.beyond, t.half_a, t.half_b])
        return out

    return {
        "up": rows(part.promoted),
        "down": rows(part.suppressed),
        "of": part.tokens,
        "agreement": part.agreement,
        "overlap": [part.promoted_overlap, part.suppressed_overlap],
        "spread": part.spread,
        "factor": part.factor,
        "note": part.note,
    }


def _similar(part: Any, caps: Caps) -> dict[str, Any]:
    rows = [[m.expert, m.cosine, m.half_a, m.half_b] for m in part.rows[: caps.partners]]
    return {"rows": rows, "of": part.tokens}


def _weights(norms: Any) -> list[list[Any]]:
    return [[n.tensor, n.norm, n.layer_mean, n.z] for n in norms]


def _alerts(
    run: AnalyzedRun, facts: dict[str, Any], profiles: Sequence[Profile]
) -> list[dict[str, str]]:
    """What a reader must know first; ``level`` is bad, warn or note."""
    out = []
    coverage = facts["coverage"]
    if coverage.get("routers_seen") != coverage.get("routers_expected"):
        text = (
            f"Only {coverage.get('routers_seen')} of {coverage.get('routers_expected')} routers "
            "were seen: profiles of the others say nothing."
        )
        out.append({"level": "bad", "text": text})
    small = [d for d in facts["domains"] if 0 < d["documents"] < FEW_DOCUMENTS]
    if small:
        names = ", ".join(f"{d['name']} ({d['documents']})" for d in small[:8])
        more = f" and {len(small) - 8} more" if len(small) > 8 else ""
        text = (
            f"Few documents: {names}{more}. The document is the unit of every interval and test; "
            "with so few only large differences can be seen."
        )
        out.append({"level": "warn", "text": text})
    if profiles and all(isinstance(p.contribution, Absent) for p in profiles):
        text = (
            "Made without the model: contributions, contexts, promoted tokens, similar experts and "
            "weights are absent."
        )
        if profiles[0].source["measured"] is None:
            out.append({"level": "note", "text": text})
    out += [{"level": "note", "text": text} for text in _absent_pushes(profiles)]
    if run.manifest.sample is None:
        text = (
            "The run kept sums only: figures that need single tokens (gate mass intervals, halves, "
            "parts of speech) are absent."
        )
        out.append({"level": "note", "text": text})
    return out


def _absent_pushes(profiles: Sequence[Profile]) -> list[str]:
    """Layers whose experts cannot be looked at through the lens, by reason."""
    reasons: dict[str, set[int]] = {}
    for p in profiles:
        measured = p.source["measured"] is not None
        if measured and isinstance(p.pushes, Absent) and "assignments" not in p.pushes.absent:
            reasons.setdefault(p.pushes.absent, set()).add(p.expert.layer_idx)
    return [
        f"Promoted tokens are absent in layer{'s' if len(layers) > 1 else ''} "
        f"{', '.join(map(str, sorted(layers)))}: {reason}."
        for reason, layers in reasons.items()
    ]


def _short(facts: dict[str, Any], profiles: Sequence[Profile]) -> list[str]:
    """A few sentences about all experts, by rule."""
    kinds = Counter(p.role.kind for p in profiles)
    levels = Counter(p.sure.level for p in profiles)
    layers = len({p.expert.layer_idx for p in profiles})
    sure = [f"{number(levels[v])} {v}" for v in ("high", "moderate", "low") if levels[v]]
    few = levels["none"]
    tail = f", and {number(few)} served too few tokens to say anything" if few else ""
    out = [
        f"{number(len(profiles))} experts in {layers} layer{'s' if layers > 1 else ''}, profiled "
        f"on {number(facts['tokens'])} tokens of {number(facts['documents'])} documents. How sure "
        f"the profiles are: {', '.join(sure) or 'not at all'}{tail}."
    ]
    if kinds["domain"] or kinds["avoids"] or kinds["none"]:
        out.append(_domain_sentence(profiles, kinds))
    work = "most of their work to a single token"
    odd = (
        (kinds["token expert"], f"give {work}", f"gives {work.replace('their', 'its')}"),
        (kinds["dead"] + kinds["never chosen"], "are dead", "is dead"),
        (sum("cold" in p.flags for p in profiles), "are cold", "is cold"),
        (sum("super" in p.flags for p in profiles), "are super experts", "is a super expert"),
    )
    parts = [f"{number(n)} {one if n == 1 else many}" for n, many, one in odd if n]
    if parts:
        joined = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
        out.append(f"Among them {joined}.")
    pushes = [p.pushes for p in profiles if not isinstance(p.pushes, Absent)]
    if pushes:
        repeated = sum(g.promoted_overlap >= 0.5 for g in pushes)
        out.append(
            f"What an expert pushes towards repeats between two halves of the documents for "
            f"{number(repeated)} of {number(len(pushes))} experts that could be looked at."
        )
    out.append(
        "A profile describes what an expert is given and what it adds; that a model needs it, only "
        "removing it can show."
    )
    return out


def _domain_sentence(profiles: Sequence[Profile], kinds: Counter[str]) -> str:
    served = Counter(p.role.about for p in profiles if p.role.kind == "domain")
    named = ", ".join(f"{name} {n}" for name, n in served.most_common(6))
    parts = []
    if kinds["domain"]:
        verb = "serves" if kinds["domain"] == 1 else "serve"
        more = ", …" if len(served) > 6 else ""
        parts.append(f"{number(kinds['domain'])} {verb} a domain beyond the others ({named}{more})")
    if kinds["avoids"]:
        parts.append(
            f"{number(kinds['avoids'])} {'avoids' if kinds['avoids'] == 1 else 'avoid'} one"
        )
    if kinds["none"]:
        parts.append(f"for {number(kinds['none'])} no domain stands out")
    joined = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])}, and {parts[-1]}"
    return (
        f"{joined[0].upper()}{joined[1:]}; of claims at this level about one in twenty is expected "
        "to be a false alarm."
    )
