"""`moescope compare`: agreement of two runs over the same text, token by token."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moescope.cli.common import Format, print_table

_HELP = """Router saturation and agreement of two runs over the same text (two checkpoints, say).

Example: moescope compare run-at-10-percent run-at-end
"""


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("compare", help=_HELP)(compare)


def compare(
    run_a: Annotated[Path, typer.Argument(help="run folder", metavar="RUN")],
    run_b: Annotated[Path, typer.Argument(help="run folder", metavar="RUN")],
    form: Annotated[Format, typer.Option("--format", help="how to print")] = "table",
) -> None:
    """Print the comparison."""
    from moescope.metrics.runs import compare_runs, open_run

    print_table(compare_runs(open_run(run_a), open_run(run_b)), form)
