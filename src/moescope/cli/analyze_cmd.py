"""`moescope analyze`: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from moescope.cli.common import errors, output, tracing_progress, write_config
from moescope.cli.config import RunConfig, with_run_options

if TYPE_CHECKING:
    from moescope.trace import Run

_HELP = """Trace a corpus through a model, compute the tables, write the report.

The corpus is domain-labelled text: jsonl, parquet, csv or txt, a folder with one file or
sub-folder per domain, or hf:owner/name.

Example: moescope analyze allenai/OLMoE-1B-7B-0924 texts/ -o my-run
"""


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("analyze", help=_HELP)(with_run_options(analyze))


def analyze(config: RunConfig, resume: bool) -> None:
    """Run the main job and print the path of the report."""
    from moescope.analysis import analyze as analyze_corpus

    with tracing_progress() as bar:
        bar.stage(f"loading {config.model}")
        done = analyze_corpus(
            config.open_model(),
            config.corpus_spec(),
            config.out,
            config.trace_options(),
            resume=resume,
            on_progress=bar.update,
            on_stage=bar.stage,
        )
    write_config(Path(config.out), config.model_dump())
    summarize(done.run)
    output.print(str(done.report), soft_wrap=True)


def summarize(run: Run) -> None:
    """Say on stderr what was covered, and warn of what was not."""
    coverage, model = run.manifest.coverage, run.manifest.model
    tokens = coverage["tokens_per_router"]
    errors.print(
        f"{tokens:,} tokens of {len(run.domains)} domains through "
        f"{coverage['routers_seen']}/{coverage['routers_expected']} routers"
    )
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
        errors.print(f"note: records left out: {reasons}", style="yellow", markup=False)
