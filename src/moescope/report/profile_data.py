"""What the page of profiles shows, as one plain dict, within a budget of bytes.

A large model has thousands of experts: lists are then cut, all experts alike, and the page says
what was cut; the JSON of each expert keeps it all. Nothing here knows a model or computes a figure.
"""

from __future__ import annotations

import base64
import itertools
import json
import zlib
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from moescope.metrics.runs import AnalyzedRun
from moescope.metrics.specialization import Q_LEVEL
from moescope.metrics.view import ALL
from moescope.profiles.facts import Profiles
from moescope.profiles.pushes import AGREED_TOKENS
from moescope.profiles.summary import REPEATED_OVERLAP, THRESHOLDS
from moescope.report.about import about, say_basics
from moescope.report.commands import EXPERT, expert_commands
from moescope.report.frames import layer_rows, legible, number, tidy
from moescope.words import counted

PAGE_BYTES = 4_000_000
"""Bytes of the packed profiles on the page; the libraries add half a million."""


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


RULES = {**THRESHOLDS, "agreed": AGREED_TOKENS}
"""The thresholds that the page names and applies."""

_DRAWN = {
    "absent": "part reason",
    "domains": "domain used rate low high others lift lift_low lift_high q gate_mass gate_low "
    "gate_high by_token contribution",
    "tokens": "token count share lift documents",
    "partners": "where partner count given lift low high",
    "speech": "tag share low high text_share lift",
    "contexts": "doc domain pos contribution before token after",
    "pushes": "side token own others beyond half_a half_b",
    "similar": "partner cosine half_a half_b",
    "weights": "tensor norm layer_mean z",
}
"""Columns that the page shows, of each table; of ``experts`` all."""


def profiles_data(run: AnalyzedRun, profiles: Profiles) -> dict[str, Any]:
    """What the page shows.

    Args:
        run: the run.
        profiles: of every expert, by layer and number, or of one.

    Returns:
        ``about``, ``alerts``, ``short`` (sentences), ``layers``, ``phases`` (for the page's own
        library), ``domains``, ``uses`` (experts by domain), ``roles``, ``rules`` (the thresholds of
        `summary`), ``cut`` (what the budget left out, or None), and ``packed``: the tables by
        name, columns by name, with ``starts``, where the rows of each expert begin; see `unpack`.
        Numbers have 4 significant digits; what is not a number is None.
    """
    domains = [] if run.domains == [ALL] else list(run.domains)
    facts = about(run, domains)
    data: dict[str, Any] = {
        "about": facts,
        "alerts": _alerts(run, facts, profiles),
        "short": _short(facts, profiles) if len(profiles) > 1 else [],
        "layers": layer_rows(run.shape.layers, run.shape.num_experts, run.shape.top_k),
        "phases": ["prefill"],
        "domains": domains,
        "compared": len(pc.unique(profiles.tables["domains"]["domain"])),
        "uses": profiles.uses(),
        "roles": [kind for kind, _ in Counter(profiles.column("role_kind")).most_common()],
        "rules": RULES,
        "constants": profiles.constants,
        "commands": expert_commands(run),
        "expert_word": EXPERT,
        "measured": profiles.source["measured"] if len(profiles) else None,
        "cut": None,
    }
    for caps in _likely(profiles):
        data["cut"] = None if caps is LEVELS[0] else _cut(caps)
        data["packed"] = pack({"tables": _shown(profiles, caps)})
        if len(data["packed"]["bytes"]) <= PAGE_BYTES:
            break
    return data


def _likely(profiles: Profiles) -> tuple[Caps, ...]:
    """The levels from the first on that may fit, judged by some of the profiles."""
    if len(profiles) <= _JUDGED:
        return LEVELS
    some = profiles.some((i * _STRIDE) % len(profiles) for i in range(_JUDGED))
    for i, caps in enumerate(LEVELS):
        size = len(pack(_shown(some, caps))["bytes"])
        if size / len(some) * len(profiles) <= PAGE_BYTES * 1.05:
            return LEVELS[i:]
    return LEVELS[-1:]


def _shown(profiles: Profiles, caps: Caps) -> dict[str, Any]:
    """The tables, cut, as columns by name."""
    shown = {}
    for name, table in profiles.tables.items():
        starts = np.asarray(profiles.starts[name])
        if name == "experts":
            columns = {**_columns(table.drop_columns(["layer", "expert"])), **_strongest(profiles)}
        else:
            kept = _kept(name, table, starts, caps)
            starts = np.concatenate([[0], np.cumsum(kept)])[starts]
            columns = _columns(table.filter(pa.array(kept)).select(_DRAWN[name].split()))
        if name == "contexts":
            columns["before"] = [_cut_text(t, caps.around, -1) for t in columns["before"]]
            columns["after"] = [_cut_text(t, caps.around, 1) for t in columns["after"]]
        shown[name] = {"starts": starts.tolist(), **columns}
    return shown


def _columns(table: pa.Table) -> dict[str, list[Any]]:
    return {name: tidy(table[name].to_pylist(), 4) for name in table.column_names}


def _kept(name: str, table: pa.Table, starts: NDArray[np.int64], caps: Caps) -> NDArray[np.bool_]:
    """Rows that are shown: the first of each list; of the domains those that stand out."""
    if name in ("absent", "weights"):
        return np.ones(table.num_rows, np.bool_)
    if name != "domains":
        most = caps.partners if name == "similar" else getattr(caps, name)
        first: NDArray[np.bool_] = np.asarray(table["rank"]) < most
        return first
    q, lift = (np.asarray(table[c], np.float64) for c in ("q", "lift"))
    with np.errstate(divide="ignore", invalid="ignore"):
        strength = np.where(np.isfinite(lift) & (lift > 0), np.abs(np.log(lift)), 0.0)
    doubt = np.where(q < Q_LEVEL, 0.0, np.nan_to_num(q, nan=2.0))
    owner = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    kept = np.zeros(table.num_rows, np.bool_)
    order = np.lexsort((-strength, doubt, owner))
    kept[order] = np.arange(order.size) - starts[owner] < caps.domains
    return kept


def _strongest(profiles: Profiles) -> dict[str, list[Any]]:
    """For each expert the largest lift of a domain that was tested, before any are cut."""
    table, starts = profiles.tables["domains"], profiles.starts["domains"]
    lift, q = (np.asarray(table[c], np.float64) for c in ("lift", "q"))
    known = np.where(np.isfinite(lift) & np.isfinite(q), lift, np.nan)
    parts = [known[a:b] for a, b in itertools.pairwise(starts)]
    most = [float(np.nanmax(p)) if np.isfinite(p).any() else None for p in parts]
    return {"top_lift": tidy(most, 4)}


def _cut_text(text: str, size: int, side: int) -> str:
    """At most so many characters of the text before (−1) or after (1) a token."""
    if len(text) <= size:
        return text
    return "…" + text[-size:] if side < 0 else text[:size] + "…"


def pack(data: Any) -> dict[str, str]:
    """JSON, made legible, as raw deflate in base64, as ``bytes``."""
    text = json.dumps(legible(data), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    deflate = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    made = deflate.compress(text.encode("ascii")) + deflate.flush()
    return {"bytes": base64.b64encode(made).decode("ascii")}


def unpack(packed: dict[str, str]) -> Any:
    """What `pack` was given."""
    raw = zlib.decompress(base64.b64decode(packed["bytes"]), -zlib.MAX_WBITS)
    return json.loads(raw)


def _cut(caps: Caps) -> str:
    def most(count: int, one: str, many: str | None = None) -> str:
        return counted(count, one, many) if count else f"no {many or one + 's'}"

    parts = [
        f"{most(caps.domains, 'domain')} (what stands out most)",
        most(caps.tokens, "token"),
        most(caps.contexts, "context"),
        f"{most(caps.pushes, 'token')} on each side of its pushes",
        f"{most(caps.partners, 'partner')} in each list",
        most(caps.speech, "part of speech", "parts of speech"),
    ]
    return (
        f"So many experts do not fit whole: each shows at most {', '.join(parts)}. The JSON of "
        "each expert beside this page has all."
    )


def _alerts(run: AnalyzedRun, facts: dict[str, Any], profiles: Profiles) -> list[dict[str, str]]:
    """What a reader must know first; ``level`` is bad, warn or note."""
    out: list[dict[str, str]] = []
    say_basics(facts, lambda level, text: out.append({"level": level, "text": text}))
    notes = _absent_pushes(profiles)
    if len(profiles) and profiles.source["measured"] is None:
        notes.insert(
            0,
            "Made without the model: contributions, contexts, promoted tokens, similar experts and "
            "weights are absent.",
        )
    if run.manifest.sample is None:
        notes.append(
            "The run kept sums only: figures that need single tokens (gate mass intervals, halves, "
            "parts of speech) are absent."
        )
    return out + [{"level": "note", "text": text} for text in notes]


def _absent_pushes(profiles: Profiles) -> list[str]:
    """Layers whose experts cannot be looked at through the lens, by reason."""
    reasons: dict[str, set[int]] = {}
    for row in profiles.tables["absent"].to_pylist():
        few = "assignments" in row["reason"]
        if row["part"] == "pushes" and profiles.source["measured"] and not few:
            reasons.setdefault(row["reason"], set()).add(row["layer"])
    return [
        f"Promoted tokens are absent in layer{'s' if len(layers) > 1 else ''} "
        f"{', '.join(map(str, sorted(layers)))}: {reason}."
        for reason, layers in reasons.items()
    ]


def _short(facts: dict[str, Any], profiles: Profiles) -> list[str]:
    """A few sentences about all experts, by rule."""
    kinds = Counter(profiles.column("role_kind"))
    levels = Counter(profiles.column("sure_level"))
    flags = Counter(flag for own in profiles.column("flags") for flag in own)
    layers = len(set(profiles.column("layer")))
    sure = [f"{number(levels[v])} {v}" for v in ("high", "moderate", "low") if levels[v]]
    few = levels["none"]
    tail = f", and {number(few)} served too few tokens to say anything" if few else ""
    out = [
        f"{number(len(profiles))} experts in {counted(layers, 'layer')}, profiled "
        f"on {number(facts['tokens'])} tokens of {counted(facts['documents'], 'document')}. How "
        f"sure the profiles are: {', '.join(sure) or 'not at all'}{tail}."
    ]
    if kinds["domain"] or kinds["avoids"] or kinds["none"]:
        out.append(_domain_sentence(profiles, kinds))
    odd = (
        (kinds["token expert"], "gives most of its work to a single token",
         "give most of their work to a single token"),
        (kinds["dead"] + kinds["never chosen"], "is dead", "are dead"),
        (flags["cold"], "is cold", "are cold"),
        (flags["super"], "is a super expert", "are super experts"),
    )  # fmt: skip
    parts = [counted(*words) for words in odd if words[0]]
    if parts:
        joined = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
        out.append(f"Among them {joined}.")
    overlaps = [v for v in profiles.column("pushes_promoted_overlap") if v is not None]
    if overlaps:
        repeated = sum(v >= REPEATED_OVERLAP for v in overlaps)
        out.append(
            f"What an expert pushes towards repeats between two halves of the documents for "
            f"{number(repeated)} of {number(len(overlaps))} experts that could be looked at."
        )
    out.append(
        "A profile describes what an expert is given and what it adds; that a model needs it, only "
        "removing it can show."
    )
    return out


def _domain_sentence(profiles: Profiles, kinds: Counter[str]) -> str:
    """How many experts serve each domain, by the rule and with the counts of the run's report."""
    uses = sorted(profiles.uses().items(), key=lambda item: -item[1]["more"])
    named = ", ".join(f"{name} {row['more']} and {row['less']}" for name, row in uses[:6])
    rest = f" (and {counted(len(uses) - 6, 'more domain')})" if len(uses) > 6 else ""
    untested = len(pc.unique(profiles.tables["domains"]["domain"])) - len(uses)
    if untested:
        few = "domain has" if untested == 1 else "domains have"
        rest += f"; {untested} {few} too few documents to be tested"
    nothing = f" For {number(kinds['none'])} experts no domain stands out." if kinds["none"] else ""
    return (
        f"Experts used more and less for each domain: {named}{rest}. An expert may serve "
        f"several.{nothing} Of claims at this level about one in twenty is expected to be a false "
        "alarm, more where few documents use an expert."
    )
