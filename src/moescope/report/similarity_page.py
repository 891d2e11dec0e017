"""The page of a similarity: heat maps of experts, what they agree on, and maps of their outputs.

See `moescope.report.page`; the figures are those of `moescope.report.similarity_data`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moescope.report.about import label
from moescope.report.frames import number, settings
from moescope.report.page import fill_page, write_page
from moescope.report.similarity_data import similarity_data
from moescope.result import Note
from moescope.similarity.answers import similarity_answers, similarity_notes
from moescope.similarity.result import Similarity
from moescope.words import counted

_SCRIPTS = (
    "heatmap.js", "similarity.js", "similarity_depth.js", "similarity_pairs.js",
    "similarity_agreement.js", "similarity_map.js",
)  # fmt: skip

Row = dict[str, Any]


def write_similarity_page(made: Similarity, path: str | Path) -> Path:
    """Write the page of a similarity.

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
        alerts=[n._asdict() for n in (*similarity_notes(about), *_cut(about, shown))],
        style="similarity.css",
        findings=similarity_answers(about),
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
    words = f"{counted(len(layers), 'MoE layer')} of {experts} experts"
    text = about["text"]
    if text is None:
        return f"{words} · parameters only, no text"
    source = label(text["run"] or text["corpus"]["path"])
    size = f"{number(text['tokens'])} tokens of {counted(text['documents'], 'document')}"
    return f"{words} · {size} from {source}"


def _span(values: list[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}–{high}"


def _cut(about: Row, shown: dict[int, int]) -> list[Note]:
    """What the page leaves out."""
    if all(n == row["experts"] for n, row in zip(shown.values(), about["layers"], strict=True)):
        return []
    kept = f"The page shows the {max(shown.values())} experts of each layer that were used most"
    return [Note("note", f"{kept}; pairs.parquet has all.")]


def _cards(about: Row) -> list[dict[str, str]]:
    cards = {
        "MoE layers compared": str(len(about["layers"])),
        "experts in them": number(sum(r["experts"] for r in about["layers"])),
    }
    text = about["text"]
    if text is not None:
        never = sum(len(r["never_chosen"]) for r in about["layers"])
        cards |= {
            "tokens that every expert was asked about": number(text["tokens"]),
            "documents they come from": number(text["documents"]),
            "domains, in equal shares where possible": str(len(text["domains"])),
            "experts that the model gave none of these tokens": number(never),
        }
    cards["precision of the model"] = about["model"]["dtype"]
    return [{"value": value, "label": text} for text, value in cards.items()]


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
