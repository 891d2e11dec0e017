"""The page of a steering, made of its `Result`; see `moescope.report.page`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moescope.report.about import label
from moescope.report.frames import tidy
from moescope.report.page import fill_page
from moescope.result import Result
from moescope.words import counted

_SCRIPTS = (
    "heatmap.js", "steering.js", "steering_controls.js", "steering_text.js", "steering_sweep.js"
)  # fmt: skip
_TITLE = 90


def steering_page(result: Result) -> str:
    """The page of a steering, with its sweep where there is one.

    Args:
        result: of `moescope.intervene.steering.results.steering_result`.
    """
    about = result.about
    controls, title = about["controls"], "; ".join(about["edits"])
    alerts = [{**note._asdict(), "word": "Note."} for note in result.notes]
    if about["effect"]["kind"] != "some" and alerts:
        alerts[0] |= {"level": "bad", "word": "No effect."}
    return fill_page(
        "steering.html.j2",
        _SCRIPTS,
        steering_data(result),
        style="steering.css",
        alerts=alerts,
        title=title if len(title) <= _TITLE else f"{title[: _TITLE - 1]}…",
        subtitle=f"{label(about['model'])} · {about['where']}",
        summary=result.answers,
        facts=_cards(about),
        several=len(about["uses"]) > 1,
        has={
            "words": bool(about["words"]),
            "controls": bool(controls and controls["draws"]),
            "text": about["before"] is not None,
            "sweep": about["sweep"] is not None,
        },
        control_note=controls["note"] if controls else "",
        chosen_only=bool(controls and controls["chosen_only"]),
    )


def steering_data(result: Result) -> dict[str, Any]:
    """What the scripts of the page draw: the result with numbers shortened."""
    made: dict[str, Any] = tidy(result.about, 6)
    made["model"] = label(result.about["model"])
    # what the scripts of a report ask for: one view, no layers of a run
    return {**made, "phases": ["steering"], "layers": [], "views": {"steering": {"domains": []}}}


def _cards(about: Mapping[str, Any]) -> list[dict[str, str]]:
    kl, entropies = about["kl"], (about["entropy_before"], about["entropy_after"])
    cards = {
        "KL(before‖after) of the next token, nats": "∞" if kl is None else f"{kl:.3g}",
        "entropy of the next token, nats": " → ".join(f"{e:.2f}" for e in entropies),
    }
    controls = about["controls"]
    if controls and controls["kl"]:
        n, stands = len(controls["draws"]), controls["kl"]
        text = f"place of its KL among {counted(n, 'control')}, p = {stands['p']:.2g}"
        cards[text] = f"{stands['rank']} of {n + 1}"
    before, after, places = (
        sum(use[name] for use in about["uses"])
        for name in ("chosen_before", "chosen_after", "positions")
    )
    if places:
        text = "chances in the prompt at which an edited expert was chosen"
        cards[text] = f"{before:,} → {after:,} of {places:,}"
    return [{"value": value, "label": text} for text, value in cards.items()]
