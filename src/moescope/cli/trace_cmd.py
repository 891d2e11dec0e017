"""`moescope trace`: record routing, without tables or report."""

from __future__ import annotations

import typer

from moescope.cli.analyze_cmd import begin, launch_shards, output_of, summarize
from moescope.cli.common import tracing_progress
from moescope.cli.config import RunConfig, with_run_options
from moescope.cli.terminal import output

_HELP = """Record how every MoE layer routes every token of a corpus, into a run folder.

Example: moescope trace allenai/OLMoE-1B-7B-0924 texts/ -o my-run --keep all --limit 100000
"""


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("trace", help=_HELP)(with_run_options(trace))


def trace(config: RunConfig, resume: bool) -> None:
    """Run the trace and print the run folder."""
    from moescope.run.reader import Run
    from moescope.trace import trace as trace_corpus

    with tracing_progress() as bar, output_of(config) as folder:
        if config.launches:
            launch_shards(config, resume, bar)
        else:
            bar.stage(f"loading {config.model}")
            loaded = config.open_model()
            begin(config, folder)
            bar.stage("tracing")
            trace_corpus(
                loaded,
                config.corpus_spec(),
                folder,
                config.trace_options(),
                resume=resume,
                on_progress=bar.update,
            )
    run = Run(folder)
    summarize(run)
    output.print(str(folder), soft_wrap=True)
