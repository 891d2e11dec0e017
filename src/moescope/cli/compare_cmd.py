"""`moescope compare`: agreement of two runs over the same text, token by token."""

from __future__ import annotations

from typing import Annotated

from moescope.cli.settings import ColumnsArgs
from moescope.cli.tables import heads_of, print_table
from moescope.cli.verb import Argument, verb


class CompareArgs(ColumnsArgs):
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
    from moescope.metrics.runs import COMPARED, compare_runs, open_run
    from moescope.metrics.table import COMMON

    made = compare_runs(open_run(settings.run_a), open_run(settings.run_b))
    heads = heads_of(made, COMPARED, (COMMON | COMPARED).__getitem__)
    print_table(made, settings, heads=heads)
