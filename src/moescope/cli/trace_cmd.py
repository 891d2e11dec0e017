"""`moescope trace`: record routing, without tables or report."""

from __future__ import annotations

from moescope.cli.analyze_cmd import launch_shards, output_of, summarize
from moescope.cli.resume import RUN_MARKS
from moescope.cli.settings import RunArgs
from moescope.cli.terminal import output, progress
from moescope.cli.verb import verb


@verb(marks=RUN_MARKS)
def trace(settings: RunArgs, resume: bool) -> None:
    """Record how every MoE layer routes every token of a corpus, into a run folder.

    Example: moescope trace allenai/OLMoE-1B-7B-0924 texts/ -o my-run --keep all --limit 100000
    """
    corpus, options = settings.corpus_spec(settings.corpus), settings.trace_options()
    from moescope.run.reader import Run
    from moescope.trace import trace as trace_corpus

    with progress(f"loading {settings.model}") as show, output_of(settings, resume) as folder:
        if settings.launches:
            launch_shards(settings, resume, show)
        else:
            loaded = settings.open_model(show)
            settings.begin(folder)
            trace_corpus(loaded, corpus, folder, options, resume=resume, on_progress=show)
    summarize(Run(folder))
    output.print(str(folder), soft_wrap=True)
