"""`moescope merge`: finished runs of shards, or of different texts, joined into one."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from moescope.cli.analyze_cmd import summarize
from moescope.cli.terminal import output, status
from moescope.errors import BadInputError

_HELP = """Join finished runs of one model into one run, exactly.

Shards of one corpus (`trace --shard i/n`) become the run of that corpus; a shard that is missing or
given twice is refused. Runs of different texts can be joined if no document is in two of them.

Example: moescope merge parts/01-of-16 parts/02-of-16 -o my-run --partial
"""


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("merge", help=_HELP)(merge)


def merge(
    runs: Annotated[list[Path], typer.Argument(help="folders of finished runs", metavar="RUN...")],
    out: Annotated[str, typer.Option("--out", "-o", help="folder of the joined run")],
    partial: Annotated[
        bool, typer.Option("--partial", help="join though shards are missing; the run says which")
    ] = False,
) -> None:
    """Merge and print the folder."""
    from moescope.run.merge import merge_runs
    from moescope.run.reader import Run

    twice = [r for r, n in Counter(os.path.realpath(run) for run in runs).items() if n > 1]
    if twice:
        raise BadInputError(f"the run {twice[0]} is given twice; give each run once")
    with status("merging") as say:
        folder = merge_runs(runs, out, partial=partial, on_part=lambda run: say(f"merging {run}"))
    summarize(Run(folder))
    output.print(str(folder), soft_wrap=True)
