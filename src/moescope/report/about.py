"""What was run, how complete it is, and what is missing: the head and the foot of the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moescope.corpus import notes_on_marks
from moescope.metrics.intervals import FEW_DOCUMENTS, MIN_CLUSTERS
from moescope.report.frames import number
from moescope.run.reader import Run
from moescope.words import counted, listing

LITTLE_BETTER = 0.5
"""Nats per token; a model that predicts a domain by no more than this better than the frequency of
its tokens does hardly models it."""

UNLIKE_LENGTHS = 2.0
"""Domains whose median lengths differ by a larger factor are said to differ in length."""


def label(name: object) -> str:
    """A model or corpus as a reader knows it: a hub name whole, a path without its folders."""
    text = str(name or "")
    path = Path(text).expanduser()
    if path.is_absolute() or text.startswith((".", "~")) or path.suffix:
        return path.name or text
    return text


def model_facts(model: Mapping[str, Any]) -> dict[str, Any]:
    """What a page says of the model that something was measured on."""
    shown = ("model_type", "revision", "dtype", "processor", "config_sha256", "weights_sha256")
    # results of before name no processor
    return {"name": label(model["name"]), **{n: model[n] for n in shown if n in model}}


def about(run: Run, domains: list[str]) -> dict[str, Any]:
    """Model, corpus, coverage, options and versions."""
    manifest = run.manifest
    model, progress = dict(manifest.model), manifest.progress
    documents = Counter(run.documents["domain"].to_pylist())
    tokens = progress.get("domain_tokens", {})
    corpus = {**manifest.corpus, "path": label(manifest.corpus.get("path"))}
    return {
        "model": {
            "name": label(model.get("name")),
            **{
                key: model.get(key)
                for key in (
                    "model_type", "revision", "dtype", "processor", "decoder_layers",
                    "total_params", "active_params", "scoring", "normalized", "selection_bias",
                    "config_sha256", "tokenizer_sha256", "weights_sha256",
                )
            },
        },
        "corpus": corpus,
        "source": manifest.source if run.shape.absent else None,
        "created": manifest.created,
        "documents": sum(documents.values()),
        "tokens": progress.get("tokens", 0),
        "domains": [
            {"name": n, "documents": documents.get(n, 0), "tokens": tokens.get(n, 0)}
            for n in domains
        ],
        "domains_left_out": len(run.domains) - len(domains),
        "left_out": progress.get("left_out", {}),
        "coverage": manifest.coverage,
        "options": manifest.options,
        "versions": manifest.versions,
        "fingerprint": progress.get("fingerprint", ""),
        "min_documents": MIN_CLUSTERS,
    }  # fmt: skip


def alerts(run: Run, facts: dict[str, Any], loss: dict[str, list[Any]]) -> list[dict[str, str]]:
    """What a reader must know before the figures; ``level`` is bad, warn or note."""
    out: list[dict[str, str]] = []

    def say(level: str, text: str) -> None:
        out.append({"level": level, "text": text})

    _say_coverage(facts, say)
    _say_few(facts, say)
    _say_loss(loss, say)
    _say_lengths(run, [d["name"] for d in facts["domains"]], say)
    _say_cut(run, say)
    if len(facts["domains"]) < 2:
        say("note", "One domain only: nothing about differences between domains can be said.")
    if run.manifest.sample is None and "tokens" not in run.absent:
        say(
            "note",
            "The run kept sums only (keep = aggregates): the information figures and the example "
            "texts need single tokens and are absent.",
        )
    if facts["source"]:
        _say_source(facts["source"], say)
    elif not run.manifest.options.get("predictions", True):
        say("note", "The run made no predictions: loss by domain and predicted tokens are absent.")
    marks = run.manifest.progress
    for text in notes_on_marks(marks.get("spelt_out", {}), marks.get("unknown_marks", {})):
        say("warn", text)
    if run.manifest.options.get("layers"):
        say("note", f"Only some layers were traced: {_join(run.shape.layers)}.")
    if facts["domains_left_out"]:
        say(
            "note",
            f"{counted(facts['domains_left_out'], 'domain')} with the fewest tokens are left out "
            "of this page; the tables beside it have them.",
        )
    return out


def _say_few(facts: dict[str, Any], say: Any) -> None:
    sizes = [(d["name"], d["documents"]) for d in facts["domains"]]
    small = [f"{name} ({size})" for name, size in sizes if 0 < size < FEW_DOCUMENTS]
    if small:
        say(
            "warn",
            f"Few documents: {listing(small, 8)}. The document is the unit of every interval and "
            f"test; below {FEW_DOCUMENTS} only large differences can be seen, and below "
            f"{MIN_CLUSTERS} none is tested.",
        )


def _say_source(source: dict[str, Any], say: Any) -> None:
    """That the run was imported, and what serving engines do not tell."""
    version = f" {source['engine_version']}" if source["engine_version"] else ""
    order = "" if source["ordered"] else ", which of a token's experts was its first choice"
    counts = "tokens" in source["absent"]
    what = "sums" if counts else "ids"
    more = ", single tokens, pairs and neighbours, documents" if counts else ""
    say(
        "note",
        f"This run was imported from {source['engine']}{version}: {what} only. Absent are the "
        f"router's weights and probabilities{order}{more}, losses and predicted tokens; nothing "
        "stands in for them.",
    )
    if source["notes"]:
        say("note", " ".join(source["notes"]))


def _say_unseen(facts: dict[str, Any], say: Any) -> None:
    seen, expected = (facts["coverage"].get(f"routers_{w}") for w in ("seen", "expected"))
    if seen != expected:
        text = f"Only {seen} of {expected} routers were seen: the figures of the others are absent."
        say("bad", text)


def say_basics(facts: dict[str, Any], say: Any) -> None:
    """What holds for any page of a run: routers that were not seen, domains of few documents."""
    _say_unseen(facts, say)
    _say_few(facts, say)


def _say_coverage(facts: dict[str, Any], say: Any) -> None:
    _say_unseen(facts, say)
    coverage = facts["coverage"]
    silent = coverage.get("experts_never_chosen") or {}
    count = sum(map(len, silent.values()))
    if count:
        names = [f"L{n}E{e}" for n, experts in silent.items() for e in experts]
        tokens = number(coverage.get("tokens_per_router", facts["tokens"]))
        which = counted(count, "expert was", "experts were")
        say("warn", f"{which} never chosen in {tokens} tokens: {listing(names)}.")
    skipped = {k: v for k, v in (coverage.get("skipped_records") or {}).items() if v}
    if skipped:
        listed = "; ".join(f"{reason}: {number(n)}" for reason, n in skipped.items())
        say("warn", f"Records of the corpus were skipped ({listed}).")


def badly_predicted(loss: dict[str, list[Any]]) -> list[tuple[str, float, float]]:
    """Domains that the model predicts hardly better than token frequencies do: loss and theirs."""
    rows = zip(*(loss.get(k, []) for k in ("domain", "loss", "unigram")), strict=True)
    return [
        (name, value, unigram)
        for name, value, unigram in rows
        if name != "all" and None not in (value, unigram) and value > unigram - LITTLE_BETTER
    ]


def _say_loss(loss: dict[str, list[Any]], say: Any) -> None:
    bad = badly_predicted(loss)
    if bad:
        listed = ", ".join(f"{n} {v:.1f} against {u:.1f}" for n, v, u in bad[:8])
        worse = [v > u for _, v, u in bad]
        how = "hardly better, or worse," if any(worse) else "hardly better"
        how = "worse" if all(worse) else how
        say(
            "warn",
            f"The model predicts this text {how} than the frequency of its tokens does "
            f"(loss in nats per token: {listed}{' …' if len(bad) > 8 else ''}). "
            "Experts of text that a model does not model say little about that text.",
        )


def _say_cut(run: Run, say: Any) -> None:
    """With `match_length` what is left is the longer documents, and of some domains nothing."""
    length = run.manifest.options.get("match_length")
    if length is None:
        return
    kept = Counter(run.documents["domain"].to_pylist())
    short = run.manifest.progress["left_out"].get("documents shorter than --match-length", 0)
    gone = [n for n in run.manifest.progress["domain_tokens"] if not kept[n]]
    listed = ", ".join(f"{count:,} of {name}" for name, count in kept.most_common(8))
    nothing = f" Nothing is left of {_join(gone[:8])}." if gone else ""
    say(
        "warn" if gone else "note",
        f"Documents are cut to their first {length} tokens; {short:,} shorter ones are left out. "
        f"Kept are {listed}{' …' if len(kept) > 8 else ''}.{nothing}",
    )


def _say_lengths(run: Run, domains: list[str], say: Any) -> None:
    """Domains of unlike lengths: what differs may be where in a text a token stands."""
    table = run.documents
    names, tokens = np.asarray(table["domain"].to_pylist()), np.asarray(table["tokens"])
    medians = {
        n: float(np.median(tokens[own]))
        for n in domains
        if (own := (names == n) & (tokens > 0)).any()
    }
    if len(medians) < 2:
        return
    short, long = min(medians, key=lambda n: medians[n]), max(medians, key=lambda n: medians[n])
    if medians[long] > UNLIKE_LENGTHS * medians[short]:
        say(
            "warn",
            f"Documents differ in length: {number(medians[short])} tokens in {short}, "
            f"{number(medians[long])} in {long} (medians). Where in a text a token stands and how "
            "much it has read before can change its routing, so a difference between these domains "
            "may be one of length. match_length=N compares documents cut alike: here with N up "
            f"to {number(medians[short])}, if half of {short} is to be left.",
        )


def _join(values: Any) -> str:
    return ", ".join(str(v) for v in values)
