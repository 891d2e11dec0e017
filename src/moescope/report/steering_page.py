"""The page of a steering: one self-contained file, and its figures as JSON beside it.

Made like the report of a trace, with the same scripts, colours and content security policy (see
`moescope.report.page`). What a reader must see even without scripts (what was done, what happened,
warnings) is written as escaped text; the figures are drawn from embedded JSON.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moescope.files import claim, write_bytes
from moescope.report.about import label
from moescope.report.frames import tidy
from moescope.report.page import fill_page, write_page

if TYPE_CHECKING:
    from moescope.intervene.steering.results import SteeringResult, SweepResult

__all__ = ["steering_data", "steering_page", "write_steering"]

_SCRIPTS = (
    "heatmap.js", "steering.js", "steering_controls.js", "steering_text.js", "steering_sweep.js"
)  # fmt: skip
_TITLE = 90


def write_steering(result: SteeringResult, swept: SweepResult | None, folder: str | Path) -> Path:
    """Write ``steering.json`` and ``steering.html``.

    Args:
        result: one edit beside the unedited model.
        swept: the edit over its strength, or None.
        folder: new, empty, or one that this wrote before.

    Returns:
        The path of the page. The same result gives the same bytes.

    Raises:
        WriteError: disk full or no permission.
    """
    whole = {
        "moescope": version("moescope"),
        **result.to_dict(),
        "sweep": swept.to_dict() if swept else None,
    }
    text = json.dumps(whole, ensure_ascii=False, indent=1) + "\n"
    # a token may be half of a surrogate pair, which UTF-8 cannot hold
    with claim(folder, "steering") as target:
        write_bytes(target / "steering.json", text.encode("utf-8", "replace"))
        return write_page(target / "steering.html", steering_page(result, swept))


def steering_page(result: SteeringResult, swept: SweepResult | None = None) -> str:
    """The page of a steering, with its sweep where there is one."""
    silent = result.effect.kind != "some"
    alerts = [{"level": "warn", "text": note, "word": "Note."} for note in result.effect.notes]
    if silent and alerts:
        alerts[0] |= {"level": "bad", "word": "No effect."}
    return fill_page(
        "steering.html.j2",
        _SCRIPTS,
        steering_data(result, swept),
        style="steering.css",
        alerts=alerts,
        title=_shortened("; ".join(result.edits)),
        subtitle=f"{label(result.model)} · {result.where()}",
        summary=result.summary(),
        facts=_cards(result),
        several=len(result.uses) > 1,
        has={
            "words": bool(result.words),
            "controls": bool(result.controls and result.controls.draws),
            "text": result.before is not None,
            "sweep": swept is not None,
        },
        control_note=result.controls.note if result.controls else "",
        chosen_only=bool(result.controls and result.controls.chosen_only),
    )


def steering_data(result: SteeringResult, swept: SweepResult | None = None) -> dict[str, Any]:
    """What the scripts of the page draw: the result with numbers shortened."""
    made: dict[str, Any] = tidy(result.to_dict(), 6)
    made["sweep"] = tidy(swept.to_dict(), 6) if swept else None
    made["model"] = label(result.model)
    # what the scripts of a report ask for: one view, no layers of a run
    return {**made, "phases": ["steering"], "layers": [], "views": {"steering": {"domains": []}}}


def _cards(result: SteeringResult) -> list[dict[str, str]]:
    cards = [
        {"value": f"{result.kl:.3g}", "label": "KL(before‖after) of the next token, nats"},
        {
            "value": f"{result.entropy_before:.2f} → {result.entropy_after:.2f}",
            "label": "entropy of the next token, nats",
        },
    ]
    if result.controls and result.controls.kl:
        n, stands = len(result.controls.draws), result.controls.kl
        cards.append(
            {
                "value": f"{stands.rank} of {n + 1}",
                "label": f"place of its KL among {n} controls, p = {stands.p:.2g}",
            }
        )
    chosen = [sum(u.chosen_before for u in result.uses), sum(u.chosen_after for u in result.uses)]
    places = sum(u.positions for u in result.uses)
    if places:
        cards.append(
            {
                "value": f"{chosen[0]:,} → {chosen[1]:,} of {places:,}",
                "label": "chances in the prompt at which an edited expert was chosen",
            }
        )
    return cards


def _shortened(text: str) -> str:
    return text if len(text) <= _TITLE else text[: _TITLE - 1] + "…"
