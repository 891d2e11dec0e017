"""Everything that the report shows, as one plain dict that JSON can hold.

The dict is built from a run's tables and nothing else, so it is the same for the same run. Sizes
are bounded: what is thinned for very large models says so on the page, and the tables keep it all.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow.compute as pc

from moescope.errors import RunError
from moescope.metrics.runs import AnalyzedRun
from moescope.metrics.tables import TABLES
from moescope.metrics.view import ALL
from moescope.report.about import about, alerts
from moescope.report.cells import rates, special
from moescope.report.commands import command, expert_commands, reproduce, run_name
from moescope.report.frames import Frame, layer_rows
from moescope.report.layers import committee, flow, histograms, layer_columns, pairs
from moescope.report.summary import headlines, meaning, sentences
from moescope.report.tokens import MAX_SPANS, examples, expert_tokens, routes

MAX_DOMAINS = 48
"""Domains on the page; those with the most tokens."""

_TABLES = (
    "load", "domain_specialization", "information", "phases", "balance", "decisiveness",
    "histograms", "coactivation", "repetition", "committee", "vocabulary_specialization",
    "expert_tokens", "domain_loss", "path_entropy", "flow",
)  # fmt: skip


def report_data(run: AnalyzedRun) -> dict[str, Any]:
    """What the page shows.

    Args:
        run: a finished run; its tables are computed where they are not yet.

    Returns:
        ``about`` (model, corpus, coverage, options, versions), ``alerts``, ``layers``, ``phases``,
        ``views`` (one for each phase), ``texts`` (token id → text), ``commands`` (what asks more
        about an expert), ``again`` (what makes the run again) and ``absent`` (what an imported run
        does not know → why). Numbers are rounded to 4 significant digits; what is not a number
        is None.

    Raises:
        RunError: the run is damaged, or an empty shard.
    """
    if not run.phases:
        raise RunError(
            f"{run.path} holds no token: its shard {run.manifest.corpus.get('shard')} has no text; "
            "merge it with the others and report on the whole"
        )
    domains = _shown_domains(run)
    frames = {name: _frame(run, name) for name in _TABLES}
    facts = about(run, domains or run.domains)
    views = {phase: _view(run, phase, frames, facts, domains) for phase in run.phases}
    first = next(iter(views.values()))
    return {
        "about": facts,
        "alerts": alerts(run, facts, first["loss"]),
        "layers": layer_rows(run.shape.layers, run.shape.num_experts, run.shape.top_k),
        "phases": list(views),
        "views": views,
        "texts": _texts(run, views),
        "commands": {
            **expert_commands(run),
            "profile": command("profile", run_name(run), all=True),
        },
        "again": reproduce(run),
        "absent": {what: run.absent[what] for what in sorted(run.shape.absent)},
    }


def _frame(run: AnalyzedRun, name: str) -> Frame:
    """A table, without a row where the run cannot have it."""
    known = TABLES[name].needs not in run.shape.absent
    if not known:
        return Frame({})
    table = run.table(name)
    if name == "histograms" and table.num_rows:  # the page shows the total; there may be millions
        table = table.filter(pc.equal(table["domain"], ALL))
    return Frame.of(table)


def _shown_domains(run: AnalyzedRun) -> list[str]:
    """Domains with tokens, in the run's order; none when the run has no domains at all."""
    if run.domains == [ALL]:
        return []
    tokens = run.manifest.progress.get("domain_tokens", {})
    present = [n for n in run.domains if tokens.get(n, 0) > 0]
    largest = set(sorted(present, key=lambda n: -tokens[n])[:MAX_DOMAINS])
    return [n for n in present if n in largest]


def _view(
    run: AnalyzedRun,
    phase: str,
    frames: dict[str, Frame],
    facts: dict[str, Any],
    domains: list[str],
) -> dict[str, Any]:
    tables = {name: frame.where(phase=phase) for name, frame in frames.items()}
    layers = list(run.shape.layers)
    starts = np.cumsum([0, *run.shape.num_experts]).tolist()
    offsets = dict(zip(layers, starts[:-1], strict=True))
    present = [n for n in domains if len(tables["load"].where(domain=n))]
    groups = [ALL, *present]

    def columns(name: str) -> dict[str, list[Any]]:
        return layer_columns(tables[name], name, groups)

    view: dict[str, Any] = {
        "domains": present,
        "rates": rates(tables["load"], present),
        "special": special(tables["domain_specialization"], present, offsets),
        "information": columns("information"),
        "bands": columns("phases"),
        "balance": columns("balance"),
        "decisiveness": columns("decisiveness"),
        "histograms": histograms(tables["histograms"], layers),
        "pairs": pairs(tables["coactivation"], tables["load"], layers),
        "flow": flow(
            tables["flow"], _tokens(tables["load"]), dict(zip(layers, run.shape.top_k, strict=True))
        ),
        "routes": _routes(run, phase),
        "repetition": columns("repetition"),
        "committee": committee(tables["committee"], layers),
        "vocabulary": columns("vocabulary_specialization"),
        "expert_tokens": expert_tokens(tables["expert_tokens"], offsets, starts[-1]),
        "loss": columns("domain_loss"),
        "paths": columns("path_entropy"),
        "examples": _examples(run, phase, present or list(run.domains)),
    }
    view["short"] = sentences(view, facts, tables)
    view["titles"] = headlines(view, tables)
    view["meaning"] = meaning(tables["information"])
    return view


def _examples(run: AnalyzedRun, phase: str, domains: list[str]) -> dict[str, Any] | None:
    tokens = run.tokens(phase)
    if tokens is None or not tokens.doc.size:
        return None
    return examples(run, tokens, domains, max(1, MAX_SPANS // len(run.phases)))


def _tokens(load: Frame) -> int:
    """Tokens of a phase, over all domains."""
    rows = load.where(domain=ALL)
    return int(rows["tokens"][0]) if len(rows) else 0


def _routes(run: AnalyzedRun, phase: str) -> dict[str, Any] | None:
    tokens = None if "order" in run.shape.absent else run.tokens(phase)
    return routes(tokens) if tokens is not None and tokens.doc.size else None


def _texts(run: AnalyzedRun, views: dict[str, Any]) -> dict[str, str]:
    """Text of every token id that the page shows."""
    used: set[int] = set()
    for view in views.values():
        for rows in view["expert_tokens"].get("rows", {}).values():
            used.update(rows["id"])
        for span in (view["examples"] or {"spans": []})["spans"]:
            used.update(span["ids"])
        used.update((view["routes"] or {"id": []})["id"])
    return {str(token): run.token_text(token) for token in sorted(used)}
