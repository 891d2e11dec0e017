"""`moescope merge`: finished runs of shards, or of different texts, joined into one."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Annotated

from pydantic import field_validator

from moescope.cli.analyze_cmd import summarize
from moescope.cli.terminal import output, progress
from moescope.cli.verb import Argument, Flag, Settings, verb
from moescope.errors import BadInputError


class MergeArgs(Settings):
    """Everything that `merge` can be told."""

    runs: Annotated[tuple[str, ...], Argument("RUN...")]
    """folders of finished runs"""
    out: Annotated[str, Flag("-o")]
    """folder of the joined run"""
    partial: bool = False
    """join though shards are missing; the run says which"""

    @field_validator("runs")
    @classmethod
    def _each_once(cls, runs: tuple[str, ...]) -> tuple[str, ...]:
        twice = [r for r, n in Counter(os.path.realpath(run) for run in runs).items() if n > 1]
        if twice:
            raise BadInputError(f"the run {twice[0]} is given twice; give each run once")
        return runs


@verb()
def merge(settings: MergeArgs) -> None:
    """Join finished runs of one model into one run, exactly.

    Shards of one corpus (`trace --shard i/n`) become the run of that corpus; a shard that is
    missing or given twice is refused. Runs of different texts can be joined if no document is in
    two of them.

    Example: moescope merge parts/01-of-16 parts/02-of-16 -o my-run --partial
    """
    from moescope.run.manifest import claim_run
    from moescope.run.merge import merge_runs
    from moescope.run.reader import Run

    runs = [Path(run) for run in settings.runs]
    with progress("merging") as show, claim_run(settings.out, reads=runs) as folder:
        merge_runs(runs, folder, partial=settings.partial, on_progress=show)
        settings.write_to(folder)
    summarize(Run(folder))
    output.print(str(folder), soft_wrap=True)
