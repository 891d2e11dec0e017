"""`moescope compare`: agreement of two runs over the same text, token by token."""

from __future__ import annotations

from typing import Annotated

from moescope.cli.settings import FormatArgs
from moescope.cli.tables import print_table
from moescope.cli.verb import Argument, verb


class CompareArgs(FormatArgs):
    """Everything that `compare` can be told."""

    run_a: Annotated[str, Argument("RUN")]
    """run folder"""
    run_b: Annotated[str, Argument("RUN")]
    """run folder"""


@verb()
def compare(settings: CompareArgs) -> None:
    """Router saturation and agreement of two runs over the same text (two checkpoints, say).

    Example: moescope compare run-at-10-percent run-at-end
    """
    from moescope.metrics.runs import compare_runs, open_run

    made = compare_runs(open_run(settings.run_a), open_run(settings.run_b))
    print_table(made, settings.format)
