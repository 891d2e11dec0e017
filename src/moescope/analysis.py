"""The main job in one call: trace a corpus through a model, compute the tables, write the report.

`moescope analyze` and `moescope demo` do nothing but call `analyze`; with a launcher, which traces
by itself, `report_on` does the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from moescope.corpus import CorpusSpec
from moescope.metrics.runs import AnalyzedRun, open_run, table_names
from moescope.models import LoadedModel, ModelSpec, open_model
from moescope.report.page import build_report
from moescope.trace import Progress, TraceOptions, trace

__all__ = ["Analysis", "analyze", "report_on"]


class Analysis(NamedTuple):
    """The finished run and where its report is."""

    run: AnalyzedRun
    report: Path


def analyze(
    model: ModelSpec | LoadedModel,
    corpus: CorpusSpec,
    run: str | Path,
    options: TraceOptions | None = None,
    *,
    resume: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> Analysis:
    """Trace, tables and report.

    Args:
        model: what to load, streamed if it does not fit into memory; or a model that is open.
        corpus: domain-labelled text.
        run: folder to write.
        options: how to trace; see `TraceOptions`.
        resume: go on with an interrupted run.
        on_progress: called after every batch of the trace.
        on_stage: called with a few words when a stage begins.

    Returns:
        The run, with its tables computed, and the path of the report.

    Raises:
        MoescopeError: see the tree in `moescope.errors`; what was committed stays.
    """
    say = on_stage or (lambda _: None)
    if isinstance(model, ModelSpec):
        say(f"loading {model.model}")
        asked = options or TraceOptions()
        model = open_model(model, batch_tokens=asked.batch_tokens, window=asked.context)
    say("tracing")
    folder = trace(model, corpus, Path(run), options, resume=resume, on_progress=on_progress)
    if model.streamed is not None:
        model.streamed.release()  # tables need the memory, and no model
    return report_on(folder, on_stage=on_stage)


def report_on(run: str | Path, *, on_stage: Callable[[str], None] | None = None) -> Analysis:
    """Tables and report of a finished run.

    Args:
        run: its folder.
        on_stage: called with a few words when a stage begins.

    Raises:
        RunError: it is not finished, damaged, or an empty shard, of which nothing can be said.
    """
    say = on_stage or (lambda _: None)
    opened = open_run(run)
    for name in table_names():
        say(f"table {name}")
        opened.table(name)
    say("writing the report")
    return Analysis(opened, build_report(opened))
