"""The page of a similarity: heat maps of experts, what they agree on, and maps of their outputs.

One self-contained file with the same scripts, colours and content security policy as a report
(see `moescope.report.page`). The sentences and numbers at its head are written here, as escaped
text; the figures are drawn from the dict of `moescope.report.similarity_data`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moescope.metrics.statistics import MIN_CLUSTERS
from moescope.report.about import FEW_DOCUMENTS, label
from moescope.report.frames import number, settings
from moescope.report.page import fill_page, write_page
from moescope.report.similarity_data import METHOD_NAMES, similarity_data
from moescope.similarity.result import Similarity

__all__ = ["similarity_page", "write_similarity_page"]

_SCRIPTS = (
    "heatmap.js", "similarity.js", "similarity_depth.js", "similarity_pairs.js",
    "similarity_agreement.js", "similarity_map.js",
)  # fmt: skip

Row = dict[str, Any]


def write_similarity_page(made: Similarity, path: str | Path) -> Path:
    """Write the page of a similarity.

    Args:
        made: from `compare_experts` or `open_similarity`.
        path: where to.

    Returns:
        The path. The same result gives the same bytes.

    Raises:
        WriteError: disk full or no permission.
    """
    return write_page(path, similarity_page(made))


def similarity_page(made: Similarity) -> str:
    """The page as HTML."""
    about = made.about
    data = similarity_data(made)
    shown = {r["layer"]: len(k) for r, k in zip(about["layers"], data["shown"], strict=True)}
    return fill_page(
        "similarity.html.j2",
        _SCRIPTS,
        data,
        title=label(about["model"]["name"]),
        subtitle=_subtitle(about),
        alerts=_alerts(about, shown),
        style="similarity.css",
        findings=_findings(about),
        facts=_cards(about),
        methods=made.methods,
        has={"maps": bool(data["maps"]), "agreement": bool(about["agreement"]),
             "text": about["text"] is not None},
        groups=len(about["text"]["group_sizes"]) if about["text"] else 0,
        permutations=about["permutations"],
        parts=_settings(about),
    )  # fmt: skip


def _subtitle(about: Row) -> str:
    layers = about["layers"]
    experts = _span([r["experts"] for r in layers])
    words = f"{len(layers)} MoE layer{'s' if len(layers) > 1 else ''} of {experts} experts"
    text = about["text"]
    if text is None:
        return f"{words} · parameters only, no text"
    source = label(text["run"] or text["corpus"]["path"])
    size = f"{number(text['tokens'])} tokens of {number(text['documents'])} documents"
    return f"{words} · {size} from {source}"


def _span(values: list[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}–{high}"


def _alerts(about: Row, shown: dict[int, int]) -> list[dict[str, str]]:
    """What a reader must know before the figures."""
    out: list[dict[str, str]] = []

    def say(level: str, text: str) -> None:
        out.append({"level": level, "text": text})

    text = about["text"]
    if text is not None and len(text["group_sizes"]) < MIN_CLUSTERS:
        say("warn", f"Only {text['documents']} documents: there are no intervals.")
    elif text is not None and text["documents"] < FEW_DOCUMENTS:
        say("warn", f"Only {text['documents']} documents, the unit of every interval: read them "
            "as rough.")  # fmt: skip
    if text is not None and text["tokens"] < about["options"]["tokens"]:
        asked, longest = (about["options"][key] for key in ("tokens", "window_tokens"))
        words = f"Windows of at most {longest} tokens of this text hold {number(text['tokens'])}"
        say("note", f"{words} tokens; {number(asked)} were asked for.")
    for words, rows in _same_words(about["layers"]).items():
        say("warn" if words.startswith("without") else "note", f"{rows}: {words}")
    if any(
        count < row["experts"] for count, row in zip(shown.values(), about["layers"], strict=True)
    ):
        most = max(shown.values())
        say("note", f"The page shows the {most} experts of each layer that were used most; "
            "pairs.parquet has all.")  # fmt: skip
    return out


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
    shown = {}
    for words, places in found.items():
        more = f" and {len(places) - 6} more" if len(places) > 6 else ""
        shown[words] = ", ".join(places[:6]) + more
    return shown


def _findings(about: Row) -> list[str]:
    """One sentence for each method, and the closest pair with its interval."""
    out = []
    for method in dict.fromkeys(r["method"] for r in about["summary"]):
        rows = [r for r in about["summary"] if r["method"] == method and r["mean"] is not None]
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
        f"{len(known)} layers and clearly below in {below}."
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


def _cards(about: Row) -> list[dict[str, str]]:
    cards = [
        {"value": str(len(about["layers"])), "label": "MoE layers compared"},
        {"value": number(sum(r["experts"] for r in about["layers"])), "label": "experts in them"},
    ]
    text = about["text"]
    if text is not None:
        never = sum(len(r["never_chosen"]) for r in about["layers"])
        cards += [
            {"value": number(text["tokens"]), "label": "tokens that every expert was asked about"},
            {"value": number(text["documents"]), "label": "documents they come from"},
            {
                "value": str(len(text["domains"])),
                "label": "domains, in equal shares where possible",
            },
            {"value": number(never), "label": "experts that the model gave none of these tokens"},
        ]
    cards.append({"value": about["model"]["dtype"], "label": "precision of the model"})
    return cards


def _settings(about: Row) -> list[tuple[str, list[tuple[str, str]]]]:
    """Everything that is needed to make this again, by section; no folders of a machine."""
    model = {**about["model"], "name": label(about["model"]["name"])}
    parts: dict[str, Row] = {"Model": model, "Options": about["options"]}
    text = about["text"]
    if text is not None:
        corpus = {**text["corpus"], "path": label(text["corpus"].get("path"))}
        rest = {k: v for k, v in text.items() if k not in ("corpus", "domains", "group_sizes")}
        rest["run"] = label(text["run"]) if text["run"] else None
        parts["Text"] = corpus | rest
    return settings(parts | {"Versions": about["versions"]})
