"""`moescope report`: write the report of a run again, and figures for a paper."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from moescope.cli.terminal import output

_HELP = """Write RUN/report.html, one self-contained file; with --figures also PDF and PNG.

Example: moescope report my-run --figures paper/figures
"""


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("report", help=_HELP)(report)


def report(
    run: Annotated[Path, typer.Argument(help="run folder", metavar="RUN")],
    out: Annotated[str | None, typer.Option("--out", "-o", help="another path of the page")] = None,
    figures: Annotated[str | None, typer.Option(help="folder for PDF and PNG figures")] = None,
) -> None:
    """Write the report."""
    from moescope.files import claim
    from moescope.metrics.runs import open_run
    from moescope.report.figures import write_figures
    from moescope.report.report_page import build_report

    opened = open_run(run)
    with nullcontext() if figures is None else claim(figures, "figures"):
        written = [build_report(opened, out)]
        if figures is not None:
            written += write_figures(opened, figures)
    for path in written:
        output.print(str(path), soft_wrap=True)
