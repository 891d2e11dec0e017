"""`moescope analyze`: the main job."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from moescope.cli.common import TraceBar, tracing_progress, write_config
from moescope.cli.config import RunConfig, with_run_options
from moescope.cli.terminal import errors, output

if TYPE_CHECKING:
    from moescope.launch import LaunchProgress
    from moescope.run.reader import Run

_HELP = """Trace a corpus through a model, compute the tables, write the report.

The corpus is domain-labelled text: jsonl, parquet, csv or txt, a folder with one file or
sub-folder per domain, or hf:owner/name.

Example: moescope analyze allenai/OLMoE-1B-7B-0924 texts/ -o my-run
"""


_LOCK_SECONDS = 120.0
"""A network file system needs so long to notice that the machine of a lock is gone."""


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("analyze", help=_HELP)(with_run_options(analyze))


def analyze(config: RunConfig, resume: bool) -> None:
    """Run the main job and print the path of the report."""
    from moescope.jobs import analyze as analyze_corpus
    from moescope.jobs import report_on

    with tracing_progress() as bar, output_of(config) as folder:
        if config.launches:
            done = report_on(launch_shards(config, resume, bar), on_stage=bar.stage)
        else:
            bar.stage(f"loading {config.model}")
            loaded = config.open_model()
            begin(config, folder)
            done = analyze_corpus(
                loaded,
                config.corpus_spec(),
                folder,
                config.trace_options(),
                resume=resume,
                on_progress=bar.update,
                on_stage=bar.stage,
            )
    summarize(done.run)
    output.print(str(done.report), soft_wrap=True)


@contextmanager
def output_of(config: RunConfig) -> Iterator[Path]:
    """Hold the run's folder, before anything is loaded.

    A scheduler may start the task of a shard again that is still running, so that one waits.
    """
    from moescope.files import nothing_of_bad_input
    from moescope.run.manifest import claim_run

    wait = 2.0 if config.shard is None else _LOCK_SECONDS
    with (
        claim_run(config.out, reads=[config.corpus], wait=wait) as folder,
        nothing_of_bad_input(folder, unless=lambda: _is_begun(folder)),
    ):
        yield folder


def _is_begun(folder: Path) -> bool:
    from moescope.launch.job import PARTS
    from moescope.run.manifest import has_progress

    return has_progress(folder) or (folder / PARTS).exists()


def begin(config: RunConfig, folder: Path) -> None:
    """Write down the settings of a run that is about to begin."""
    if not _is_begun(folder):
        write_config(folder, config.model_dump(), begun=False)


def launch_shards(config: RunConfig, resume: bool, bar: TraceBar) -> Path:
    """Trace by several workers, telling which shards are done."""
    from moescope.launch import launch

    begin(config, Path(config.out))
    folder = launch(
        config.model_spec(),
        config.corpus_spec(),
        config.out,
        config.trace_options(),
        config.launch_options(),
        engine=config.engine,
        memory=config.memory,
        resume=resume,
        on_progress=_shard_teller(bar),
        on_stage=bar.stage,
    )
    if config.limit is not None:
        errors.print(f"note: --limit {config.limit} counts in each shard by itself")
    return folder


def _shard_teller(bar: TraceBar) -> Callable[[LaunchProgress], None]:
    """Show shards, tokens and rate in the bar; a line for every shard done and worker lost."""
    from moescope.trace import Progress

    told: set[int] = set()
    lost = 0

    def tell(at: LaunchProgress) -> None:
        nonlocal lost
        bar.stage(f"tracing, {len(at.done)}/{at.shards} shards")
        bar.update(Progress(round(1000 * at.share), 1000, 0, at.tokens))
        for number in [n for n in at.done if n not in told]:
            told.add(number)
            errors.print(f"shard {number}/{at.shards} is done")
        if at.lost > lost:
            lost = at.lost
            errors.print("a worker died; its shard goes on in another one", style="yellow")

    return tell


def summarize(run: Run) -> None:
    """Say on stderr what was covered, and warn of what was not."""
    from moescope.corpus import notes_on_marks

    coverage, model = run.manifest.coverage, run.manifest.model
    tokens = coverage["tokens_per_router"]
    errors.print(
        f"{tokens:,} tokens of {len(run.domains)} domains through "
        f"{coverage['routers_seen']}/{coverage['routers_expected']} routers"
    )
    missing = coverage.get("shards_missing")
    if isinstance(missing, list) and missing:
        shown = ", ".join(map(str, missing[:12])) + (" …" if len(missing) > 12 else "")
        errors.print(f"note: shards not merged: {shown}", style="yellow")
    if model["dtype"] != model["stored_dtype"]:
        errors.print(f"note: run in {model['dtype']}, stored in {model['stored_dtype']}")
    never = coverage.get("experts_never_chosen")
    if isinstance(never, dict) and never:
        count = sum(len(v) for v in never.values())
        first, experts = next(iter(never.items()))
        errors.print(
            f"note: experts never chosen: {count}, first L{first}E{experts[0]}", style="yellow"
        )
    skipped = coverage.get("skipped_records")
    if isinstance(skipped, dict) and skipped:
        reasons = ", ".join(f"{n} × {reason}" for reason, n in skipped.items())
        errors.print(f"note: records left out: {reasons}", style="yellow")
    progress = run.manifest.progress
    found = progress.get("spelt_out", {}), progress.get("unknown_marks", {})
    for note in notes_on_marks(*found):
        errors.print(f"note: {note}", style="yellow", soft_wrap=True)
