"""A profile as text for a terminal: the summary, then the numbers behind it."""

from __future__ import annotations

import math
from typing import Any

from rich.text import Text

from moescope.cli.fit import Head, folded
from moescope.cli.settings import WideArgs
from moescope.cli.tables import Sheet
from moescope.cli.terminal import clean, output
from moescope.profiles.facts import Absent, Part, Profile
from moescope.profiles.summary import quote
from moescope.words import counted

_ROWS = 6


def print_profile(profile: Profile, form: WideArgs) -> None:
    """Print one profile on stdout."""
    name = Text(str(profile.expert), style="bold")
    if profile.flags:
        name.append(f"  {', '.join(profile.flags)}", style="bold red")
    output.print(name)
    output.print(profile.summary)
    _print_load(profile, form)
    _print_domains(profile, form)
    _print_lists(profile)
    _print_contexts(profile)
    _print_partners(profile)
    output.print()


def _print_load(profile: Profile, form: WideArgs) -> None:
    load, a = profile.load, profile.contribution
    table = Sheet("how often, how much", "<", "value", "95 %", Head("by chance", keep=True))
    table.add(
        "rate of tokens", _pc(load.rate), _between(load.rate_low, load.rate_high, _pc),
        _pc(load.rate_chance),
    )  # fmt: skip
    table.add("load", _pc(load.load), "–", _pc(load.even))
    table.add("gate mass", _num(load.gate_mass), _between(load.gate_low, load.gate_high, _num), "–")
    if not isinstance(a, Absent):
        table.add("contribution ‖w·E(x)‖", _num(a.mean), _between(a.low, a.high, _num), "–")
        table.add("share of contributions", _pc(a.share), "–", f"{_pc(a.load_share)} by load")
    table.print(form)
    if isinstance(a, Absent):
        output.print(f"contribution: absent, {a.absent}", style="dim")


def _print_domains(profile: Profile, form: WideArgs) -> None:
    if isinstance(profile.domains, Absent):
        output.print(f"domains: absent, {profile.domains.absent}", style="dim")
        return
    table = Sheet(
        "domains", "<domain", Head("rate", percent=True), Head("95 %", of="rate"), "lift",
        Head("95 %", of="lift"), Head("q", keep=True), Head("of its tokens", percent=True),
        digits=3,
    )  # fmt: skip
    listed = sorted(profile.domains, key=lambda d: -d.rate)
    left_out = listed[_ROWS:-_ROWS] if len(listed) > 2 * _ROWS else []
    for d in [d for d in listed if d not in left_out]:
        table.add(
            d.domain, d.rate, _between(d.low, d.high, _pc), d.lift,
            _between(d.lift_low, d.lift_high, _num), d.q, d.of_expert,
        )  # fmt: skip
    table.print(form)
    if left_out:
        output.print(
            f"left out: {counted(len(left_out), 'domain')} between the highest and the lowest "
            "rates; the JSON has all",
            style="dim",
        )


def _print_lists(profile: Profile) -> None:
    tokens, pushes = profile.tokens_in, profile.pushes
    if isinstance(tokens, Absent):
        output.print(f"tokens in: absent, {tokens.absent}", style="dim")
    else:
        listed = [f"{quote(t.token)} {t.lift:.1f}×" for t in tokens.rows[:10]]
        agreed = "not compared" if math.isnan(tokens.overlap) else _pc(tokens.overlap)
        _print_items(f"tokens in (halves share {agreed})", listed)
    if isinstance(pushes, Absent):
        output.print(f"pushes: absent, {pushes.absent}", style="dim")
    else:
        _print_pushes(pushes)
    speech = profile.parts_of_speech
    if isinstance(speech, Absent):
        output.print(f"parts of speech: absent, {speech.absent}", style="dim")
    else:
        parts = [f"{s.tag} {_pc(s.share)} ({s.lift:.1f}×)" for s in speech.rows[:_ROWS]]
        _print_items("parts of speech", parts)


def _print_pushes(pushes: Part) -> None:
    rows = (
        ("towards", pushes.promoted, pushes.promoted_overlap),
        ("away from", pushes.suppressed, pushes.suppressed_overlap),
    )
    for words, listed, overlap in rows:
        named = [f"{quote(t.token)} {t.beyond:+.2f}" for t in listed[:10]]
        _print_items(f"pushes {words} (halves share {_pc(overlap)})", named)


def _print_contexts(profile: Profile) -> None:
    contexts = profile.contexts
    if isinstance(contexts, Absent):
        output.print(f"contexts: absent, {contexts.absent}", style="dim")
        return
    output.print("where it contributes most:", style="bold")
    for row in contexts.rows[:_ROWS]:
        line = Text(f"  {row['contribution']:7.2f}  ")
        line.append(_flat(row["before"])[-40:], style="dim")
        line.append(_flat(row["token"]), style="bold reverse")
        line.append(_flat(row["after"])[:30], style="dim")
        output.print(line, soft_wrap=True)


def _print_partners(profile: Profile) -> None:
    named = (
        ("before", profile.previous),
        ("beside", profile.coactivated),
        ("after", profile.following),
    )
    for words, part in named:
        if not isinstance(part, Absent) and part.rows:
            listed = [
                f"{r.expert} {r.lift:.2f}× {_between(r.low, r.high, _num)}" for r in part.rows[:3]
            ]
            _print_items(f"partners {words}", listed)
    similar = profile.similar
    if not isinstance(similar, Absent):
        listed = [f"{r.expert} {r.cosine:.2f}" for r in similar.rows[:3]]
        _print_items("most similar (cosine of outputs)", listed)


def _print_items(words: str, items: list[str]) -> None:
    """Print a list on lines that no item is broken by."""
    held = "  ".join(clean(item).replace(" ", "\u00a0") for item in items)
    line = Text(f"{words}: {held}")
    if output.is_terminal:
        line = folded(line, output.width)
    output.print(line.plain.replace("\u00a0", " "), soft_wrap=True)


def _flat(text: str) -> str:
    return " ".join(text.split("\n"))


def _pc(value: float) -> str:
    if not math.isfinite(value):
        return "–"
    return f"{100 * value:.2f} %" if 0 < value < 0.01 else f"{100 * value:.1f} %"


def _num(value: float) -> str:
    return f"{value:#.3g}".removesuffix(".") if math.isfinite(value) else "–"


def _between(low: float, high: float, form: Any) -> str:
    if not math.isfinite(low) and not math.isfinite(high):
        return "–"
    return f"[{form(low).removesuffix(' %')}, {form(high) if math.isfinite(high) else '∞'}]"
