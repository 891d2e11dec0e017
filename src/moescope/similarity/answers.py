"""What a similarity says, in sentences that follow from its numbers by rule, and its limits.

It knows what a `Similarity` says of itself (``about``), no model.
"""

from __future__ import annotations

from typing import Any

from moescope.metrics.intervals import FEW_DOCUMENTS, MIN_CLUSTERS
from moescope.result import Note
from moescope.words import counted, listing

METHOD_NAMES = {
    "cosine": "cosine of outputs",
    "cka": "linear CKA of outputs",
    "weights": "cosine of weights",
    "router": "cosine of router rows",
}
"""Methods as a reader knows them."""

Row = dict[str, Any]


def similarity_notes(about: Row) -> list[Note]:
    """What a reader must know before the figures."""
    notes = []
    text = about["text"]
    if text is not None and len(text["group_sizes"]) < MIN_CLUSTERS:
        notes.append(
            Note("warn", f"Only {counted(text['documents'], 'document')}: there are no intervals.")
        )
    elif text is not None and text["documents"] < FEW_DOCUMENTS:
        few = f"Only {counted(text['documents'], 'document')}, the unit of every interval"
        notes.append(Note("warn", f"{few}: read them as rough."))
    if text is not None and text["tokens"] < about["options"]["tokens"]:
        asked, longest = (about["options"][key] for key in ("tokens", "window_tokens"))
        words = f"Windows of at most {longest} tokens of this text hold {text['tokens']:,} tokens"
        notes.append(Note("note", f"{words}; {asked:,} were asked for."))
    for words, rows in _same_words(about["layers"]).items():
        level = "warn" if words.startswith("without") else "note"
        notes.append(Note(level, f"{rows}: {words}"))  # type: ignore[arg-type]
    return notes


def _same_words(layers: list[Row]) -> dict[str, str]:
    """What is missing, each reason once, with its layers."""
    found: dict[str, list[str]] = {}
    for row in layers:
        at = f"layer {row['layer']}"
        for method, why in row["not_computed"].items():
            found.setdefault(f"no {METHOD_NAMES[method]}: {why}", []).append(at)
        for note in row["notes"]:
            found.setdefault(note, []).append(at)
        for method, experts in row["undefined"].items():
            for expert, why in experts.items():
                words = f"without {METHOD_NAMES[method]}: {why}"
                found.setdefault(words, []).append(f"L{row['layer']}E{expert}")
    return {words: listing(places, 6) for words, places in found.items()}


def similarity_answers(about: Row) -> list[str]:
    """One sentence for each method, with the closest pair."""
    out = []
    summary = about["summary"]
    for method in dict.fromkeys(r["method"] for r in summary):
        rows = [r for r in summary if r["method"] == method and r["mean"] is not None]
        if rows:
            out.append(_FINDINGS[method](rows))
    return out


def _between(rows: list[Row], key: str) -> str:
    known = [r[key] for r in rows if r.get(key) is not None]
    if not known:
        return "unknown"
    low, high = (f"{v:.3f}".replace("-0.000", "0.000") for v in (min(known), max(known)))
    return (low if low == high else f"{low} to {high}").replace("-", "−")


def _mean_and_closest(rows: list[Row], name: str) -> str:
    best = max(rows, key=lambda r: r["max"])
    a, b = best["max_pair"]
    return (
        f"{name}: the mean over pairs is {_between(rows, 'mean')} over the layers; closest are "
        f"L{best['layer']}E{a} and L{best['layer']}E{b} with {best['max']:.3f}."
    )


def _outputs_found(rows: list[Row], name: str, chance: str) -> str:
    words = f"{_mean_and_closest(rows, name)} {chance} {_between(rows, 'chance')}"
    known = [r for r in rows if r.get("reference") is not None and r.get("mean_low") is not None]
    if not known:
        return f"{words}."
    above = sum(r["mean_low"] > r["reference_high"] for r in known)
    below = sum(r["mean_high"] < r["reference_low"] for r in known)
    return (
        f"{words}, and experts with shuffled weights on the same inputs "
        f"{_between(known, 'reference')}: the mean is clearly above those in {above} of "
        f"{counted(len(known), 'layer')} and clearly below in {below}."
    )


def _parameters_found(rows: list[Row], name: str) -> str:
    return (
        f"{_mean_and_closest(rows, name)} Shuffled entries give {_between(rows, 'chance')}, give "
        f"or take {_between(rows, 'chance_sd')} for a single pair. Without what all experts of a "
        f"layer share, the closest pair of a layer has {_between(rows, 'max_centred')}."
    )


_FINDINGS = {
    "cosine": lambda rows: _outputs_found(
        rows, "Cosine of outputs on the same token", "The same experts on unrelated tokens give"
    ),
    "cka": lambda rows: _outputs_found(rows, "Linear CKA of outputs", "Unrelated tokens give"),
    "weights": lambda rows: _parameters_found(rows, "Cosine of weights"),
    "router": lambda rows: _parameters_found(rows, "Cosine of router rows"),
}
