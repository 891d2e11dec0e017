"""`moescope analyze`: the main job."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from moescope.cli.resume import RUN_MARKS
from moescope.cli.settings import RunArgs, is_begun
from moescope.cli.terminal import errors, output, progress
from moescope.cli.verb import note, verb
from moescope.corpus import CorpusSpec
from moescope.words import counted

if TYPE_CHECKING:
    from moescope.progress import OnProgress
    from moescope.run.reader import Run

_LOCK_SECONDS = 120.0
"""A network file system needs so long to notice that the machine of a lock is gone."""


@verb(marks=RUN_MARKS)
def analyze(settings: RunArgs, resume: bool) -> None:
    """Trace a corpus through a model, compute the tables, write the report.

    The corpus is domain-labelled text: jsonl, parquet, csv or txt, a folder with one file or
    sub-folder per domain, or hf:owner/name.

    Example: moescope analyze allenai/OLMoE-1B-7B-0924 texts/ -o my-run
    """
    corpus, options = settings.corpus_spec(settings.corpus), settings.trace_options()
    from moescope.jobs import analyze as analyze_corpus
    from moescope.jobs import report_on

    with progress(f"loading {settings.model}") as show, output_of(settings, resume) as folder:
        if settings.launches:
            done = report_on(launch_shards(settings, resume, show), on_progress=show)
        else:
            loaded = settings.open_model(show)
            settings.begin(folder)
            done = analyze_corpus(loaded, corpus, folder, options, resume=resume, on_progress=show)
    summarize(done.run)
    output.print(str(done.report), soft_wrap=True)


@contextmanager
def output_of(settings: RunArgs, resume: bool) -> Iterator[Path]:
    """Hold the run's folder, before anything is loaded; a run in it is to be gone on with.

    A scheduler may start the task of a shard again that is still running, so that one waits.
    """
    from moescope.files import nothing_of_bad_input
    from moescope.run.manifest import claim_run, refuse_begun

    wait = 2.0 if settings.shard is None else _LOCK_SECONDS
    with (
        claim_run(settings.out, reads=CorpusSpec(path=settings.corpus).reads, wait=wait) as folder,
        nothing_of_bad_input(folder, unless=lambda: is_begun(folder)),
    ):
        if not settings.launches:
            refuse_begun(folder, resume)
        yield folder


def launch_shards(settings: RunArgs, resume: bool, on_progress: OnProgress) -> Path:
    """Trace by several workers, telling which shards are done."""
    from moescope.launch import LaunchOptions, launch

    settings.begin(Path(settings.out))
    folder = launch(
        settings.model_spec(),
        settings.corpus_spec(settings.corpus),
        settings.out,
        settings.trace_options(),
        settings.given(LaunchOptions),
        engine=settings.engine,
        memory=settings.memory,
        resume=resume,
        on_progress=on_progress,
    )
    if settings.limit is not None:
        note(f"`limit={settings.limit}` counts in each shard by itself", "")
    return folder


def summarize(run: Run) -> None:
    """Say on stderr what was covered, and warn of what was not."""
    from moescope.corpus import notes_on_marks

    coverage, model = run.manifest.coverage, run.manifest.model
    tokens = coverage["tokens_per_router"]
    errors.print(
        f"{tokens:,} tokens of {counted(len(run.domains), 'domain')} through "
        f"{coverage['routers_seen']}/{coverage['routers_expected']} routers"
        + (f", in {run.precision}" if run.precision else ""),
        soft_wrap=True,
    )
    missing = coverage.get("shards_missing")
    if isinstance(missing, list) and missing:
        shown = ", ".join(map(str, missing[:12])) + (" …" if len(missing) > 12 else "")
        note(f"shards not merged: {shown}")
    if model["dtype"] != model["stored_dtype"]:
        note(f"run in {model['dtype']}, stored in {model['stored_dtype']}", "")
    never = coverage.get("experts_never_chosen")
    if isinstance(never, dict) and never:
        count = sum(len(v) for v in never.values())
        first, experts = next(iter(never.items()))
        note(f"experts never chosen: {count}, first L{first}E{experts[0]}")
    skipped = coverage.get("skipped_records")
    if isinstance(skipped, dict) and skipped:
        reasons = ", ".join(f"{n} × {reason}" for reason, n in skipped.items())
        note(f"records left out: {reasons}")
    progress = run.manifest.progress
    found = progress.get("spelt_out", {}), progress.get("unknown_marks", {})
    for remark in notes_on_marks(*found):
        note(remark)
